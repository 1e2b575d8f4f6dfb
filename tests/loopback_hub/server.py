"""The HTTP server: reads requests, applies faults, calls the handlers, sends answers; keeps a log of requests."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import socket
import tempfile
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from tests.loopback_hub import discussions, files, repos, uploads  # noqa: F401  (they register their routes)
from tests.loopback_hub.faults import Fault, Faults
from tests.loopback_hub.protocol import ROUTES, Hub, HubError, Request, Response, as_json
from tests.loopback_hub.store import Store

logger = logging.getLogger("tests.loopback_hub")
CHUNK = 1 << 16
IN_MEMORY = 8 << 20


class Dropped(Exception):
    """The connection is to be closed without a further byte."""


class HubServer(ThreadingHTTPServer):
    """Listens on 127.0.0.1 at `port` (0: any free one), or on the bound socket handed over as `sock`."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, folder: Path, port: int = 0, sock: socket.socket | None = None, page_size: int = 1000) -> None:
        super().__init__(("127.0.0.1", port), _Handler, bind_and_activate=False)
        if sock is not None:
            self.socket.close()
            self.socket = sock
            self.server_address = sock.getsockname()
            self.server_name, self.server_port = "127.0.0.1", self.server_address[1]
        else:
            self.server_bind()
        self.server_activate()
        self.hub = Hub(Store(folder), page_size=page_size)
        self.faults = Faults()
        self.log: list[dict] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def start(self) -> HubServer:
        """Serve in a thread of this process."""
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def handle_error(self, request: object, client_address: object) -> None:
        logger.debug("connection lost", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = CHUNK
    timeout = 60
    server: HubServer

    def _serve(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        fault = None if path.startswith("/_hub/") else self.server.faults.take(self.command, path)
        entry = {"method": self.command, "path": path, "range": self.headers.get("Range"), "status": None}
        entry["fault"] = fault.kind if fault else None
        if not path.startswith("/_hub/"):
            self.server.log.append(entry)
        try:
            with tempfile.SpooledTemporaryFile(max_size=IN_MEMORY) as body:
                self._read_body(body, fault)
                response = self._answer(url.path, url.query, body, fault)
            entry["status"] = response.status
            self._send(response, fault)
        except (Dropped, ConnectionError):
            entry["status"] = entry["status"] or "dropped"
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    # -- the request's body ------------------------------------------------------------------------------------------

    def _body_chunks(self):
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while size := int(self.rfile.readline().split(b";")[0], 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length") or 0)
            while left:
                chunk = self.rfile.read(min(left, CHUNK))
                if not chunk:
                    raise Dropped
                left -= len(chunk)
                yield chunk

    def _read_body(self, body, fault: Fault | None) -> None:
        for chunk in self._body_chunks():
            body.write(chunk)
            if fault and fault.kind == "drop_upload" and body.tell() > fault.after:
                raise Dropped
        body.seek(0)

    # -- the answer --------------------------------------------------------------------------------------------------

    def _answer(self, path: str, query: str, body, fault: Fault | None) -> Response:
        if fault and fault.kind == "status":
            headers = {} if fault.retry_after is None else {"Retry-After": str(fault.retry_after)}
            message = fault.message or f"injected: status {fault.status}"
            return as_json({"error": message}, fault.status, **{"X-Error-Message": message}, **headers)
        headers = {name.lower(): value for name, value in self.headers.items()}
        endpoint = f"http://{headers.get('host', urlsplit(self.server.endpoint).netloc)}"
        request = Request(self.command, path, parse_qs(query), headers, body, endpoint, self.server.hub)
        try:
            if path.startswith("/_hub/"):
                return self._admin(path, request)
            return dispatch(request)
        except HubError as error:
            code = {"X-Error-Code": error.code} if error.code else {}
            return as_json({"error": error.message}, error.status, **{"X-Error-Message": error.message}, **code)
        except (KeyError, ValueError) as error:  # a field that is missing or makes no sense
            logger.warning("%s %s\n%s", self.command, path, traceback.format_exc())
            return as_json({"error": f"bad request: {error}"}, 400)
        except Exception:
            logger.error("%s %s\n%s", self.command, path, traceback.format_exc())
            return as_json({"error": traceback.format_exc()}, 500)

    def _admin(self, path: str, request: Request) -> Response:
        """Set and read faults, read and empty the log: for the tests, no part of the Hub's protocol."""
        server = self.server
        match self.command, path:
            case "POST", "/_hub/faults":
                try:
                    server.faults.add(**request.json())
                except (TypeError, ValueError) as error:
                    raise HubError(400, str(error)) from error
            case "DELETE", "/_hub/faults":
                server.faults.clear()
            case "DELETE", "/_hub/log":
                server.log.clear()
            case "GET", "/_hub/log":
                return as_json(list(server.log))
            case "GET", "/_hub/faults":
                pass
            case _:
                raise HubError(404, path)
        return as_json([dataclasses.asdict(fault) for fault in server.faults.all()])

    def _send(self, response: Response, fault: Fault | None) -> None:
        if fault and fault.kind == "lose":
            raise Dropped
        self.send_response(response.status)
        for name, value in {"Content-Type": "application/octet-stream", **response.headers}.items():
            self.send_header(name, value.encode("ascii", "replace").decode())
        self.send_header("Content-Length", str(response.length))
        self.end_headers()
        sent = 0
        for chunk in [] if self.command == "HEAD" else _chunks(response):
            if fault and fault.kind == "drop" and sent + len(chunk) > fault.after:
                self.wfile.write(chunk[: fault.after - sent])
                self.wfile.flush()
                raise Dropped
            self.wfile.write(chunk)
            sent += len(chunk)
        self.wfile.flush()

    def log_message(self, format: str, *args: object) -> None:
        logger.info(format, *args)


def dispatch(request: Request) -> Response:
    """Call the handler of the first route that fits; groups of the path are unquoted only after matching.

    HEAD is answered wherever GET is (`_send` leaves the body out), and a slash at the end counts for nothing: both are
    how a mirror asks (olah).
    """
    asked, path = "GET" if request.method == "HEAD" else request.method, request.path.rstrip("/")
    for method, pattern, handler in ROUTES:
        if method == asked and (match := pattern.fullmatch(path)):
            groups = {name: unquote(value) for name, value in match.groupdict().items()}
            kind = (groups.pop("kinds", None) or groups.pop("prefix", None) or "models").strip("/").removesuffix("s")
            takes_kind = {"kinds", "prefix"} & set(match.groupdict())
            groups.pop("prefix", None)
            return handler(request, **({"kind": kind} if takes_kind else {}), **groups)
    raise HubError(404, f"no such page: {request.path}", "RepoNotFound" if request.method in ("GET", "HEAD") else None)


def _chunks(response: Response):
    if isinstance(response.body, bytes):
        yield response.body[response.start : response.stop]
        return
    with response.body.open("rb") as stream:
        stream.seek(response.start)
        left = response.length
        while left and (chunk := stream.read(min(left, CHUNK))):
            left -= len(chunk)
            yield chunk
