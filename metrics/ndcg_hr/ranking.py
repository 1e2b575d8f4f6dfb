"""Exact ranks and nearest items over a whole catalog, in bounded memory and without sorting the catalog.

Order: ascending Euclidean distance (computed in float64 from the given vectors), equal distances by catalog row. A
float32 matrix product decides every comparison that its error bound allows; the rest are decided in float64.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from .distances import (
    FLOAT32_ROUNDOFF,
    catalog_mean,
    centered_norms,
    check_vectors,
    score_error,
    squared_distances,
)
from .nearest import NearestPool

CELL_BYTES = 20  # per query and item: float32 score, masks, a partitioned copy, an int64 index
ITEM_CHUNK = 4096  # a product over more items is no faster; over fewer it is slower


@dataclass(frozen=True)
class Ranking:
    """The result of `rank_catalog`, one row per query."""

    rank: np.ndarray  # (n,) int64, 0-based; m (the number of items) if the target itself was excluded
    top_rows: np.ndarray  # (n, k) int32, nearest first; -1 if fewer than k candidates remain
    top_distances: np.ndarray  # (n, k) float32, Euclidean; infinity if top_rows is -1


@dataclass
class _Lane:
    """Queries of one matrix product, with their targets and the state of their ranking. q = stop - start."""

    start: int  # first query of the block
    stop: int
    queries: np.ndarray  # (q, d) float32, as given
    norms: np.ndarray  # (q,) float64, of the queries minus the catalog mean
    target_square: np.ndarray  # (q,) float64, squared distance of the target; -inf if there is none
    target_row: np.ndarray  # (q,) int64
    excluded_query: np.ndarray  # excluded cells, ascending by row: index of the query within the lane
    excluded_row: np.ndarray
    pool: NearestPool
    closer: np.ndarray  # (q,) int64, items found so far that rank before the target

    @property
    def threshold(self) -> np.ndarray:
        """(q,) float64, the target's distance on the scale of the scores (distances.py)."""
        return self.target_square - self.norms**2


def rank_catalog(
    queries: np.ndarray,
    items: np.ndarray,
    targets: np.ndarray | Sequence[int] | Sequence[Sequence[int]],
    top_k: int = 50,
    memory_mib: int = 256,
    exclude: Sequence[Sequence[int]] | None = None,
    duplicates: str = "best",
) -> Ranking:
    """Return the rank of each query's target among all items, and the top_k nearest items.

    Args:
        queries: (n, d) float32. items: (m, d) float32, in catalog order.
        targets: one catalog row per query, or a list of rows per query (those that have the target's title).
        top_k: how many of the nearest items to return (at most m).
        memory_mib: working memory on top of inputs and results, regardless of n and m.
        exclude: for each query, catalog rows that are not candidates (negative rows are skipped). A target whose rows
            are all excluded gets rank m: it cannot be recommended.
        duplicates: for a list of rows, "best" = the best rank over them, "exact" = the rank of the first.

    Returns the `Ranking`; rank = number of candidates strictly closer than the target, plus equally distant ones in
    earlier rows. Raises ValueError for NaN or infinity, and for shapes or rows that do not match. Source: BIGRec's
    grounding (L2 over all items), made exact.
    """
    queries = check_vectors("queries", queries)
    items = check_vectors("items", items)
    n, m = len(queries), len(items)
    if m == 0:
        raise ValueError("items is empty: a catalog needs at least one row")
    if queries.shape[1] != items.shape[1]:
        raise ValueError(
            f"queries have {queries.shape[1]} dimensions, items {items.shape[1]}: use one encoder for both"
        )
    if duplicates not in ("best", "exact"):
        raise ValueError(f"duplicates={duplicates!r} is unknown: use 'best' or 'exact'")
    if top_k < 0 or memory_mib < 1:
        raise ValueError(f"top_k={top_k} must be at least 0 and memory_mib={memory_mib} at least 1")
    target_query, target_row = flat_rows("targets", targets, n, m, first_only=duplicates == "exact")
    if len(np.unique(target_query)) < n:
        raise ValueError(f"targets is empty for query {int(np.setdiff1d(np.arange(n), target_query)[0])}: give its row")
    excluded_query, excluded_row = flat_rows("exclude", exclude, n, m, skip_negative=True)
    kept = ~np.isin(target_query * np.int64(m) + target_row, excluded_query * np.int64(m) + excluded_row)
    target_query, target_row = target_query[kept], target_row[kept]

    k = min(top_k, m)
    ranking = Ranking(np.full(n, m, np.int64), np.full((n, k), -1, np.int32), np.full((n, k), np.inf, np.float32))
    mean = catalog_mean(items)
    block, chunk, group = _plan(n, m, queries.shape[1], k, memory_mib * 2**20)
    for start in range(0, n, block):
        stop = min(start + block, n)
        inside = (target_query >= start) & (target_query < stop)
        cut = (excluded_query >= start) & (excluded_query < stop)
        _rank_block(
            queries[start:stop],
            items,
            mean,
            (target_query[inside] - start, target_row[inside]),
            (excluded_query[cut] - start, excluded_row[cut]),
            (chunk, group),
            Ranking(ranking.rank[start:stop], ranking.top_rows[start:stop], ranking.top_distances[start:stop]),
        )
    return ranking


