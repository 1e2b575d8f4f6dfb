"""Reading: listings, file contents, the pages that links lead to, and git's own dumb protocol."""

from __future__ import annotations

import html
import re
from urllib.parse import parse_qs, quote

from tests.loopback_hub.protocol import HubError, Request, Response, as_json, route
from tests.loopback_hub.repos import stamp
from tests.loopback_hub.store import Repo


def entry(repo: Repo, commit: str, path: str, *, expand: bool = False) -> dict | None:
    """One line of a listing; None where the commit has no such file or folder."""
    tree = repo.tree(commit)
    if path in tree.folders:
        found = {"type": "directory", "oid": tree.folders[path], "size": 0, "path": path}
    elif path in tree.files:
        blob = repo.blob(tree.files[path])
        found = {"type": "file", "oid": blob.oid, "size": blob.size, "path": path}
        if blob.sha256:
            found["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}
    else:
        return None
    if expand:
        last = repo.last_commit(commit, path)
        found["lastCommit"] = {"id": last.oid, "title": last.title, "date": stamp(last.date)}
    return found


@route("GET", "API/tree/{revision}")
@route("GET", "API/tree/{revision}/{path*}")
def listing(request: Request, kind: str, namespace: str, name: str, revision: str, path: str = "") -> Response:
    repo = request.hub.repo(request, kind, namespace, name)
    commit = request.hub.commit(repo, revision)
    tree = repo.tree(commit)
    path = path.strip("/")
    if path and path not in tree.folders:
        raise HubError(404, f"{path} does not exist on '{revision}'", "EntryNotFound")
    prefix = f"{path}/" if path else ""
    inside = sorted(known for known in [*tree.folders, *tree.files] if known.startswith(prefix))
    if not request.flag("recursive"):
        inside = [known for known in inside if "/" not in known[len(prefix) :]]
    start = int(request.option("cursor") or 0)
    stop = start + request.hub.page_size
    found = [entry(repo, commit, known, expand=request.flag("expand")) for known in inside[start:stop]]
    headers = {}
    if stop < len(inside):
        query = {name: values[0] for name, values in request.query.items()} | {"cursor": str(stop)}
        url = f"{request.endpoint}{request.path}?" + "&".join(f"{key}={quote(value)}" for key, value in query.items())
        headers["Link"] = f'<{url}>; rel="next"'
    return as_json(found, **headers)


@route("POST", "API/paths-info/{revision}")
def paths_info(request: Request, kind: str, namespace: str, name: str, revision: str) -> Response:
    repo = request.hub.repo(request, kind, namespace, name)
    commit = request.hub.commit(repo, revision)
    if "json" in request.headers.get("content-type", ""):
        values = request.json()
        paths, expand = values["paths"], bool(values.get("expand"))
    else:
        form = parse_qs(request.body.read().decode())
        paths, expand = form.get("paths", []), form.get("expand", [""])[0].lower() == "true"
    found = (entry(repo, commit, path.strip("/"), expand=expand) for path in paths)
    return as_json([item for item in found if item])


@route("GET", "WEB/(?P<view>resolve|raw)/{revision}/{path*}")
def content(request: Request, kind: str, namespace: str, name: str, view: str, revision: str, path: str) -> Response:
    """A file's bytes, whole or a range; `raw` gives git's own, which is the pointer of an LFS file."""
    repo = request.hub.repo(request, kind, namespace, name, "files")
    commit = request.hub.commit(repo, revision)
    oid = repo.tree(commit).files.get(path)
    if oid is None:
        error = HubError(404, "Entry not found", "EntryNotFound")
        head = {"X-Repo-Commit": commit, "X-Error-Code": error.code, "X-Error-Message": error.message}
        return as_json({"error": error.message}, 404, **head)
    blob = repo.blob(oid)
    lfs = blob.sha256 is not None and view == "resolve"
    etag = f'"{blob.sha256 if lfs else oid}"'
    headers = {"X-Repo-Commit": commit, "ETag": etag, "Accept-Ranges": "bytes"}
    if lfs:
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(blob.size)}
    body = repo.lfs_path(blob.sha256) if lfs else repo.objects.read(oid, "blob")
    return ranged(request, Response(200, body, headers))


def ranged(request: Request, response: Response) -> Response:
    """The part that a Range header asks for, as 206; 416 where there is none of it."""
    match = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", "").replace(" ", ""))
    if not match or match.groups() == ("", "") or request.method == "HEAD":
        return response
    size, (first, last) = response.length, match.groups()
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    if start >= stop:
        return as_json({"error": "range not satisfiable"}, 416, **{"Content-Range": f"bytes */{size}"})
    response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    response.status, response.start, response.stop = 206, start, stop
    return response


@route("GET", r"GIT/(?P<file>HEAD|info/refs|objects/[0-9a-f]{2}/[0-9a-f]{38})")
def dumb_git(request: Request, kind: str, namespace: str, name: str, file: str) -> Response:
    """Enough for `git clone http://.../NAME.git`: the repository's own files."""
    repo = request.hub.repo(request, kind, namespace, name, "files")
    if file == "info/refs":
        lines = [f"{oid}\trefs/{group}/{ref}\n" for group in ("heads", "tags") for ref, oid in repo.refs(group).items()]
        return Response(body="".join(lines).encode(), headers={"Content-Type": "text/plain"})
    if not (repo.folder / file).is_file():
        raise HubError(404, file)
    return Response(body=repo.folder / file)


@route("GET", "WEB")
@route("GET", "WEB/(?P<view>tree|blob|commit|commits|discussions)/{revision}")
@route("GET", "WEB/(?P<view>tree|blob)/{revision}/{path*}")
def page(
    request: Request, kind: str, namespace: str, name: str, view: str = "", revision: str = "main", path: str = ""
) -> Response:
    """What a person's browser gets: plain pages, so that links can be followed."""
    repo = request.hub.repo(request, kind, namespace, name)
    if view == "discussions":
        numbers = [str(item["num"]) for item in repo.load("discussions")["items"]]
        if revision not in numbers:
            raise HubError(404, f"no discussion {revision}")
        title, text = f"Discussion {revision}", ""
    else:
        commit = request.hub.commit(repo, revision)
        if path and entry(repo, commit, path) is None:
            raise HubError(404, "Entry not found", "EntryNotFound")
        title = f"{repo.id} at {commit}"
        text = repo.text(commit, path or "README.md")
    document = f"<!doctype html><title>{html.escape(title)}</title><pre>{html.escape(text)}</pre>"
    return Response(body=document.encode(), headers={"Content-Type": "text/html; charset=utf-8"})
