"""Requests, answers, errors and the table of routes; who may do what."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from tests.loopback_hub.store import Repo, Store


@dataclass(frozen=True)
class User:
    name: str
    orgs: tuple[str, ...] = ()
    tokens: dict[str, str] = field(default_factory=dict)  # token -> "write" | "read" | "expired"


ACCOUNTS = (
    User("alice", ("acme",), {"hf_alice_write": "write", "hf_alice_read": "read", "hf_alice_expired": "expired"}),
    User("bob", (), {"hf_bob_write": "write", "hf_bob_read": "read"}),
)


class HubError(Exception):
    """An answer with an error status; `code` is the X-Error-Code by which clients choose their exception."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


@dataclass
class Response:
    """`body` is bytes, or a file of which `start:stop` is sent."""

    status: int = 200
    body: bytes | Path = b""
    headers: dict[str, str] = field(default_factory=dict)
    start: int = 0
    stop: int | None = None

    @property
    def length(self) -> int:
        size = len(self.body) if isinstance(self.body, bytes) else self.body.stat().st_size
        return (size if self.stop is None else self.stop) - self.start


def as_json(value: object, status: int = 200, **headers: str) -> Response:
    head = {"Content-Type": "application/json; charset=utf-8", **headers}
    return Response(status, json.dumps(value).encode(), head)


@dataclass
class Request:
    method: str
    path: str  # still quoted
    query: dict[str, list[str]]
    headers: dict[str, str]  # names in lower case
    body: BinaryIO
    endpoint: str
    hub: Hub

    def option(self, name: str) -> str:
        return self.query.get(name, [""])[0]

    def flag(self, name: str) -> bool:
        return self.option(name).lower() in ("1", "true")

    def json(self) -> dict:
        try:
            return json.loads(self.body.read() or b"{}")
        except ValueError as error:
            raise HubError(400, f"the request's body is no JSON: {error}") from error

    def identify(self) -> tuple[User | None, str]:
        """The user and the token's role; (None, "") without a token. Unknown and expired tokens are refused."""
        token = self.headers.get("authorization", "").removeprefix("Bearer ").strip()
        if not token:
            return None, ""
        for user in self.hub.accounts:
            if user.tokens.get(token) == "expired":
                raise HubError(401, "User Access Token is expired")
            if token in user.tokens:
                return user, user.tokens[token]
        raise HubError(401, "Invalid credentials in Authorization header")

    def require_user(self) -> User:
        user, _ = self.identify()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        return user

    def require_owner(self, namespace: str) -> User:
        """The user, where the token may write below `namespace`."""
        user, role = self.identify()
        if user is None:
            raise HubError(401, "Invalid username or password.")
        if role != "write" or namespace not in (user.name, *user.orgs):
            raise HubError(403, f"You don't have the rights to write below the namespace '{namespace}'")
        return user


@dataclass
class Hub:
    """What the handlers share."""

    store: Store
    accounts: tuple[User, ...] = ACCOUNTS
    page_size: int = 1000
    secret: bytes = field(default_factory=lambda: secrets.token_bytes(16))

    def repo(self, request: Request, kind: str, namespace: str, name: str, access: str = "read") -> Repo:
        """The repository, where the request may have `access`: read (its face), files, discuss or write."""
        user, _ = request.identify()
        repo = self.store.find(kind, f"{namespace}/{name}")
        own = user is not None and namespace in (user.name, *user.orgs)
        if repo is None or (repo.load("settings")["private"] and not own):
            if user is None:  # as on the Hub: whoever is not logged in does not learn whether it exists
                raise HubError(401, "Invalid username or password.", "RepoNotFound")
            raise HubError(404, "Repository not found", "RepoNotFound")
        settings = repo.load("settings")
        if access == "files" and settings["gated"] and not own and (not user or user.name not in settings["granted"]):
            hint = "You are not in the authorized list; ask for access on the repo's page."
            message = f"Access to {kind} {repo.id} is restricted. {hint if user else 'Please log in.'}"
            raise HubError(403 if user else 401, message, "GatedRepo")
        if access == "write":
            request.require_owner(namespace)
        if access == "discuss":
            request.require_user()
        return repo

    def writable(self, request: Request, kind: str, namespace: str, name: str, revision: str) -> Repo:
        """The repository, where the request may commit to `revision`: anyone logged in may to a pull request."""
        open_to_all = request.flag("create_pr") or revision.startswith("refs/pr/")
        return self.repo(request, kind, namespace, name, "discuss" if open_to_all else "write")

    @staticmethod
    def commit(repo: Repo, revision: str) -> str:
        oid = repo.resolve(revision)
        if oid is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid


Handler = Callable[..., Response]
ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []
SHORTHANDS = {
    "API": r"/api/(?P<kinds>models|datasets|spaces)/{namespace}/{name}",
    "WEB": r"/(?P<prefix>datasets/|spaces/|){namespace}/{name}",
    "GIT": r"/(?P<prefix>datasets/|spaces/|){namespace}/{name}\.git",
}


def route(methods: str, pattern: str) -> Callable[[Handler], Handler]:
    """Register a handler for e.g. `API/tree/{revision}`; `{path*}` spans slashes, other names do not."""
    for short, long in SHORTHANDS.items():
        pattern = re.sub(rf"^{short}\b", lambda _, long=long: long, pattern)
    pattern = re.sub(r"\{([a-z]+)\*\}", r"(?P<\1>.+)", pattern)
    compiled = re.compile(re.sub(r"\{([a-z]+)\}", r"(?P<\1>[^/]+)", pattern))

    def register(handler: Handler) -> Handler:
        ROUTES.extend((method, compiled, handler) for method in methods.split())
        return handler

    return register
