"""The `linear` stage: EASE and ItemKNN, their parameters chosen on validation, ranked and scored like every method.

Writes, for each model, `<run_dir>/<model>/` and `<run_dir>/validation/<model>/`: rankings.parquet, scores.safetensors
(for `rerank --scores <model>`), choice.json (what was tried and chosen), and what `score` writes. Models are fitted to
the training split alone, and read the history of an example as the language model does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import write_json
from bigrec_hf.data.catalog import load_catalog
from bigrec_hf.data.examples import load_config, read_train_counts
from bigrec_hf.data.rankings import target_rows
from bigrec_hf.data.run_folder import split_folders
from bigrec_hf.data.sequences import ItemSequences, training_sequences
from bigrec_hf.rank.baselines.ease import ease_models
from bigrec_hf.rank.baselines.itemknn import itemknn_models
from bigrec_hf.rank.baselines.linear import Chosen, Fitted, choose_model, history_matrix, linear_scores
from bigrec_hf.rank.item_models import choosing_examples, rank_by_model, training_set
from bigrec_hf.rank.model_selection import CHOICE_FILE
from bigrec_hf.score.stage import results_table

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings, GroundSettings, LinearSettings, RunSettings, ScoreSettings

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
    places, dataset = split_folders(run), training_set(data)
    catalog = load_catalog(dataset)
    counts = read_train_counts(dataset)
    sequences = training_sequences(load_config(dataset, "default", "train").data.table)
    validation = choosing_examples(data, ground.options)
    results: dict[str, dict[str, Any]] = {}
    for name in linear.linear_models:
        chosen = choose_model(
            MODELS[name](sequences, len(catalog), linear),
            linear.linear_decays,
            validation.histories,
            target_rows(validation.targets, catalog, ground.duplicates),
            counts,
            exclude=ground.options.excluded(validation),
        )
        shown = ", ".join(f"{key} {value:g}" for key, value in chosen.parameters.items())
        print(f"{name}: {shown} chosen on {len(validation.targets):,} validation examples (NDCG@10 {chosen.value:.4f})")
        scorer = chosen_scorer(chosen, counts)
        found = rank_by_model(name, scorer, run, data, ground, score, catalog, **chosen.parameters)
        for split in found:
            place = places["validation" if split == "validation" else "test"]
            write_json(place / name / CHOICE_FILE, {"chosen": chosen.parameters, "tried": chosen.table})
        if data.split != "validation" and data.split in found:
            results[name] = found[data.split]
    print(results_table(results, sorted(set(score.ks))))


def chosen_scorer(chosen: Chosen, counts: np.ndarray) -> Callable[[Sequence[Sequence[int]]], np.ndarray]:
    """Return the function from histories to scores of all items, (n, n_items), of a chosen model and decay."""
    weights = chosen.fitted.weights()
    return lambda histories: linear_scores(history_matrix(histories, len(counts), chosen.decay), weights, counts)
