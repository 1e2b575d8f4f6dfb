"""The fixture `hub`: the server in its own process, and everything in this process pointed at it.

huggingface_hub, datasets and evaluate read HF_ENDPOINT, HF_HOME and the rest when they are imported. So
`tests/conftest.py` takes ENVIRONMENT from here before anything imports them: the port is claimed at that moment by a
bound socket, which the server inherits when the first test asks for the fixture. Until then, and after each test, the
clients are offline; in a test with `hub` they are online, and HF_TOKEN is that of alice, who may write to `alice/...`
and `acme/...`. What must happen on a machine that has never seen the hub runs in `hub.run_python`.
"""

from __future__ import annotations

import atexit
import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.helpers.processes import HANG, ROOT
from tests.loopback_hub.__main__ import CLIENT_VARIABLES
from tests.loopback_hub.protocol import ACCOUNTS
from tests.loopback_hub.store import Repo, Store

if TYPE_CHECKING:
    from huggingface_hub import HfApi

TOKENS = {user.name: next(iter(user.tokens)) for user in ACCOUNTS}
_SOCKET = socket.socket()
_SOCKET.bind(("127.0.0.1", 0))
_HOME = tempfile.mkdtemp(prefix="bigrec-hf-tests-")
atexit.register(shutil.rmtree, _HOME, ignore_errors=True)

# the clients' own time limits are ten seconds, which a busy machine can take for an answer
PATIENCE = {"HF_HUB_ETAG_TIMEOUT": str(HANG), "HF_HUB_DOWNLOAD_TIMEOUT": str(HANG)}
ENVIRONMENT = {
    "HF_ENDPOINT": f"http://127.0.0.1:{_SOCKET.getsockname()[1]}",
    "HF_HOME": _HOME,
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    **PATIENCE,
    **CLIENT_VARIABLES,
}
ONLINE = {"HF_HUB_OFFLINE": "0", "HF_EVALUATE_OFFLINE": "0"}


@dataclass
class FaultsHandle:
    """Sets faults in the server; the arguments are those of `tests.loopback_hub.faults.Fault`."""

    endpoint: str

    def add(self, kind: str, path: str = "*", **values: object) -> None:
        _call("POST", f"{self.endpoint}/_hub/faults", {"kind": kind, "path": path, **values})

    def clear(self) -> None:
        _call("DELETE", f"{self.endpoint}/_hub/faults")

    def all(self) -> list[dict]:
        """The faults with `hits`, the number of requests that each has met."""
        return _call("GET", f"{self.endpoint}/_hub/faults")


@dataclass
class HubHandle:
    """What tests hold: `endpoint`, `tokens` by user name, `faults`, and the store's `folder` on disk."""

    endpoint: str
    folder: Path
    tokens: dict[str, str] = field(default_factory=lambda: dict(TOKENS))
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @property
    def faults(self) -> FaultsHandle:
        return FaultsHandle(self.endpoint)

    def api(self, user: str | None = "alice") -> HfApi:
        """The real client, with that user's token, or with none."""
        from huggingface_hub import HfApi

        return HfApi(endpoint=self.endpoint, token=self.tokens[user] if user else False)

    def new_id(self, name: str, namespace: str = "alice") -> str:
        """A repository id that no other test uses."""
        return f"{namespace}/{name}-{next(self._numbers)}"

    def requests(self, path: str = "*", method: str | None = None) -> list[dict]:
        """The requests of this test so far, as {method, path, range, status, fault}."""
        found = _call("GET", f"{self.endpoint}/_hub/log")
        return [item for item in found if fnmatchcase(item["path"], path) and method in (None, item["method"])]

    def repo(self, kind: str, repo_id: str) -> Repo | None:
        """The repository as it lies on disk (a bare git repository)."""
        return Store(self.folder).find(kind, repo_id)

    def environment(self, user: str | None = "alice", home: Path | None = None) -> dict[str, str]:
        """The environment of a client process; `home` is its HF_HOME, a new empty one if not given."""
        home = home or self.folder / "homes" / str(next(self._numbers))
        known = {key: value for key, value in os.environ.items() if key != "HF_TOKEN"}
        token = {"HF_TOKEN": self.tokens[user]} if user else {}
        return known | ENVIRONMENT | ONLINE | token | {"HF_HOME": str(home), "HF_ENDPOINT": self.endpoint}

    def run_python(
        self,
        script: str | Path,
        *arguments: object,
        user: str | None = "alice",
        home: Path | None = None,
        check: bool = True,
        cwd: str | Path = ROOT,
        **env: str,
    ) -> subprocess.CompletedProcess[str]:
        """Run code, or a script given as a Path, in a fresh Python at the hub; an error shows the process's output."""
        what = [str(script)] if isinstance(script, Path) else ["-c", script]
        done = subprocess.run(
            [sys.executable, *what, *map(str, arguments)],
            env=self.environment(user, home) | env,
            cwd=cwd,
            timeout=HANG,
            text=True,
            capture_output=True,
        )
        if check and done.returncode:
            raise AssertionError(f"the client ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done


def _call(method: str, url: str, values: dict | None = None) -> list[dict]:
    request = urllib.request.Request(url, method=method, data=json.dumps(values).encode() if values else None)
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=HANG) as response:
        return json.load(response)


@pytest.fixture(scope="session")
def hub_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubHandle]:
    """The server's process, started once; it ends with this one, however that ends."""
    folder = tmp_path_factory.mktemp("hub")
    command = [sys.executable, "-m", "tests.loopback_hub", "--dir", str(folder), "--quiet", "--until_stdin_ends"]
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "--socket_fd", str(_SOCKET.fileno())],
            pass_fds=[_SOCKET.fileno()],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    handle = HubHandle(ENVIRONMENT["HF_ENDPOINT"], folder)
    if not any("HF_HOME" in line for line in process.stdout):  # the last line that it prints: it listens
        raise RuntimeError(f"the hub did not start: {(folder / 'server.log').read_text()}")
    yield handle
    process.stdin.close()
    process.wait(timeout=HANG)


@contextmanager
def online(hub: HubHandle, user: str = "alice") -> Iterator[None]:
    """The clients of this process are online and logged in. Fixtures of a wider scope than a test use it themselves."""
    import datasets.config
    import evaluate.config
    import huggingface_hub.constants

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ONLINE, "HF_TOKEN": hub.tokens[user]}.items():
            patch.setenv(name, value)
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        patch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", False)
        yield


@pytest.fixture
def hub(hub_server: HubHandle) -> Iterator[HubHandle]:
    """The hub without faults and with an empty log; the clients of this process are online, as alice."""
    hub_server.faults.clear()
    _call("DELETE", f"{hub_server.endpoint}/_hub/log")
    with online(hub_server):
        yield hub_server
    hub_server.faults.clear()
