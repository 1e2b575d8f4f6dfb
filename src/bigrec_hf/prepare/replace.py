"""Put a prepared set into place in one step, without ever touching a folder that is not a prepared set."""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import is_running, read_record
from bigrec_hf.data.prepared import FACTS_FILE
from bigrec_hf.settings import PrepareSettings


def temporary_sibling(target: Path) -> Path:
    """Create a folder next to `target`, named after this process."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.tmp-{os.getpid()}"
    temporary.mkdir()
    return temporary


def put_in_place(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; an existing set is moved aside first and removed last."""
    if not target.exists():
        temporary.replace(target)
        return
    older = target.parent / f".{target.name}.old-{os.getpid()}"
    target.rename(older)
    temporary.replace(target)
    shutil.rmtree(older)


def check_replaceable(target: Path) -> None:
    """Raise BigrecError if `target` is anything but a prepared set, an empty folder, or missing."""
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise BigrecError(f"{target} is not a folder: choose another prepared_dir")
    if target.is_dir() and any(target.iterdir()) and not (target / FACTS_FILE).is_file() and not _is_remainder(target):
        raise BigrecError(
            f"{target} is neither empty nor a prepared set (no {FACTS_FILE}): choose another prepared_dir"
        )


def check_same_set(target: Path, fingerprint: dict[str, Any]) -> None:
    """Raise BigrecError if `target` is a readable prepared set of other files or settings than `fingerprint` has.

    Only what changes the content counts, not the name of the set; settings of later releases had their default.
    """
    facts = read_record(target / FACTS_FILE)
    old, old_files = facts.get("settings"), facts.get("sha256")
    if not isinstance(old, dict) or not isinstance(old_files, dict):
        return
    usual, new, files = asdict(PrepareSettings()), fingerprint["settings"], fingerprint["sha256"]
    changed = [
        f"{name} {old.get(name, usual[name])!r} -> {value!r}"
        for name, value in new.items()
        if name != "dataset_name" and old.get(name, usual[name]) != value
    ]
    if sorted(old_files.values()) != sorted(files.values()):
        if sorted(old_files) == sorted(files):
            names = ", ".join(name for name in files if files[name] != old_files[name])
            changed.append(f"{names} has other content")
        else:
            changed.append(f"made from {', '.join(old_files)}, not {', '.join(files)}")
    if changed:
        raise BigrecError(
            f"{target} holds another prepared set ({'; '.join(changed)}): write to another folder with --output_dir, "
            "or replace it with --overwrite"
        )


def _is_remainder(target: Path) -> bool:
    """Whether nothing but the card of a prepared set is left, all of whose other files `run` has removed."""
    files = [file for file in target.rglob("*") if not file.is_dir()]
    return files == [target / "README.md"] and "bigrec_hf" in files[0].read_text(encoding="utf-8", errors="replace")


def remove_stale(target: Path) -> None:
    """Clean up what killed runs left next to `target`: a set that was moved aside is put back, the rest is removed."""
    if not target.parent.is_dir():
        return
    for folder in sorted(target.parent.iterdir()):
        if not folder.name.startswith(f".{target.name}."):
            continue
        kind, _, pid = folder.name.removeprefix(f".{target.name}.").partition("-")
        if kind not in {"tmp", "old"} or not pid.isdigit() or is_running(int(pid)):
            continue
        print(f"prepare: cleaning up {folder.name}, left by an interrupted run", flush=True)
        if kind == "old" and not target.exists():
            folder.rename(target)
        else:
            shutil.rmtree(folder)
