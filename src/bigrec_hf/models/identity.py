"""Content fingerprints of models and adapters, so that stale outputs are rebuilt.

A name says where a model is, not what it contains: the weights in a folder may have been replaced since.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json
from bigrec_hf.common.hub_names import fetch_file, is_hub_id, resolve_commit
from bigrec_hf.metrics.ndcg_hr.names import split_revision

ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_CONTENT = (  # every file of PEFT and of the tokenizer that an adapter's folder may contain
    *("adapter_config.json", *ADAPTER_FILES, "tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "chat_template.jinja", "vocab.json", "vocab.txt", "merges.txt"),
    *("spiece.model", "sentencepiece.bpe.model"),
)
TRAINING_FILE = "training.json"  # the record of a training, in the folder of the adapter or of SASRec
MODEL_SUFFIXES = {".json", ".safetensors", ".bin", ".model", ".txt", ".jinja"}


def model_revision(name: str) -> str:
    """The Hub commit of a model, or `sha256:...` over names and contents of a folder's configuration, tokenizer and
    weight files. Raises BigrecError if there is no such model.
    """
    folder = Path(split_revision(name)[0])
    if not folder.is_dir():
        return resolve_commit(name, "model")
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.is_file() and file.suffix in MODEL_SUFFIXES and file.name != "training_args.bin"
    )
    if not files:
        raise BigrecError(f"{folder} contains no model (neither configuration nor weights): give a model folder")
    stamps = tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    return f"sha256:{_folder_sha256(str(folder), stamps)}"


@lru_cache(maxsize=16)
def _folder_sha256(folder: str, stamps: tuple[tuple[str, int, int], ...]) -> str:
    """Cached: the files are read once per process as long as their sizes and modification times stay the same."""
    digest = hashlib.sha256()
    for name, size, _ in stamps:
        digest.update(f"{Path(name).relative_to(folder).as_posix()}\0{size}\0".encode())
        with Path(name).open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()


def adapter_fingerprint(adapter: str | None) -> str | None:
    """Return the sha256 of the adapter's weights (folder or Hub id). Raises BigrecError if it has none."""
    if adapter is None:
        return None
    if Path(split_revision(adapter)[0]).is_dir() or is_hub_id(adapter, bare=True):
        for name in ADAPTER_FILES:
            file = fetch_file(adapter, name, "model", optional=True)
            if file is not None:
                with file.open("rb") as stream:
                    return hashlib.file_digest(stream, "sha256").hexdigest()
    raise BigrecError(f"no adapter in {adapter!r}: train one with `bigrec-hf sft`, or use --method zero_shot")


def check_same_base(adapter: str, base_model: str) -> None:
    """Raise BigrecError if an adapter (folder or Hub id) records that it was trained on another base model.

    Only revisions of the same kind are compared: the digest of a folder says nothing about a Hub commit.
    """
    file = fetch_file(adapter, TRAINING_FILE, "model", optional=True)
    recorded = None if file is None else read_json(file).get("settings", {}).get("base_revision")
    if recorded is None:
        return
    current = model_revision(base_model)
    if recorded.startswith("sha256:") == current.startswith("sha256:") and recorded != current:
        raise BigrecError(
            f"the adapter {adapter} was trained on another base model than {base_model!r} ({recorded[:19]}, not "
            f"{current[:19]}): give the one it was trained on, or train an adapter on this one"
        )