def flat_rows(name, rows, n: int, m: int, first_only: bool = False, skip_negative: bool = False):
    """Return (query index, row), int64 each, from one row or a list of rows per query.

    Raises ValueError if they do not match.
    """
    if rows is None:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    if len(rows) != n:
        raise ValueError(f"{name} has {len(rows)} entries for {n} queries: give one per query")
    if n == 0 or np.ndim(rows[0]) == 0:
        query, row = np.arange(n), np.asarray(rows)
    else:
        lists = [np.atleast_1d(r)[:1] if first_only else np.atleast_1d(r) for r in rows]
        query, row = np.repeat(np.arange(n), [len(r) for r in lists]), np.concatenate(lists)
    if row.size and row.dtype.kind not in "iu" and not (row == np.floor(row)).all():
        raise ValueError(f"{name} must hold whole catalog rows, not {row.dtype}")
    row = row.astype(np.int64)
    if skip_negative:
        query, row = query[row >= 0], row[row >= 0]
    wrong = (row < 0) | (row >= m)
    if wrong.any():
        first = int(np.flatnonzero(wrong)[0])
        raise ValueError(
            f"{name} names row {row[first]} for query {query[first]}, outside the catalog's rows 0 to {m - 1} "
            f"({int(wrong.sum())} such): check that both come from one catalog"
        )
    return query.astype(np.int64), row


def _plan(n: int, m: int, dim: int, k: int, memory: int) -> tuple[int, int, int]:
    """Return queries per block, items per chunk, queries per product that keep all buffers within `memory` bytes."""
    block = max(1, min(n, int(0.4 * memory / (4 * dim + NearestPool.BYTES_A_QUERY * k + 64))))
    chunk = max(1, min(m, ITEM_CHUNK, int(0.2 * memory / (4 * dim))))
    group = max(1, min(block, int(0.35 * memory / (CELL_BYTES * chunk))))
    return block, chunk, group


def _rank_block(queries, items, mean, targets, excluded, plan, out: Ranking) -> None:
    """Fill `out` for a block of queries; `targets` and `excluded` are (query index, row) pairs within the block."""
    chunk, group = plan
    dim, k = queries.shape[1], out.top_rows.shape[1]
    norms = centered_norms(queries, mean)
    minus_two_q = queries - mean  # (n, d) float32
    minus_two_q *= -2.0  # a power of two: exact
    best = _best_targets(queries, items, *targets)
    lanes = _lanes(queries, items, norms, best, excluded, k, group)
    scores = np.empty((group, chunk), np.float32)
    largest = 0.0  # bounds the norms of all items seen so far
    for first in range(0, len(items), chunk):
        with np.errstate(over="ignore"):  # detected below, by the norms
            centered = items[first : first + chunk] - mean
        squares = np.einsum("ij,ij->i", centered, centered)  # float32; its error is part of the bound
        item_norms = np.sqrt(squares.astype(np.float64)) * (1 + (dim + 8) * FLOAT32_ROUNDOFF)
        largest = max(largest, float(item_norms.max()))
        if not largest * (largest + 2 * norms.max(initial=0.0)) < 1e38:
            raise ValueError("the vectors are too large for float32 squares (norms near 1e19): scale all of them down")
        # in this thread: own workers would compete with the product's, which spin for a while after each call
        for lane in lanes:
            cells = scores[: lane.stop - lane.start, : len(centered)]
            np.matmul(minus_two_q[lane.start : lane.stop], centered.T, out=cells)
            cells += squares
            left, right = np.searchsorted(lane.excluded_row, [first, first + len(centered)])
            cells[lane.excluded_query[left:right], lane.excluded_row[left:right] - first] = np.inf
            _count_closer(lane, cells, items, first, item_norms)
            lane.pool.add(cells, first, largest)

    def finish(lane: _Lane) -> None:
        part = slice(lane.start, lane.stop)
        out.rank[part] = np.where(lane.target_row < 0, len(items), lane.closer)
        lane.pool.finish(out.top_rows[part], out.top_distances[part])

    with ThreadPoolExecutor(_thread_count()) as executor:  # no product is running any more
        list(executor.map(finish, lanes))


