"""The hub speaks the Hub's protocol to huggingface_hub as it is installed, as far as the product needs it.

What datasets, transformers, peft and evaluate make of it is in test_round_trip.py, with the product's own files.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from tests.helpers.processes import HANG, ROOT
from tests.loopback_hub.fixtures import TOKENS, HubHandle
from tests.loopback_hub.server import HubServer


def contents(root: str | Path) -> dict[str, bytes]:
    paths = (path for path in Path(root).rglob("*") if path.is_file() and path.name != ".gitattributes")
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of each sort: a card, text below a folder, LFS by name, LFS by content, an empty one."""
    root = tmp_path / "upload"
    (root / "sub" / "ünter").mkdir(parents=True)
    (root / "README.md").write_text("---\nlicense: mit\ntags: [a, b]\n---\n# Card\n", encoding="utf-8")
    (root / "sub" / "ünter" / "a b.txt").write_text("äöü\n", encoding="utf-8")
    (root / "model.safetensors").write_bytes(bytes(range(256)) * 1200)
    (root / "noname").write_bytes(b"\0binary")
    (root / "empty.txt").write_bytes(b"")
    return root


@pytest.fixture
def repo_id(hub: HubHandle, folder: Path) -> str:
    """A model repository with `folder` in it, after its initial commit."""
    name = hub.new_id("repo")
    hub.api().create_repo(name)
    hub.api().upload_folder(repo_id=name, folder_path=folder, commit_message="all of it")
    return name


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_upload_folder_and_snapshot_download_give_the_same_bytes(
    hub: HubHandle, folder: Path, tmp_path: Path, kind: str
) -> None:
    repo_id = hub.new_id("round-trip")
    api = hub.api()
    url = api.create_repo(repo_id, repo_type=kind, space_sdk="gradio" if kind == "space" else None)
    assert (url.repo_id, url.repo_type) == (repo_id, kind)
    commit = api.upload_folder(repo_id=repo_id, repo_type=kind, folder_path=folder, commit_message="all of it")
    path = snapshot_download(repo_id, repo_type=kind, cache_dir=tmp_path / "cache")
    assert contents(path) == contents(folder)
    assert Path(path).name == commit.oid == api.repo_info(repo_id, repo_type=kind).sha
    lfs = {item.rfilename: item.lfs for item in api.repo_info(repo_id, repo_type=kind, files_metadata=True).siblings}
    assert {name for name, info in lfs.items() if info} == {"model.safetensors", "noname"}
    assert lfs["model.safetensors"].size == 307_200


def test_revisions_stay_what_they_were(hub: HubHandle, repo_id: str, tmp_path: Path) -> None:
    api = hub.api()
    first = api.repo_info(repo_id).sha
    api.create_tag(repo_id, tag="v1")
    api.create_branch(repo_id, branch="old", revision="v1")
    api.upload_file(repo_id=repo_id, path_in_repo="README.md", path_or_fileobj=b"new")
    for revision, expected in {first: "Card", "v1": "Card", "old": "Card", "main": "new"}.items():
        path = hf_hub_download(repo_id, "README.md", revision=revision, cache_dir=tmp_path)
        assert expected in Path(path).read_text()
    refs = api.list_repo_refs(repo_id)
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": first}
    assert {ref.name for ref in refs.branches} == {"main", "old"}
    titles = [commit.title for commit in api.list_repo_commits(repo_id)]
    assert titles == ["Upload README.md with huggingface_hub", "all of it", "initial commit"]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_tag(repo_id, tag="v1")
    api.delete_tag(repo_id, tag="v1")
    api.delete_branch(repo_id, branch="old")
    with pytest.raises(RevisionNotFoundError):
        api.repo_info(repo_id, revision="v1")


