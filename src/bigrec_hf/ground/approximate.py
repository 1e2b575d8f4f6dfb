"""Approximate nearest items by FAISS (extra `faiss`), for catalogs of millions: `ground --search faiss`.

An inverted-file index (IndexIVFFlat): the catalog is cut into cells around k-means centers, a query looks into the
`n_probe` nearest ones. What it finds is exact in distance and order; it may miss items of other cells. A target that is
not among the `top_k` found has no rank; metrics at K <= top_k need none. Measured recall: docs/scaling.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.metrics.ndcg_hr.distances import catalog_mean, check_vectors, squared_distances
from bigrec_hf.metrics.ndcg_hr.ranking import Ranking

POINTS_A_CELL = 64  # vectors that k-means learns from, for each center


def number_of_cells(m: int) -> int:
    """Cells for `m` items: 4 sqrt(m), as FAISS advises, but enough items in each to learn centers from."""
    return max(1, min(round(4 * m**0.5), m // 39))


def build_cells(items: np.ndarray, n_cells: int = 0):
    """FAISS index of `items` (m, d) float32, less their mean (it changes no distance and saves digits); 0 cells = by m.

    Raises BigrecError where FAISS is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise BigrecError("FAISS is not installed: pip install 'bigrec_hf[faiss]', or use --search exact") from error
    centered = items - catalog_mean(items)
    n_cells = n_cells or number_of_cells(len(items))
    sample = np.random.default_rng(0).permutation(len(items))[: POINTS_A_CELL * n_cells]
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(items.shape[1]), items.shape[1], n_cells)
    index.train(centered[sample])
    index.add(centered)
    return index


def rank_approximately(
    queries: np.ndarray, items: np.ndarray, targets: Sequence[Sequence[int]], top_k: int = 50, *, n_probe: int = 32
) -> Ranking:
    """As `rank_catalog` without exclusions, from the cells of `n_probe` centers: rank m where the target (its list of
    rows) is not among the top_k found; -1 and infinity where these cells hold fewer items.

    Memory beyond inputs: two copies of the catalog. Raises BigrecError without FAISS, ValueError for NaN or infinity.
    """
    queries, items = check_vectors("queries", queries), check_vectors("items", items)
    n, m = len(queries), len(items)
    k = min(top_k, m)
    rows = np.full((n, k), -1, np.int64)
    if n and k:
        index = build_cells(items)
        index.nprobe = n_probe
        rows = index.search(queries - catalog_mean(items), k)[1]
    square = np.full((n, k), np.inf)
    query, place = np.nonzero(rows >= 0)
    square[query, place] = squared_distances(queries, items, query, rows[query, place])
    order = np.lexsort((np.where(rows < 0, m, rows), square))  # as exact ranking: by float64 distance, then row
    rows, square = np.take_along_axis(rows, order, 1), np.take_along_axis(square, order, 1)
    rank = np.full(n, m, np.int64)
    for i, wanted in enumerate(targets):
        found = np.flatnonzero(np.isin(rows[i], wanted))
        if len(found):
            rank[i] = found[0]
    return Ranking(rank, rows.astype(np.int32), np.sqrt(square).astype(np.float32))
