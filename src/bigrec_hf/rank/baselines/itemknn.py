"""ItemKNN: each item's k most similar items, by the cosine of their users, shrunk (Sarwar et al., WWW 2001; shrinkage
as in Ferrari Dacrema et al., "Are We Really Making Much Progress?", RecSys 2019).

s(i, j) = c_ij / (sqrt(c_i c_j) + h), where c_ij is the number of users with both items, c_i that of users with item i,
and h the shrinkage, which lowers the similarities of rare items. An item is scored by the items of the history that are
among its k neighbors.

Memory: n_items x k. Similarities are computed one block of items at a time, so that catalogs of millions fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from scipy.sparse import csr_array

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.sequences import ItemSequences
from bigrec_hf.rank.baselines.ease import interaction_matrix
from bigrec_hf.rank.baselines.linear import Fitted

NEIGHBORS = (20, 50, 100, 200, 500)
SHRINKAGES = (0.0, 10.0, 50.0, 200.0)
BLOCK = 512  # items whose similarities are computed at a time


@dataclass(frozen=True)
class ItemNeighbors:
    """The most similar items of every item, most similar first (ties by row), concatenated."""

    starts: np.ndarray  # (n_items + 1,) int64
    items: np.ndarray  # (total,) int64
    similarities: np.ndarray  # (total,) float32, above 0

    def weights(self, k: int) -> csr_array:
        """Return weights, (n_items, n_items) float32: column j holds the similarities of the k neighbors of item j."""
        n_items = len(self.starts) - 1
        sizes = np.diff(self.starts)
        owner = np.repeat(np.arange(n_items), sizes)
        kept = np.arange(len(owner)) - self.starts[owner] < k
        entries = (self.similarities[kept], (self.items[kept], owner[kept]))
        return csr_array(entries, shape=(n_items, n_items))


def nearest_neighbors(matrix: csr_array, k: int, shrinkage: float) -> ItemNeighbors:
    """Return up to `k` neighbors of every item of a binary users-by-items `matrix`, each with a user in common.

    Raises BigrecError for k below 1 or a shrinkage below 0.
    """
    if k < 1 or not shrinkage >= 0:
        raise BigrecError(
            f"itemknn: {k} neighbors, shrinkage {shrinkage}: give at least 1 neighbor and a shrinkage of at least 0"
        )
    n_items = matrix.shape[1]
    by_item = matrix.T.tocsr()
    norms = np.sqrt(np.diff(by_item.indptr).astype(np.float64))
    sizes, items, similarities = [], [], []
    for start in range(0, n_items, BLOCK):
        common = (by_item[start : start + BLOCK] @ matrix).tocsr()
        for i in range(common.shape[0]):
            part = slice(common.indptr[i], common.indptr[i + 1])
            rows, counts = common.indices[part].astype(np.int64), common.data[part].astype(np.float64)
            others = rows != start + i
            rows, counts = rows[others], counts[others]
            similar = counts / (norms[start + i] * norms[rows] + shrinkage)
            first = np.lexsort((rows, -similar))[:k]
            sizes.append(len(first))
            items.append(rows[first])
            similarities.append(similar[first])
    return ItemNeighbors(
        np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64),
        np.concatenate([np.empty(0, np.int64), *items]),
        np.concatenate([np.empty(0), *similarities]).astype(np.float32),
    )


def itemknn_models(
    sequences: ItemSequences, n_items: int, neighbors: Sequence[int], shrinkages: Sequence[float]
) -> list[Fitted]:
    """Return one model for each shrinkage and number of neighbors, for `linear.choose_model`."""
    matrix = interaction_matrix(sequences, n_items)
    models: list[Fitted] = []
    for shrinkage in shrinkages:
        found = nearest_neighbors(matrix, max(neighbors, default=0), shrinkage)
        models += [Fitted({"neighbors": k, "shrinkage": shrinkage}, partial(found.weights, k)) for k in neighbors]
    return models
