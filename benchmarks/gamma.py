"""The search for gamma (Eq. 3): ranks of all grid values at once against one double argsort a value.

    python -m benchmarks.gamma                    # three sizes, minutes
    python -m benchmarks.gamma --sizes 500x2000   # examples x items

Both are timed in one process on the same distances and weights, in turns, medians. The slow way is timed on a few
values of gamma and on a slice of the examples that fits `--slow_cells`, and scaled to the whole grid and all examples.
Our ranks are checked against the formula in float64, every gamma, by counting on a few examples; the slow way's differ
from them where its sorts put equal items in any order. Peak memory is that of a fresh process, beyond the inputs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.common import Row, alternate, arguments, peak_mib_in_child, set_threads, write_result
from bigrec_hf.rank.model_selection import GRIDS
from bigrec_hf.rank.rerank.formulas import combine, min_max, parts, ranks_on_grid

SLOW_VALUES = (0.5, 7.0, 60.0)
LEAST_RATIO = 30.0


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


def search(
    n: int, m: int, weighted_by: str, memory_mib: int
) -> tuple[Callable[[], np.ndarray], Callable, Callable, np.ndarray]:
    """Our search, ready to run, and what it works on: costs and weights of a range of examples, targets."""
    distances, scores, targets = inputs(n, m)
    popularity = np.floor(np.random.default_rng(1).pareto(1.2, m) * 3.0)

    def costs(start: int, stop: int) -> np.ndarray:
        return distances[start:stop]

    def weights(start: int, stop: int) -> np.ndarray:
        if weighted_by == "popularity":
            return np.broadcast_to(min_max(popularity[None]), (stop - start, m))
        return min_max(scores[start:stop])

    def run() -> np.ndarray:
        return ranks_on_grid("reweight", costs, weights, targets[:, None], m, GRIDS["movie"], memory_mib=memory_mib)

    return run, costs, weights, targets


def prepared(**options: object) -> Callable[[], np.ndarray]:
    """For the child process that measures memory."""
    return search(**options)[0]


def measure(n: int, m: int, weighted_by: str, memory_mib: int, repeats: int, slow_cells: int) -> Row:
    grid = GRIDS["movie"]
    options = {"n": n, "m": m, "weighted_by": weighted_by, "memory_mib": memory_mib}
    run, costs, weights, targets = search(**options)
    slow_n = max(1, min(n, slow_cells // m))
    x, y = parts("reweight", costs(0, slow_n), weights(0, slow_n))
    tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in (x, y, targets[:slow_n])]
    functions = {"ours": run, "slow": lambda: [slow_ranks(*tensors, gamma) for gamma in SLOW_VALUES]}
    taken, results = alternate(functions, repeats)
    ranks = results["ours"]
    differ = sum(
        int((found.numpy() != ranks[:slow_n, grid.index(gamma)]).sum())
        for found, gamma in zip(results["slow"], SLOW_VALUES, strict=True)
    )
    part = slice(0, min(slow_n, 32))
    exact = np.stack([counted_ranks(x[part], y[part], targets[part], gamma) for gamma in grid], axis=1)
    row = Row(
        f"gamma search, {weighted_by}",
        f"{n:,} x {m:,}, {len(grid)} values",
        n * m,
        taken["ours"],
        taken["slow"] / len(SLOW_VALUES) * n / slow_n * len(grid),
        same=bool((exact == ranks[part]).all()),
        note=f"plain scaled from {len(SLOW_VALUES)} values x {slow_n} examples, {differ} of its ranks inexact",
    )
    row.peak_mib = peak_mib_in_child(prepared, **options)
    if (n, m) == (5000, 17408):
        row.aim("times plain", row.ratio, least=LEAST_RATIO)
    return row


def main() -> None:
    chosen = arguments(
        __doc__,
        sizes=["500x17408", "1500x17408", "5000x17408"],
        weights=["scores"],
        memory_mib=256,
        repeats=2,
        slow_cells=5_000_000,
    )
    if chosen.full:
        chosen.weights = ["scores", "popularity"]
    set_threads()
    rows = []
    for weighted_by in chosen.weights:
        for size in chosen.sizes:
            n, m = map(int, size.split("x"))
            rows.append(measure(n, m, weighted_by, chosen.memory_mib, chosen.repeats, chosen.slow_cells))
    write_result("gamma", rows, chosen.out)


if __name__ == "__main__":
    main()
