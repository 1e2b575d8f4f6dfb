"""Groups of titles: by hand, against Monte Carlo, and whatever the probabilities are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigrec_hf.grpo.groups import draw_groups, draw_titles, ranks_of, sample_titles

LOG_P = np.log([0.1, 0.4, 0.05, 0.25, 0.2])


def test_beams_are_the_likeliest_titles_with_equal_weights():
    titles, weights = draw_titles(LOG_P, 2, 3)
    assert titles.tolist() == [1, 3, 4]
    np.testing.assert_allclose(weights, 1 / 3)


def test_an_added_target_replaces_the_last_beam_and_weighs_its_probability():
    titles, weights = draw_titles(LOG_P, 2, 3, add_target=True)
    assert titles.tolist() == [1, 3, 2]
    np.testing.assert_allclose(weights, np.array([1 / 3, 1 / 3, 0.05]) / (2 / 3 + 0.05))
    titles, weights = draw_titles(LOG_P, 3, 3, add_target=True)  # it is there already
    assert titles.tolist() == [1, 3, 4]
    np.testing.assert_allclose(weights, 1 / 3)


def test_negatives_are_the_likeliest_others():
    titles, _ = draw_titles(LOG_P, 1, 3, always=True)
    assert titles.tolist() == [1, 3, 4]
    titles, _ = draw_titles(LOG_P, 0, 3, always=True)
    assert titles.tolist() == [1, 3, 0]


def test_ranks_count_all_titles():
    assert ranks_of(LOG_P, np.array([1, 3, 4, 0, 2])).tolist() == [1, 2, 3, 4, 5]
    assert ranks_of(np.log([0.25, 0.5, 0.25]), np.array([0, 2])).tolist() == [2, 2]


def test_sums_over_a_sample_estimate_the_expectation():
    """E[sum f p / q] = sum p f, within four standard errors."""
    rng = np.random.default_rng(0)
    f = np.array([3.0, -1.0, 10.0, 0.5, 2.0])
    sums = []
    for _ in range(4000):
        titles, weights = sample_titles(LOG_P, 3, rng.random(5))
        sums.append((weights * f[titles]).sum())
    expected = (np.exp(LOG_P) * f).sum()
    assert abs(np.mean(sums) - expected) < 4 * np.std(sums) / np.sqrt(len(sums))
    assert np.std(sums) < np.sqrt((np.exp(LOG_P) * (f - expected) ** 2).sum() / 3)  # less than with replacement


def test_a_target_in_a_sample_is_a_stratum_of_its_own():
    titles, weights = draw_titles(LOG_P, 2, 3, noise=np.random.default_rng(0).random(5), add_target=True)
    assert weights[titles == 2] == pytest.approx(0.05) and weights[titles != 2].sum() == pytest.approx(0.95)


def test_a_sample_of_all_titles_has_their_probabilities():
    titles, weights = draw_titles(LOG_P, 0, 5, noise=np.random.default_rng(1).random(5))
    np.testing.assert_allclose(weights, np.exp(LOG_P[titles]))


@given(
    st.lists(st.floats(-30, 30), min_size=3, max_size=30),
    st.integers(0, 2**32),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_groups_are_distinct_ordered_and_their_weights_sum_to_one(logits, seed, sample, add_target, always):
    rng = np.random.default_rng(seed)
    log_p = np.array(logits) - np.logaddexp.reduce(logits)
    size, target = int(rng.integers(2, len(logits) + 1)), int(rng.integers(len(logits)))
    noise = rng.random(len(logits)) if sample else None
    titles, weights = draw_titles(log_p, target, size, noise=noise, add_target=add_target, always=always)
    assert len(set(titles.tolist())) == size == len(weights)
    assert (np.diff(log_p[titles]) <= 0).all()
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
    if add_target or always:
        assert target in titles


def test_groups_are_catalog_rows():
    """Leaf 0 is row 3, leaf 1 row 0 (and row 4, which has the same title), leaf 2 row 2."""
    row_of_leaf, leaf_of_row = np.array([3, 0, 2]), np.array([1, -1, 2, 0, 1])
    log_p = np.log([[0.2, 0.5, 0.3], [0.6, 0.3, 0.1]])
    groups = draw_groups(log_p, ["a", "b"], [[2], [0]], np.array([3, 0]), row_of_leaf, leaf_of_row, size=2)
    assert groups.rows.tolist() == [[0, 2], [3, 0]]
    assert groups.ranks.tolist() == [[1, 2], [1, 2]]
    assert groups.target_ranks.tolist() == [3, 2]
    assert groups.is_target.tolist() == [[False, False], [False, True]]
    np.testing.assert_allclose(np.exp(groups.log_p), [[0.5, 0.3], [0.6, 0.3]])
