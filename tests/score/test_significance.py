"""Paired tests: hand-computed, against independent computations, calibrated under the null, and their faults."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import write_table
from bigrec_hf.score.significance import (
    Scores,
    compare,
    holm,
    matched,
    permutation_test,
    read_method_scores,
)


def one_p(differences, **options) -> float:
    return float(permutation_test(np.array(differences, float)[:, None], **options)[0])


def test_hand_computed():
    # +1 +1 +1: of the 8 sign patterns only +++ and --- are as far from zero as 3
    assert one_p([1, 1, 1, 0, 0]) == 2 / 8
    # 1, 1, -1 sums to 1: the only sums are -3, -1, 1, 3, all at least 1 from zero
    assert one_p([1, 1, -1]) == 1
    # 3, 1, 1 sums to 5; patterns with |sum| >= 5: two of eight.  3, 1, -1 sums to 3: |3+1+1|, |3+1-1|, |3-1+1| twice
    assert one_p([3, 1, 1]) == 2 / 8
    assert one_p([3, 1, -1]) == 6 / 8
    assert one_p([0, 0]) == 1
    assert permutation_test(np.empty((0, 2))).tolist() == [1, 1]


def test_random_patterns_are_never_p_zero_and_come_from_the_seed():
    clear = [1.0] * 60
    assert one_p(clear, permutations=999) == 1 / 1000
    unclear = np.random.default_rng(0).normal(0.2, 1, 60)
    assert one_p(unclear, seed=3) == one_p(unclear, seed=3) != one_p(unclear, seed=4)


@pytest.mark.parametrize(("plus", "minus"), [(30, 14), (25, 20), (400, 330)])
def test_hit_rates_agree_with_the_binomial_test(plus, minus):
    """Differences of +-1: the sign-flip test is McNemar's exact test, a two-sided binomial one."""
    n, k = plus + minus, max(plus, minus)
    exact = min(1.0, 2 * sum(math.comb(n, i) for i in range(k, n + 1)) / 2**n)
    differences = [1] * plus + [-1] * minus + [0] * 100
    assert one_p(differences, permutations=20_000) == pytest.approx(exact, abs=4 * math.sqrt(exact / 20_000))


def test_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    random = np.random.default_rng(5)
    for n, permutations in ((9, 10_000), (40, 20_000)):  # all patterns, then random ones
        one, other = random.random(n), random.random(n) - 0.1
        theirs = stats.permutation_test(
            (one, other),
            lambda a, b, axis: (a - b).mean(axis=axis),
            permutation_type="samples",
            vectorized=True,
            n_resamples=permutations,
            rng=np.random.default_rng(0),
        ).pvalue
        assert one_p(one - other, permutations=permutations) == pytest.approx(theirs, abs=1e-9 if n == 9 else 0.015)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-1.0, -0.63, -0.5, 0.0, 0.13, 0.5, 0.63, 1.0]), max_size=9))
def test_few_differences_are_enumerated(differences):
    observed = abs(sum(differences))
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product([1, -1], repeat=len(differences))
    ]
    share = sum(value >= observed - 1e-9 for value in sums) / len(sums)
    assert one_p(np.reshape(differences, -1)) == pytest.approx(share)


@settings(max_examples=5, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_calibrated_under_the_null(seed):
    """500 pairs of methods without a difference: p <= x in at most about a share x of them, for every x."""
    random = np.random.default_rng(seed)
    hits = random.random((2, 300, 500)) < 0.15
    p = permutation_test(hits[0].astype(float) - hits[1], permutations=500, seed=seed % 1000)
    for level in (0.01, 0.05, 0.2):
        assert (p <= level).mean() <= level + 4 * math.sqrt(level / 500)
    assert (p <= 0.5).mean() > 0.35  # and not by never being small


def test_holm_by_hand():
    # 0.01 * 4, 0.02 * 3, 0.03 * 2, 0.04 * 1 -> 0.04, 0.06, 0.06 (at least the one before), 0.06
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]).tolist() == [1.0, 1.0]
    assert holm([]).tolist() == [] and holm([0.2]).tolist() == [0.2]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_rejects_what_its_step_down_procedure_rejects(p):
    alpha, rejected = 0.05, set()
    for step, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[i] * (len(p) - step) >= alpha:
            break
        rejected.add(i)
    assert {i for i, q in enumerate(holm(p)) if q < alpha} == rejected


def write_scores(folder, ids, ndcg, name="ndcg@10"):
    write_table(pa.table({"example_id": ids, name: np.asarray(ndcg, float)}), folder / "per_example.parquet")
    return folder


def test_examples_are_matched_by_id_and_seeds_averaged(tmp_path):
    one = write_scores(tmp_path / "a", ["x", "y", "z"], [1, 0, 0.5])
    other = write_scores(tmp_path / "b", ["z", "x", "y"], [0.1, 0.2, 0.3])
    metrics, mine, theirs = matched(read_method_scores([one]), read_method_scores([other]), "a", "b")
    assert (metrics, mine.tolist(), theirs.tolist()) == (["ndcg@10"], [[1], [0], [0.5]], [[0.2], [0.3], [0.1]])
    assert read_method_scores([one, other]).values[:, 0].tolist() == pytest.approx([0.6, 0.15, 0.3])


def test_faults(tmp_path):
    one = read_method_scores([write_scores(tmp_path / "a", ["x", "y"], [1, 0])])
    with pytest.raises(BigrecError, match="not over the same examples: 2 are in only one of them, such as 'y'"):
        compare({"a": one, "b": read_method_scores([write_scores(tmp_path / "b", ["x", "z"], [1, 0])])}, "a")
    with pytest.raises(BigrecError, match="share no cut-off"):
        compare({"a": one, "b": read_method_scores([write_scores(tmp_path / "c", ["x", "y"], [1, 0], "ndcg@5")])}, "a")
    with pytest.raises(BigrecError, match="twice"):
        read_method_scores([write_scores(tmp_path / "d", ["x", "x"], [1, 0])])
    with pytest.raises(BigrecError, match="bigrec-hf score"):
        read_method_scores([tmp_path / "nowhere"])
    with pytest.raises(BigrecError, match="finite"):
        one_p([np.nan])
    with pytest.raises(BigrecError, match="permutations=0"):
        one_p([1.0], permutations=0)


def test_compare_marks_real_differences_only():
    random = np.random.default_rng(1)
    ids = [str(i) for i in range(400)]
    base = random.random(400) < 0.2
    methods = {
        "base": base,
        "better": base | (random.random(400) < 0.1),
        "worse": base & (random.random(400) < 0.5),
        "same": random.permutation(base),
    }
    scores = {name: Scores(ids, ["hr@10"], hits[:, None].astype(float)) for name, hits in methods.items()}
    comparisons, permutations = compare(scores, "base")
    assert permutations == 10_000
    marks = {c.name: c.mark(0.05) for c in comparisons}
    assert marks == {"better": "▲", "worse": "▼", "same": ""}
    for c in comparisons:
        assert c.difference == pytest.approx(methods[c.name].mean() - base.mean())
        assert c.low < c.difference < c.high and c.p <= c.p_corrected
    # many comparisons: enough permutations for a mark to be possible at all
    metrics = [f"hr@{k}" for k in range(1, 401)]
    wide = {n: Scores(ids, metrics, np.repeat(s.values, 400, axis=1)) for n, s in list(scores.items())[:2]}
    comparisons, permutations = compare(wide, "base", permutations=100, resamples=10)
    assert permutations == 16_000 and all(c.mark(0.05) == "▲" for c in comparisons)
