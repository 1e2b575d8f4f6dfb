"""Co-occurrence baseline: the neighbors, in training sequences, of the latest items of a history.

The defaults (3 latest items, at most 3 places apart) are close to the best of 1, 3, 10, 50 places and 1, 3, 10 items on
the validation examples of MovieLens-100K, split by time and leave-one-out, and of Amazon games.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.data.generations import Examples
from bigrec_hf.ground.from_scores import baseline_rankings
from bigrec_hf.settings import RankOptions


@dataclass(frozen=True)
class Neighbors:
    """Sparse co-occurrence counts (CSR): the neighbors of item `i` are `items[starts[i]:starts[i + 1]]`."""

    starts: np.ndarray  # (n_items + 1,) int64
    items: np.ndarray  # (pairs,) int64, ascending within an item
    counts: np.ndarray  # (pairs,) int64


def count_neighbors(items: np.ndarray, starts: np.ndarray, n_items: int, distance: int = 3) -> Neighbors:
    """Count how often two different items are at most `distance` places apart, in either order, in a sequence.

    `items` (total,) catalog rows of all sequences, concatenated; `starts` (n + 1,) where each begins
    (`sasrec.data.ItemSequences`). Time and memory: total x distance.
    """
    owner = np.repeat(np.arange(len(starts) - 1), np.diff(starts))
    keys = []
    for step in range(1, min(distance, max(len(items) - 1, 0)) + 1):
        left, right = items[:-step], items[step:]
        kept = (owner[:-step] == owner[step:]) & (left != right)
        left, right = left[kept].astype(np.int64), right[kept].astype(np.int64)
        keys += [left * n_items + right, right * n_items + left]
    pairs, counts = np.unique(np.concatenate([np.empty(0, np.int64), *keys]), return_counts=True)
    begins = np.searchsorted(pairs, np.arange(n_items + 1) * n_items)
    return Neighbors(begins, pairs % n_items, counts)


def cooccurrence_scores(
    histories: Sequence[Sequence[int]], neighbors: Neighbors, train_counts: np.ndarray, recent: int = 3
) -> np.ndarray:
    """Scores of histories, (n, n_items) float64: summed co-occurrence with the `recent` latest items, and less than 1
    for the train counts, (n_items,) float64. Rows below 0 (items that are not in the catalog) are dropped first."""
    tie_break = train_counts / (train_counts.max() + 1)  # below 1, the smallest difference between two counts
    scores = np.tile(tie_break, (len(histories), 1))
    for i, history in enumerate(histories):
        for row in [row for row in history if row >= 0][-recent:]:
            near = slice(neighbors.starts[row], neighbors.starts[row + 1])
            scores[i, neighbors.items[near]] += neighbors.counts[near]
    return scores


def cooccurrence_rankings(
    catalog: Catalog,
    neighbors: Neighbors,
    train_counts: Sequence[int],
    examples: Examples,
    options: RankOptions,
    *,
    recent: int = 3,
) -> pa.Table:
    """Rank by summed co-occurrence with the `recent` latest history items; ties by descending train count, then row.

    A history without neighbors, or an empty one, therefore gets the order of popularity. Raises BigrecError if the
    neighbors or the counts do not fit the catalog.
    """
    popularity = np.asarray(train_counts, np.float64)
    if popularity.shape != (len(catalog),) or len(neighbors.starts) != len(catalog) + 1:
        raise BigrecError(
            f"co-occurrence: {len(popularity)} train counts and neighbors of {len(neighbors.starts) - 1} items for "
            f"{len(catalog)} catalog rows: make both from this data set"
        )
    if recent < 1:
        raise BigrecError(f"co-occurrence: recent is {recent}: it must be at least 1 item")
    return baseline_rankings(
        "cooccurrence",
        lambda start, stop: cooccurrence_scores(examples.histories[start:stop], neighbors, popularity, recent),
        catalog,
        examples,
        options,
        recent=recent,
    )
