"""Ranks and nearest items against an independent float64 brute force."""

import tracemalloc

import numpy as np
import pytest
from bigrec_hf.metrics.ndcg_hr import ranking as ranking_module
from bigrec_hf.metrics.ndcg_hr.distances import centered_norms, score_error
from bigrec_hf.metrics.ndcg_hr.nearest import _sorted_order
from bigrec_hf.metrics.ndcg_hr.ranking import rank_catalog
from hypothesis import given, settings
from hypothesis import strategies as st


def brute_force(queries, items, targets, k, exclude=None):
    """Every distance in float64, every query's catalog fully sorted: (rank, top rows, top distances)."""
    ranks, rows, distances = [], [], []
    for i, query in enumerate(queries):
        square = ((query.astype(np.float64) - items.astype(np.float64)) ** 2).sum(axis=1)
        order = [j for j in np.lexsort((np.arange(len(items)), square)) if exclude is None or j not in exclude[i]]
        places = [order.index(t) for t in np.atleast_1d(targets[i]) if t in order]
        ranks.append(min(places, default=len(items)))
        rows.append(order[:k])
        distances.append(np.sqrt(square[order[:k]]))
    return ranks, rows, distances


def assert_exact(queries, items, targets, k, exclude=None, memory_mib=1):
    ranking = rank_catalog(queries, items, targets, k, memory_mib, exclude)
    ranks, rows, distances = brute_force(queries, items, targets, k, exclude)
    assert ranking.rank.tolist() == ranks
    for i, expected in enumerate(rows):
        assert ranking.top_rows[i, : len(expected)].tolist() == expected
        assert (ranking.top_rows[i, len(expected) :] == -1).all()
        np.testing.assert_allclose(ranking.top_distances[i, : len(expected)], distances[i], rtol=1e-6)


def test_hand_computed():
    items = np.array([[0, 0], [3, 4], [0, 1], [6, 8]], np.float32)
    ranking = rank_catalog(np.array([[0, 0], [6, 8]], np.float32), items, [1, 0], top_k=3)
    assert ranking.rank.tolist() == [2, 3]
    assert ranking.top_rows.tolist() == [[0, 2, 1], [3, 1, 2]]
    np.testing.assert_allclose(ranking.top_distances, [[0, 1, 5], [0, 5, np.sqrt(85)]], rtol=1e-6)
    assert (ranking.rank.dtype, ranking.top_rows.dtype, ranking.top_distances.dtype) == (np.int64, np.int32, np.float32)


def test_ties_go_by_catalog_row():
    items = np.array([[1.0], [-1.0], [1.0], [-1.0]], np.float32)
    assert rank_catalog(np.zeros((4, 1), np.float32), items, [0, 1, 2, 3]).rank.tolist() == [0, 1, 2, 3]


def test_best_of_several_rows_or_the_first_one():
    items = np.array([[5.0], [0.0], [1.0]], np.float32)
    query = np.zeros((1, 1), np.float32)
    assert rank_catalog(query, items, [[0, 2]], duplicates="best").rank.tolist() == [1]
    assert rank_catalog(query, items, [[0, 2]], duplicates="exact").rank.tolist() == [2]


def test_excluded_rows_are_no_candidates():
    items = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
    queries = np.zeros((2, 1), np.float32)
    ranking = rank_catalog(queries, items, [3, 1], top_k=4, exclude=[[0, 2, 2, -1], [1]])
    assert ranking.rank.tolist() == [1, 4]  # the second target itself is excluded: behind everything
    assert ranking.top_rows.tolist() == [[1, 3, -1, -1], [0, 2, 3, -1]]
    assert np.isinf(ranking.top_distances[0, 2])


@st.composite
def catalogs(draw):
    """Random catalogs with duplicates, near-ties down to one float32 step, and a common offset up to 1e4."""
    seed = draw(st.integers(0, 2**32 - 1))
    n, m, d = draw(st.integers(1, 20)), draw(st.integers(1, 80)), draw(st.integers(1, 24))
    rng = np.random.default_rng(seed)
    items = rng.standard_normal((m, d)).astype(np.float32) * np.float32(10.0 ** draw(st.integers(-4, 4)))
    items = items[rng.integers(0, m, m)]
    nudge = rng.random((m, d)) < draw(st.sampled_from([0.0, 0.1]))
    items = np.where(nudge, np.nextafter(items, np.float32(np.inf)), items)
    items = (items + np.float32(draw(st.sampled_from([0.0, 1.0, 1e4])))).astype(np.float32)
    queries = items[rng.integers(0, m, n)]
    if draw(st.booleans()):
        queries = queries + rng.standard_normal((n, d)).astype(np.float32)
    exclude = [rng.integers(0, m, rng.integers(0, 4)).tolist() for _ in range(n)] if draw(st.booleans()) else None
    return queries, items, rng.integers(0, m, n), draw(st.integers(0, m)), exclude


@settings(max_examples=150, deadline=None)
@given(catalogs())
def test_equals_brute_force(catalog):
    assert_exact(*catalog)


