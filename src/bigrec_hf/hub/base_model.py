"""The base model of a published adapter: its name on the Hub, and whether the weights there are the ones used."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.hub_names import hub_errors, is_hub_id
from bigrec_hf.hub.bundle import Bundle
from bigrec_hf.hub.commit import retry
from bigrec_hf.metrics.ndcg_hr.names import split_revision

WEIGHT_SUFFIXES = (".safetensors", ".bin")


def find_base(bundle: Bundle, named: str | None, dry: bool) -> dict[str, Any]:
    """The base model by its Hub name: repo_id, revision, weights (same, differ, not compared), local.

    A base model from the Hub is used as recorded. A local folder needs `named`; its weight files are compared with that
    repository's by sha256 (a `dry` run continues if the Hub cannot be reached). Raises BigrecError for a missing name.
    """
    name = bundle.config.base_model
    recorded, commit = split_revision(name)
    if is_hub_id(name, bare=True):
        return {"repo_id": recorded, "revision": commit, "weights": "same", "local": False}
    if not named:
        raise BigrecError(
            f"the run's base model is the local folder {name!r}: give the Hub repository it is a copy of (--base_model)"
        )
    if not is_hub_id(named, bare=True):
        raise BigrecError(
            f"--base_model {named!r} is not a Hub id: expected user/name, from which others get the model"
        )
    repo_id, revision = split_revision(named)
    unknown = {"repo_id": repo_id, "revision": revision, "weights": "not compared", "local": True}
    try:
        there, commit = repository_files(named)
    except BigrecError as error:
        if not dry:
            raise
        print(f"dry run: {named} was not compared with the local base model: {error}")
        return unknown
    if not Path(recorded).is_dir():
        return unknown | {"revision": commit}
    own = {file.name: file for file in Path(recorded).iterdir() if file.suffix in WEIGHT_SUFFIXES}
    same = bool(own) and all(there.get(name) == sha256(file) for name, file in own.items())
    return unknown | {"revision": commit, "weights": "same" if same else "differ"}


def repository_files(name: str) -> tuple[dict[str, str | None], str]:
    """File name -> sha256 (of large files) at a model's revision, and the commit."""
    from huggingface_hub import HfApi

    repo_id, revision = split_revision(name)
    with hub_errors(name):
        info = retry(lambda: HfApi().model_info(repo_id, revision=revision, files_metadata=True))
    files = {item.rfilename: (item.lfs.sha256 if item.lfs else None) for item in info.siblings or []}
    return files, str(info.sha)


def sha256(file: Path) -> str:
    """Hex digest of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
