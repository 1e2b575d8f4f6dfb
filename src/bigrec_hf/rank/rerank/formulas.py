"""Distances and weights in one ranking: BIGRec's Eq. 3 and two weighted sums; exact ranks for a whole grid at once.

D is the row-wise min-max of the cost of a candidate (its distance to the generated text). W is the min-max of its
popularity or of its score by a collaborative model. Both are in [0, 1]. The combined cost (lower is better):

    reweight   D * (1 + W) ** -gamma                   Eq. 3; the closest item has D = 0 and stays first
    mix        (1 - share) * D + share * (1 - W)       any item can come first
    rrf        the same of reciprocal ranks: 1 - 61 / (61 + r), r the 0-based rank by cost and by descending weight
               among the candidates: excluded items take no place

For one example, an item precedes the target on one side of a single threshold: the logarithm of `reweight` and the
weighted sums are linear in the parameter, `item before target <=> a < parameter * b`. The thresholds a / b, sorted into
the grid, therefore give the rank of the target at every grid point without a sort or a pass for each. If the comparison
at a grid point next to the threshold is too close for the rounding of a and b, it is made there by the formula itself
in float64: ranks equal those of `combine` to the last bit (strictly smaller, plus equal in earlier rows).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.metrics.ndcg_hr.ranking import flat_rows

ItemValues = Callable[[int, int], np.ndarray]  # (start, stop) -> (stop - start, n_items) floats of these examples

PARAMETERS = {"reweight": "gamma", "mix": "share", "rrf": "share"}  # formula -> name of its parameter
RRF_CONSTANT = 61  # 60 + 1: reciprocal rank fusion counts from 1 (Cormack, Clarke and Buettcher, 2009)
GAMMA_LIMIT = 300.0  # 2 ** -300 times the smallest D (below) is still a normal float64
SMALLEST = 1e-200  # a smaller D is 0
TOLERANCE = {"reweight": 1e-11, "mix": 1e-13, "rrf": 1e-13}  # above the rounding of a, b and the formula, see _lines
CELL_BYTES = 64  # float64 arrays that exist at once for one example and item
DOUBTFUL = 4096  # items compared by the formula together


def min_max(values: np.ndarray, what: str = "costs") -> np.ndarray:
    """Scale each row to [0, 1]: (v - min) / (max - min), float64, same shape (n, m).

    A constant row carries no information and becomes zeros; values below 1e-200 become 0. Raises BigrecError for NaN or
    infinity.
    """
    values = np.asarray(values, np.float64)
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):
        span = high - low
    if not np.isfinite(span).all():  # unscaled if a row holds NaN or infinity
        row = int(np.flatnonzero(~np.isfinite(span))[0])
        raise BigrecError(f"{what} of example {row} hold NaN, infinity or values beyond float64: fix their source")
    scaled = values - low
    scaled /= np.where(span > 0, span, 1.0)
    scaled[scaled < SMALLEST] = 0.0
    return scaled


def reciprocal_rank_costs(costs: np.ndarray) -> np.ndarray:
    """Return 1 - 61 / (61 + r) in [0, 1), (n, m) float64; r = number of items in the row with a lower cost."""
    out = np.empty(costs.shape, np.float64)
    for row, cost in zip(out, costs, strict=True):
        order = np.argsort(cost)
        ascending = cost[order]
        first = np.concatenate([[True], ascending[1:] != ascending[:-1]])
        rank = np.maximum.accumulate(np.where(first, np.arange(len(cost)), 0))
        row[order] = 1.0 - RRF_CONSTANT / (RRF_CONSTANT + rank)
    return out


def parts(
    formula: str, costs: np.ndarray, weights: np.ndarray, exclude: Sequence[Sequence[int]] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the inputs of `combine`, (n, m) float64 each, from raw costs (finite) and weights W in [0, 1].

    `exclude`: rows of each example that are not candidates; they affect neither the scale of the costs nor any rank.
    """
    weights = np.asarray(weights, np.float64)
    if costs.shape != weights.shape:
        raise BigrecError(f"costs have shape {costs.shape} and weights {weights.shape}: the shapes must be equal")
    if not (weights.min() >= 0.0 and weights.max() <= 1.0):  # NaN fails as well
        raise BigrecError(
            "weights must lie between 0 and 1, without NaN: scale them with bigrec_hf.rank.rerank.formulas.min_max"
        )
    if exclude is not None:
        costs = _as_the_last(costs, exclude, np.max)
        if formula == "rrf":
            weights = _as_the_last(weights, exclude, np.min)
    distance = min_max(costs)
    if formula == "reweight":
        return distance, weights
    if formula == "mix":
        return distance, 1.0 - weights
    if weights.strides[0] == 0:  # one row of weights for all examples
        return reciprocal_rank_costs(distance), np.broadcast_to(reciprocal_rank_costs(-weights[:1]), weights.shape)
    return reciprocal_rank_costs(distance), reciprocal_rank_costs(-weights)


