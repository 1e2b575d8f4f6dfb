"""Pull requests: opened by a commit (uploads.py), listed, closed. There is no merging, and nothing to discuss."""

from __future__ import annotations

import time

from tests.loopback_hub.protocol import HubError, Request, Response, as_json, route
from tests.loopback_hub.repos import stamp
from tests.loopback_hub.store import Repo


def open_pull_request(repo: Repo, author: str, title: str, base: str) -> int:
    """A new pull request whose ref starts at the commit `base`. Returns its number."""
    known = repo.load("discussions")
    number = len(known["items"]) + 1
    item = {"num": number, "title": title, "author": author, "createdAt": stamp(time.time()), "status": "open"}
    known["items"].append(item)
    repo.save("discussions", known)
    repo.set_ref(f"refs/pr/{number}", base)
    return number


def summary(repo: Repo, item: dict) -> dict:
    return item | {
        "author": {"name": item["author"]},
        "isPullRequest": True,
        "repo": {"name": repo.id, "type": repo.kind},
    }


@route("GET", "API/discussions")
def list_all(request: Request, kind: str, namespace: str, name: str) -> Response:
    repo = request.hub.repo(request, kind, namespace, name)
    items = [summary(repo, item) for item in reversed(repo.load("discussions")["items"])]
    wanted, status, author = (request.option(key) for key in ("type", "status", "author"))
    items = [
        item
        for item in items
        if wanted != "discussion" and status in ("", "all", item["status"]) and author in ("", item["author"]["name"])
    ]
    start = 50 * int(request.option("p") or 0)
    return as_json({"discussions": items[start : start + 50], "count": len(items), "start": start})


@route("POST", "API/discussions/{number}/status")
def change_status(request: Request, kind: str, namespace: str, name: str, number: str) -> Response:
    repo = request.hub.repo(request, kind, namespace, name, "write")
    author, status = request.require_user().name, request.json()["status"]
    with request.hub.store.lock:
        known = repo.load("discussions")
        item = next((item for item in known["items"] if str(item["num"]) == number), None)
        if item is None:
            raise HubError(404, f"no discussion {number}", "EntryNotFound")
        item["status"] = status
        repo.save("discussions", known)
    event = {"id": f"{1:024d}", "type": "status-change", "createdAt": stamp(time.time()), "author": {"name": author}}
    return as_json({"newStatus": event | {"data": {"status": status}}})