@settings(max_examples=40, deadline=None)
@given(catalogs(), st.integers(1, 7), st.integers(1, 5), st.integers(1, 9))
def test_chunk_sizes_change_nothing(catalog, block, group, chunk):
    queries, items, targets, k, exclude = catalog
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking_module, "_plan", lambda *sizes: (block, chunk, min(group, block)))
        assert_exact(queries, items, targets, k, exclude)


@pytest.mark.parametrize("offset", [0.0, 1e3, 1e4])
def test_adversarial_near_ties_at_a_huge_offset(offset):
    """A sphere around each query: all distances agree to about one part in 1e6, so float32 alone gets ranks wrong."""
    rng = np.random.default_rng(1)
    direction = rng.standard_normal((600, 64))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    radius = 1.0 + 1e-6 * rng.standard_normal((600, 1))
    items = (offset + direction * radius).astype(np.float32)
    queries = np.full((5, 64), offset, np.float32)
    assert_exact(queries, items, rng.integers(0, 600, 5), 50)


def test_many_equal_items_overflow_no_pool():
    items = np.zeros((5000, 4), np.float32)
    items[::7] = 1.0
    assert_exact(np.zeros((40, 4), np.float32), items, np.arange(40) * 100, 5)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e15])
def test_scales_that_underflow_or_grow(scale):
    rng = np.random.default_rng(2)
    items = (rng.standard_normal((50, 8)) * scale).astype(np.float32)
    assert_exact(items[:9] * np.float32(1.5), items, np.arange(9), 10)


def test_the_error_bound_holds_and_is_needed():
    """The float32 score differs from the float64 one by less than the bound, and by more than a thousandth of it."""
    rng = np.random.default_rng(3)
    items = (rng.standard_normal((300, 200)) + 30).astype(np.float32)
    queries = (rng.standard_normal((20, 200)) + 30).astype(np.float32)
    mean = items.mean(axis=0)
    x, q = items - mean, queries - mean
    score = (x * x).sum(axis=1) + (-2 * q) @ x.T
    x64, q64 = items.astype(np.float64) - mean, queries.astype(np.float64) - mean
    exact = (x64 * x64).sum(axis=1) - 2 * q64 @ x64.T
    bound = score_error(centered_norms(queries, mean)[:, None], centered_norms(items, mean)[None], 200)
    assert (np.abs(score - exact) < bound).all()
    assert np.abs(score - exact).max() > bound.max() / 1000


def test_memory_stays_within_the_setting():
    rng = np.random.default_rng(4)
    queries, items = rng.random((2000, 32), np.float32), rng.random((20000, 32), np.float32)
    targets = rng.integers(0, 20000, 2000)
    for memory_mib in (8, 32):
        tracemalloc.start()
        rank_catalog(queries, items, targets, 10, memory_mib)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (memory_mib + 2) * 2**20  # 2 MiB: results and targets


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"queries": np.full((2, 3), np.nan, np.float32)}, "queries holds NaN or infinity in row 0"),
        ({"items": np.array([[0, 0, 0], [0, np.inf, 0]], np.float32)}, "items holds NaN or infinity in row 1"),
        ({"items": np.empty((0, 3), np.float32)}, "items is empty"),
        ({"items": np.zeros((4, 2), np.float32)}, "3 dimensions, items 2"),
        ({"queries": np.zeros(3, np.float32)}, "two-dimensional"),
        ({"targets": [0]}, "targets has 1 entries for 2 queries"),
        ({"targets": [0, 4]}, "row 4 for query 1, outside the catalog's rows 0 to 3"),
        ({"targets": [[0], []]}, "targets is empty for query 1"),
        ({"targets": [0.5, 1]}, "whole catalog rows"),
        ({"exclude": [[0], [9]]}, "exclude names row 9"),
        ({"duplicates": "worst"}, "duplicates='worst'"),
        ({"top_k": -1}, "top_k=-1"),
        ({"items": np.full((4, 3), 3e38, np.float32) * np.array([[1], [-1], [1], [1]], np.float32)}, "too large"),
    ],
)
def test_clear_errors(change, message):
    inputs = {"queries": np.zeros((2, 3), np.float32), "items": np.eye(4, 3, dtype=np.float32), "targets": [0, 1]}
    with pytest.raises(ValueError, match=message):
        rank_catalog(**{**inputs, **change})


def test_no_query_is_no_error():
    ranking = rank_catalog(np.empty((0, 3), np.float32), np.eye(3, dtype=np.float32), [])
    assert ranking.rank.shape == (0,) and ranking.top_rows.shape == (0, 3)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 9)), max_size=40))
def test_entries_that_are_by_query_are_ordered_as_a_full_sort_orders_them(entries):
    query, square, row = np.array(sorted(entries, key=lambda entry: entry[0]), dtype=np.int64).reshape(-1, 3).T
    order = _sorted_order(query, square.astype(np.float64), row, 5)
    assert order.tolist() == np.lexsort((row, square, query)).tolist()
