"""Rankings of a baseline, by name, over the examples that the language model has generated for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import catalog_source, load_catalog
from bigrec_hf.data.examples import load_config
from bigrec_hf.data.generations import GENERATIONS_FILE, Examples, read_generations
from bigrec_hf.data.sequences import training_sequences
from bigrec_hf.rank.baselines.cooccurrence import cooccurrence_rankings, count_neighbors
from bigrec_hf.rank.baselines.popularity import popularity_rankings
from bigrec_hf.rank.baselines.random import random_rankings

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings, RankOptions


def baseline_table(name: str, folder: Path, data: DataSettings, options: RankOptions, *, seed: int) -> pa.Table:
    """Return rankings by `random`, `popularity` or `cooccurrence` of the examples in `folder`/generations.parquet.

    Raises BigrecError for the last two without a prepared data set.
    """
    catalog = load_catalog(catalog_source(data.catalog, data.dataset))
    answers = read_generations(folder / GENERATIONS_FILE, catalog)
    examples = Examples(answers.example_ids, answers.targets, answers.histories)
    if name == "random":
        return random_rankings(catalog, examples, options, seed=seed)
    if not data.dataset:
        raise BigrecError(
            f"the {name} baseline needs the training split: give a prepared data set, or remove it from `baselines`"
        )
    counts = load_config(data.dataset[0], "items", "train")[C.TRAIN_COUNT]
    if name == "cooccurrence":
        trained_on = training_sequences(load_config(data.dataset[0], "default", "train").data.table)
        neighbors = count_neighbors(trained_on.items, trained_on.starts, len(catalog))
        return cooccurrence_rankings(catalog, neighbors, counts, examples, options)
    return popularity_rankings(catalog, counts, examples, options)
