"""The search for gamma (Eq. 3): ranks of all grid values at once against one double argsort a value.

    python -m benchmarks.gamma                    # the README's size, minutes
    python -m benchmarks.gamma --sizes 500x2000   # examples x items

Both are timed in one process on the same distances and weights. The slow way is timed on a few values of gamma and on a
slice of the examples that fits `--slow_cells`, and scaled to the whole grid and all examples. Our ranks are checked
against the formula in float64, every gamma, by counting on a few examples; the slow way's differ from them where its
sorts put equal items in any order. They take turns, the best of each counts, in seconds of the clock and of the
processor (which other work on the machine does not inflate as much). Peak memory is numpy's own allocations, inputs not
counted.
"""

from __future__ import annotations

import argparse
import json
import time
import tracemalloc

import numpy as np
import torch

from benchmarks.ground import thread_count
from bigrec_hf.choice import GRIDS
from bigrec_hf.reweight import combine, min_max, parts, ranks_on_grid

SLOW_VALUES = (0.5, 7.0, 60.0)


def inputs(n: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Distances and a model's scores, (n, m) float32 each, and target rows (n,), which both know a little about."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, m, n)
    distances = np.abs(rng.standard_normal((n, m), np.float32) + 20.0)
    scores = rng.standard_normal((n, m), np.float32)
    rows = np.arange(n)
    distances[rows, targets] -= 3.0 * rng.random(n, np.float32)
    scores[rows, targets] += 4.0 * rng.random(n, np.float32)
    distances[:, 1::7] = distances[:, :-1:7]  # equal vectors
    distances[::3, 0] = 0.0  # the text is a catalog title
    return distances, scores, targets


def timed(function, *args) -> tuple[np.ndarray, np.ndarray]:
    """(clock seconds, processor seconds) and the result."""
    start, processor = time.perf_counter(), time.process_time()
    result = function(*args)
    return np.array([time.perf_counter() - start, time.process_time() - processor]), result


def slow_ranks(distances: torch.Tensor, weights: torch.Tensor, targets: torch.Tensor, gamma: float) -> torch.Tensor:
    """The reference's way: the formula, then argsort of argsort."""
    cost = distances * torch.pow(1.0 + weights, -gamma)
    ranks = cost.argsort(dim=1).argsort(dim=1)
    return ranks[torch.arange(len(cost)), targets]


def counted_ranks(x: np.ndarray, y: np.ndarray, targets: np.ndarray, gamma: float) -> np.ndarray:
    """Ranks by the formula in float64, counted: no sort, one pass a value."""
    cost = combine("reweight", x, y, gamma)
    own = cost[np.arange(len(cost)), targets][:, None]
    earlier = np.arange(cost.shape[1]) < targets[:, None]
    return np.count_nonzero((cost < own) | ((cost == own) & earlier), axis=1)


def measure(n: int, m: int, weighted_by: str, memory_mib: int, repeats: int, slow_cells: int) -> dict[str, object]:
    distances, scores, targets = inputs(n, m)
    grid = GRIDS["movie"]
    popularity = np.floor(np.random.default_rng(1).pareto(1.2, m) * 3.0)

    def costs(start: int, stop: int) -> np.ndarray:
        return distances[start:stop]

    def weights(start: int, stop: int) -> np.ndarray:
        if weighted_by == "popularity":
            return np.broadcast_to(min_max(popularity[None]), (stop - start, m))
        return min_max(scores[start:stop])

    def search() -> np.ndarray:
        return ranks_on_grid("reweight", costs, weights, targets[:, None], m, grid, memory_mib=memory_mib)

    slow_n = max(1, min(n, slow_cells // m))
    x, y = parts("reweight", costs(0, slow_n), weights(0, slow_n))
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in (x, y, targets[:slow_n])]
    ours, slow, differ = [], [], 0
    for gamma in SLOW_VALUES:
        if len(ours) < repeats:
            taken, ranks = timed(search)
            ours.append(taken)
        taken, found = timed(slow_ranks, *tensors, gamma)
        slow.append(taken * n / slow_n * len(grid))
        differ += int((found.numpy() != ranks[:slow_n, grid.index(gamma)]).sum())
    tracemalloc.start()
    search()
    traced = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    (ours_s, ours_cpu), (slow_s, slow_cpu) = np.min(ours, axis=0), np.min(slow, axis=0)
    part = slice(0, min(slow_n, 32))
    exact = np.stack([counted_ranks(x[part], y[part], targets[part], gamma) for gamma in grid], axis=1)
    return {
        "examples": n,
        "items": m,
        "gammas": len(grid),
        "weights": weighted_by,
        "threads": thread_count(),
        "ours_s": round(ours_s, 2),
        "double_argsort_s_a_gamma": round(slow_s / len(grid), 2),
        "double_argsort_s": round(slow_s, 1),
        "double_argsort_scaled_from": f"{len(SLOW_VALUES)} gammas x {slow_n} examples",
        "times_faster": round(slow_s / ours_s, 1),
        "times_faster_in_processor_time": round(slow_cpu / ours_cpu, 1),
        "ranks_equal_float64": bool((exact == ranks[part]).all()),
        "slow_ranks_that_differ": differ,
        "memory_setting_mib": memory_mib,
        "peak_allocated_mib": round(traced),
        "results_mib": round(n * len(grid) * 8 / 2**20, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["5000x17408"])
    parser.add_argument("--weights", nargs="+", default=["scores", "popularity"])
    parser.add_argument("--memory_mib", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--slow_cells", type=int, default=5_000_000, help="distances the slow way holds at once")
    args = parser.parse_args()
    torch.set_num_threads(thread_count())
    for size in args.sizes:
        n, m = map(int, size.split("x"))
        for weighted_by in args.weights:
            result = measure(n, m, weighted_by, args.memory_mib, args.repeats, args.slow_cells)
            print(json.dumps(result, indent=2), flush=True)
            if not result["ranks_equal_float64"]:
                raise SystemExit("ranks differ from the formula in float64")


if __name__ == "__main__":
    main()