def test_what_is_not_there(hub: HubHandle, repo_id: str, tmp_path: Path) -> None:
    for revision in ("nowhere", "0" * 40, "refs/pr/7", "../../../etc"):
        with pytest.raises(RevisionNotFoundError):
            hf_hub_download(repo_id, "README.md", revision=revision, cache_dir=tmp_path)
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(repo_id, "nothing.txt", cache_dir=tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        snapshot_download("alice/no-such-repo", cache_dir=tmp_path)
    with pytest.raises(RepositoryNotFoundError):
        hub.api().repo_info(repo_id, repo_type="dataset")
    with pytest.raises(RepositoryNotFoundError):
        hub.api().upload_file(repo_id="alice/no-such-repo", path_in_repo="a", path_or_fileobj=b"a")
    with pytest.raises(EntryNotFoundError):
        list(hub.api().list_repo_tree(repo_id, "no/such/folder"))


def test_ranges(hub: HubHandle, repo_id: str) -> None:
    data = bytes(range(256)) * 1200
    url = f"{hub.endpoint}/{repo_id}/resolve/main/model.safetensors"
    expected = {
        "bytes=0-9": data[:10],
        "bytes=300000-": data[300_000:],
        "bytes=-5": data[-5:],
        "bytes=307190-999999": data[-10:],
    }
    for header, part in expected.items():
        answer = get_session().get(url, headers={"Range": header})
        assert (answer.status_code, answer.content) == (206, part)
    assert answer.headers["Content-Range"] == "bytes 307190-307199/307200"
    assert get_session().get(url, headers={"Range": "bytes=307200-"}).status_code == 416
    head = get_session().head(url)
    assert head.headers["X-Linked-Size"] == head.headers["Content-Length"] == "307200"
    assert head.headers["X-Linked-Etag"] == head.headers["ETag"]
    assert get_session().get(url.replace("resolve", "raw")).text.startswith("version https://git-lfs")


def test_deletions_and_a_commit_that_cannot_be_done_changes_nothing(
    hub: HubHandle, repo_id: str, folder: Path, tmp_path: Path
) -> None:
    api = hub.api()
    before = api.repo_info(repo_id).sha
    bad = [CommitOperationAdd("new.txt", b"new"), CommitOperationDelete("no.txt")]
    with pytest.raises(RemoteEntryNotFoundError, match="file with this name doesn't exist"):
        api.create_commit(repo_id, bad, commit_message="half of it")
    assert api.repo_info(repo_id).sha == before
    operations = [CommitOperationDelete("sub/"), CommitOperationDelete("noname")]
    api.create_commit(repo_id, operations, commit_message="fewer")
    expected = contents(folder).keys() - {"noname", "sub/ünter/a b.txt"}
    assert contents(snapshot_download(repo_id, cache_dir=tmp_path / "new")).keys() == expected
    assert contents(snapshot_download(repo_id, revision=before, cache_dir=tmp_path / "old")) == contents(folder)


def test_a_commit_needs_its_lfs_objects_and_its_parent(hub: HubHandle, repo_id: str) -> None:
    api = hub.api()
    before = api.repo_info(repo_id).sha
    lines = b'{"key": "header", "value": {"summary": "x"}}\n{"key": "lfsFile", "value": {"path": "a.bin", "oid": "%s"}}'
    url = f"{hub.endpoint}/api/models/{repo_id}/commit/main"
    head = {"Authorization": f"Bearer {TOKENS['alice']}"}
    assert get_session().post(url, headers=head, content=lines % (b"0" * 64)).status_code == 422
    assert get_session().post(url, headers=head, content=b"no json").status_code == 400
    api.upload_file(repo_id=repo_id, path_in_repo="a.txt", path_or_fileobj=b"a", parent_commit=before)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as caught:
        api.upload_file(repo_id=repo_id, path_in_repo="b.txt", path_or_fileobj=b"b", parent_commit=before)
    assert caught.value.response.status_code == 412
    assert [commit.commit_id for commit in api.list_repo_commits(repo_id)][1] == before


def test_pull_requests(hub: HubHandle, repo_id: str, tmp_path: Path) -> None:
    api, other = hub.api(), hub.api("bob")
    main = api.repo_info(repo_id).sha
    add = CommitOperationAdd("from-bob.txt", b"hello")
    made = other.create_commit(repo_id, [add], commit_message="a file", commit_description="why", create_pr=True)
    assert (made.pr_num, made.pr_revision, api.repo_info(repo_id).sha) == (1, "refs/pr/1", main)
    path = hf_hub_download(repo_id, "from-bob.txt", revision="refs/pr/1", cache_dir=tmp_path)
    assert Path(path).read_bytes() == b"hello"
    api.change_discussion_status(repo_id, 1, "closed")
    assert [(item.num, item.title, item.status) for item in api.get_repo_discussions(repo_id)] == [
        (1, "a file", "closed")
    ]


def test_listings_by_pages_and_after_a_restart(hub: HubHandle, tmp_path: Path) -> None:
    first = HubServer(tmp_path / "store", page_size=3).start()
    api = HfApi(endpoint=first.endpoint, token=TOKENS["alice"])
    api.create_repo("alice/pages")
    adds = [CommitOperationAdd(f"{i % 3}/{i}.txt", b"x") for i in range(8)]
    commit = api.create_commit("alice/pages", adds, commit_message="files")
    first.shutdown()
    second = HubServer(tmp_path / "store", page_size=3).start()
    api = HfApi(endpoint=second.endpoint, token=TOKENS["alice"])
    assert sorted(api.list_repo_files("alice/pages")) == [
        ".gitattributes",
        *sorted(f"{i % 3}/{i}.txt" for i in range(8)),
    ]
    tree = {item.path: item for item in api.list_repo_tree("alice/pages", recursive=True, expand=True)}
    assert tree.keys() == {".gitattributes", "0", "1", "2", *(f"{i % 3}/{i}.txt" for i in range(8))}
    assert tree["1"].last_commit.oid == commit.oid != tree[".gitattributes"].last_commit.oid
    assert [item.path for item in api.list_repo_tree("alice/pages", "2")] == ["2/2.txt", "2/5.txt"]
    second.shutdown()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_agrees(hub: HubHandle, repo_id: str, folder: Path, tmp_path: Path) -> None:
    """An independent reader: git finds every object sound and checks out the same files over HTTP."""
    stored = hub.repo("model", repo_id)
    done = subprocess.run(["git", "fsck", "--full", "--strict"], cwd=stored.folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "GIT_LFS_SKIP_SMUDGE": "1"}
    url = f"{hub.endpoint}/{repo_id}.git"
    subprocess.run(["git", "clone", "-q", url, "clone"], cwd=tmp_path, env=env, check=True, capture_output=True)
    regular = {"README.md", "empty.txt", "sub/ünter/a b.txt"}
    for path in regular:
        assert (tmp_path / "clone" / path).read_bytes() == (folder / path).read_bytes()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path / "clone", capture_output=True, text=True)
    assert head.stdout.strip() == hub.api().repo_info(repo_id).sha


