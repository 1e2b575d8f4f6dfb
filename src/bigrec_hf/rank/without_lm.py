"""The `baselines` stage: every ranking that needs no language model, on one prepared set.

Random, popularity, co-occurrence, ItemKNN and EASE; SASRec on request. Each is the method of its own stage, in the same
folders (`<run_dir>/popularity/`, ...), so that `report` shows them and a later `run` in the folder adds to them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json
from bigrec_hf.data.catalog import load_catalog
from bigrec_hf.data.generations import evaluated_examples
from bigrec_hf.data.rankings import write_rankings
from bigrec_hf.data.run_folder import record_data, run_folder
from bigrec_hf.rank.baselines import stage as linear_stage
from bigrec_hf.rank.baselines.by_name import NAMES, baseline_table
from bigrec_hf.rank.item_models import training_set
from bigrec_hf.rank.sasrec import stage as sasrec_stage
from bigrec_hf.score.stage import RESULTS_FILE, results_table, score_folder

if TYPE_CHECKING:
    from bigrec_hf.settings import (
        BaselinesSettings,
        DataSettings,
        GroundSettings,
        LinearSettings,
        RunSettings,
        SasrecSettings,
        ScoreSettings,
    )


def main(
    run: RunSettings,
    data: DataSettings,
    ground: GroundSettings,
    score: ScoreSettings,
    baselines: BaselinesSettings,
    linear: LinearSettings,
    sasrec: SasrecSettings,
) -> None:
    """Train, rank and score; print one table. Raises BigrecError without a run folder or a prepared set."""
    folder, dataset = run_folder(run), training_set(data)
    record_data(folder, data)
    catalog = load_catalog(dataset)
    examples = evaluated_examples(folder, catalog, dataset, data.split, data.eval_sample)
    if not examples.example_ids:
        raise BigrecError(f"the {data.split} split of {dataset!r} is empty: choose another with --split")
    for name in NAMES:
        print(f"{name}: ranking {len(examples.example_ids):,} examples", flush=True)
        write_rankings(baseline_table(name, examples, data, ground.options, seed=run.seed), folder / name)
        score_folder(folder / name, **vars(score), seed=run.seed)
    models = linear.linear_models
    if "ease" in models and len(catalog) > linear.ease_max_items:
        print(f"ease: left out, the catalog has {len(catalog):,} items (--ease_max_items {linear.ease_max_items:,})")
        models = [name for name in models if name != "ease"]
    if models:
        linear_stage.main(run, data, ground, score, replace(linear, linear_models=models))
    if baselines.sasrec:
        sasrec_stage.main(run, data, ground, score, sasrec)
    methods = [*NAMES, *models, *([sasrec_stage.NAME] if baselines.sasrec else [])]
    results: dict[str, Any] = {name: read_json(folder / name / RESULTS_FILE) for name in methods}
    print(results_table(results, sorted(set(score.ks))))
    print(f"with intervals and marks of real differences: bigrec-hf report {folder}")
