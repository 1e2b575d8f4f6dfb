"""Injected faults: each ends well after the client's own retries, or in an error; what was published stays whole."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import httpx2
import huggingface_hub.constants
import pytest
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.utils import get_session

from tests.loopback_hub.faults import KINDS
from tests.loopback_hub.fixtures import HubHandle
from tests.loopback_hub.test_protocol import contents

MIB = 1 << 20


@dataclass
class Published:
    """A repository with one revision, and a folder with the next, of which the weights and the card are other."""

    repo_id: str
    sha: str
    old: dict[str, bytes]
    new: dict[str, bytes]
    folder: Path


@pytest.fixture
def published(hub: HubHandle, tmp_path: Path) -> Published:
    folder = tmp_path / "folder"
    folder.mkdir()
    repo_id = hub.new_id("faults")
    hub.api().create_repo(repo_id)

    def write(number: int) -> dict[str, bytes]:
        (folder / "README.md").write_text(f"---\ntags: [v{number}]\n---\n")
        (folder / "model.safetensors").write_bytes(bytes([number]) * 200_000)
        (folder / "fixed.txt").write_text("fixed")
        return contents(folder)

    old = write(1)
    sha = hub.api().upload_folder(repo_id=repo_id, folder_path=folder).oid
    return Published(repo_id, sha, old, write(2), folder)


def upload(hub: HubHandle, published: Published) -> str:
    return hub.api().upload_folder(repo_id=published.repo_id, folder_path=published.folder).oid


def download(published: Published, cache: Path, revision: str = "main") -> dict[str, bytes]:
    return contents(snapshot_download(published.repo_id, revision=revision, cache_dir=cache))


SURVIVED = {
    "unavailable before": {"kind": "status", "path": "*/preupload/*", "status": 503},
    "too many requests": {"kind": "status", "path": "*/preupload/*", "status": 429, "retry_after": 0},
    "LFS batch unavailable": {"kind": "status", "path": "*/objects/batch", "status": 500},
    "LFS upload unavailable": {"kind": "status", "path": "*.git/lfs/*", "status": 502},
    "LFS upload cut": {"kind": "drop_upload", "path": "*.git/lfs/*", "after": 1000},
    "LFS upload's answer lost": {"kind": "lose", "path": "*.git/lfs/*"},
    "LFS check slow": {"kind": "slow", "path": "*/objects/verify", "seconds": 0.2},
    "preupload's answer cut": {"kind": "drop", "path": "*/preupload/*", "after": 3},
}
FATAL = {
    "unavailable at the commit": ({"kind": "status", "path": "*/commit/*", "status": 503}, HfHubHTTPError, 503),
    "another's commit, 409": ({"kind": "status", "path": "*/commit/*", "status": 409}, HfHubHTTPError, 409),
    "another's commit, 412": ({"kind": "status", "path": "*/commit/*", "status": 412}, HfHubHTTPError, 412),
    "token expired on the way": ({"kind": "status", "path": "*/commit/*", "status": 401}, HfHubHTTPError, 401),
    "commit cut": ({"kind": "drop_upload", "path": "*/commit/*", "after": 10}, httpx2.TransportError, None),
    "card check cut": ({"kind": "drop", "path": "*/validate-yaml", "after": 0}, httpx2.TransportError, None),
    "LFS content corrupt": ({"kind": "corrupt_upload", "path": "*.git/lfs/*", "after": 99}, RuntimeError, None),
}


@pytest.mark.parametrize("name", SURVIVED)
def test_an_upload_survives(hub: HubHandle, published: Published, tmp_path: Path, name: str) -> None:
    hub.faults.add(**SURVIVED[name])
    sha = upload(hub, published)
    assert [fault["hits"] for fault in hub.faults.all()] == [1]
    assert download(published, tmp_path / "new") == published.new
    assert download(published, tmp_path / "old", published.sha) == published.old
    assert [commit.commit_id for commit in hub.api().list_repo_commits(published.repo_id)][:2] == [sha, published.sha]


@pytest.mark.parametrize("name", FATAL)
def test_an_upload_fails_whole_and_can_be_repeated(
    hub: HubHandle, published: Published, tmp_path: Path, name: str
) -> None:
    fault, error, status = FATAL[name]
    hub.faults.add(**fault)
    with pytest.raises(error) as caught:
        upload(hub, published)
    if status:
        assert caught.value.response.status_code == status
    assert hub.api().repo_info(published.repo_id).sha == published.sha
    assert download(published, tmp_path / "old") == published.old
    sent = len(hub.requests(f"*{published.repo_id}.git/lfs/*", "PUT"))
    upload(hub, published)
    assert download(published, tmp_path / "new") == published.new
    if "/commit/" in fault["path"]:  # the LFS objects had arrived and are not sent again
        assert len(hub.requests(f"*{published.repo_id}.git/lfs/*", "PUT")) == sent


def test_a_commit_whose_answer_was_lost_is_not_made_twice(hub: HubHandle, published: Published, tmp_path: Path) -> None:
    hub.faults.add("lose", "*/commit/*")
    with pytest.raises(httpx2.TransportError):
        upload(hub, published)
    made = hub.api().repo_info(published.repo_id).sha
    assert made != published.sha
    assert upload(hub, published) == made
    assert download(published, tmp_path / "new") == published.new


def test_a_download_cut_after_11_mib_goes_on_where_it_was(hub: HubHandle, tmp_path: Path) -> None:
    repo_id, data = hub.new_id("long"), os.urandom(12 * MIB)
    hub.api().create_repo(repo_id)
    hub.api().upload_file(repo_id=repo_id, path_in_repo="long.bin", path_or_fileobj=data)
    hub.faults.add("drop", "*/long.bin", method="GET", after=11 * MIB)
    path = hf_hub_download(repo_id, "long.bin", cache_dir=tmp_path)
    assert Path(path).read_bytes() == data
    parts = [(item["range"], item["status"], item["fault"]) for item in hub.requests("*/long.bin", "GET")]
    assert parts == [(None, 200, "drop"), (f"bytes={10 * MIB}-", 206, None)]  # the client keeps whole 10 MiB pieces


READ_SURVIVED = {
    "listing unavailable": {"kind": "status", "path": "*/tree/*", "status": 500},
    "too many requests": {"kind": "status", "path": "*/resolve/*", "method": "GET", "status": 429, "retry_after": 0},
    "cut": {"kind": "drop", "path": "*/model.safetensors", "method": "GET", "after": 1000},
    "cut before the first byte": {"kind": "lose", "path": "*/model.safetensors", "method": "GET"},
    "too slow": {"kind": "slow", "path": "*/model.safetensors", "method": "GET", "seconds": 1.5},
}
READ_FATAL = {
    "content unavailable": ({"kind": "status", "path": "*/resolve/*", "method": "GET", "status": 503}, HfHubHTTPError),
    "the repository unavailable": ({"kind": "status", "path": "/api/models/*", "status": 500}, LocalEntryNotFoundError),
    "token expired": ({"kind": "status", "path": "/api/models/*", "status": 401}, HfHubHTTPError),
}


@pytest.mark.parametrize("name", READ_SURVIVED)
def test_a_download_survives(
    hub: HubHandle, published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1)
    hub.faults.add(**READ_SURVIVED[name])
    assert download(published, tmp_path) == published.old
    assert [fault["hits"] for fault in hub.faults.all()] == [1]


@pytest.mark.parametrize("name", READ_FATAL)
def test_a_download_fails_and_can_be_repeated(hub: HubHandle, published: Published, tmp_path: Path, name: str) -> None:
    fault, error = READ_FATAL[name]
    hub.faults.add(**fault)
    with pytest.raises(error):
        download(published, tmp_path)
    assert download(published, tmp_path) == published.old


def test_a_corrupt_download_is_found_by_the_checksums_alone(
    hub: HubHandle, published: Published, tmp_path: Path
) -> None:
    """huggingface_hub compares sizes, not hashes: whoever needs certainty asks it to verify."""
    hub.faults.add("corrupt", "*/model.safetensors", method="GET", after=70_000)
    found = download(published, tmp_path)["model.safetensors"]
    assert [at for at, (a, b) in enumerate(zip(found, published.old["model.safetensors"], strict=True)) if a != b] == [
        70_000
    ]
    verified = hub.api().verify_repo_checksums(published.repo_id, cache_dir=tmp_path)
    assert [mismatch["path"] for mismatch in verified.mismatches] == ["model.safetensors"]


def test_faults_are_counted_scoped_and_checked(hub: HubHandle) -> None:
    url = f"{hub.endpoint}/api/models/alice/nothing"

    def statuses(number: int, method: str = "GET") -> list[int]:
        return [get_session().request(method, url).status_code for _ in range(number)]

    hub.faults.add("status", "*/nothing", method="GET", status=500, skip=1, count=2)
    assert statuses(5) == [401, 500, 500, 401, 401]
    hub.faults.add("status", "*/other", status=500, count=None)
    hub.faults.add("status", "*/noth?ng", status=418, count=None)
    assert statuses(2) == [418, 418] and statuses(1, "POST") == [418]
    answer = get_session().get(url)
    assert answer.json() == {"error": "injected: status 418"}
    hub.faults.clear()
    assert statuses(1) == [401]
    for bad in ({"kind": "nonsense"}, {"kind": "drop", "bytes": 3}):
        assert get_session().post(f"{hub.endpoint}/_hub/faults", json=bad).status_code == 400
    assert {"drop", "slow", "corrupt", "status"} <= KINDS.keys()
