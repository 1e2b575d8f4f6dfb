"""The layout of a run folder: its name, its manifest, its validation examples, its seeds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, write_json
from bigrec_hf.common.hub_names import is_hub_id
from bigrec_hf.data.prepared import describe_data
from bigrec_hf.metrics.ndcg_hr.names import split_revision

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings, RunSettings

MANIFEST = "manifest.json"
RECIPE_FILE = "recipe.yaml"  # the settings a run was made with
VALIDATION_DIR = "validation"  # in a run folder: the same method folders, for the validation examples


def run_folder(run: RunSettings) -> Path:
    """Return the folder of the run. Raises BigrecError if none is given."""
    if run.run_dir is None:
        raise BigrecError("no run folder given: name one with --output_dir or --config RECIPE")
    return Path(run.run_dir)


def split_folders(run: RunSettings) -> dict[str, Path]:
    """Return the folders that hold methods: `validation`, and `test` for the evaluated examples of whatever split.

    Raises BigrecError if no run folder is given.
    """
    folder = run_folder(run)
    return {"validation": folder / VALIDATION_DIR, "test": folder}


def seed_folders(run_dir: str | Path) -> list[Path]:
    """The folders seed-0, seed-1, ... of a run of several seeds, by number; of any other run, the run folder itself.

    If the run has a manifest, folders of seeds that it does not list (left by an earlier recipe) are ignored.
    """
    manifest = read_json(Path(run_dir) / MANIFEST)
    named = manifest.get("seeds", []) if manifest else None
    found = {int(path.name[5:]): path for path in Path(run_dir).glob("seed-*") if path.name[5:].isdigit()}
    return [found[seed] for seed in sorted(found) if named is None or seed in named] or [Path(run_dir)]


def record_data(run_dir: str | Path, data: DataSettings) -> None:
    """Note in the run's manifest which data a stage that runs alone has read; what `run` noted stays."""
    manifest = read_json(Path(run_dir) / MANIFEST)
    if "stages" not in manifest:
        write_json(Path(run_dir) / MANIFEST, manifest | {"data": describe_data(data)})


def recorded_place(name: str, run_dir: Path, folder: str) -> str:
    """A recorded name; if it was a folder that no longer exists, the run's own `folder`, if there is one."""
    if Path(split_revision(name)[0]).exists() or is_hub_id(name) or not (run_dir / folder).is_dir():
        return name
    return str(run_dir / folder)


def existing_run(run_dir: str | Path) -> str:
    """Return the name of a run folder as given. Raises BigrecError if there is no such folder."""
    if not Path(run_dir).is_dir():
        raise BigrecError(f"run folder {str(run_dir)!r} does not exist: make it with `bigrec-hf run`")
    return str(run_dir)


def run_name(run_dir: str | Path) -> str:
    """The folder's own name, even if given as `.` or `runs/x/..`."""
    return Path(run_dir).resolve().name
