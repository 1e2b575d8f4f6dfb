"""What EASE, ItemKNN and SASRec share: fitted to one prepared data set, they score every item for a history."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.data.earlier import with_seen
from bigrec_hf.data.generations import Examples, evaluated_examples, sample_examples
from bigrec_hf.data.item_scores import SCORES_FILE, write_scores
from bigrec_hf.data.rankings import write_rankings
from bigrec_hf.data.run_folder import record_data, run_folder, split_folders
from bigrec_hf.ground.from_scores import baseline_rankings
from bigrec_hf.score.stage import score_folder

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings, GroundSettings, RankOptions, RunSettings, ScoreSettings

VALIDATION_SAMPLE = 5000  # maximum number of validation examples that choose parameters or the epoch


def training_set(data: DataSettings) -> str:
    """Return the prepared data set that the models are fitted to, the first one. Raises BigrecError without one."""
    if not data.dataset:
        raise BigrecError("no data set given: item models are fitted to a prepared data set, name one with --dataset")
    return data.dataset[0]


def choosing_examples(data: DataSettings, options: RankOptions) -> Examples:
    """Return the validation examples on which parameters or the epoch are chosen, at most VALIDATION_SAMPLE."""
    return with_seen(sample_examples(training_set(data), "validation", VALIDATION_SAMPLE), options, data)


def rank_by_model(
    name: str,
    score_histories: Callable[[Sequence[Sequence[int]]], np.ndarray],
    run: RunSettings,
    data: DataSettings,
    ground: GroundSettings,
    score: ScoreSettings,
    catalog: Catalog,
    **facts: Any,
) -> dict[str, dict[str, Any]]:
    """Rank the evaluated and the validation examples by a model's scores of all items; return the results by split.

    Writes scores.safetensors, rankings.parquet and the files of `score` to `<run_dir>/<name>` and
    `<run_dir>/validation/<name>`; a split without examples is skipped. `score_histories`: (n,) histories of catalog
    rows, oldest first -> (n, n_items) float32, higher is better. `facts` (JSON-able) join the metadata of the rankings.
    """
    record_data(run_folder(run), data)
    results: dict[str, dict[str, Any]] = {}
    places = split_folders(run)
    for place, split in ((places["test"], data.split), (places["validation"], "validation")):
        examples = evaluated_examples(place, catalog, training_set(data), split, data.eval_sample)
        if not examples.example_ids:
            print(f"{name}: the {split} split of {training_set(data)} is empty: skipped")
            continue
        examples = with_seen(examples, ground.options, data)
        scores = score_histories(examples.histories)
        table = baseline_rankings(name, _rows(scores), catalog, examples, ground.options, **facts)
        write_scores(place / name / SCORES_FILE, scores, examples.example_ids, catalog, model=name)
        write_rankings(table, place / name)
        results[split] = score_folder(place / name, **vars(score), seed=run.seed)
    return results


def _rows(scores: np.ndarray) -> Callable[[int, int], np.ndarray]:
    return lambda start, stop: scores[start:stop]
