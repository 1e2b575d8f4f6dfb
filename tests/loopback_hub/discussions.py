"""Discussions and pull requests."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from tests.loopback_hub.protocol import HubError, Request, Response, as_json, route
from tests.loopback_hub.repos import stamp
from tests.loopback_hub.store import Repo


def event(kind: str, author: str, number: int, **data: object) -> dict:
    made = {"id": f"{number:024d}", "type": kind, "createdAt": stamp(time.time())}
    return {**made, "author": {"name": author}, "data": data}


def comment(author: str, number: int, text: str) -> dict:
    latest = {"raw": text, "html": text, "updatedAt": stamp(time.time()), "author": {"name": author}}
    return event("comment", author, number, edited=False, hidden=False, latest=latest, history=[])


def open_discussion(
    repo: Repo, author: str, title: str, text: str, *, base: str | None = None, status: str = "open"
) -> int:
    """A new discussion; with `base` (a commit) a pull request, whose ref starts there. Returns its number."""
    known = repo.load("discussions")
    number = len(known["items"]) + 1
    item = {
        "num": number,
        "title": title,
        "author": author,
        "createdAt": stamp(time.time()),
        "status": status,
        "base": base,
        "merged": None,
        "events": [comment(author, 0, text)],
    }
    known["items"].append(item)
    repo.save("discussions", known)
    if base:
        repo.set_ref(f"refs/pr/{number}", base)
    return number


def summary(repo: Repo, item: dict) -> dict:
    return {
        **{key: item[key] for key in ("num", "title", "status", "createdAt")},
        "author": {"name": item["author"]},
        "isPullRequest": item["base"] is not None,
        "repo": {"name": repo.id, "type": repo.kind},
    }


def details(repo: Repo, item: dict) -> dict:
    answer = summary(repo, item) | {"events": list(item["events"])}
    if item["base"]:
        commits = []
        for found in repo.history(repo.ref(f"refs/pr/{item['num']}")):
            if found.oid == item["base"]:
                break
            commits.append(event("commit", found.author, len(commits) + 100, subject=found.title, oid=found.oid))
        answer["events"] += reversed(commits)
        answer["changes"] = {"base": "refs/heads/main", "mergeCommitId": item["merged"]}
        answer["filesWithConflicts"] = [] if item["merged"] else conflicts(repo, item)
    return answer


def changed(repo: Repo, old: str, new: str) -> dict[str, str | None]:
    """Path -> new blob (None: deleted) for what differs between two commits."""
    before, after = repo.tree(old).files, repo.tree(new).files
    return {path: after.get(path) for path in before.keys() | after.keys() if before.get(path) != after.get(path)}


def conflicts(repo: Repo, item: dict) -> list[str]:
    theirs = changed(repo, item["base"], repo.ref(f"refs/pr/{item['num']}"))
    ours = changed(repo, item["base"], repo.ref("refs/heads/main"))
    return sorted(path for path in theirs.keys() & ours.keys() if theirs[path] != ours[path])


def find(known: dict, number: str) -> dict:
    item = next((item for item in known["items"] if str(item["num"]) == number), None)
    if item is None:
        raise HubError(404, f"no discussion {number}", "EntryNotFound")
    return item


@contextmanager
def editing(repo: Repo, number: str) -> Iterator[dict]:
    """The discussion, saved again at the end."""
    known = repo.load("discussions")
    yield find(known, number)
    repo.save("discussions", known)


@route("GET", "API/discussions")
def list_all(request: Request, kind: str, namespace: str, name: str) -> Response:
    repo = request.hub.repo(request, kind, namespace, name)
    items = [summary(repo, item) for item in reversed(repo.load("discussions")["items"])]
    wanted, status, author = (request.option(key) for key in ("type", "status", "author"))
    if wanted in ("discussion", "pull_request"):
        items = [item for item in items if item["isPullRequest"] == (wanted == "pull_request")]
    if status in ("open", "closed"):
        items = [item for item in items if (item["status"] in ("open", "draft")) == (status == "open")]
    items = [item for item in items if author in ("", item["author"]["name"])]
    start = 50 * int(request.option("p") or 0)
    return as_json({"discussions": items[start : start + 50], "count": len(items), "start": start})


@route("POST", "API/discussions")
def create(request: Request, kind: str, namespace: str, name: str) -> Response:
    repo = request.hub.repo(request, kind, namespace, name, "discuss")
    values = request.json()
    with request.hub.store.lock:
        base = repo.ref("refs/heads/main") if values.get("pullRequest") else None
        author = request.require_user().name
        text, status = values.get("description") or "", "draft" if base else "open"
        number = open_discussion(repo, author, values["title"], text, base=base, status=status)
    return as_json({"num": number, "pullRequest": base is not None})


@route("GET", "API/discussions/{number}")
def get(request: Request, kind: str, namespace: str, name: str, number: str) -> Response:
    repo = request.hub.repo(request, kind, namespace, name)
    return as_json(details(repo, find(repo.load("discussions"), number)))


@route("POST", "API/discussions/{number}/(?P<action>comment|status|title)")
def change(request: Request, kind: str, namespace: str, name: str, number: str, action: str) -> Response:
    repo = request.hub.repo(request, kind, namespace, name, "discuss" if action == "comment" else "write")
    author, values = request.require_user().name, request.json()
    with request.hub.store.lock, editing(repo, number) as item:
        count = len(item["events"])
        if action == "comment":
            key, added = "newMessage", comment(author, count, values["comment"])
        elif action == "title":
            key, added = (
                "newTitle",
                event("title-change", author, count, **{"from": item["title"], "to": values["title"]}),
            )
            item["title"] = values["title"]
        else:
            key, added = "newStatus", event("status-change", author, count, status=values["status"])
            item["status"] = values["status"]
        item["events"].append(added)
    return as_json({key: added})


@route("POST", "API/discussions/{number}/merge")
def merge(request: Request, kind: str, namespace: str, name: str, number: str) -> Response:
    """Apply what the pull request changed on top of main; refused where main changed the same files since."""
    repo = request.hub.repo(request, kind, namespace, name, "write")
    author = request.require_user().name
    with request.hub.store.lock, editing(repo, number) as item:
        if item["base"] is None or item["status"] != "open":
            raise HubError(409, f"{number} is no open pull request")
        if clash := conflicts(repo, item):
            raise HubError(409, f"This branch has conflicts: {', '.join(clash)}")
        main, head = repo.ref("refs/heads/main"), repo.ref(f"refs/pr/{number}")
        files = dict(repo.tree(main).files)
        for path, oid in changed(repo, item["base"], head).items():
            files.pop(path, None) if oid is None else files.update({path: oid})
        message = f"{item['title']} (#{number})"
        item["merged"] = repo.commit("refs/heads/main", [main, head], files, author, message)
        item["status"] = "merged"
        item["events"].append(event("status-change", author, len(item["events"]), status="merged"))
    return as_json({})
