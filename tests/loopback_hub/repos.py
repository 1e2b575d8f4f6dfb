"""Accounts, repositories and revisions."""

from __future__ import annotations

from datetime import UTC, datetime

import yaml

from tests.loopback_hub.protocol import HubError, Request, Response, as_json, route
from tests.loopback_hub.store import KINDS, Repo, is_ref_name, is_repo_name


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


@route("GET", "/api/whoami-v2")
def whoami(request: Request) -> Response:
    user, role = request.identify()
    if user is None:
        raise HubError(401, "Invalid username or password.")
    orgs = [{"type": "org", "name": name, "fullname": name, "roleInOrg": "admin"} for name in user.orgs]
    auth = {"type": "access_token", "accessToken": {"displayName": "loopback", "role": role}}
    return as_json(
        {"type": "user", "id": user.name, "name": user.name, "fullname": user.name, "orgs": orgs, "auth": auth}
    )


@route("GET", "/api/agent-harnesses")
def agent_harnesses(request: Request) -> Response:
    return as_json({"standardEnvVars": [], "harnesses": {}})


@route("POST", "/api/validate-yaml")
def validate_yaml(request: Request) -> Response:
    content = request.json()["content"]
    try:
        metadata = card_metadata(content)
        errors = [] if isinstance(metadata, dict) else [{"message": "the metadata is not a mapping"}]
    except yaml.YAMLError as error:
        metadata, errors = {}, [{"message": f"invalid YAML: {error}"}]
    warnings = [] if metadata or errors else [{"message": "empty or missing yaml metadata in repo card"}]
    return as_json({"errors": errors, "warnings": warnings}, 400 if errors else 200)


def card_metadata(readme: str) -> dict:
    """The YAML block at the head of a README; empty where there is none."""
    parts = readme.replace("\r\n", "\n").split("---\n", 2)
    return (yaml.safe_load(parts[1]) or {}) if len(parts) == 3 and not parts[0].strip() else {}


@route("POST", "/api/repos/create")
def create(request: Request) -> Response:
    values = request.json()
    kind = values.get("type") or "model"
    if kind not in KINDS or not is_repo_name(values["name"]):
        raise HubError(400, f"invalid repository: type '{kind}', name '{values['name']}'")
    namespace = values.get("organization") or request.require_user().name
    user = request.require_owner(namespace)
    repo_id = f"{namespace}/{values['name']}"
    path = repo_id if kind == "model" else f"{kind}s/{repo_id}"
    answer = {"url": f"{request.endpoint}/{path}", "name": repo_id, "id": repo_id}
    hub = request.hub
    with hub.store.lock:
        if hub.store.find(kind, repo_id):
            return as_json({"error": f"You already created this {kind} repo: {repo_id}", **answer}, 409)
        private = values.get("visibility") == "private" or bool(values.get("private"))
        hub.store.create(kind, repo_id, user.name, private=private, sdk=values.get("sdk"))
    return as_json(answer)


@route("DELETE", "/api/repos/delete")
def delete(request: Request) -> Response:
    values = request.json()
    namespace = values.get("organization") or request.require_user().name
    repo = request.hub.repo(request, values.get("type") or "model", namespace, values["name"], "write")
    request.hub.store.delete(repo)
    return as_json({})


@route("PUT", "API/settings")
def settings(request: Request, kind: str, namespace: str, name: str) -> Response:
    repo = request.hub.repo(request, kind, namespace, name, "write")
    values = request.json()
    with request.hub.store.lock:
        known = repo.load("settings")
        if "visibility" in values or "private" in values:
            known["private"] = values.get("visibility") == "private" or bool(values.get("private"))
        if "gated" in values:
            known["gated"] = values["gated"]
        repo.save("settings", known)
    return as_json({"private": known["private"], "gated": known["gated"]})


@route("POST", "API/user-access-request/grant")
def grant(request: Request, kind: str, namespace: str, name: str) -> Response:
    repo = request.hub.repo(request, kind, namespace, name, "write")
    with request.hub.store.lock:
        known = repo.load("settings")
        known["granted"] = sorted({*known["granted"], request.json()["user"]})
        repo.save("settings", known)
    return as_json({})


@route("GET", "API/auth-check")
@route("GET", "API/auth-check/{write}")
def auth_check(request: Request, kind: str, namespace: str, name: str, write: str = "") -> Response:
    request.hub.repo(request, kind, namespace, name, "write" if write else "files")
    return as_json({})


