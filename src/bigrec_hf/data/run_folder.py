"""The layout of a run folder: its name, its validation examples, its seeds."""

from __future__ import annotations

from pathlib import Path

from bigrec_hf.common.files import read_json

VALIDATION_DIR = "validation"  # in a run folder: the same method folders, for the validation examples


def seed_folders(run_dir: str | Path) -> list[Path]:
    """The folders seed-0, seed-1, ... of a run of several seeds, by number; of any other run, the run folder itself.

    If the run has a manifest, folders of seeds that it does not list (left by an earlier recipe) are ignored.
    """
    manifest = read_json(Path(run_dir) / "manifest.json")
    named = manifest.get("seeds", []) if manifest else None
    found = {int(path.name[5:]): path for path in Path(run_dir).glob("seed-*") if path.name[5:].isdigit()}
    return [found[seed] for seed in sorted(found) if named is None or seed in named] or [Path(run_dir)]


def run_name(run_dir: str | Path) -> str:
    """The folder's own name, even if given as `.` or `runs/x/..`."""
    return Path(run_dir).resolve().name
