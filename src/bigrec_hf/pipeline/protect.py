"""A run is not replaced by a different one by accident."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_record
from bigrec_hf.data.run_folder import RECIPE_FILE
from bigrec_hf.pipeline.steps import MANIFEST
from bigrec_hf.settings import SECTIONS, RunSections
from bigrec_hf.settings.recipes import read_recipe

DECIDING = ("prepare", "data", "model", "prompt", "sft", "generate")  # what a run is; the rest ranks and scores it anew
PLACES = {"prepared_dir", "dataset", "adapter_dir", "catalog"}  # compared by content, in each stage's fingerprint


def changed_settings(folder: Path, sections: RunSections) -> dict[str, tuple[Any, Any]]:
    """Return the deciding settings that differ from those `folder` was made with: `sft.sample` -> (old, new).

    Settings that the older recipe does not name had their default.
    """
    old = read_recipe(folder / RECIPE_FILE)
    found = {}
    for section in DECIDING:
        new = asdict(getattr(sections, section))
        usual = asdict(SECTIONS[section]())
        for item in fields(SECTIONS[section]):
            before = old.get(section, {}).get(item.name, usual[item.name])
            if item.name not in PLACES and before != new[item.name]:
                found[f"{section}.{item.name}"] = (before, new[item.name])
    seed = old.get("run", {}).get("seed", 0)
    return found | ({"run.seed": (seed, sections.run.seed)} if seed != sections.run.seed else {})


def check_replaced(folder: Path, sections: RunSections) -> None:
    """Raise BigrecError if `folder` holds stages of a run with other deciding settings.

    `--overwrite` and `--from` allow to redo them; what has changed is then printed.
    """
    if not (folder / RECIPE_FILE).is_file() or not read_record(folder / MANIFEST).get("stages"):
        return
    allowed = sections.pipeline.overwrite or sections.pipeline.from_stage
    try:
        changed = changed_settings(folder, sections)
    except BigrecError as error:
        if allowed:
            return  # a damaged recipe.yaml is written again
        raise BigrecError(f"{error}; redo what depends on it with --overwrite") from error
    if not changed:
        return
    listed = "; ".join(f"{name} {before!r} -> {after!r}" for name, (before, after) in changed.items())
    if allowed:
        print(f"changed since {folder} was made, stages that depend on it are redone: {listed}", flush=True)
        return
    raise BigrecError(
        f"{folder} holds a run with other settings ({listed}): name another folder with --run_dir, or redo what "
        "depends on them with --overwrite"
    )
