"""Random and popularity baselines: by hand, against brute force, and through the common scorer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.data.generations import Examples
from bigrec_hf.ground.from_scores import baseline_rankings, rank_scores
from bigrec_hf.rank.baselines.popularity import popularity_rankings
from bigrec_hf.rank.baselines.random import random_rankings
from bigrec_hf.score.stage import score_rankings
from bigrec_hf.settings import RankOptions

CATALOG = Catalog(["a", "b", "c", "d"], ["A", "B", "A", "D"])


def examples(*targets: int) -> Examples:
    """Examples with these targets and without a history."""
    return Examples([f"e{i}" for i in range(len(targets))], targets, [[] for _ in targets])


def test_popularity_hand_computed():
    table = popularity_rankings(CATALOG, [5, 7, 9, 5], examples(0, 1, 3), RankOptions(top_k=3))
    assert table["rank"].to_pylist() == [0, 1, 3]  # title A also stands in row 2, the most popular one
    assert table["top_rows"].to_pylist()[0] == [2, 1, 0]  # ties by row
    assert table["in_catalog"].to_pylist() == [None] * 3
    exact = popularity_rankings(CATALOG, [5, 7, 9, 5], examples(0), RankOptions(duplicates="exact"))
    assert exact["rank"].to_pylist() == [2]


def test_history_or_all_that_was_seen_can_be_excluded():
    inputs = Examples(["x", "y"], [3, 1], [[2, -1], [1]], seen=[[0, 2], [0, 2, 1]])
    table = popularity_rankings(CATALOG, [5, 7, 9, 5], inputs, RankOptions(exclude="history"))
    assert table["top_rows"].to_pylist() == [[1, 0, 3], [2, 1, 0, 3]]
    assert table["rank"].to_pylist() == [2, 1]  # the second target is in its own history: it stays a candidate
    assert score_rankings(table, [1], bootstrap=0)[0]["exclude"] == "history"
    table = popularity_rankings(CATALOG, [5, 7, 9, 5], inputs, RankOptions(exclude="seen"))
    assert table["top_rows"].to_pylist() == [[1, 3], [1, 3]] and table["rank"].to_pylist() == [1, 0]
    with pytest.raises(BigrecError, match="have no earlier items"):
        popularity_rankings(CATALOG, [5, 7, 9, 5], inputs._replace(seen=None), RankOptions(exclude="seen"))


def test_another_row_with_an_excluded_title_stays():
    inputs = Examples(["x"], [2], [[0]])  # A is in rows 0 and 2: the history holds one, the target is the other
    table = popularity_rankings(CATALOG, [5, 7, 4, 5], inputs, RankOptions(exclude="history"))
    assert table["top_rows"].to_pylist() == [[1, 3, 2]] and table["rank"].to_pylist() == [2]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 12), st.integers(0, 30))
def test_equals_brute_force(seed, m, n, k):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (n, m)).astype(float)  # many ties
    targets = [rng.integers(0, m, rng.integers(1, 4)).tolist() for _ in range(n)]
    exclude = [rng.integers(0, m, rng.integers(0, 3)).tolist() for _ in range(n)]
    ranking = rank_scores(lambda a, b: scores[a:b], targets, m, k, exclude)
    for i in range(n):
        order = [j for j in np.lexsort((np.arange(m), -scores[i])) if j not in exclude[i]]
        assert ranking.rank[i] == min((order.index(t) for t in targets[i] if t in order), default=m)
        assert [row for row in ranking.top_rows[i].tolist() if row >= 0] == order[: min(k, m)]


def test_random_is_uniform_reproducible_and_scored():
    catalog = Catalog([str(i) for i in range(100)], [f"t{i}" for i in range(100)])
    inputs, options = examples(*(i % 100 for i in range(3000))), RankOptions(top_k=10)
    table = random_rankings(catalog, inputs, options, seed=1)
    results, _ = score_rankings(table, [10, 50], bootstrap=0)
    assert results["hr@10"] == pytest.approx(0.1, abs=0.02) and results["hr@50"] == pytest.approx(0.5, abs=0.03)
    assert (results["baseline"], results["baseline_seed"]) == ("random", 1)
    again = random_rankings(catalog, inputs, options, seed=1)
    assert again.equals(table)
    assert not random_rankings(catalog, inputs, options, seed=2).equals(table)


@pytest.mark.parametrize(
    ("counts", "message"),
    [([1, 2], "for 4 catalog rows"), ([0, 0, 0, 0], "not all 0"), ([1, -1, 0, 0], "at least 0")],
)
def test_faults_of_counts(counts, message):
    with pytest.raises(BigrecError, match=message):
        popularity_rankings(CATALOG, counts, examples(0), RankOptions())


def test_faults_of_scores():
    with pytest.raises(BigrecError, match="must be finite and of shape"):
        baseline_rankings("broken", lambda a, b: np.full((b - a, 4), np.nan), CATALOG, examples(0), RankOptions())
