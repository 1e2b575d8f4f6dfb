"""The `linear` stage: EASE and ItemKNN, their parameters chosen on validation, ranked and scored like every method.

Writes, for each model, `<run_dir>/<model>/` and `<run_dir>/validation/<model>/`: rankings.parquet, scores.safetensors
(for `rerank --scores <model>`), choice.json (what was tried and chosen), and what `score` writes. Models are fitted to
the training split alone, and read the history of an example as the language model does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import write_json
from bigrec_hf.data.catalog import load_catalog
from bigrec_hf.data.earlier import with_seen
from bigrec_hf.data.examples import load_config, read_train_counts
from bigrec_hf.data.generations import evaluated_examples, sample_examples
from bigrec_hf.data.item_scores import SCORES_FILE, write_scores
from bigrec_hf.data.rankings import target_rows, write_rankings
from bigrec_hf.data.run_folder import VALIDATION_DIR
from bigrec_hf.data.sequences import ItemSequences, training_sequences
from bigrec_hf.ground.from_scores import baseline_rankings
from bigrec_hf.rank.baselines.ease import ease_models
from bigrec_hf.rank.baselines.itemknn import itemknn_models
from bigrec_hf.rank.baselines.linear import Fitted, choose_model, history_matrix, linear_scores
from bigrec_hf.rank.model_selection import CHOICE_FILE
from bigrec_hf.score.stage import results_table, score_folder

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings, GroundSettings, LinearSettings, RunSettings, ScoreSettings

VALIDATION_SAMPLE = 5000  # validation examples that choose the parameters, at most
MODELS: dict[str, Callable[[ItemSequences, int, LinearSettings], Sequence[Fitted]]] = {
    "ease": lambda sequences, n_items, s: ease_models(sequences, n_items, s.ease_lambdas, s.ease_max_items),
    "itemknn": lambda sequences, n_items, s: itemknn_models(
        sequences, n_items, s.itemknn_neighbors, s.itemknn_shrinkages
    ),
}


def main(
    run: RunSettings, data: DataSettings, ground: GroundSettings, score: ScoreSettings, linear: LinearSettings
) -> None:
    """Choose, rank and score every model named; print one table. Raises BigrecError for an unknown model."""
    unknown = [name for name in linear.linear_models if name not in MODELS]
    if unknown or not linear.linear_models:
        what = repr(unknown[0]) if unknown else "empty"
        raise BigrecError(f"linear_models: {what}: choose among {', '.join(MODELS)}")
    if run.run_dir is None:
        raise BigrecError("no run folder given: name it with --output_dir or --config RECIPE")
    if not data.dataset:
        raise BigrecError("no data set given: linear models are fitted to a prepared set, name it with --dataset")
    folder, dataset = Path(run.run_dir), data.dataset[0]
    catalog = load_catalog(dataset)
    counts = read_train_counts(dataset)
    sequences = training_sequences(load_config(dataset, "default", "train").data.table)
    chooses = with_seen(sample_examples(dataset, "validation", VALIDATION_SAMPLE), ground.options, data)
    results: dict[str, dict[str, Any]] = {}
    for name in linear.linear_models:
        chosen = choose_model(
            MODELS[name](sequences, len(catalog), linear),
            linear.linear_decays,
            chooses.histories,
            target_rows(chooses.targets, catalog, ground.duplicates),
            counts,
            exclude=ground.options.excluded(chooses),
        )
        weights = chosen.fitted.weights()
        shown = ", ".join(f"{key} {value:g}" for key, value in chosen.parameters.items())
        print(f"{name}: {shown} chosen on {len(chooses.targets):,} validation examples (NDCG@10 {chosen.value:.4f})")
        for place, split in ((folder, data.split), (folder / VALIDATION_DIR, "validation")):
            examples = evaluated_examples(place, catalog, dataset, split, data.eval_sample)
            if not examples.example_ids:
                print(f"{name}: the {split} split of {dataset} is empty: skipped")
                continue
            examples = with_seen(examples, ground.options, data)
            inputs = history_matrix(examples.histories, len(catalog), chosen.decay)
            scores = linear_scores(inputs, weights, counts)
            table = baseline_rankings(name, _rows(scores), catalog, examples, ground.options, **chosen.parameters)
            write_scores(place / name / SCORES_FILE, scores, examples.example_ids, catalog, model=name)
            write_json(place / name / CHOICE_FILE, {"chosen": chosen.parameters, "tried": chosen.table})
            write_rankings(table, place / name)
            found = score_folder(place / name, **vars(score), seed=run.seed)
            if split != "validation":
                results[name] = found
    print(results_table(results, sorted(set(score.ks))))


def _rows(scores: np.ndarray) -> Callable[[int, int], np.ndarray]:
    return lambda start, stop: scores[start:stop]
