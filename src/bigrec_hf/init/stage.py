"""Init: a recipe for a table of ratings and this machine, with an estimate of its time and memory.

Reads the table as `prepare` does (into a temporary folder), finds the machine, and times a few steps of the base model.
Writes one YAML file. At a terminal and without flags it asks five questions; else flags answer them.
"""

from __future__ import annotations

import contextlib
import io
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import temporary_folder, write_atomically
from bigrec_hf.data.examples import load_config
from bigrec_hf.data.prepared import load_facts
from bigrec_hf.init.choices import Fit, fit_to, prepare_section, recipe_name, recipe_text, source_name
from bigrec_hf.init.machine import find_machine, local_folder, n_parameters
from bigrec_hf.init.measure import Speed, formula_speed, measured_speed
from bigrec_hf.init.plan import in_words, make_plan, usual_minutes
from bigrec_hf.init.questions import ask, existing_file, noun_and_verb, positive
from bigrec_hf.models.loading import find_model
from bigrec_hf.prepare.stage import prepare_dataset
from bigrec_hf.settings import InitSettings, PrepareSettings
from bigrec_hf.settings.recipes import build_settings, default_run_dir

MODEL, ASSETS = "HuggingFaceTB/SmolLM2-135M-Instruct", ".assets/SmolLM2-135M-Instruct"


def main(init: InitSettings, prepare: PrepareSettings) -> None:
    """The `init` command. Raises BigrecError for an existing recipe, and for whatever `prepare` and `run` refuse."""
    asks = init == InitSettings() and prepare == PrepareSettings() and sys.stdin.isatty()
    base_model = init.recipe_model or (ASSETS if Path(ASSETS).is_dir() else MODEL)
    if asks:
        prepare = replace(prepare, ratings_file=ask("Table of ratings:", None, existing_file))
        noun, verb = ask("What are the items, and what did users do with them?", "items chosen", noun_and_verb)
        prepare = replace(prepare, noun=noun, verb=verb)
        base_model = ask("Base model, a folder or Hub id:", base_model, known_model)
    if not (prepare.ratings_file or prepare.raw_dir or prepare.hub_dataset):
        raise BigrecError("no table of ratings: give it with --ratings_file (at a terminal, `init` without flags asks)")
    prepare = replace(prepare, source=prepare.source or "tabular", prepared_dir=None)
    path = None if asks else new_recipe(init.recipe_file or recipe_name(prepare), overwrite=init.overwrite_recipe)
    known_model(base_model)
    machine = find_machine()
    print(f"init: {machine}")
    with temporary_folder() as folder:
        facts = read_data(prepare, folder / "set")
        fit = fit_to(machine, base_model, n_parameters(base_model), facts)
        speed = find_speed(folder, fit, facts, measure=init.measure)
    minutes = init.recipe_minutes or usual_minutes(speed)
    if asks:
        known = f" One pass over the data takes {in_words(speed.seconds_per_pass / 60)}." if speed else ""
        minutes = ask(f"How many minutes to train for?{known}", f"{minutes:g}", positive)
        path = ask("Recipe to write:", recipe_name(prepare), new_recipe)
    assert path is not None  # asked for above
    plan = make_plan(speed, minutes, facts)
    lines = [*plan.lines, *fit.warnings]
    sections = fit.sections | {"prepare": prepare_section(prepare), "data": {"eval_sample": plan.eval_sample}}
    sections["sft"] = {**sections.get("sft", {}), "max_minutes": minutes, "epochs": plan.epochs}
    text = recipe_text(
        [
            f"hardware: {machine}",
            f"{source_name(prepare)}: {facts['interactions']['kept']:,} interactions of {facts['users']:,} users with "
            f"{facts['items']:,} items.",
            *lines,
            "Written by `bigrec-hf init`; files are named as seen from the folder in which it ran.",
        ],
        sections,
    )
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    for line in lines:
        print(f"init: {line}")
    print(f"init: wrote {path}. The next two commands:\n")
    print(f"bigrec-hf run --config {path}")
    print(f"bigrec-hf recommend --run_dir {default_run_dir(path)} --users all --output recs.csv")


def known_model(answer: str) -> str:
    """A base model as `run` takes it, unchanged. Raises BigrecError for a folder that does not exist."""
    find_model(answer)
    return answer


def new_recipe(answer: str, *, overwrite: bool = False) -> Path:
    """The file to write. Raises BigrecError unless it ends in .yaml and is new, or may be replaced."""
    path = Path(answer).expanduser()
    if path.suffix not in (".yaml", ".yml"):
        raise BigrecError(f"the recipe {answer!r} does not end in .yaml: give a name that does, with --output")
    if path.is_dir() or (path.exists() and not overwrite):
        raise BigrecError(f"{path} exists: name another recipe with --output, or replace it with --overwrite")
    return path


def read_data(prepare: PrepareSettings, folder: Path) -> dict[str, Any]:
    """Prepare the data into `folder`, print what they are taken for, and return their facts."""
    options = asdict(prepare) | {"export_reference_json": None}
    source, raw_dir, _ = (options.pop(name) for name in ("source", "raw_dir", "prepared_dir"))
    with contextlib.redirect_stdout(io.StringIO()):
        prepare_dataset(source, raw_dir, folder, **options)
    facts = load_facts(str(folder))
    examples = ", ".join(f"{n:,} {split}" for split, n in facts["examples"].items())
    print(
        f"init: {facts['interactions']['kept']:,} interactions of {facts['users']:,} users with {facts['items']:,} "
        f"items; examples: {examples}"
    )
    if "columns" in facts:
        print("init: columns: " + ", ".join(f"{role} = {name}" for role, name in facts["columns"].items()))
    for name, value in facts.get("notes", {}).items():
        print(f"init: note: {name}: {value}")
    return facts


def find_speed(folder: Path, fit: Fit, facts: dict[str, Any], *, measure: bool) -> Speed | None:
    """Time and memory of the base model on the set in `folder`/set: measured if it is on this machine and fits, by a
    formula if its size is known, else None."""
    data = str(folder / "set")
    recipe = folder / "recipe.yaml"
    recipe.write_text(recipe_text([], fit.sections), encoding="utf-8")
    settings = build_settings(recipe, {"dataset": [data], "run_dir": str(folder / "run")})
    model = settings["model"]
    local = local_folder(model.base_model)
    if measure and local is not None and not fit.warnings:
        print("init: timing the base model, at most a minute", flush=True)
        settings["model"] = replace(model, base_model=str(local))
        return measured_speed(settings, folder)
    if fit.parameters is None:
        return None
    items = load_config(data, "items", "train")
    sft = settings["sft"]
    return formula_speed(
        fit.parameters,
        fit.weights,
        list(items[C.TITLE]),
        np.asarray(items[C.TRAIN_COUNT]),
        sft.evals_per_epoch * min(sft.validation_sample, facts["examples"]["validation"]),
        dtype=model.dtype,
        exact_width=settings["generate"].exact_width,
    )