def _as_the_last(values: np.ndarray, exclude: Sequence[Sequence[int]], worst: Callable[..., Any]) -> np.ndarray:
    """Return a copy in which the excluded items of each row have the candidates' worst value: none precedes one."""
    out = np.array(values, np.float64)
    for row, banned in zip(out, exclude, strict=True):
        kept = np.ones(len(row), bool)
        kept[[item for item in banned if item >= 0]] = False
        row[~kept] = worst(row[kept]) if kept.any() else 0.0
    return out


def combine(formula: str, x: np.ndarray, y: np.ndarray, parameter: float | np.ndarray) -> np.ndarray:
    """Return the combined cost in float64, broadcast: the formula that defines every rank. `x`, `y` from `parts`."""
    if formula == "reweight":
        return x * np.power(1.0 + y, np.negative(parameter))
    return np.subtract(1.0, parameter) * x + np.multiply(parameter, y)


def chunk_size(memory_mib: int, n_items: int) -> int:
    """Return the number of examples whose costs, weights and intermediate arrays fit into the memory."""
    return max(1, memory_mib * 2**20 // (CELL_BYTES * n_items))


def check_grid(formula: str, grid: Sequence[float]) -> np.ndarray:
    """Return the parameter values as (g,) float64, in the order given.

    Raises BigrecError for none, repeated values, or values out of range: gamma -300..300, a weight 0..1.
    """
    values = np.asarray(grid, np.float64)
    low, high = (-GAMMA_LIMIT, GAMMA_LIMIT) if formula == "reweight" else (0.0, 1.0)
    if values.ndim != 1 or not values.size or len(np.unique(values)) < len(values):
        raise BigrecError(f"the grid of {PARAMETERS[formula]} must be a list of distinct numbers, at least one")
    wrong = values[~((values >= low) & (values <= high))]
    if wrong.size:
        raise BigrecError(f"{PARAMETERS[formula]} = {wrong[0]:g} is on the grid: give values from {low:g} to {high:g}")
    return values


def ranks_on_grid(
    formula: str,
    costs: ItemValues,
    weights: ItemValues,
    targets: Sequence[Sequence[int]],
    n_items: int,
    grid: Sequence[float],
    *,
    exclude: Sequence[Sequence[int]] | None = None,
    memory_mib: int = 256,
) -> np.ndarray:
    """Return the exact 0-based rank of each example's target at every value of the grid, (n, g) int64 (see the module).

    Args:
        formula: reweight, mix or rrf.
        costs: raw costs, lower is better, finite; any chunk of examples at a time.
        weights: W in [0, 1].
        targets: the catalog rows at which each example's target counts as found; the best one counts.
        grid: parameter values, in any order.
        exclude: rows per example that are not candidates (negative ones are skipped); a target whose rows are all
            excluded gets rank n_items.
        memory_mib: working memory for chunks of costs and weights.

    Raises BigrecError for shapes that do not match, NaN or infinity, weights outside [0, 1].
    """
    values = check_grid(formula, grid)
    order = np.argsort(values)
    n = len(targets)
    ranks = np.full((n, len(values)), n_items, np.int64)
    chunk = chunk_size(memory_mib, n_items)
    with tqdm(total=n, desc=f"ranks for {len(values)} values", unit="example", leave=False, disable=None) as bar:
        for start in range(0, n, chunk):
            stop = min(start + chunk, n)
            given = [np.asarray(rows(start, stop)) for rows in (costs, weights)]
            if any(array.shape != (stop - start, n_items) for array in given):
                raise BigrecError(
                    f"costs {given[0].shape} and weights {given[1].shape} of examples {start}..{stop - 1}: "
                    f"expected {(stop - start, n_items)}"
                )
            hidden = None if exclude is None else exclude[start:stop]
            x, y = parts(formula, given[0], given[1], hidden)
            banned = [None] * (stop - start) if hidden is None else hidden
            for i in range(stop - start):
                out = np.array([n_items], np.int64)
                for target in _candidates(targets[start + i], banned[i], n_items):
                    out = np.minimum(out, _ranks(formula, x[i], y[i], target, values[order], banned[i]))
                ranks[start + i, order] = out
                bar.update()
    return ranks


def _candidates(target: Sequence[int], banned: Sequence[int] | None, n_items: int) -> np.ndarray:
    """Return the rows of the target that are candidates. Raises ValueError for a row outside the catalog."""
    rows = flat_rows("targets", [list(target)], 1, n_items)[1]
    return rows if banned is None else np.setdiff1d(rows, np.asarray(banned, np.int64))


def _ranks(formula: str, x: np.ndarray, y: np.ndarray, target: int, grid: np.ndarray, banned) -> np.ndarray:
    """Return the ranks, (g,) int64, of one target row over an ascending grid; `x`, `y`  # (m,)."""
    banned = np.asarray([] if banned is None else banned, np.int64)
    banned = banned[banned >= 0]
    if formula == "reweight" and x[target] == 0.0:  # stays 0: only other zeros in earlier rows precede it
        before = np.flatnonzero(x[:target] == 0.0)
        return np.full(len(grid), len(np.setdiff1d(before, banned)), np.int64)
    a, b = _lines(formula, x, y, target)
    a[banned], b[banned] = np.inf, 0.0  # never precede the target
    rank, doubtful = _count_before(a, b, grid, TOLERANCE[formula])
    doubtful = doubtful[doubtful != target]
    own = combine(formula, x[target], y[target], grid)
    for start in range(0, len(doubtful), DOUBTFUL):
        items = doubtful[start : start + DOUBTFUL, None]
        cost = combine(formula, x[items], y[items], grid)  # (items, g)
        rank += np.count_nonzero((cost < own) | ((cost == own) & (items < target)), axis=0)
    return rank


def _lines(formula: str, x: np.ndarray, y: np.ndarray, target: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (a, b), (m,) each: in exact arithmetic an item precedes the target if a < parameter * b.

    Rounding, with u = 2^-53 and logarithms good to 4 u: x >= 1e-200 and gamma <= 300 keep |log x| below 461 and
    |gamma log(1 + y)| below 208, so a - gamma * b and the formula's own logarithm are off by less than
    10 u (2 * 461 + 2 * 208) + 20 u < 2e-12; the mixes, with all terms in [0, 1], by less than 20 u < 3e-15. TOLERANCE
    is at least five times that.
    """
    if formula == "reweight":
        with np.errstate(divide="ignore"):
            log_x = np.log(x)  # -inf: an item with D = 0 is always before
        weight = np.log(1.0 + y)
        return log_x - log_x[target], weight - weight[target]
    a = x - x[target]
    return a, a - (y - y[target])


def _count_before(a: np.ndarray, b: np.ndarray, grid: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """Return how many items have a < grid * b, (g,) int64, and which are not counted: those too close at some point.

    A line that is clearly on the same side at both ends of the grid is decided. For the others |a - g b| is smallest at
    the grid points on either side of the root a / b: if both are clear, all are.
    """
    last = len(grid) - 1
    low, high = grid[0] * b, grid[last] * b
    np.subtract(a, low, out=low)
    np.subtract(a, high, out=high)
    always = np.count_nonzero(np.maximum(low, high) < -tolerance)
    open_ = np.flatnonzero((np.minimum(low, high) <= tolerance) & (np.maximum(low, high, out=high) >= -tolerance))
    a, b = a[open_], b[open_]
    with np.errstate(divide="ignore", invalid="ignore"):
        place = np.searchsorted(grid, a / b)  # first grid point at or above the root; NaN comes last
    near = np.abs(a - grid[np.maximum(place - 1, 0)] * b) <= tolerance
    near |= np.abs(a - grid[np.minimum(place, last)] * b) <= tolerance
    place += (b < 0.0) * (last + 2)
    counts = np.bincount(place[~near], minlength=2 * (last + 2))
    above, below = counts[: last + 1], counts[last + 2 :]  # precede the target above the root, or below it
    return always + np.cumsum(above) + below.sum() - np.cumsum(below)[: last + 1], open_[near]