@route("GET", "/api/(?P<kinds>models|datasets|spaces)")
def list_repos(request: Request, kind: str) -> Response:
    user, _ = request.identify()
    author, search = request.option("author"), request.option("search")
    found = []
    for repo in request.hub.store.all(kind):
        namespace = repo.id.split("/")[0]
        hidden = repo.load("settings")["private"] and (user is None or namespace not in (user.name, *user.orgs))
        if not hidden and author in ("", namespace) and search.lower() in repo.id.lower():
            found.append(describe(repo, repo.resolve("main"), files=False))
    return as_json(found)


@route("GET", "API")
@route("GET", "API/revision/{revision}")
def info(request: Request, kind: str, namespace: str, name: str, revision: str = "main") -> Response:
    repo = request.hub.repo(request, kind, namespace, name)
    answer = describe(repo, request.hub.commit(repo, revision), blobs=request.flag("blobs"))
    wanted = request.query.get("expand") or request.query.get("expand[]")
    return as_json({key: value for key, value in answer.items() if not wanted or key in {"id", "_id", *wanted}})


def describe(repo: Repo, oid: str, *, files: bool = True, blobs: bool = False) -> dict:
    known = repo.load("settings")
    try:
        metadata = card_metadata(repo.text(oid, "README.md"))
    except yaml.YAMLError:
        metadata = {}
    newest = next(repo.history(oid))
    answer = {
        "_id": repo.url_path,
        "id": repo.id,
        "author": repo.id.split("/")[0],
        "sha": oid,
        "lastModified": stamp(newest.date),
        "createdAt": stamp(known["created"]),
        "private": known["private"],
        "gated": known["gated"],
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": metadata.get("tags") or [],
        "cardData": metadata,
    }
    if repo.kind == "model":
        answer |= {"modelId": repo.id, **{key: metadata.get(key) for key in ("library_name", "pipeline_tag")}}
        answer["model-index"] = metadata.get("model-index")
    if repo.kind == "space":
        answer["sdk"] = metadata.get("sdk") or known.get("sdk")
    if files:
        answer["siblings"] = [sibling(repo, path, blob, blobs) for path, blob in sorted(repo.tree(oid).files.items())]
    return answer


def sibling(repo: Repo, path: str, oid: str, blobs: bool) -> dict:
    if not blobs:
        return {"rfilename": path}
    blob = repo.blob(oid)
    lfs = {"lfs": {"sha256": blob.sha256, "size": blob.size, "pointerSize": blob.pointer_size}} if blob.sha256 else {}
    return {"rfilename": path, "size": blob.size, "blobId": oid, **lfs}


@route("GET", "API/refs")
def refs(request: Request, kind: str, namespace: str, name: str) -> Response:
    repo = request.hub.repo(request, kind, namespace, name)

    def listed(group: str) -> list[dict]:
        items = repo.refs(group).items()
        return [{"name": ref, "ref": f"refs/{group}/{ref}", "targetCommit": oid} for ref, oid in items]

    answer = {"branches": listed("heads"), "converts": [], "tags": listed("tags")}
    return as_json(answer | ({"pullRequests": listed("pr")} if request.flag("include_prs") else {}))


@route("GET", "API/commits/{revision}")
def commits(request: Request, kind: str, namespace: str, name: str, revision: str) -> Response:
    repo = request.hub.repo(request, kind, namespace, name)
    found = [
        {
            "id": commit.oid,
            "title": commit.title,
            "message": commit.message,
            "authors": [{"user": commit.author}],
            "date": stamp(commit.date),
        }
        for commit in repo.history(request.hub.commit(repo, revision))
    ]
    return as_json(found)


@route("POST DELETE", "API/(?P<group>branch|tag)/{revision}")
def move_ref(request: Request, kind: str, namespace: str, name: str, group: str, revision: str) -> Response:
    """POST branch/NAME {startingPoint}, POST tag/REVISION {tag}, DELETE branch/NAME or tag/NAME."""
    hub, values = request.hub, request.json()
    repo = hub.repo(request, kind, namespace, name, "write")
    target = values.get("tag", "") if group == "tag" and request.method == "POST" else revision
    ref = f"refs/{'tags' if group == 'tag' else 'heads'}/{target}"
    if not is_ref_name(ref):
        raise HubError(400, f"Invalid {group} name '{target}'")
    with hub.store.lock:
        if request.method == "DELETE":
            if repo.ref(ref) is None:
                raise HubError(404, f"{group} '{target}' not found", "RevisionNotFound")
            if ref == "refs/heads/main":
                raise HubError(403, "the branch main cannot be deleted")
            repo.set_ref(ref, None)
        else:
            if repo.ref(ref):
                raise HubError(409, f"{group} '{target}' already exists")
            start = revision if group == "tag" else values.get("startingPoint") or "main"
            repo.set_ref(ref, hub.commit(repo, start))
    return as_json({})