def _count_closer(lane: _Lane, cells: np.ndarray, items, first, item_norms) -> None:
    """Count this chunk's items that rank before the target: those certainly closer, and doubtful ones by float64."""
    rows, width = cells.shape
    dim = items.shape[1]
    threshold = lane.threshold
    error = score_error(lane.norms, float(item_norms.max()), dim)
    closer = np.less(cells, _outward(threshold - error, -np.inf)[:, None])
    surely = _count_rows(closer)
    lane.closer += surely
    near = np.less_equal(cells, _outward(threshold + error, np.inf)[:, None])
    doubtful = np.flatnonzero(_count_rows(near) != surely)  # the few queries with a doubtful item
    index = np.flatnonzero(near[doubtful] ^ closer[doubtful])
    for start in range(0, len(index), 65536):  # bounds the temporaries even if every item is doubtful
        query, column = np.divmod(index[start : start + 65536], width)
        query = doubtful[query]
        # the bound again, with the item's own norm instead of the chunk's largest
        gap = cells[query, column] - threshold[query]
        margin = score_error(lane.norms[query], item_norms[column], dim)
        before = gap < -margin
        close = np.flatnonzero(np.abs(gap) <= margin)
        at, row = query[close], column[close] + first
        square = squared_distances(lane.queries, items, at, row)
        before[close] = (square < lane.target_square[at]) | (
            (square == lane.target_square[at]) & (row < lane.target_row[at])
        )
        lane.closer += np.bincount(query[before], minlength=rows)


def _best_targets(queries, items, query, row):
    """Each query's target, the nearest of its rows (the first of equal ones): squared distance, (n,) float64, and row,
    (n,) int64; -inf and -1 if a query has none."""
    square = squared_distances(queries, items, query, row)
    order = np.lexsort((row, square, query))
    query, row, square = query[order], row[order], square[order]
    first = np.ones(len(query), bool)
    first[1:] = query[1:] != query[:-1]
    best_square, best_row = np.full(len(queries), -np.inf), np.full(len(queries), -1, np.int64)
    best_square[query[first]], best_row[query[first]] = square[first], row[first]
    return best_square, best_row


def _count_rows(mask: np.ndarray) -> np.ndarray:
    """(rows,) int64, the number of true cells in each row of a contiguous boolean (rows, width).

    Eight cells at a time: up to 255 words of eight 0/1 bytes add up without a carry between bytes.
    """
    rows, width = mask.shape
    if width % 8:
        return np.count_nonzero(mask, axis=1)
    words = mask.view(np.uint64)
    total = np.zeros(rows, np.int64)
    for start in range(0, width // 8, 255):
        total += words[:, start : start + 255].sum(axis=1)[:, None].view(np.uint8).sum(axis=1, dtype=np.int64)
    return total


def _lanes(queries, items, norms, best, excluded, k, group) -> list[_Lane]:
    """The block's queries, `group` at a time."""
    target_square, target_row = best
    query, row = excluded
    order = np.lexsort((row, query // group))  # by lane, then row
    query, row = query[order], row[order]
    lanes = []
    for start in range(0, len(queries), group):
        stop = min(start + group, len(queries))
        left, right = np.searchsorted(query // group, [start // group, start // group + 1])
        lanes.append(
            _Lane(
                start=start,
                stop=stop,
                queries=queries[start:stop],
                norms=norms[start:stop],
                target_square=target_square[start:stop],
                target_row=target_row[start:stop],
                excluded_query=query[left:right] - start,
                excluded_row=row[left:right],
                pool=NearestPool(k, queries[start:stop], items, norms[start:stop]),
                closer=np.zeros(stop - start, np.int64),
            )
        )
    return lanes


def _thread_count() -> int:
    """OMP_NUM_THREADS, which the matrix product obeys too, or the number of processors; at most 8."""
    configured = os.environ.get("OMP_NUM_THREADS", "")
    return min(int(configured) if configured.isdigit() and int(configured) else os.cpu_count() or 1, 8)


def _outward(values: np.ndarray, direction: float) -> np.ndarray:
    """float32 of float64 values, rounded towards `direction`, so that rounding never decides a comparison."""
    return np.nextafter(values.astype(np.float32), np.float32(direction))
