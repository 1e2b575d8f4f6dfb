"""Faults that the server commits on request: which requests they meet, how often, and what goes wrong."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase

KINDS = {
    "status": "answer `status` (with `retry_after` and `message`) instead of handling the request",
    "drop": "close the connection after `after` bytes of the answer's body",
    "drop_upload": "close the connection after `after` bytes of the request's body, before handling it",
    "lose": "handle the request, then close the connection without an answer",
}


@dataclass
class Fault:
    """One fault. `path` is a glob over the unquoted path; it meets `count` requests (None: all) after `skip` others."""

    kind: str
    path: str = "*"
    method: str | None = None
    count: int | None = 1
    skip: int = 0
    status: int = 503
    retry_after: int | None = None
    message: str | None = None
    after: int = 0
    hits: int = field(default=0)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"fault '{self.kind}': one of {', '.join(KINDS)}")

    def meets(self, method: str, path: str) -> bool:
        return (self.method is None or self.method == method) and fnmatchcase(path, self.path)


class Faults:
    """The faults that are set; safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._faults: list[Fault] = []

    def add(self, **values: object) -> Fault:
        unknown = set(values) - {item.name for item in fields(Fault)}
        if unknown:
            raise ValueError(f"a fault has no {', '.join(sorted(unknown))}")
        fault = Fault(**values)
        with self._lock:
            self._faults.append(fault)
        return fault

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def all(self) -> list[Fault]:
        with self._lock:
            return list(self._faults)

    def take(self, method: str, path: str) -> Fault | None:
        """The first fault that this request meets, counted as met."""
        with self._lock:
            for fault in self._faults:
                if fault.meets(method, path) and (fault.count is None or fault.hits < fault.count + fault.skip):
                    fault.hits += 1
                    if fault.hits > fault.skip:
                        return fault
        return None
