"""Upload: which files go to LFS, the LFS transfer, and commits."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from fnmatch import fnmatchcase

from tests.loopback_hub.protocol import Hub, HubError, Request, Response, as_json, route
from tests.loopback_hub.store import Repo

REGULAR_LIMIT = 10 << 20  # bytes; larger files go to LFS whatever their name
GIT_LFS = "application/vnd.git-lfs+json"


@route("POST", "API/preupload/{revision}")
def preupload(request: Request, kind: str, namespace: str, name: str, revision: str) -> Response:
    """For each file: LFS or regular, ignored or not, and the id of the content that is there already."""
    repo = request.hub.writable(request, kind, namespace, name, revision)
    oid = request.hub.commit(repo, revision)
    values = request.json()
    ignored = values.get("gitIgnore", repo.text(oid, ".gitignore")).splitlines()
    lfs = [line.split()[0] for line in repo.text(oid, ".gitattributes").splitlines() if "filter=lfs" in line]
    present = repo.tree(oid).files
    answer = []
    for item in values["files"]:
        path, sample = item["path"], base64.b64decode(item.get("sample") or "")
        large = item["size"] > REGULAR_LIMIT or b"\0" in sample or any(matches(path, pattern) for pattern in lfs)
        blob = repo.blob(present[path]) if path in present else None
        answer.append(
            {
                "path": path,
                "uploadMode": "lfs" if large else "regular",
                "shouldIgnore": is_ignored(path, ignored),
                "oid": blob and (blob.sha256 or blob.oid),
            }
        )
    return as_json({"files": answer, "commitOid": oid})


def matches(path: str, pattern: str) -> bool:
    """Whether a .gitattributes pattern covers the path: without a slash it is about the name alone."""
    return fnmatchcase(path if "/" in pattern else path.rsplit("/", 1)[-1], pattern.replace("**/", "*").lstrip("/"))


def is_ignored(path: str, lines: list[str]) -> bool:
    """The common part of .gitignore: names, folders, anchored paths, globs and `!`; the last line that fits decides."""
    ignored = False
    parts = path.split("/")
    parents = ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]
    for line in (line.strip() for line in lines):
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").rstrip("/")
        candidates = parents[:-1] if line.endswith("/") else parents
        anchored = "/" in pattern
        if any(fnmatchcase(part if anchored else part.rsplit("/", 1)[-1], pattern.lstrip("/")) for part in candidates):
            ignored = not line.startswith("!")
    return ignored


# -- LFS -------------------------------------------------------------------------------------------------------------


def signature(hub: Hub, repo: Repo, action: str, oid: str) -> str:
    """Signed addresses carry the right to one transfer: the client sends no token with it."""
    return hmac.new(hub.secret, f"{repo.url_path} {action} {oid}".encode(), hashlib.sha256).hexdigest()


@route("POST", "GIT/info/lfs/objects/batch")
def lfs_batch(request: Request, kind: str, namespace: str, name: str) -> Response:
    values = request.json()
    upload = values["operation"] == "upload"
    repo = request.hub.repo(request, kind, namespace, name, "discuss" if upload else "files")
    base = f"{request.endpoint}/{repo.url_path}.git"
    objects = []
    for item in values["objects"]:
        oid, size = item["oid"], item["size"]
        present = repo.lfs_path(oid).is_file()
        if upload and not present:
            href = f"{base}/lfs/{oid}?signature={signature(request.hub, repo, 'PUT', oid)}"
            verify = {"href": f"{base}/info/lfs/objects/verify"}
            objects.append({"oid": oid, "size": size, "actions": {"upload": {"href": href}, "verify": verify}})
        elif upload:
            objects.append({"oid": oid, "size": size})
        elif present:
            href = f"{base}/lfs/{oid}?signature={signature(request.hub, repo, 'GET', oid)}"
            objects.append({"oid": oid, "size": size, "actions": {"download": {"href": href}}})
        else:
            objects.append({"oid": oid, "size": size, "error": {"code": 404, "message": "no such object"}})
    return as_json({"transfer": "basic", "objects": objects}, **{"Content-Type": GIT_LFS})


@route("PUT GET", "GIT/lfs/{oid}")
def lfs_transfer(request: Request, kind: str, namespace: str, name: str, oid: str) -> Response:
    repo = request.hub.store.find(kind, f"{namespace}/{name}")
    if repo is None or not hmac.compare_digest(
        request.option("signature"), signature(request.hub, repo, request.method, oid)
    ):
        raise HubError(403, "the address's signature is not valid")
    if request.method == "GET":
        return Response(body=repo.lfs_path(oid))
    try:
        repo.store_lfs(oid, request.body)
    except ValueError as error:
        raise HubError(400, str(error)) from error
    return Response()


@route("GET", "API/(?P<direction>xet-write-token|xet-read-token)/{revision}")
def xet_token(request: Request, kind: str, namespace: str, name: str, direction: str, revision: str) -> Response:
    raise HubError(501, "This hub has no Xet store: set HF_HUB_DISABLE_XET=1 before the client starts")


@route("POST", "GIT/info/lfs/objects/verify")
def lfs_verify(request: Request, kind: str, namespace: str, name: str) -> Response:
    repo = request.hub.repo(request, kind, namespace, name, "discuss")
    values = request.json()
    path = repo.lfs_path(values["oid"])
    if not path.is_file() or path.stat().st_size != values["size"]:
        raise HubError(404, f"LFS object {values['oid']} of {values['size']} bytes was not uploaded")
    return as_json({})


# -- commits ---------------------------------------------------------------------------------------------------------


@route("POST", "API/commit/{revision}")
def commit(request: Request, kind: str, namespace: str, name: str, revision: str) -> Response:
    """One commit of all operations, or none: the branch moves only when everything is stored."""
    hub, as_pr = request.hub, request.flag("create_pr")
    repo = hub.writable(request, kind, namespace, name, revision)
    user = request.require_user()
    try:
        lines = [json.loads(line) for line in request.body.read().splitlines() if line.strip()]
        header = next(line["value"] for line in lines if line["key"] == "header")
    except (ValueError, KeyError, StopIteration) as error:
        raise HubError(400, f"the commit is no newline-delimited JSON with a header: {error!r}") from error
    with hub.store.lock:
        head = hub.commit(repo, revision)
        ref = repo.writable_ref(revision)
        if ref is None:
            raise HubError(400, f"'{revision}' is no branch: nothing can be committed to it")
        if header.get("parentCommit", head) != head:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = apply(repo, repo.tree(head).files, [line for line in lines if line["key"] != "header"])
        title, description = header["summary"], header.get("description") or ""
        pull_request = {}
        if as_pr:
            from tests.loopback_hub.discussions import open_pull_request

            number = open_pull_request(repo, user.name, title, head)
            ref = f"refs/pr/{number}"
            pull_request = {"pullRequestUrl": f"{request.endpoint}/{repo.url_path}/discussions/{number}"}
        oid = repo.commit(ref, [head], files, user.name, f"{title}\n\n{description}".strip())
    answer = {"success": True, "commitOid": oid, "commitUrl": f"{request.endpoint}/{repo.url_path}/commit/{oid}"}
    return as_json(answer | pull_request)


def apply(repo: Repo, files: dict[str, str], operations: list[dict]) -> dict[str, str]:
    """The files (path -> blob) after the operations; HubError where one cannot be done."""
    files = dict(files)
    for operation in operations:
        value = operation["value"]
        path = value["path"].strip("/")
        if not path or any(part in ("", ".", "..", ".git") for part in path.split("/")):
            raise HubError(400, f"invalid path '{value['path']}'")
        match operation["key"]:
            case "file":
                try:
                    content = base64.b64decode(value["content"], validate=True)
                except binascii.Error as error:
                    raise HubError(400, f"'{path}': the content is no base64") from error
                files[path] = repo.objects.write("blob", content)
            case "lfsFile":
                if not repo.lfs_path(value["oid"]).is_file():
                    raise HubError(422, f"'{path}': its LFS object {value['oid']} was not uploaded")
                files[path] = repo.write_lfs_pointer(value["oid"])
            case "deletedFile":
                if path not in files:
                    raise HubError(404, f"'{path}': A file with this name doesn't exist", "EntryNotFound")
                del files[path]
            case "deletedFolder":
                inside = [known for known in files if known.startswith(path + "/")]
                if not inside:
                    raise HubError(404, f"'{path}': A folder with this name doesn't exist", "EntryNotFound")
                for known in inside:
                    del files[known]
            case unknown:
                raise HubError(400, f"unknown operation '{unknown}'")
    return files
