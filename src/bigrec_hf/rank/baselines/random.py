"""Random baseline: every example's catalog in an order of its own."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from bigrec_hf.data.catalog import Catalog
from bigrec_hf.data.generations import Examples
from bigrec_hf.ground.from_scores import baseline_rankings
from bigrec_hf.settings import RankOptions


def random_rankings(
    catalog: Catalog,
    examples: Examples,
    options: RankOptions,
    *,
    seed: int = 0,
) -> pa.Table:
    """Uniformly random order, drawn for example number i from the seed (seed, i).

    Expected HR@K is K / n_items for a title in one row (a little more for titles in several, with duplicates "best").
    """

    def scores(start: int, stop: int) -> np.ndarray:
        return np.stack([np.random.default_rng([seed, i]).random(len(catalog)) for i in range(start, stop)])

    return baseline_rankings(
        "random",
        scores,
        catalog,
        examples,
        options,
        baseline_seed=seed,
    )
