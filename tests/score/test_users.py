"""Users as the units of chance: by hand, against SciPy, and how often intervals hold the truth and tests err."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.score.significance import permutation_test
from bigrec_hf.score.users import (
    RARE_HITS,
    bootstrap_users,
    design_effect,
    intervals,
    user_codes,
    user_ids,
    user_sums,
    wilson,
)


def test_users_by_hand():
    assert user_ids(["a:1", "b:7", "a:2", "a:b:3"]) == ["a", "b", "a", "a:b"]
    assert user_ids(["a:1", "b"]) is None  # one that names no user: no one's are taken
    assert user_ids(["test_5000#0", "test_5000#1"]) is None  # records of a file
    assert user_ids(["test_5000:0", "test_5000:1"]) is None  # one user alone says nothing about others
    assert user_ids(["a:1"]) == ["a"]
    assert user_codes(["b", "a", "b"], 3).tolist() == [1, 0, 1]
    assert user_codes(None, 3).tolist() == user_codes(["a", None, "a"], 3).tolist() == [0, 1, 2]
    sums = user_sums(np.array([[1.0, 2], [3, 4], [5, 6]]), np.array([1, 0, 1]))
    assert sums.tolist() == [[3, 4], [6, 8]]


def test_two_users_by_hand():
    # user 0: three hits of three, user 1: no hit of one. A resample is 0 0, 0 1 (twice as likely) or 1 1
    values, users = np.array([[1.0], [1], [1], [0]]), np.array([0, 0, 0, 1])
    low, high = bootstrap_users(values, users, 4000, 0.4)  # the middle 40 % of 0, .75, .75, 1
    assert (low[0], high[0]) == (0.75, 0.75)
    low, high = bootstrap_users(values, users, 4000, 0.6)
    assert (low[0], high[0]) == (0.0, 1.0)
    with pytest.raises(BigrecError, match="no example"):
        bootstrap_users(np.empty((0, 1)), np.empty(0, int))


def test_bootstrap_is_paired_and_as_wide_as_theory_says():
    # the methods differ by exactly 0.1 on every example, however different the examples are
    base = np.random.default_rng(0).random(200)
    low, high = bootstrap_users(np.column_stack([base + 0.1 - base, base]), np.arange(200), 500)
    assert low[0] == pytest.approx(0.1) and high[0] == pytest.approx(0.1)
    assert high[1] - low[1] == pytest.approx(2 * 1.96 * base.std() / 200**0.5, rel=0.15)
    # each example 25 times: 50 users' worth of information, not 1,250 examples'
    low, high = bootstrap_users(np.repeat(base[:50, None], 25, axis=0), np.repeat(np.arange(50), 25), 2000)
    assert high[0] - low[0] == pytest.approx(2 * 1.96 * base[:50].std() / 50**0.5, rel=0.15)


def test_the_bootstrap_in_parts_is_whole(monkeypatch):
    values, users = np.random.default_rng(0).random((30, 2)), np.arange(30) // 3
    monkeypatch.setattr("bigrec_hf.score.users.DRAWS_AT_ONCE", 70)
    low, high = bootstrap_users(values, users, 500, seed=1)
    assert ((low < values.mean(axis=0)) & (values.mean(axis=0) < high)).all()
    assert bootstrap_users(values, users, 500, seed=1)[0].tolist() == low.tolist()
    assert bootstrap_users(values, users, 500, seed=2)[0].tolist() != low.tolist()


def test_design_effect_by_hand():
    # two users of two equal rows: means 1 and 0. Plain variance .25 / 4, by user 2 * (1 + 1) / 16
    assert design_effect(np.array([1, 1, 0, 0]), np.array([0, 0, 1, 1])) == pytest.approx(4.0)
    assert design_effect(np.array([1, 0, 1, 0]), np.array([0, 0, 1, 1])) == 1.0  # users do not differ
    assert design_effect(np.ones(4), np.array([0, 0, 1, 1])) == 1.0
    assert design_effect(np.array([1, 0]), np.array([0, 0])) == 1.0


@settings(deadline=None)
@given(st.integers(1, 400), st.data(), st.floats(0.5, 0.999))
def test_wilson_is_scipys(n, data, confidence):
    hits = data.draw(st.integers(0, n))
    theirs = stats.binomtest(hits, n).proportion_ci(confidence, method="wilson")
    assert wilson(hits, n, confidence) == pytest.approx((theirs.low, theirs.high), abs=1e-9)


def gains(hits: int, n: int) -> np.ndarray:
    return (np.arange(n) < hits).astype(float)


def test_rare_hits_get_wilsons_interval():
    found = intervals(np.column_stack([gains(k, 300) for k in (0, 3, 19, 20, 150, 281)]), np.arange(300))
    assert found.wilson.tolist() == [True, True, True, False, False, True]  # 281 hits: 19 misses
    assert (found.low[1], found.high[1]) == wilson(3, 300)
    assert (found.low[0], found.high[0]) == wilson(0, 300)
    assert found.low[4] == pytest.approx(0.443, abs=0.01)  # the bootstrap's
    assert set(found.design_effect) == {1.0}


def test_gains_below_one_scale_wilsons_interval():
    found = intervals(np.column_stack([0.5 * gains(3, 300), gains(3, 300)]), np.arange(300))
    assert found.low[0] == pytest.approx(0.5 * found.low[1]) and found.high[0] == pytest.approx(0.5 * found.high[1])
    mixed = np.zeros(300)
    mixed[:4] = [1, 0.5, 0.5, 0.5]  # 2.5 in all, 1.75 squared: 3.57 hits of 0.7 each
    ends = wilson(2.5**2 / 1.75, 300)
    assert intervals(mixed[:, None], np.arange(300)).low[0] == pytest.approx(0.7 * ends[0])


def test_rare_hits_of_few_users_are_worth_fewer_examples():
    users = np.arange(400) // 20  # 20 users
    wide = np.where(users < 10, 1.0, 0.0)  # users differ as much as can be: 20 times the variance
    found = intervals(np.column_stack([gains(5, 400), wide]), users)
    assert found.design_effect[1] == pytest.approx(20 * 20 / 19)
    expected = 1 + (20 * 20 / 19 - 1) * (6 / 396) / (201 / 201)
    assert found.design_effect[0] == pytest.approx(expected)
    assert (found.low[0], found.high[0]) == wilson(5 / expected, 400 / expected)


def test_intervals_of_rare_hits_hold_the_truth():
    """Exact coverage at p = 0.0033, n = 300: how likely each number of hits is, and whether its interval holds p."""
    p, n = 0.0033, 300
    counts = np.arange(n + 1)
    found = intervals((np.arange(n)[:, None] < counts).astype(float), np.arange(n), 200)
    assert found.wilson[:RARE_HITS].all()
    covered = (found.low <= p) & (p <= found.high)
    assert stats.binom.pmf(counts, n, p) @ covered >= 0.92
    low, high = bootstrap_users((np.arange(n)[:, None] < counts[:30]).astype(float), np.arange(n), 500)
    assert stats.binom.pmf(counts[:30], n, p) @ ((low <= p) & (p <= high)) < 0.7  # what it replaces


@pytest.mark.slow
@pytest.mark.parametrize(
    ("p", "n_users", "rows", "likeness"),
    [
        (0.0033, 300, [1], 0.0),
        (0.01, 60, [20], 0.05),
        (0.002, 166, [1, 10, 100, 300], 0.01),
        (0.1, 166, [1, 10, 100], 0.05),
    ],
)
def test_coverage_with_clustered_rows(p, n_users, rows, likeness):
    """Users' own hit rates are Beta-distributed about `p` with intra-class correlation `likeness`; HR@10 and NDCG@10
    beside a wider metric, whose hits are five times as frequent."""
    random, trials = np.random.default_rng(1), 600
    discount = 1 / np.log2(np.arange(10) + 2)
    held = np.zeros(2)
    for trial in range(trials):
        users = np.repeat(np.arange(n_users), random.choice(rows, n_users))
        scale = (1 - likeness) / likeness if likeness else 0.0
        rate = random.beta(p * scale, (1 - p) * scale, n_users) if likeness else np.full(n_users, p)
        hit = random.random(len(users)) < rate[users]
        wide = hit | (random.random(len(users)) < np.minimum(1, 4 * rate)[users])
        table = np.column_stack([hit, hit * discount[random.integers(0, 10, len(users))], wide]).astype(float)
        found = intervals(table, users, 300, seed=trial)
        truth = np.array([p, p * discount.mean()])
        held += (found.low[:2] <= truth) & (truth <= found.high[:2])
    assert (held / trials >= 0.90).all(), held / trials  # nominal 0.95; a binomial error of 0.012


@pytest.mark.slow
def test_false_positives_with_clustered_rows():
    """Two methods without a difference on average, but each user prefers one: 5 % of the tests by user say otherwise,
    many more of those by row."""
    random, trials = np.random.default_rng(2), 2000
    false_positives = {"user": 0, "row": 0}
    for trial in range(trials):
        users = np.repeat(np.arange(100), random.choice([1, 5, 20, 60], 100))
        taste = random.normal(0, 0.06, 100)
        one, other = (random.random(len(users)) < 0.1 + np.maximum(sign * taste, 0)[users] for sign in (1, -1))
        differences = one[:, None].astype(float) - other[:, None]
        false_positives["user"] += permutation_test(user_sums(differences, users), 400, trial)[0] < 0.05
        false_positives["row"] += permutation_test(differences, 400, trial)[0] < 0.05
    assert 0.03 <= false_positives["user"] / trials <= 0.07
    assert false_positives["row"] / trials > 0.1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 5))
def test_intervals_hold_the_mean_and_stay_within_its_limits(seed, n, n_users):
    random = np.random.default_rng(seed)
    table = (random.random((n, 3)) < random.random(3)) * random.choice([1.0, 0.5, 0.63], (n, 3))
    found = intervals(table, random.integers(0, n_users, n), 200)
    mean = table.mean(axis=0)
    assert (found.low >= -1e-12).all() and (found.high <= 1 + 1e-12).all() and (found.low <= found.high).all()
    assert ((found.low <= mean + 1e-9) & (mean <= found.high + 1e-9) | ~found.wilson).all()
