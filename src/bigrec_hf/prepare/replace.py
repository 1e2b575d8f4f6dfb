"""Put a prepared set into place in one step, without ever touching a folder that is not a prepared set."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import is_running
from bigrec_hf.data.examples import FACTS_FILE


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