@pytest.mark.slow
def test_started_by_hand_it_prints_what_a_client_needs(hub: HubHandle, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "tests.loopback_hub",
        "--dir",
        str(tmp_path / "store"),
        "--quiet",
        "--until_stdin_ends",
    ]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        printed: dict[str, str] = {}
        while "HF_HOME" not in printed and (line := server.stdout.readline()):
            printed |= dict([line.removeprefix("export ").strip().split("=", 1)]) if "=" in line else {}
        code = "import huggingface_hub as h; print(h.create_repo('alice/by-hand')); print(h.whoami()['name'])"
        done = hub.run_python(code, **printed)
        assert done.stdout.split() == [f"{printed['HF_ENDPOINT']}/alice/by-hand", "alice"]
        server.stdin.close()
        assert server.wait(timeout=HANG) == 0


def test_who_may_read_and_write(hub: HubHandle, tmp_path: Path) -> None:
    private, gated = hub.new_id("private"), hub.new_id("gated")
    for repo_id in (private, gated):
        hub.api().create_repo(repo_id, private=repo_id == private)
        hub.api().upload_file(repo_id=repo_id, path_in_repo="a.txt", path_or_fileobj=b"content")
    hub.api().update_repo_settings(gated, gated="manual")
    for user, status in (("bob", 404), (None, 401)):
        with pytest.raises(RepositoryNotFoundError) as caught:
            snapshot_download(private, cache_dir=tmp_path, token=hub.tokens[user] if user else False)
        assert caught.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            hf_hub_download(gated, "a.txt", cache_dir=tmp_path, token=hub.tokens[user] if user else False)
    assert Path(hf_hub_download(private, "a.txt", cache_dir=tmp_path)).read_bytes() == b"content"
    expected = {"hf_alice_read": "403", "hf_bob_write": "404", "hf_alice_expired": "401", "hf_unknown": "401"}
    for token, status in expected.items():
        api = HfApi(endpoint=hub.endpoint, token=token)
        with pytest.raises(HfHubHTTPError, match=status):
            api.upload_file(repo_id=private, path_in_repo="a.txt", path_or_fileobj=b"changed")


def test_faults_are_counted_and_scoped(hub: HubHandle) -> None:
    url = f"{hub.endpoint}/api/models/alice/nothing"

    def statuses(number: int, method: str = "GET") -> list[int]:
        return [get_session().request(method, url).status_code for _ in range(number)]

    hub.faults.add("status", "*/nothing", method="GET", status=500, skip=1, count=2)
    assert statuses(5) == [401, 500, 500, 401, 401]
    hub.faults.add("status", "*/other", status=500, count=None)
    hub.faults.add("status", "*/noth?ng", status=418, count=None)
    assert statuses(2) == [418, 418] and statuses(1, "POST") == [418]
    assert get_session().get(url).json() == {"error": "injected: status 418"}
    hub.faults.clear()
    assert statuses(1) == [401]
    for bad in ({"kind": "nonsense"}, {"kind": "drop", "bytes": 3}):
        assert get_session().post(f"{hub.endpoint}/_hub/faults", json=bad).status_code == 400


@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "drop_upload", "path": "*/commit/*", "after": 10},
        {"kind": "lose", "path": "*/commit/*"},
    ],
    ids=lambda fault: fault["kind"],
)
def test_an_upload_that_breaks_off_is_done_whole_or_not_at_all(hub: HubHandle, repo_id: str, fault: dict) -> None:
    before = hub.api().repo_info(repo_id).sha
    hub.faults.add(**fault)
    with pytest.raises(httpx2.TransportError):
        hub.api().upload_file(repo_id=repo_id, path_in_repo="a.txt", path_or_fileobj=b"content")
    assert hub.api().file_exists(repo_id, "a.txt") == (fault["kind"] == "lose")
    assert (hub.api().repo_info(repo_id).sha == before) == (fault["kind"] != "lose")


def test_a_download_that_breaks_off_is_resumed(hub: HubHandle, repo_id: str, folder: Path, tmp_path: Path) -> None:
    hub.faults.add("drop", "*/model.safetensors", method="GET", after=1000)
    assert contents(snapshot_download(repo_id, cache_dir=tmp_path)) == contents(folder)
    assert [fault["hits"] for fault in hub.faults.all()] == [1]
