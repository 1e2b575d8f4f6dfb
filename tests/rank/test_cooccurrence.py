"""Co-occurrence baseline: by hand, and against counting pair by pair."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.data.generations import Examples
from bigrec_hf.rank.baselines.cooccurrence import cooccurrence_rankings, count_neighbors
from bigrec_hf.settings import RankOptions

CATALOG = Catalog(list("abcde"), list("ABCDE"))
ITEMS, STARTS = np.array([0, 1, 2, 0, 1, 3]), np.array([0, 3, 6])  # a b c | a b d


def dense(neighbors, n):
    table = np.zeros((n, n), int)
    for i in range(n):
        near = slice(neighbors.starts[i], neighbors.starts[i + 1])
        table[i, neighbors.items[near]] = neighbors.counts[near]
    return table


def test_counts_by_hand():
    near = dense(count_neighbors(ITEMS, STARTS, 5, distance=1), 5)
    assert near.tolist() == [
        [0, 2, 0, 0, 0],
        [2, 0, 1, 1, 0],
        [0, 1, 0, 0, 0],  # c and the second sequence's a are adjacent in memory only
        [0, 1, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    wide = dense(count_neighbors(ITEMS, STARTS, 5, distance=2), 5)
    assert wide[0].tolist() == [0, 2, 1, 1, 0] and wide[2, 3] == 0


def test_ranking_by_hand():
    neighbors = count_neighbors(ITEMS, STARTS, 5, distance=2)
    inputs = Examples(["v", "w", "x", "y"], [3, 4, 0, 2], [[2, 0], [4], [], [0, -1]])
    table = cooccurrence_rankings(CATALOG, neighbors, [0, 2, 1, 1, 5], inputs, RankOptions(top_k=5), recent=1)
    assert table["top_rows"].to_pylist() == [
        [1, 2, 3, 4, 0],  # next to a: b twice, c and d once (equal counts: by row), then e, a by popularity
        [4, 1, 2, 3, 0],  # e has no neighbors: popularity, ties by row
        [4, 1, 2, 3, 0],  # no history: popularity
        [1, 2, 3, 4, 0],  # the unknown item is passed over
    ]
    assert table["rank"].to_pylist() == [2, 0, 4, 1]
    tied = cooccurrence_rankings(CATALOG, neighbors, [0, 2, 1, 3, 5], inputs, RankOptions(top_k=5), recent=1)
    assert tied["top_rows"].to_pylist()[0] == [1, 3, 2, 4, 0]  # equal counts: the more popular first
    both = cooccurrence_rankings(CATALOG, neighbors, [0] * 5, inputs, RankOptions(top_k=3), recent=2)
    assert both["top_rows"].to_pylist()[0] == [1, 0, 2]  # c: a b once each; a: b twice, c d once
    left_out = cooccurrence_rankings(
        CATALOG, neighbors, [0, 2, 1, 1, 5], inputs, RankOptions(top_k=5, exclude="history"), recent=1
    )
    assert left_out["top_rows"].to_pylist()[0] == [1, 3, 4]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 6), max_size=8), max_size=6), st.integers(0, 9))
def test_counts_equal_pair_by_pair(sequences, distance):
    expected = np.zeros((7, 7), int)
    for sequence in sequences:
        for i, left in enumerate(sequence):
            for j, right in enumerate(sequence):
                if i != j and abs(i - j) <= distance and left != right:
                    expected[left, right] += 1
    items = np.array([row for sequence in sequences for row in sequence], np.int64)
    starts = np.cumsum([0, *map(len, sequences)])
    assert dense(count_neighbors(items, starts, 7, distance), 7).tolist() == expected.tolist()


def test_faults():
    neighbors = count_neighbors(ITEMS, STARTS, 5)
    with pytest.raises(BigrecError, match="3 train counts"):
        cooccurrence_rankings(CATALOG, neighbors, [1, 2, 3], Examples(["x"], [0], [[1]]), RankOptions())
    with pytest.raises(BigrecError, match="recent is 0"):
        cooccurrence_rankings(CATALOG, neighbors, [1] * 5, Examples(["x"], [0], [[1]]), RankOptions(), recent=0)
