"""NDCG and HR: hand-computed, then against torchmetrics and ranx."""

import math

import numpy as np
import pytest
from bigrec_hf.metrics.ndcg_hr.scores import (
    bootstrap_intervals,
    check_ks,
    hr_per_example,
    mean_scores,
    ndcg_per_example,
)
from hypothesis import given, settings
from hypothesis import strategies as st


def test_hand_computed():
    rank = np.array([0, 1, 3, 10])
    assert hr_per_example(rank, 3).tolist() == [1, 1, 0, 0]
    np.testing.assert_allclose(ndcg_per_example(rank, 5), [1, 1 / math.log2(3), 1 / math.log2(5), 0])
    scores = mean_scores(rank, [1, 5])
    assert scores == {
        "ndcg@1": 0.25,
        "ndcg@5": pytest.approx((1 + 1 / math.log2(3) + 1 / math.log2(5)) / 4),
        "hr@1": 0.25,
        "hr@5": 0.75,
    }
    assert all(type(value) is float for value in scores.values())


def test_at_one_both_are_the_same():
    rank = np.arange(7)
    assert mean_scores(rank, [1])["ndcg@1"] == mean_scores(rank, [1])["hr@1"]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.integers(0, 29), min_size=1, max_size=20), st.integers(1, 30))
def test_equal_to_torchmetrics(ranks, k):
    import torch
    from torchmetrics.functional.retrieval import retrieval_hit_rate, retrieval_normalized_dcg

    scores = torch.linspace(1, 0, 30)
    for rank in ranks:
        target = torch.zeros(30, dtype=torch.bool)
        target[rank] = True
        assert hr_per_example(np.array([rank]), k)[0] == retrieval_hit_rate(scores, target, top_k=k)
        ndcg = retrieval_normalized_dcg(scores, target, top_k=k)
        assert ndcg_per_example(np.array([rank]), k)[0] == pytest.approx(float(ndcg), abs=1e-6)


def test_equal_to_ranx(monkeypatch):
    monkeypatch.setenv("NUMBA_DISABLE_JIT", "1")  # compiling takes a minute
    ranx = pytest.importorskip("ranx")
    rng = np.random.default_rng(0)
    rank = rng.integers(0, 40, 25)
    truth = ranx.Qrels({f"q{i}": {f"d{r}": 1} for i, r in enumerate(rank)})
    run = ranx.Run({f"q{i}": {f"d{j}": 40.0 - j for j in range(40)} for i in range(25)})
    ours = mean_scores(rank, [3, 10])
    theirs = ranx.evaluate(truth, run, ["ndcg@3", "ndcg@10", "hit_rate@3", "hit_rate@10"])
    assert [ours["ndcg@3"], ours["ndcg@10"], ours["hr@3"], ours["hr@10"]] == pytest.approx(list(theirs.values()))


def test_intervals_match_a_plain_bootstrap_and_hold_the_mean():
    rng = np.random.default_rng(1)
    rank = rng.geometric(0.05, 400)
    intervals = bootstrap_intervals(rank, [1, 10], resamples=4000, seed=3)
    for name, per_example in (("hr", hr_per_example), ("ndcg", ndcg_per_example)):
        values = per_example(rank, 10)
        means = values[rng.integers(0, 400, (4000, 400))].mean(axis=1)
        low, high = intervals[f"{name}@10_low"], intervals[f"{name}@10_high"]
        assert low < values.mean() < high
        np.testing.assert_allclose([low, high], np.quantile(means, [0.025, 0.975]), atol=0.006)


def test_intervals_are_reproducible_and_degenerate_without_a_hit():
    rank = np.array([3, 70, 9])
    assert bootstrap_intervals(rank, [5], seed=1) == bootstrap_intervals(rank, [5], seed=1)
    assert bootstrap_intervals(np.array([99, 70]), [5], 10)["hr@5_high"] == 0.0


def test_a_rank_beyond_every_k_is_a_miss_however_large():
    assert bootstrap_intervals(np.array([10**12]), [1], 5)["ndcg@1_high"] == 0.0


@pytest.mark.parametrize("ks", [[], [0], [1.5], "x", None])
def test_wrong_cut_offs(ks):
    with pytest.raises(ValueError, match="ks="):
        check_ks(ks)


def test_cut_off_beyond_the_catalog_names_what_fits():
    with pytest.raises(ValueError, match=r"K=50 is larger than the catalog \(12 items\): pass ks=\[1, 10\]"):
        check_ks([1, 10, 50], 12)
    assert check_ks((10, 1, 10), 10) == [1, 10]


@pytest.mark.parametrize("options", [{"resamples": 0}, {"confidence": 1.0}])
def test_wrong_bootstrap_options(options):
    with pytest.raises(ValueError, match=r"bootstrap|confidence"):
        bootstrap_intervals(np.array([1]), [1], **options)


def test_nothing_to_score():
    with pytest.raises(ValueError, match="no example"):
        mean_scores(np.array([], np.int64), [1])
    with pytest.raises(ValueError, match="no example"):
        bootstrap_intervals(np.array([], np.int64), [1])
