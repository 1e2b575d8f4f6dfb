"""Ranks on a whole grid against full stable sorts of the formula, tie by tie; distances in float64."""

import sys
import warnings

import numpy as np
import pytest
from benchmarks.common import read_rows
from bigrec_hf.metrics.ndcg_hr.ranking import rank_catalog
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import gamma as benchmark
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.rank.model_selection import GRIDS
from bigrec_hf.rank.rerank.costs import closest_costs, distance_costs
from bigrec_hf.rank.rerank.formulas import combine, min_max, parts, ranks_on_grid, reciprocal_rank_costs

MOVIE, UNIT = GRIDS["movie"], GRIDS["unit"]


def ranks(formula, costs, weights, targets, grid, **options):
    costs, weights = np.asarray(costs, float), np.asarray(weights, float)
    return ranks_on_grid(
        formula,
        lambda start, stop: costs[start:stop],
        lambda start, stop: weights[start:stop],
        targets,
        costs.shape[1],
        grid,
        **options,
    )


def slow_ranks(formula, costs, weights, targets, grid, exclude=None):
    """One stable sort of the formula for every example and grid value; excluded items are taken out first."""
    n, m = costs.shape
    out = np.full((n, len(grid)), m)
    for i in range(n):
        banned = [row for row in (exclude[i] if exclude else []) if row >= 0]
        left = np.setdiff1d(np.arange(m), banned)
        if not len(left):
            continue
        span = costs[i, left].max() - costs[i, left].min()
        distance = (costs[i] - costs[i, left].min()) / span if span > 0 else np.zeros(m)
        distance[distance < 1e-200] = 0.0  # as min_max says
        for j, value in enumerate(grid):
            if formula == "reweight":
                cost = distance * np.power(1.0 + weights[i], -value)
            elif formula == "mix":
                cost = (1.0 - value) * distance + value * (1.0 - weights[i])
            else:
                by_cost = np.array([np.count_nonzero(distance[left] < d) for d in distance])
                by_weight = np.array([np.count_nonzero(weights[i, left] > w) for w in weights[i]])
                cost = (1.0 - value) * (1.0 - 61 / (61 + by_cost)) + value * (1.0 - 61 / (61 + by_weight))
            cost[banned] = np.inf
            order = list(np.argsort(cost, kind="stable"))
            places = [order.index(row) for row in targets[i] if row not in banned]
            out[i, j] = min(places, default=m)
    return out


def test_hand_computed():
    # D = 0, 1/2, 1; the target, the farthest, has W = 1: D~ = 2 ** -gamma, before 1/2 as soon as gamma > 1
    found = ranks("reweight", [[3.0, 5.0, 7.0]], [[0.0, 0.0, 1.0]], [[2]], [0, 1, 1.01, 99])
    assert found.tolist() == [[2, 2, 1, 1]]  # at 1 they are equal, and the earlier row wins; D = 0 is never passed
    assert found.dtype == np.int64
    # mix: 0, (1 - a) / 2 + a, 1 - a against target 2 with 1 - W = 0: costs a, (1 + a) / 2, 1 - a
    found = ranks("mix", [[3.0, 5.0, 7.0]], [[0.0, 0.0, 1.0]], [[2]], [0, 0.25, 0.5, 0.75, 1])
    assert found.tolist() == [[2, 2, 1, 0, 0]]


def test_an_earlier_row_wins_a_tie_and_a_later_one_loses_it():
    costs, weights = [[0.0, 1.0, 0.5]], [[0.0, 1.0, 0.0]]  # gamma 1: both 1/2
    assert ranks("reweight", costs, weights, [[1]], [1.0]).tolist() == [[1]]
    assert ranks("reweight", costs, weights, [[2]], [1.0]).tolist() == [[2]]


