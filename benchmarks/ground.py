"""Ranking a whole catalog: ours against the bare matrix product (the ceiling) and against cdist + double argsort.

    python benchmarks/ground.py                       # both sizes of the README, minutes
    python benchmarks/ground.py --sizes 500x2000x64   # queries x items x dimensions

All three are timed in one process, in turns, best of `--repeats`; the slow way is timed on a slice of the queries that
fits `--slow_cells` distances and scaled up. Ranks are checked against float64 on a sample of queries, peak memory is
resident memory above what inputs take, sampled every few milliseconds (and by numpy's own allocations).
"""

from __future__ import annotations

import argparse
import json
import os
import threading
import time
import tracemalloc

import numpy as np
import psutil
import torch
from bigrec_hf.metrics.ndcg_hr.ranking import rank_catalog

TOP_K = 50


def thread_count() -> int:
    """OMP_NUM_THREADS, which both libraries obey, or the processors this process may run on."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


class PeakMemory:
    """Resident memory above that at the start, in MiB, while the block runs."""

    def __enter__(self) -> PeakMemory:
        self.process, self.done = psutil.Process(), threading.Event()
        self.start = self.peak = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def _sample(self) -> None:
        while not self.done.wait(0.005):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()

    @property
    def mib(self) -> float:
        return (self.peak - self.start) / 2**20


def seconds(function, *args) -> tuple[float, object]:
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


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
    return (common + scale * rng.standard_normal((n, dim), np.float32)).astype(np.float32)


def measure(n: int, m: int, dim: int, memory_mib: int, repeats: int, slow_cells: int) -> dict[str, object]:
    rng = np.random.default_rng(7)
    items, targets = hidden_states(rng, m, dim), rng.integers(0, m, n)
    queries = items[targets] + 0.8 * (hidden_states(rng, n, dim) - items[rng.integers(0, m, n)])
    queries = np.ascontiguousarray(queries, np.float32)
    slow_n = max(1, min(n, slow_cells // m))
    ours, product, slow = [], [], []
    with PeakMemory() as memory:
        rank_catalog(queries, items, targets, TOP_K, memory_mib)
    for _ in range(repeats):
        product.append(seconds(product_only, queries, items)[0])
        taken, ranking = seconds(rank_catalog, queries, items, targets, TOP_K, memory_mib)
        ours.append(taken)
    tensors = [torch.from_numpy(array) for array in (queries[:slow_n], items, targets[:slow_n])]
    for _ in range(min(repeats, 2)):
        taken, slow_rank = seconds(slow_ranks, *tensors)
        slow.append(taken * n / slow_n)
    tracemalloc.start()
    rank_catalog(queries, items, targets, TOP_K, memory_mib)
    traced = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    sample = rng.permutation(n)[:64]
    exact = float64_ranks(queries[sample], items, targets[sample])
    return {
        "queries": n,
        "items": m,
        "dimensions": dim,
        "threads": thread_count(),
        "ours_s": round(min(ours), 3),
        "product_s": round(min(product), 3),
        "product_gflops": round(2e-9 * n * m * dim / min(product), 1),
        "share_of_ceiling": round(min(product) / min(ours), 3),
        "cdist_argsort_s": round(min(slow), 2),
        "cdist_argsort_scaled_from": slow_n,
        "times_faster": round(min(slow) / min(ours), 1),
        "ranks_equal_float64": bool((ranking.rank[sample] == exact).all()),
        "slow_ranks_that_differ": int((slow_rank.numpy() != ranking.rank[:slow_n]).sum()),
        "memory_setting_mib": memory_mib,
        "peak_resident_mib": round(memory.mib),
        "peak_allocated_mib": round(traced),
        "results_mib": round(n * (8 + 8 * TOP_K) / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["5000x17408x576", "1000x1000000x384"])
    parser.add_argument("--memory_mib", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--slow_cells", type=int, default=20_000_000, help="distances the slow way holds at once")
    args = parser.parse_args()
    torch.set_num_threads(thread_count())
    for size in args.sizes:
        n, m, dim = map(int, size.split("x"))
        result = measure(n, m, dim, args.memory_mib, args.repeats, args.slow_cells)
        print(json.dumps(result, indent=2), flush=True)
        if not result["ranks_equal_float64"]:
            raise SystemExit("ranks differ from float64")


if __name__ == "__main__":
    main()
