"""Random baseline: an independent random order of the catalog for every example."""

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
    """Rank in uniformly random order; that of example number i is drawn from the seed (seed, i).

    The expected HR@K is K / n_items for a title in one row, and a little more for one in several (duplicates: best).
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
