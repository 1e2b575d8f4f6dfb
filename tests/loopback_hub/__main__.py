"""Start a hub by hand: `python -m tests.loopback_hub --port 8080 --dir DIR`, then set the variables it prints."""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import threading
from pathlib import Path

from tests.loopback_hub.protocol import ACCOUNTS
from tests.loopback_hub.server import HubServer

CLIENT_VARIABLES = {
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "HF_UPDATE_DOWNLOAD_COUNTS": "0",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.loopback_hub", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0: any free one")
    parser.add_argument("--dir", type=Path, required=True, help="folder of the repositories; kept when the hub ends")
    parser.add_argument("--quiet", action="store_true", help="no line for each request")
    parser.add_argument("--socket_fd", type=int, help="take over a bound socket (for the tests)")
    parser.add_argument("--until_stdin_ends", action="store_true", help="end with the parent process (for the tests)")
    args = parser.parse_args()
    logging.basicConfig(level=logging.ERROR if args.quiet else logging.INFO, format="%(asctime)s %(message)s")
    sock = None if args.socket_fd is None else socket.socket(fileno=args.socket_fd)
    server = HubServer(args.dir.resolve(), args.port, sock)
    if args.until_stdin_ends:
        threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    token = next(iter(ACCOUNTS[0].tokens))
    print(f"# a hub over {server.hub.store.folder}; in the client's shell:")
    for name, value in {"HF_ENDPOINT": server.endpoint, "HF_TOKEN": token, **CLIENT_VARIABLES}.items():
        print(f"export {name}={value}")
    print(f"export HF_HOME={server.hub.store.folder / 'client-cache'}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("# ended")


if __name__ == "__main__":
    main()
