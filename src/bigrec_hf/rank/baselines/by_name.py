"""Rankings of a baseline, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import catalog_source, load_catalog
from bigrec_hf.data.earlier import with_seen
from bigrec_hf.data.examples import load_config
from bigrec_hf.data.generations import Examples
from bigrec_hf.data.sequences import training_sequences
from bigrec_hf.rank.baselines.cooccurrence import cooccurrence_rankings, count_neighbors
from bigrec_hf.rank.baselines.popularity import popularity_rankings
from bigrec_hf.rank.baselines.random import random_rankings

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings, RankOptions


NAMES = ("random", "popularity", "cooccurrence")


def baseline_table(name: str, examples: Examples, data: DataSettings, options: RankOptions, *, seed: int) -> pa.Table:
    """Return rankings of the examples by `name`, one of NAMES.

    Raises BigrecError for the last two without a prepared data set.
    """
    catalog = load_catalog(catalog_source(data.catalog, data.dataset))
    examples = with_seen(examples, options, data)
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
