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
DERIVED = {"prepared_dir", "adapter_dir", "grpo_adapter_dir"}  # follow from the run folder
PERMITTING = {"overwrite_prepared"}  # decide nothing about the content


def changed_settings(folder: Path, sections: RunSections) -> dict[str, tuple[Any, Any]]:
    """Return the deciding settings that differ from those `folder` was made with: `sft.sample` -> (old, new).

    Settings that the older recipe does not name had their default.
    """
    old = read_recipe(folder / RECIPE_FILE)
    found = {}
    trained = ("grpo",) if old.get("pipeline", {}).get("with_grpo") and sections.pipeline.with_grpo else ()
    for section in (*DECIDING, *trained):
        new = asdict(getattr(sections, section))
        usual = asdict(SECTIONS[section]())
        for item in fields(SECTIONS[section]):
            before, after = old.get(section, {}).get(item.name, usual[item.name]), new[item.name]
            if item.name in DERIVED | PERMITTING or before == after:
                continue
            if item.name in ("dataset", "catalog"):  # the same place may be spelled in several ways
                places = _places(before, old.get("run", {}).get("run_dir")), _places(after, sections.run.run_dir)
                if places[0] == places[1]:
                    continue
            found[f"{section}.{item.name}"] = (before, after)
    seed = old.get("run", {}).get("seed", 0)
    return found | ({"run.seed": (seed, sections.run.seed)} if seed != sections.run.seed else {})


def _places(names: list[str] | str | None, run_dir: str | None) -> list[str]:
    """Return folders in one spelling each, those inside the run folder relative to it, which may have been moved; and
    names on the Hub as they are."""
    found = []
    for name in [names] if isinstance(names, str) else names or []:
        inside = Path(name).absolute().is_relative_to(Path(str(run_dir)).absolute())
        if inside:
            found.append(str(Path(name).absolute().relative_to(Path(str(run_dir)).absolute())))
        else:
            found.append(str(Path(name).absolute()) if Path(name).exists() else name)
    return found


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
