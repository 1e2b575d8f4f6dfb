"""What every catalog item costs for every example: the distance of its title to the example's text, or to the closest
of several texts, in float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bigrec_hf.errors import BigrecError
from bigrec_hf.metrics.ndcg_hr.distances import catalog_mean, check_vectors, squared_distances
from bigrec_hf.reweight import Rows

CLOSE = 1e-6  # a squared distance below this share of the squared norms has lost digits: computed from the difference


def distance_costs(queries: np.ndarray, items: np.ndarray) -> Rows:
    """`costs(start, stop)` -> (stop - start, m) float64: Euclidean distances of these queries to all items.

    Args:
        queries: (n, d) float32. items: (m, d) float32.

    Equal item vectors get the very same distance; a query equal to an item gets 0. Otherwise a distance is good to
    about 1e-10 of itself. Raises BigrecError for NaN, infinity or shapes that do not fit.
    """
    try:
        queries, items = check_vectors("queries", queries), check_vectors("items", items)
    except ValueError as error:
        raise BigrecError(f"distances: {error}") from error
    if queries.shape[1] != items.shape[1]:
        raise BigrecError(f"queries have {queries.shape[1]} dimensions, items {items.shape[1]}: use one encoder")
    distinct, place = np.unique(items, axis=0, return_inverse=True)  # m columns from these, equal ones alike
    place = place.ravel()
    mean = catalog_mean(items)
    centered = distinct.astype(np.float64) - mean
    squares = np.einsum("ij,ij->i", centered, centered)

    def costs(start: int, stop: int) -> np.ndarray:
        part = queries[start:stop]
        query = part.astype(np.float64) - mean
        norms = np.einsum("ij,ij->i", query, query)[:, None] + squares
        square = query @ centered.T
        square *= -2.0
        square += norms
        norms *= CLOSE
        row, column = np.nonzero(square < norms)
        square[row, column] = squared_distances(part, distinct, row, column)
        return np.sqrt(square, out=square)[:, place]

    return costs


def closest_costs(queries: Sequence[np.ndarray], items: np.ndarray) -> Rows:
    """`costs(start, stop)` -> (stop - start, m) float64: the distance of each item to the closest of an example's
    queries, as `distance_costs`; 0 for all items where an example has none.

    Args:
        queries: one (b, d) float32 an example, b >= 0. items: (m, d) float32.
    """
    stops = np.cumsum([len(rows) for rows in queries])
    flat = np.concatenate([np.empty((0, items.shape[1]), np.float32), *queries])
    distances = distance_costs(flat, items)

    def costs(start: int, stop: int) -> np.ndarray:
        out = np.zeros((stop - start, len(items)))
        for i in range(start, stop):  # one example's distances at a time: they stay in the cache
            if len(queries[i]):
                distances(stops[i] - len(queries[i]), stops[i]).min(axis=0, out=out[i - start])
        return out

    return costs
