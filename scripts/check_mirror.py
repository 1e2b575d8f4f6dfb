"""Read what a run publishes through an independent server, and compare every byte.

    python3 -m venv /tmp/olah && /tmp/olah/bin/pip install olah==0.5.4
    python scripts/check_mirror.py RUN_DIR --olah /tmp/olah/bin/olah-cli

A hub is started here (tests/loopback_hub), the run is published there (as private repositories), and olah, a mirror
of the Hub that others wrote, is pointed at it. A fresh client then reads through olah alone: `snapshot_download` of
every repository must give the bytes that plain `git` finds in the repository's commit, and `load_dataset` of every
config, also streaming, the rows of the run's own parquet files.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
REPOS = {  # what `publish run` makes -> its folder in the hub's store
    ("model", "alice/movies"): "models",
    ("dataset", "alice/movies-data"): "datasets",
    ("dataset", "alice/movies-index"): "datasets",
    ("space", "alice/ndcg_hr"): "spaces",
}
UPLOAD = """
import sys
from huggingface_hub import HfApi
HfApi().create_repo("alice/base")
HfApi().upload_folder(repo_id="alice/base", folder_path=sys.argv[1])
"""
SNAPSHOTS = """
import json, sys
from huggingface_hub import snapshot_download
for kind, name, target in json.loads(sys.argv[1]):
    snapshot_download(name, repo_type=kind, local_dir=target)
"""
ROWS = """
import sys
from pathlib import Path
import pyarrow.parquet as pq
from datasets import load_dataset
for file in sorted(Path(sys.argv[1]).glob("*/*.parquet")):
    config, split = file.parent.name, file.stem
    own = pq.read_table(file).to_pylist()
    if own:
        assert load_dataset("alice/movies-data", config, split=split).to_list() == own, file
        assert list(load_dataset("alice/movies-data", config, split=split, streaming=True)) == own, file
        print(f"load_dataset {config} {split}: {len(own)} rows equal, also streaming")
"""


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    """Return when the server answers anything at all."""
    for _ in range(300):
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5).close()
            return
        except urllib.error.HTTPError:
            return
        except OSError:
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise SystemExit(f"nothing answers at {url}")


def git_files(repo: Path) -> dict[str, bytes]:
    """Path -> content at main, by git itself; LFS pointers are followed into the store."""

    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", "-C", str(repo), *arguments], check=True, capture_output=True).stdout

    files = {}
    for path in git("ls-tree", "-r", "-z", "--name-only", "main").decode().split("\0")[:-1]:
        content = git("cat-file", "blob", f"main:{path}")
        if content.startswith(b"version https://git-lfs.github.com/spec/v1\n"):
            digest = content.split(b"oid sha256:")[1].split()[0].decode()
            content = (repo / "lfs" / "objects" / digest[:2] / digest[2:4] / digest).read_bytes()
        files[path] = content
    return files


def check(run_dir: Path, base: Path, olah: Path, place: Path) -> None:
    """Publish, mirror, read, compare. Raises SystemExit with the first difference."""
    from tests.loopback_hub.__main__ import CLIENT_VARIABLES

    hub_port, mirror_port = free_port(), free_port()
    hub_url, mirror_url = f"http://127.0.0.1:{hub_port}", f"http://127.0.0.1:{mirror_port}"
    known = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    known |= {**CLIENT_VARIABLES, "HF_TOKEN": "hf_alice_write", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}

    def client(url: str, home: str, *command: str) -> None:
        variables = known | {"HF_ENDPOINT": url, "HF_HOME": str(place / home)}
        subprocess.run([sys.executable, *command], env=variables, cwd=PROJECT, check=True)

    hub_command = [
        sys.executable,
        "-m",
        "tests.loopback_hub",
        "--port",
        str(hub_port),
        "--dir",
        str(place / "hub"),
        "--quiet",
    ]
    mirror_command = [str(olah), "--host", "127.0.0.1", "--port", str(mirror_port), "--hf-scheme", "http"]
    mirror_command += ["--hf-netloc", f"127.0.0.1:{hub_port}", "--hf-lfs-netloc", f"127.0.0.1:{hub_port}"]
    mirror_command += ["--mirror-netloc", f"127.0.0.1:{mirror_port}", "--repos-path", str(place / "mirror")]
    mirror_command += ["--log-path", str(place / "logs")]
    started: list[subprocess.Popen[bytes]] = []
    with (place / "olah.log").open("wb") as log:
        try:
            started.append(subprocess.Popen(hub_command, cwd=PROJECT, stdout=subprocess.DEVNULL))
            wait_for(hub_url, started[-1])
            client(hub_url, "writer", "-c", UPLOAD, str(base))
            publish = ["-m", "bigrec_hf.publish", "run", "--run_dir", str(run_dir), "--repo_id", "alice/movies"]
            publish += ["--dataset_repo_id", "alice/movies-data", "--base_model", "alice/base", "--private"]
            client(hub_url, "writer", *publish)
            started.append(subprocess.Popen(mirror_command, cwd=place, stdout=log, stderr=log))
            wait_for(mirror_url, started[-1])
            wanted = [(kind, name, str(place / "read" / kind / name)) for kind, name in REPOS]
            client(mirror_url, "reader", "-c", SNAPSHOTS, json.dumps(wanted))
            client(mirror_url, "reader", "-c", ROWS, str(run_dir / "data" / "data"))
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait(timeout=20)
    for (kind, name), folder in REPOS.items():
        published = git_files(place / "hub" / folder / name)
        read = place / "read" / kind / name
        found = {path.relative_to(read).as_posix() for path in read.rglob("*") if path.is_file()}
        found = {path for path in found if not path.startswith(".cache/")}
        if found != set(published):
            raise SystemExit(f"{name}: other files through the mirror: {sorted(found ^ set(published))}")
        for path, content in published.items():
            if (read / path).read_bytes() != content:
                raise SystemExit(f"{name}: {path} differs through the mirror")
        size = sum(map(len, published.values()))
        print(f"snapshot_download {kind} {name}: {len(published)} files, {size:,} bytes equal")
    answered = (place / "olah.log").read_text(errors="replace").count('HTTP/1.1" 200')
    print(f"olah answered {answered} requests with 200")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path)
    default = PROJECT / ".assets/SmolLM2-135M-Instruct"
    parser.add_argument("--base", type=Path, default=default, help="folder of the run's base model")
    parser.add_argument("--olah", type=Path, required=True, help="the program olah-cli")
    args = parser.parse_args()
    sys.path.insert(0, str(PROJECT))
    with tempfile.TemporaryDirectory(prefix="bigrec-hf-mirror-") as place:
        check(args.run_dir.resolve(), args.base.resolve(), args.olah.resolve(), Path(place))


if __name__ == "__main__":
    main()