def test_min_max():
    assert min_max([[1, 3, 2], [4, 4, 4]]).tolist() == [[0, 1, 0.5], [0, 0, 0]]
    assert min_max([[0.0, 1e-250, 1.0]]).tolist() == [[0, 0, 1]]
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(BigrecError, match="costs of example 1 hold NaN, infinity"):
            min_max([[1.0, 2.0], [bad, 1.0]])
    with pytest.raises(BigrecError, match="beyond float64"):
        min_max([[-1.7e308, 1.7e308]])


def test_reciprocal_ranks_share_places_on_ties():
    costs = reciprocal_rank_costs(np.array([[5.0, 1.0, 5.0, 9.0]]))
    assert costs.tolist() == [[1 - 61 / 62, 0.0, 1 - 61 / 62, 1 - 61 / 64]]


def test_constant_rows_and_weights():
    costs, flat = np.ones((1, 4)), np.zeros((1, 4))
    assert ranks("reweight", costs, flat, [[2]], [0.0, 5.0]).tolist() == [[2, 2]]  # all equal: catalog order
    assert ranks("mix", costs, flat, [[2]], [0.0, 0.5, 1.0]).tolist() == [[2, 2, 2]]
    near = [[4.0, 3.0, 2.0, 1.0]]
    assert ranks("reweight", near, flat, [[2]], MOVIE).tolist() == [[1] * 199]  # W says nothing: plain distance
    assert ranks("mix", near, flat, [[2]], [0.0, 0.5, 1.0]).tolist() == [[1, 1, 2]]


VALUES = st.one_of(
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0, 1 / 3, 2 / 3, 0.1, 1e-16, 1e-9, 1 - 2**-53, 0.5 + 2**-53, 1e-199]),
    st.floats(0.0, 1.0),
)
FLOATS = {"reweight": st.sampled_from([*MOVIE, -1.0, 0.5, 299.0, -300.0]), "mix": st.sampled_from(UNIT)}
FLOATS["rrf"] = FLOATS["mix"]


@st.composite
def problems(draw):
    n, m = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    formula = draw(st.sampled_from(list(FLOATS)))
    matrix = st.lists(st.lists(VALUES, min_size=m, max_size=m), min_size=n, max_size=n)
    rows = st.lists(st.integers(0, m - 1), min_size=1, max_size=3)
    targets = draw(st.lists(rows, min_size=n, max_size=n))
    banned = st.lists(st.integers(-1, m - 1), max_size=3)
    exclude = draw(st.none() | st.lists(banned, min_size=n, max_size=n))
    grid = draw(st.lists(FLOATS[formula], min_size=1, max_size=8, unique=True))
    return formula, np.array(draw(matrix)), np.array(draw(matrix)), targets, grid, exclude


@settings(max_examples=400, deadline=None)
@given(problems())
def test_equals_full_sorts(problem):
    formula, costs, weights, targets, grid, exclude = problem
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ranks(formula, costs, weights, targets, grid, exclude=exclude)
    assert np.array_equal(found, slow_ranks(formula, costs, weights, targets, grid, exclude))


@pytest.mark.parametrize("formula", ["reweight", "mix", "rrf"])
def test_equals_full_sorts_on_the_whole_grid_with_duplicates(formula):
    rng = np.random.default_rng(3)
    costs = rng.random((6, 300)).round(2)  # many equal distances
    costs[:, 200:] = costs[:, :100]
    weights = rng.integers(0, 5, (6, 300)) / 4.0
    targets = [[int(row), int(row) + 200] for row in rng.integers(0, 100, 6)]
    grid = MOVIE if formula == "reweight" else UNIT
    found = ranks(formula, costs, weights, targets, grid, memory_mib=1)
    assert np.array_equal(found, slow_ranks(formula, costs, weights, targets, grid))
    x, y = parts(formula, costs, weights)  # and the formula that stores a whole ranking is this very one
    for j in (0, 50, 100):
        cost = combine(formula, x, y, grid[j])
        best = [
            min(list(np.argsort(c, kind="stable")).index(row) for row in t) for c, t in zip(cost, targets, strict=True)
        ]
        assert found[:, j].tolist() == best


