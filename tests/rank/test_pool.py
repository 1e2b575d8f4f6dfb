"""Weights of a pool of scores: by hand, at the optimum, and what must not change them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.rank.pool.fit import _likelihood, cross_fitted_nats, fit_weights, nats_per_example, pool_scores, pooled
from bigrec_hf.rank.pool.stage import Sample, method_names
from bigrec_hf.rank.pool.tune import ranking_weights


def some_scores(seed: int, n: int = 40, n_items: int = 7, m: int = 2) -> tuple[list[np.ndarray], np.ndarray]:
    """Scores of m models and targets drawn from their sum."""
    rng = np.random.default_rng(seed)
    scores = [rng.normal(size=(n, n_items)) for _ in range(m)]
    p = np.exp(log_softmax(sum(scores), axis=1))
    return scores, np.array([rng.choice(n_items, p=row) for row in p])


def test_two_items_by_hand():
    # item 0 scores 1, item 1 scores 0: p(item 0) = 1 / (1 + e^-w), which is 3/4 at w = log 3
    scores = np.tile([1.0, 0.0], (4, 1))
    targets = np.array([0, 0, 0, 1])
    weights = fit_weights([scores], targets)
    assert weights == pytest.approx([np.log(3)], abs=1e-4)
    expected = [-np.log(0.75)] * 3 + [-np.log(0.25)]
    assert nats_per_example([scores], np.log([3.0]), targets) == pytest.approx(expected)


def test_a_model_that_is_wrong_or_says_nothing_gets_no_weight():
    scores, targets = some_scores(1)
    wrong = -np.eye(7)[targets]  # the target always scores worst
    weights = fit_weights([*scores, wrong, np.full(7, 3.0)], targets)
    assert (weights[:2] > 0).all()
    assert weights[2:].tolist() == [0.0, 0.0]


def test_a_hidden_item_is_no_candidate():
    # item 2 would take all the probability; hidden, items 0 and 1 share it as in the test by hand
    scores = np.tile([1.0, 0.0, 50.0], (4, 1))
    targets = np.array([0, 0, 0, 1])
    assert fit_weights([scores], targets, [[2]] * 4) == pytest.approx([np.log(3)], abs=1e-4)
    assert nats_per_example([scores], np.ones(1), targets, [[2]] * 4)[0] == pytest.approx(np.log1p(np.exp(-1)))


def test_scores_of_all_examples_equal_those_repeated_for_each():
    scores, targets = some_scores(2)
    popularity = np.arange(7.0)
    shared = fit_weights([scores[0], popularity], targets)
    assert shared == pytest.approx(fit_weights([scores[0], np.tile(popularity, (40, 1))], targets), abs=1e-5)
    np.testing.assert_allclose(
        pooled([scores[0], popularity], np.array([2.0, 1.0]), 3, 5), 2 * scores[0][3:5] + popularity
    )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), m=st.integers(1, 3))
def test_no_other_weights_are_likelier(seed, m):
    scores, targets = some_scores(seed, m=m)
    weights = fit_weights(scores, targets)
    slopes = _likelihood(scores, weights, targets, None)[1].mean(axis=0)
    assert (weights >= 0).all()
    assert (np.abs(slopes[weights > 0]) < 1e-3).all()  # flat, or at the bound and rising
    assert (slopes[weights == 0] > -1e-3).all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), factor=st.sampled_from([1e-3, 0.5, 40.0]))
def test_units_and_offsets_of_scores_do_not_matter(seed, factor):
    scores, targets = some_scores(seed)
    moved = [scores[0] * factor + np.random.default_rng(seed).normal(size=(40, 1)), scores[1]]
    weights, other = fit_weights(scores, targets), fit_weights(moved, targets)
    np.testing.assert_allclose(other * [factor, 1.0], weights, atol=2e-3)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_likelihoods_equal_scipy(seed):
    scores, targets = some_scores(seed)
    weights = np.array([0.7, 1.3])
    expected = -log_softmax(0.7 * scores[0] + 1.3 * scores[1], axis=1)[np.arange(40), targets]
    np.testing.assert_allclose(nats_per_example(scores, weights, targets), expected)
    np.testing.assert_allclose(
        pool_scores(scores, weights, 40), 0.7 * scores[0] + 1.3 * scores[1], rtol=1e-5, atol=1e-5
    )


def test_an_example_is_judged_by_other_users_weights():
    # user 0 likes what user 1 avoids: weights fitted to one mislead the other
    scores = np.tile([1.0, 0.0], (40, 1))
    users = np.repeat([0, 1], 20)
    targets = np.where(users == 0, 0, 1)
    targets[::10] ^= 1  # nobody is certain
    both = nats_per_example([scores], fit_weights([scores], targets), targets)
    held_out = cross_fitted_nats([scores], targets, users)
    assert held_out.mean() > both.mean() + 0.1
    alone = cross_fitted_nats([scores], targets, np.zeros(40, int))
    assert alone == pytest.approx(both)


def test_no_example_is_an_error():
    with pytest.raises(BigrecError, match="no validation example"):
        fit_weights([np.empty((0, 3))], np.empty(0, np.int64))


def two_kinds(n_first: int, n_middle: int, loss: float, gain: float) -> Sample:
    """30 items, the target is item 0. `n_first` examples: EASE has it first, the language model `loss` below the rest.
    `n_middle`: both have it in the middle, the language model more surely."""
    n = n_first + n_middle
    ease, own = np.zeros((n, 30), np.float32), np.zeros((n, 30), np.float32)
    ease[:n_first, 0], own[:n_first, 0] = 3, -loss
    ease[n_first:, 1:16], own[n_first:, 1:16] = 1, gain
    ease[n_first:, 0], own[n_first:, 0] = 0.5, gain - 0.1
    return Sample({"finetuned": own, "ease": ease}, np.zeros(n, np.int64), np.arange(n), None)


def tuned(sample: Sample, weights: dict[str, float]) -> tuple[dict[str, float], dict[str, float]]:
    hits = [[row] for row in sample.targets.tolist()]
    return ranking_weights(sample.models, sample.targets, sample.hidden, weights, "finetuned", hits)


def likeliest(sample: Sample) -> dict[str, float]:
    return dict(zip(sample.models, fit_weights(*sample.arguments).tolist(), strict=True))


def ndcg(sample: Sample, weights: dict[str, float]) -> float:
    """NDCG@10 of item 0 by plain sums; of equal scores the lower row is first."""
    total = sum(weight * sample.models[name].astype(np.float64) for name, weight in weights.items())
    rank = 1 + (total > total[:, :1]).sum(axis=1)
    return float(np.where(rank <= 10, 1 / np.log2(rank + 1), 0).mean())


def test_a_language_model_that_lowers_the_top_of_the_list_gets_less_weight():
    sample = two_kinds(n_first=2, n_middle=20, loss=4, gain=3)
    weights = likeliest(sample)
    assert weights["finetuned"] > 0.4  # likelier, but no target is among the first ten
    kept, found = tuned(sample, weights)
    assert found == {"likeliest": 0, "without": pytest.approx(2 / 22), "chosen": pytest.approx(2 / 22)}
    assert kept["finetuned"] < weights["finetuned"] and kept["ease"] > 0 and list(kept) == list(weights)


def test_a_language_model_that_keeps_the_top_of_the_list_keeps_its_weight():
    sample = two_kinds(n_first=2, n_middle=8, loss=1, gain=3)
    weights = likeliest(sample)
    kept, found = tuned(sample, weights)
    assert kept == weights and found == pytest.approx({"likeliest": 0.2, "without": 0.2, "chosen": 0.2})


def test_scores_whose_likeliest_scale_is_too_small_for_the_top_get_a_larger_weight():
    """EASE has two of three targets just first, the language model has others clearly first there, and EASE errs wildly
    on the third, which keeps its likeliest weight low."""
    ease, own = np.zeros((3, 30), np.float32), np.zeros((3, 30), np.float32)
    ease[:2, 0], own[:2, 1:12] = 1, 1
    ease[2, 1:] = 4
    sample = Sample({"finetuned": own, "ease": ease}, np.zeros(3, np.int64), np.arange(3), None)
    weights = {"finetuned": 1.0, "ease": 0.5}
    kept, found = tuned(sample, weights)
    assert found["chosen"] == pytest.approx(2 / 3) and found["likeliest"] == 0
    assert kept["ease"] / max(kept["finetuned"], 1e-9) > 1


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 3))
def test_the_chosen_weights_are_no_worse_than_the_likeliest_or_those_without_the_language_model(seed, m):
    rng = np.random.default_rng(seed)
    names = ["finetuned", "ease", "sasrec"][:m]
    models = {name: rng.normal(size=(8, 30)).astype(np.float32) for name in names}
    for values in models.values():
        values[:, 0] += rng.normal()
    sample = Sample(models, np.zeros(8, np.int64), np.arange(8), None)
    weights = likeliest(sample)
    kept, found = tuned(sample, weights)
    assert found["chosen"] >= max(found["likeliest"], found["without"])
    if any(kept.values()):
        assert found["chosen"] == pytest.approx(ndcg(sample, kept), abs=1e-6)


def test_scores_that_are_the_same_for_every_example_are_tuned_too():
    """Popularity alone ranks the target first; the language model ranks it last."""
    own, popularity = np.ones((3, 30), np.float32), np.zeros(30, np.float32)
    own[:, 0], popularity[0] = 0, 0.1
    sample = Sample({"finetuned": own, "popularity": popularity}, np.zeros(3, np.int64), np.arange(3), None)
    kept, found = tuned(sample, {"finetuned": 1.0, "popularity": 1.0})
    assert found == pytest.approx({"likeliest": 0, "without": 1, "chosen": 1}) and kept["popularity"] > 0


def test_hidden_items_are_not_ranked_and_titles_that_occur_twice_count_once():
    """Rows 1 and 2 would be before the target; 1 is hidden, 2 has the target's title."""
    scores = {"ease": np.array([[1, 3, 2, 0]], np.float32)}
    targets, hidden = np.array([0]), [[1]]
    found = [
        ranking_weights(scores, targets, hide, {"ease": 1.0}, "finetuned", hits)[1]["chosen"]
        for hide, hits in ((None, [[0]]), (hidden, [[0]]), (hidden, [[0, 2]]))
    ]
    assert found == pytest.approx([1 / np.log2(4), 1 / np.log2(3), 1])


def test_a_pool_without_the_language_model_is_tuned_too():
    sample = two_kinds(n_first=2, n_middle=8, loss=1, gain=3).without("finetuned")
    kept, found = tuned(sample, {"ease": 2.0})
    assert kept == {"ease": 2.0} and found == pytest.approx({"likeliest": 0.2, "chosen": 0.2})


def test_folders():
    assert method_names("finetuned", ["ease", "sasrec"]) == ["finetuned_pool_ease_sasrec", "ease_sasrec_pool"]
    assert method_names("finetuned", ["ease"]) == ["finetuned_pool_ease"]  # without the LM it would be EASE itself
