"""Who may do what: tokens, private and gated repositories."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from tests.loopback_hub.fixtures import HubHandle


def make(hub: HubHandle, *, private: bool = False, gated: str | None = None) -> str:
    repo_id = hub.new_id("access")
    hub.api().create_repo(repo_id, private=private)
    hub.api().upload_file(repo_id=repo_id, path_in_repo="a.txt", path_or_fileobj=b"content")
    if gated:
        hub.api().update_repo_settings(repo_id, gated=gated)
    return repo_id


def test_whoami(hub: HubHandle) -> None:
    assert hub.api().whoami()["name"] == "alice" and hub.api("bob").whoami()["name"] == "bob"
    assert [org["name"] for org in hub.api().whoami()["orgs"]] == ["acme"]


@pytest.mark.parametrize("user", [None, "bob"])
def test_a_private_repository_is_not_found_by_others(hub: HubHandle, tmp_path: Path, user: str | None) -> None:
    repo_id = make(hub, private=True)
    token = hub.tokens[user] if user else False
    with pytest.raises(RepositoryNotFoundError) as caught:
        snapshot_download(repo_id, cache_dir=tmp_path, token=token)
    assert caught.value.response.status_code == (404 if user else 401)
    with pytest.raises(RepositoryNotFoundError):
        hf_hub_download(repo_id, "a.txt", cache_dir=tmp_path, token=token)
    assert Path(hf_hub_download(repo_id, "a.txt", cache_dir=tmp_path)).read_bytes() == b"content"
    assert hub.api().repo_info(repo_id).private
    assert repo_id not in [info.id for info in hub.api(user).list_models(author="alice")]
    hub.api().update_repo_settings(repo_id, private=False)
    assert repo_id in [info.id for info in hub.api(user).list_models(author="alice")]


@pytest.mark.parametrize("user", [None, "bob"])
def test_a_gated_repository_shows_its_face_only(hub: HubHandle, tmp_path: Path, user: str | None) -> None:
    repo_id = make(hub, gated="manual")
    token = hub.tokens[user] if user else False
    assert hub.api(user).repo_info(repo_id).gated == "manual"
    with pytest.raises(GatedRepoError) as caught:
        hf_hub_download(repo_id, "a.txt", cache_dir=tmp_path, token=token)
    assert caught.value.response.status_code == (403 if user else 401)
    with pytest.raises(GatedRepoError):
        hub.api(user).auth_check(repo_id)
    if user:
        hub.api().grant_access(repo_id, user)
        assert Path(hf_hub_download(repo_id, "a.txt", cache_dir=tmp_path, token=token)).read_bytes() == b"content"


def test_tokens_that_may_not_write(hub: HubHandle) -> None:
    repo_id = make(hub)
    before = hub.api().repo_info(repo_id).sha
    expected = {"hf_alice_read": "403", "hf_bob_write": "403", "hf_alice_expired": "401", "hf_unknown": "401"}
    for token, status in expected.items():
        api = HfApi(endpoint=hub.endpoint, token=token)
        with pytest.raises(HfHubHTTPError, match=status):
            api.upload_file(repo_id=repo_id, path_in_repo="a.txt", path_or_fileobj=b"changed")
        with pytest.raises(HfHubHTTPError, match=status):
            api.create_repo("alice/other")
        with pytest.raises(HfHubHTTPError, match=status):
            api.delete_repo(repo_id)
    with pytest.raises(HfHubHTTPError, match="401"):
        hub.api(None).upload_file(repo_id=repo_id, path_in_repo="a.txt", path_or_fileobj=b"changed")
    assert hub.api().repo_info(repo_id).sha == before


def test_an_organization_and_the_life_of_a_repository(hub: HubHandle) -> None:
    api, repo_id = hub.api(), hub.new_id("life", "acme")
    api.create_repo(repo_id, repo_type="dataset")
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(repo_id, repo_type="dataset")
    assert api.create_repo(repo_id, repo_type="dataset", exist_ok=True).repo_id == repo_id
    with pytest.raises(HfHubHTTPError, match="403"):
        hub.api("bob").create_repo(hub.new_id("life", "acme"))
    api.delete_repo(repo_id, repo_type="dataset")
    assert not api.repo_exists(repo_id, repo_type="dataset")
    api.create_repo(repo_id, repo_type="dataset")
    assert api.list_repo_files(repo_id, repo_type="dataset") == [".gitattributes"]


def test_a_card_with_broken_metadata_is_refused_before_anything_is_sent(hub: HubHandle) -> None:
    repo_id = make(hub)
    with pytest.raises(ValueError, match=r"Invalid metadata in README.md"):
        hub.api().upload_file(repo_id=repo_id, path_in_repo="README.md", path_or_fileobj=b"---\na: [1\n---\n")
    assert not hub.requests("*/preupload/*", "POST")[1:]
