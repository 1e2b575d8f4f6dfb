"""The Hub's protocol, through huggingface_hub as it is installed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from tests.hub.fixtures import HubHandle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Files of each sort: a card, text below a folder, LFS by name, LFS by content, an empty one."""
    root = tmp_path / "upload"
    (root / "sub" / "ünter").mkdir(parents=True)
    (root / "README.md").write_text("---\nlicense: mit\ntags: [a, b]\n---\n# Card\n", encoding="utf-8")
    (root / "sub" / "ünter" / "a b.txt").write_text("äöü\n", encoding="utf-8")
    (root / "model.safetensors").write_bytes(os.urandom(300_000))
    (root / "noname").write_bytes(b"\0binary")
    (root / "empty.txt").write_bytes(b"")
    return root


def contents(root: str | Path) -> dict[str, bytes]:
    paths = (path for path in Path(root).rglob("*") if path.is_file() and path.name != ".gitattributes")
    return {str(path.relative_to(root)): path.read_bytes() for path in paths}


@pytest.mark.parametrize("kind", ["model", "dataset", "space"])
def test_upload_folder_and_snapshot_download_give_the_same_bytes(
    hub: HubHandle, folder: Path, tmp_path: Path, kind: str
) -> None:
    repo_id = hub.new_id("round-trip")
    api = hub.api()
    api.create_repo(repo_id, repo_type=kind, space_sdk="gradio" if kind == "space" else None)
    commit = api.upload_folder(repo_id=repo_id, repo_type=kind, folder_path=folder, commit_message="all of it")
    path = snapshot_download(repo_id, repo_type=kind, cache_dir=tmp_path / "cache")
    assert contents(path) == contents(folder)
    assert Path(path).name == commit.oid == api.repo_info(repo_id, repo_type=kind).sha
    lfs = {item.rfilename: item.lfs for item in api.repo_info(repo_id, repo_type=kind, files_metadata=True).siblings}
    assert {name for name, info in lfs.items() if info} == {"model.safetensors", "noname"}
    assert lfs["model.safetensors"].size == 300_000
