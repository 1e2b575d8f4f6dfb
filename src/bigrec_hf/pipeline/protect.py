"""A run is not replaced by a different one by accident, and its recipe never describes results of an earlier one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_record, write_atomically, write_json
from bigrec_hf.common.processes import process_state
from bigrec_hf.data.rankings import RANKINGS_FILE, SCORE_FILES
from bigrec_hf.data.run_folder import MANIFEST, RECIPE_FILE, VALIDATION_DIR
from bigrec_hf.report.page import PAGE
from bigrec_hf.report.plot_files import DIFFERENCES_PLOT, LEARNING_PLOT, METRICS_PLOT
from bigrec_hf.report.stage import TEXT
from bigrec_hf.settings import SECTIONS, RunSections
from bigrec_hf.settings.recipes import read_recipe, to_yaml

DECIDING = ("prepare", "data", "model", "prompt", "sft", "generate")  # what a run is; the rest ranks and scores it anew
DERIVED = {"prepared_dir", "adapter_dir", "grpo_adapter_dir"}  # follow from the run folder
RANKING = ("ground", "score", "linear", "sasrec", "fuse", "rerank", "pool", "debias")
SCORED_FROM = {"linear": ("rerank", "pool"), "sasrec": ("rerank", "pool", "debias")}  # stages that read these scores
UNRANKED = ("prepare", "sft", "grpo", "index", "generate")  # stages that write no rankings
REPORTS = (TEXT, PAGE, METRICS_PLOT, LEARNING_PLOT, DIFFERENCES_PLOT)
PERMITTING = {"overwrite_prepared"}  # decide nothing about the content


def changed_settings(folder: Path, sections: RunSections) -> dict[str, tuple[Any, Any]]:
    """Return the settings that differ from those `folder` was made with: `sft.sample` -> (old, new); those that decide
    what a run is come first. Settings that the older recipe does not name had their default.

    Raises BigrecError if the folder's recipe cannot be read.
    """
    old = read_recipe(folder / RECIPE_FILE)
    found = {}
    trained = ("grpo",) if old.get("pipeline", {}).get("with_grpo") and sections.pipeline.with_grpo else ()
    for section in (*DECIDING, *trained, *RANKING):
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


def decides(name: str) -> bool:
    """Whether the setting `section.name` decides what a run is; the others rank and score it anew."""
    return name.partition(".")[0] not in RANKING


def check_replaced(folder: Path, sections: RunSections) -> list[str]:
    """Return the names of all settings that differ from those `folder` was made with.

    Raises BigrecError if deciding ones do, and `folder` has finished stages: `--overwrite` and `--from` allow to redo
    them; what has changed is then printed.
    """
    if not (folder / RECIPE_FILE).is_file():
        return []
    finished = bool(read_record(folder / MANIFEST).get("stages"))
    allowed = sections.pipeline.overwrite or sections.pipeline.from_stage or not finished
    try:
        changed = changed_settings(folder, sections)
    except BigrecError as error:
        if allowed:
            return [RECIPE_FILE]  # a damaged one is written again
        raise BigrecError(f"{error}; redo what depends on it with --overwrite") from error
    listed = "; ".join(f"{name} {old!r} -> {new!r}" for name, (old, new) in changed.items() if decides(name))
    if listed and not allowed:
        raise BigrecError(
            f"{folder} holds a run with other settings ({listed}): name another folder with --run_dir, or redo what "
            "depends on them with --overwrite"
        )
    if listed and finished:
        print(f"changed since {folder} was made, stages that depend on it are redone: {listed}", flush=True)
    return list(changed)


def remove_outdated(folder: Path, changed: Iterable[str]) -> None:
    """Remove results that the `changed` settings (`section.name`) have outdated, so that no command takes them for
    results of the new recipe if this run is interrupted; and their stages from the manifest, so that they run again.

    If a deciding setting has changed, rankings are removed, too. Adapters and generations have records of their own
    settings and stay: their stages tell whether they are those of the new recipe.
    """
    sections = {name.partition(".")[0] for name in changed}
    if not sections:
        return
    manifest = read_record(folder / MANIFEST)
    stages: dict[str, Any] = manifest.get("stages", {})
    all_anew = not sections <= {*RANKING}
    if all_anew:
        outdated = {name for name in stages if name.partition(":")[0] not in UNRANKED}
    elif sections & {"ground", "score"}:
        outdated = {name for name in stages if name.partition(":")[0] not in (*UNRANKED, "ground")}
    else:
        named = sections.union(*(SCORED_FROM.get(section, ()) for section in sections))
        outdated = {name for name in stages if name.partition(":")[0] in named}
    files = {folder / name for name in REPORTS}
    for name in outdated:
        for output in stages[name].get("outputs", {}):
            place, method, file = ("", *output.split("/"))[-3:]  # `finetuned/results.json`, `validation/ease/...`
            if file in SCORE_FILES:
                files.add((folder / VALIDATION_DIR if place == VALIDATION_DIR else folder) / method / file)
    if all_anew:  # also what was interrupted before it was recorded, or written by a stage that ran alone
        for file in (*SCORE_FILES, RANKINGS_FILE):
            files.update(folder.glob(f"*/{file}"), folder.glob(f"{VALIDATION_DIR}/*/{file}"))
    if stages:
        manifest["stages"] = {name: record for name, record in stages.items() if name not in outdated}
        write_json(folder / MANIFEST, manifest)
    for path in files:
        path.unlink(missing_ok=True)


def start_run(folder: Path, sections: RunSections) -> None:
    """Make `recipe.yaml` of a run folder that of this run, once nothing in the folder would contradict it.

    Raises BigrecError as `check_replaced` does.
    """
    state = process_state()
    changed = check_replaced(folder, sections)
    state.wait_for_everyone()  # all have read the recipe before the first process writes it
    if state.is_main_process:
        remove_outdated(folder, changed)
        text = to_yaml(vars(sections))
        write_atomically(folder / RECIPE_FILE, lambda path: path.write_text(text, encoding="utf-8"))
    state.wait_for_everyone()
