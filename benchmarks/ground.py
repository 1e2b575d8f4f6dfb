"""Ranking a whole catalog: ours against the bare matrix product (the ceiling) and against cdist + double argsort.

    python -m benchmarks.ground                       # both shapes, three sizes each, minutes
    python -m benchmarks.ground --sizes 500x2000x64   # queries x items x dimensions

All three are timed in one process, in turns, medians; the slow way is timed on a slice of the queries that fits
`--slow_cells` distances and scaled up. Ranks are checked against float64 on a sample of queries; peak memory is that of
a fresh process, beyond the inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from bigrec_hf.metrics.ndcg_hr.ranking import rank_catalog

from benchmarks.common import Row, alternate, arguments, peak_mib_in_child, set_threads, write_result

TOP_K = 50
SIZES = [
    *("5000x4352x576", "5000x8704x576", "5000x17408x576"),
    *("1000x62500x384", "1000x250000x384", "1000x1000000x384"),
]
# of the shapes that have targets: least share of the matmul ceiling, least ratio, most MiB beyond inputs
TARGETS = {(5000, 17408, 576): (0.6, 10.0, 512.0), (1000, 1_000_000, 384): (None, None, 1024.0)}


def product_only(queries: np.ndarray, items: np.ndarray) -> None:
    """Every query-item product in float32, in blocks that stay in the cache: no ranking can do with less."""
    scores = np.empty((1024, 4096), np.float32)
    for j in range(0, len(items), 4096):
        part = items[j : j + 4096]
        for i in range(0, len(queries), 1024):
            rows = queries[i : i + 1024]
            np.matmul(rows, part.T, out=scores[: len(rows), : len(part)])


def slow_ranks(queries: torch.Tensor, items: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The reference's way: all distances, argsort of argsort."""
    ranks = torch.cdist(queries, items).argsort(dim=1).argsort(dim=1)
    return ranks[torch.arange(len(queries)), targets]


def float64_ranks(queries: np.ndarray, items: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Ranks by float64 distances, ties by row, one query at a time."""
    ranks = []
    for query, target in zip(queries, targets, strict=True):
        square = np.empty(len(items))
        for j in range(0, len(items), 16384):
            square[j : j + 16384] = ((items[j : j + 16384].astype(np.float64) - query) ** 2).sum(axis=1)
        ranks.append(np.count_nonzero(square < square[target]) + np.count_nonzero(square[:target] == square[target]))
    return np.array(ranks)


def hidden_states(rng: np.random.Generator, n: int, dim: int) -> np.ndarray:
    """(n, dim) float32 like an LM's last states: a common component ten times the spread, unequal dimensions."""
    common = 10.0 * np.random.default_rng(0).standard_normal(dim)
    scale = np.random.default_rng(1).lognormal(0.0, 0.5, dim)
    states = rng.standard_normal((n, dim), np.float32)
    states *= scale.astype(np.float32)
    states += common.astype(np.float32)
    return states


def inputs(n: int, m: int, dim: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries (n, dim) near their targets, items (m, dim), target rows (n,)."""
    rng = np.random.default_rng(7)
    items, targets = hidden_states(rng, m, dim), rng.integers(0, m, n)
    queries = items[targets] + 0.8 * (hidden_states(rng, n, dim) - items[rng.integers(0, m, n)])
    return np.ascontiguousarray(queries, np.float32), items, targets


def prepared(n: int, m: int, dim: int, memory_mib: int) -> Callable[[], object]:
    """For the child process that measures memory."""
    queries, items, targets = inputs(n, m, dim)
    return lambda: rank_catalog(queries, items, targets, TOP_K, memory_mib)


def measure(n: int, m: int, dim: int, memory_mib: int, repeats: int, slow_cells: int) -> Row:
    queries, items, targets = inputs(n, m, dim)
    slow_n = max(1, min(n, slow_cells // m))
    tensors = [torch.from_numpy(array) for array in (queries[:slow_n], items, targets[:slow_n])]
    functions = {
        "product": lambda: product_only(queries, items),
        "ours": lambda: rank_catalog(queries, items, targets, TOP_K, memory_mib),
        "slow": lambda: slow_ranks(*tensors),
    }
    taken, results = alternate(functions, repeats)
    sample = np.random.default_rng(1).permutation(n)[: max(8, min(64, 16_000_000 // m))]  # float64 is slow
    exact = float64_ranks(queries[sample], items, targets[sample])
    differ = int((results["slow"].numpy() != results["ours"].rank[:slow_n]).sum())
    row = Row(
        f"rank {n:,} queries, d = {dim}",
        f"{m:,} items",
        m,
        taken["ours"],
        taken["slow"] * n / slow_n,
        fraction=taken["product"] / taken["ours"],
        ceiling=f"float32 product at {2e-9 * n * m * dim / taken['product']:.0f} GFLOP/s",
        same=bool((results["ours"].rank[sample] == exact).all()),
        note=f"plain scaled from {slow_n} queries, {differ} of its ranks inexact",
    )
    row.peak_mib = peak_mib_in_child(prepared, n=n, m=m, dim=dim, memory_mib=memory_mib)
    share, ratio, mib = TARGETS.get((n, m, dim), (None, None, None))
    if share is not None:
        row.aim("fraction of the ceiling", row.fraction, least=share)
        row.aim("times plain", row.ratio, least=ratio)
    if mib is not None:
        row.aim("MiB beyond inputs", row.peak_mib, most=mib)
    return row


def main() -> None:
    chosen = arguments(__doc__, sizes=SIZES, memory_mib=256, repeats=2, slow_cells=10_000_000)
    set_threads()
    rows = []
    for size in chosen.sizes:
        n, m, dim = map(int, size.split("x"))
        rows.append(measure(n, m, dim, chosen.memory_mib, chosen.repeats, chosen.slow_cells))
    write_result("ground", rows, chosen.out)


if __name__ == "__main__":
    main()
