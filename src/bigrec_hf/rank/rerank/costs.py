"""The cost of every catalog item for every example: the distance of its title to the example's text, or to the closest
of several texts, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.metrics.ndcg_hr.distances import catalog_mean, check_vectors, squared_distances
from bigrec_hf.rank.rerank.formulas import ItemValues

CLOSE = 1e-6  # a squared distance below this fraction of the squared norms is computed from the difference instead
TOGETHER = 16  # examples multiplied with the items in one product: reading the items dominates the cost


def distance_costs(queries: np.ndarray, items: np.ndarray) -> ItemValues:
    """Return `costs(start, stop)` -> (stop - start, m) float64: Euclidean distances of these queries to all items.

    Args:
        queries: (n, d) float32. items: (m, d) float32.

    Equal item vectors get exactly the same distance; a query equal to an item gets 0. Otherwise the relative error is
    about 1e-10. Raises BigrecError for NaN, infinity or shapes that do not match.
    """
    squares, place = _squared(queries, items)
    return lambda start, stop: np.sqrt(squares(start, stop))[:, place]


def closest_costs(queries: Sequence[np.ndarray], items: np.ndarray) -> ItemValues:
    """Return `costs(start, stop)` -> (stop - start, m) float64: distance of each item to the closest query.

    As in `distance_costs`; 0 for all items if an example has no query.

    Args:
        queries: one (b, d) float32 array per example, b >= 0. items: (m, d) float32.
    """
    lengths = np.array([len(rows) for rows in queries], np.int64)
    begins = np.cumsum(lengths) - lengths
    flat = np.concatenate([np.empty((0, items.shape[1]), np.float32), *queries])
    squares, place = _squared(flat, items)

    def costs(start: int, stop: int) -> np.ndarray:
        out = np.zeros((stop - start, len(items)))
        for first in range(start, stop, TOGETHER):
            full = np.arange(first, min(first + TOGETHER, stop))
            full = full[lengths[full] > 0]
            if len(full):
                square = squares(begins[full[0]], begins[full[-1]] + lengths[full[-1]])
                least = np.minimum.reduceat(square, begins[full] - begins[full[0]], axis=0)
                out[full - start] = np.sqrt(least)[:, place]
        return out

    return costs


def _squared(queries: np.ndarray, items: np.ndarray) -> tuple[ItemValues, np.ndarray]:
    """Return squared distances of queries start..stop to the distinct items, and each item's column, (m,) int64."""
    try:
        queries, items = check_vectors("queries", queries), check_vectors("items", items)
    except ValueError as error:
        raise BigrecError(f"distances: {error}") from error
    if queries.shape[1] != items.shape[1]:
        raise BigrecError(
            f"queries have {queries.shape[1]} dimensions, items {items.shape[1]}: use the same encoder for both"
        )
    distinct, place = np.unique(items, axis=0, return_inverse=True)  # m columns from these, the same for equal items
    mean = catalog_mean(items)
    centered = distinct.astype(np.float64) - mean
    norms_of_items = np.einsum("ij,ij->i", centered, centered)

    def squares(start: int, stop: int) -> np.ndarray:
        part = queries[start:stop]
        query = part.astype(np.float64) - mean
        norms = np.einsum("ij,ij->i", query, query)[:, None] + norms_of_items
        square = query @ centered.T
        square *= -2.0
        square += norms
        norms *= CLOSE
        row, column = np.nonzero(square < norms)
        square[row, column] = squared_distances(part, distinct, row, column)
        return square

    return squares, place.ravel()