@pytest.mark.parametrize("formula", ["reweight", "mix", "rrf"])
def test_thresholds_that_fall_on_grid_points(formula):
    """Items made so that the formula ties with the target at a grid value, exactly or to a rounding error."""
    rng = np.random.default_rng(4)
    weights = rng.random((4, 400))
    grid = np.array([0.0, 0.3, 0.7, 1.0] if formula != "reweight" else [0.0, 0.3, 7.0, 99.0])
    at = rng.choice(grid, (4, 400))
    if formula == "reweight":
        costs = 0.2 * ((1.0 + weights) / (1.0 + weights[:, :1])) ** at
        costs /= costs.max(axis=1, keepdims=True) * 1.01
    else:
        costs = rng.random((4, 400))
        inner = (at > 0) & (at < 1)
        weights = np.where(inner, 1 - ((1 - at) * (costs[:, :1] - costs) / np.where(at > 0, at, 1) + 0.5), weights)
        weights = weights.clip(0, 1)
        weights[:, 0] = 0.5
    costs[:, -2:] = [0.0, 1.0]
    costs[:, -40:-2] = costs[:, 1:39]
    weights[:, -40:-2] = weights[:, 1:39]
    targets = [[0]] * 4
    assert np.array_equal(
        ranks(formula, costs, weights, targets, grid), slow_ranks(formula, costs, weights, targets, grid)
    )


def test_the_order_of_the_grid_is_kept():
    rng = np.random.default_rng(0)
    costs, weights, targets = rng.random((3, 30)), rng.random((3, 30)), [[1], [2], [3]]
    grid = [5.0, 0.0, 0.5]
    assert np.array_equal(
        ranks("reweight", costs, weights, targets, grid)[:, [1, 2, 0]],
        ranks("reweight", costs, weights, targets, sorted(grid)),
    )


def test_excluded_items_take_no_place_by_hand():
    # without the closest item D = (2, 3, 4) -> 0, 1/2, 1, and the ranks among the candidates are 0, 1, 2
    costs, weights = [[0.0, 2.0, 3.0, 4.0]], [[1.0, 0.0, 0.5, 0.25]]
    hidden = [[0]]
    x, y = parts("mix", np.array(costs), np.array(weights), hidden)
    assert x[0, 1:].tolist() == [0, 0.5, 1] and y[0, 1:].tolist() == [1, 0.5, 0.75]
    x, y = parts("rrf", np.array(costs), np.array(weights), hidden)
    assert x[0, 1:].tolist() == [0, 1 - 61 / 62, 1 - 61 / 63] and y[0, 1:].tolist() == [1 - 61 / 63, 0, 1 - 61 / 62]
    assert ranks("mix", costs, weights, [[3]], [0.0, 0.5, 1.0], exclude=hidden).tolist() == [[2, 2, 1]]


def test_everything_excluded_is_a_miss():
    found = ranks("reweight", [[1.0, 2.0]], [[0.0, 1.0]], [[1]], [0.0, 1.0], exclude=[[1]])
    assert found.tolist() == [[2, 2]]


@pytest.mark.parametrize(
    ("costs", "weights", "grid", "message"),
    [
        ([[1.0, np.nan]], [[0.0, 1.0]], [0.0], "NaN"),
        ([[1.0, 2.0]], [[0.0, np.nan]], [0.0], "between 0 and 1"),
        ([[1.0, 2.0]], [[0.0, 1.5]], [0.0], "between 0 and 1"),
        ([[1.0, 2.0]], [[0.0]], [0.0], r"weights \(1, 1\) of examples 0..0: expected \(1, 2\)"),
        ([[1.0, 2.0]], [[0.0, 1.0]], [], "distinct numbers"),
        ([[1.0, 2.0]], [[0.0, 1.0]], [1.0, 1.0], "distinct numbers"),
        ([[1.0, 2.0]], [[0.0, 1.0]], [301.0], "gamma = 301"),
        ([[1.0, 2.0]], [[0.0, 1.0]], [np.nan], "gamma = nan"),
    ],
)
def test_faults(costs, weights, grid, message):
    with pytest.raises(BigrecError, match=message):
        ranks("reweight", costs, weights, [[0]], grid)
    if message.startswith("gamma"):
        with pytest.raises(BigrecError, match="share = "):
            ranks("mix", costs, weights, [[0]], grid)


