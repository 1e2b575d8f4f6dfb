"""Rankings of the whole catalog by scores of its items, as of baselines that write no text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog, catalog_sha256
from bigrec_hf.data.generations import Examples
from bigrec_hf.data.rankings import rankings_table, target_rows
from bigrec_hf.metrics.ndcg_hr.ranking import Ranking, flat_rows
from bigrec_hf.settings import RankOptions

CHUNK = 256  # examples scored together


def rank_scores(
    scores: Callable[[int, int], np.ndarray],
    targets: Sequence[Sequence[int]],
    n_items: int,
    top_k: int = 50,
    exclude: Sequence[Sequence[int]] | None = None,
    chunk: int = CHUNK,
) -> Ranking:
    """Return exact ranks by descending score, ties by catalog row.

    `scores(start, stop)` returns (stop - start, n_items) finite floats for the examples start..stop, `chunk` of them at
    a time; `targets` are the rows at which each target counts as found (the best one counts); `exclude` are rows that
    are not candidates. A target whose rows are all excluded gets rank n_items. `top_distances` holds the negated
    scores. Raises BigrecError for scores of another shape, NaN or infinity.
    """
    n, k = len(targets), min(top_k, n_items)
    ranking = Ranking(np.full(n, n_items, np.int64), np.full((n, k), -1, np.int32), np.full((n, k), np.inf, np.float32))
    for start in range(0, n, chunk):
        stop = min(start + chunk, n)
        cost = -np.asarray(scores(start, stop), np.float64)  # (b, n_items), ascending is better
        if cost.shape != (stop - start, n_items) or not np.isfinite(cost).all():
            raise BigrecError(
                f"scores of examples {start}..{stop - 1} must be finite and of shape (examples, {n_items})"
            )
        if exclude is not None:
            query, row = flat_rows("exclude", exclude[start:stop], stop - start, n_items, skip_negative=True)
            cost[query, row] = np.inf
        for i in range(stop - start):
            rows = np.asarray(targets[start + i])
            best = rows[np.lexsort((rows, cost[i, rows]))[0]]
            if np.isfinite(cost[i, best]):
                before = np.count_nonzero(cost[i] < cost[i, best])
                ranking.rank[start + i] = before + np.count_nonzero(cost[i, :best] == cost[i, best])
        if k:
            _top(cost, ranking.top_rows[start:stop], ranking.top_distances[start:stop])
    return ranking


def _top(cost: np.ndarray, top_rows: np.ndarray, top_costs: np.ndarray) -> None:
    """Fill in the k items of lowest cost per example, ties by row, without sorting the catalog."""
    k = top_rows.shape[1]
    kth = np.partition(cost, k - 1, axis=1)[:, k - 1]
    for i in range(len(cost)):
        below = np.flatnonzero(cost[i] < kth[i])
        equal = np.flatnonzero(cost[i] == kth[i])[: k - len(below)]
        rows = np.concatenate([below, equal])
        rows = rows[np.lexsort((rows, cost[i, rows]))]
        rows = rows[np.isfinite(cost[i, rows])]
        top_rows[i, : len(rows)], top_costs[i, : len(rows)] = rows, cost[i, rows]


def baseline_rankings(
    name: str,
    scores: Callable[[int, int], np.ndarray],
    catalog: Catalog,
    examples: Examples,
    options: RankOptions,
    **settings: Any,
) -> pa.Table:
    """Return a rankings table (RANKINGS_SCHEMA) of a baseline; it writes no text, so the flags of texts are null.

    `scores` as in `rank_scores`; `settings` (JSON-able) join the table's metadata.
    """
    ranking = rank_scores(
        scores,
        target_rows(examples.targets, catalog, options.duplicates),
        len(catalog),
        options.top_k,
        exclude=options.excluded(examples),
    )
    facts = {
        "baseline": name,
        "n_items": len(catalog),
        "duplicates": options.duplicates,
        "exclude": options.exclude,
        "catalog_sha256": catalog_sha256(catalog),
        **settings,
    }
    n = len(examples.targets)
    return rankings_table(
        examples.example_ids,
        examples.targets,
        ranking,
        facts,
        empty=[False] * n,
        in_catalog=[None] * n,
        in_history=[None] * n,
    )
