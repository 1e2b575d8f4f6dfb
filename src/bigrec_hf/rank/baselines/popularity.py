"""Popularity baseline: the most frequent training targets, the same list for every user."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.data.generations import Examples
from bigrec_hf.ground.from_scores import baseline_rankings
from bigrec_hf.settings import RankOptions


def popularity_rankings(
    catalog: Catalog,
    train_counts: Sequence[int],
    examples: Examples,
    options: RankOptions,
) -> pa.Table:
    """Rank by descending train count (`Columns.TRAIN_COUNT`, one per catalog row), ties by row.

    Raises BigrecError if the counts do not fit the catalog or are all zero.
    """
    counts = np.asarray(train_counts, np.float64)  # (n_items,)
    if counts.shape != (len(catalog),):
        raise BigrecError(
            f"popularity: {counts.shape} train counts for {len(catalog)} catalog rows: exactly one per row is needed"
        )
    if not np.isfinite(counts).all() or counts.min() < 0 or counts.max() == 0:
        raise BigrecError(
            "popularity: train counts must be numbers of at least 0, and not all 0: is the train split empty?"
        )

    def scores(start: int, stop: int) -> np.ndarray:
        return np.broadcast_to(counts, (stop - start, len(counts)))

    return baseline_rankings(
        "popularity",
        scores,
        catalog,
        examples,
        options,
    )