def test_a_target_outside_the_catalog():
    with pytest.raises(ValueError, match="outside the catalog"):
        ranks("mix", [[1.0, 2.0]], [[0.0, 1.0]], [[2]], [0.0])


def test_distances_are_exact_where_it_matters():
    rng = np.random.default_rng(0)
    items = (100.0 + rng.standard_normal((200, 16))).astype(np.float32)  # a large common part
    items[150:] = items[:50]
    queries = np.concatenate([items[:20], 100.0 + rng.standard_normal((20, 16))]).astype(np.float32)
    costs = distance_costs(queries, items)
    slow = np.sqrt(((queries[:, None].astype(float) - items) ** 2).sum(axis=2))
    assert np.allclose(costs(0, 40), slow, rtol=1e-9, atol=0)
    assert np.array_equal(costs(10, 13), costs(0, 40)[10:13])
    assert (costs(0, 20)[np.arange(20), np.arange(20)] == 0.0).all()
    assert np.array_equal(costs(0, 40)[:, 150:], costs(0, 40)[:, :50])
    with pytest.raises(BigrecError, match="16 dimensions, items 3"):
        distance_costs(queries, items[:, :3])
    with pytest.raises(BigrecError, match="NaN"):
        distance_costs(queries * np.nan, items)


@pytest.mark.parametrize("formula", ["reweight", "mix", "rrf"])
def test_without_weight_it_is_plain_grounding(formula):
    rng = np.random.default_rng(1)
    items = rng.standard_normal((120, 8)).astype(np.float32)
    items[100:] = items[:20]
    queries = np.concatenate([items[:10], rng.standard_normal((30, 8)).astype(np.float32)])
    targets = [[int(row)] if row >= 20 else [int(row), int(row) + 100] for row in rng.integers(0, 100, 40)]
    expected = rank_catalog(queries, items, targets).rank
    weights = rng.random((40, 120))
    costs = distance_costs(queries, items)
    found = ranks_on_grid(formula, costs, lambda start, stop: weights[start:stop], targets, 120, [0.0, 1.0])
    assert np.array_equal(found[:, 0], expected)


def test_the_benchmark_runs_and_finds_equal_ranks(monkeypatch, tmp_path):
    options = ["--sizes", "20x300", "--weights", "scores", "--repeats", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["gamma", *options])
    monkeypatch.setattr(benchmark, "peak_mib_in_child", lambda prepare, **options: float(prepare(**options)() is None))
    benchmark.main()
    _, (row,) = read_rows(tmp_path / "gamma.json")
    assert row.same is True and "199 values" in row.size


def test_closest_costs_are_the_least_of_each_examples_distances():
    rng = np.random.default_rng(3)
    items = rng.standard_normal((40, 6)).astype(np.float32)
    queries = [items[:2], np.empty((0, 6), np.float32), rng.standard_normal((3, 6)).astype(np.float32)]
    costs = closest_costs(queries, items)
    for i, rows in enumerate(queries):
        gaps = items[None].astype(float) - rows[:, None]
        expected = np.sqrt((gaps**2).sum(-1)).min(axis=0) if len(rows) else np.zeros(40)
        np.testing.assert_allclose(costs(i, i + 1)[0], expected, atol=1e-8)
    np.testing.assert_array_equal(costs(0, 3), np.concatenate([costs(i, i + 1) for i in range(3)]))
    assert costs(0, 1)[0, 0] == 0.0
