"""Rewards of embeddings, by hand for vectors in the plane: likenesses of 0, 0.5 and 1."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigrec_hf.grpo.rewards import load_rewards
from bigrec_hf.grpo.similarity import (
    REPEATED,
    diversity,
    novelty,
    relevance,
    relevance_diversity_novelty,
    similarity,
    unit_vectors,
)
from tests.grpo.test_rewards import groups, nothing

EAST, NORTH, WEST, ALSO_EAST = [2.0, 0.0], [0.0, 0.5], [-1.0, 0.0], [7.0, 0.0]
UNIT = unit_vectors(np.array([EAST, NORTH, WEST, ALSO_EAST], np.float32))
LIKENESS = np.array([[0.2, 0.6], [0.9, 0.9]])  # of two titles to a history of two, oldest first


def test_similarity_is_half_of_one_plus_the_cosine_to_the_target():
    found = similarity(groups([[0, 1, 2], [3, 0, 1]], [0, 1]), UNIT)
    np.testing.assert_allclose(found, [[1, 0.5, 0], [0.5, 0.5, 1]])


def test_a_vector_of_zeros_is_like_nothing():
    unit = unit_vectors(np.array([[0.0, 0.0], EAST], np.float32))
    np.testing.assert_allclose(similarity(groups([[0, 1]], [1]), unit), [[0.5, 1]])


def test_relevance_counts_the_newest_title_most():
    """(0.9 x 0.2 + 1 x 0.6) / 1.9 = 0.78 / 1.9."""
    mean = np.array([0.78 / 1.9, 0.9])
    np.testing.assert_allclose(relevance(LIKENESS), 1 / (1 + np.exp(-10 * (mean - 0.5))))
    assert relevance(np.empty((2, 0))).tolist() == [0.7, 0.7]


def test_diversity_is_the_growth_of_the_unlikeness_of_pairs():
    """The history's one pair has a likeness of 0.8. With the first title the three pairs have (0.8 + 0.2 + 0.6) / 3, so
    that the unlikeness grows by 0.8 - 1.6 / 3; with the second it shrinks."""
    among = np.array([[1, 0.8], [0.8, 1]])
    np.testing.assert_allclose(diversity(LIKENESS, among), [np.log(1 + 10 * (0.8 - 1.6 / 3)) / 2, 0])
    assert diversity(LIKENESS[:, :1], among[:1, :1]).tolist() == [0.5, 0.5]


def test_novelty_is_one_minus_the_least_likeness_bent_at_both_ends():
    found = novelty(np.array([[0.2, 0.6], [0.5, 0.9], [0.9, 0.8], [0.05, 1.0]]))
    np.testing.assert_allclose(found, [0.96, 0.5, 0.1, 1.0])
    assert novelty(np.empty((1, 0))).tolist() == [1]


def test_the_three_together():
    """A history of one title, east: north has a likeness of 0.5 to it, west 0, the other east 1; east is repeated."""
    found = relevance_diversity_novelty(groups([[1, 2, 3, 0]], [1], histories=[[0]]), UNIT)
    north = 2 * 0.5 + 0.5 + 0.8 * 0.5
    west = 2 / (1 + np.exp(5)) + 0.5 + 0.8 * 1 - 0.5  # irrelevant
    also_east = 2 / (1 + np.exp(-5)) + 0.5 - 0.25  # too similar
    np.testing.assert_allclose(found, [[north, west, also_east, REPEATED]], rtol=1e-6)
    assert pytest.approx(-3.386, abs=1e-3) == REPEATED


def test_without_a_history_all_titles_are_alike():
    found = relevance_diversity_novelty(groups([[1, 2]], [1], histories=[[]]), UNIT)
    np.testing.assert_allclose(found, [[2 * 0.7 + 0.5 + 0.8] * 2])


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 8))
def test_the_target_has_no_influence_on_the_third_and_the_most_on_the_first(seed, n_history, n_titles):
    rng = np.random.default_rng(seed)
    unit = unit_vectors(rng.normal(size=(12, 3)).astype(np.float32))
    rows = rng.permutation(12)[None, :n_titles]
    histories = [rng.integers(0, 12, n_history).tolist()]
    one, other = (groups(rows, [target], histories=histories) for target in (rows[0, 0], 11))
    np.testing.assert_array_equal(relevance_diversity_novelty(one, unit), relevance_diversity_novelty(other, unit))
    found = similarity(one, unit)
    assert found[0, 0] == found.max() and (found >= -1e-6).all() and found[0, 0] == pytest.approx(1)


def test_they_are_found_by_name_and_vectors_are_read_only_for_them():
    reward = load_rewards({"similarity": 2, "hit": 1}, nothing, lambda: np.array([EAST, NORTH, WEST], np.float32))
    total, parts = reward(groups([[0, 1, 2]], [0]))
    np.testing.assert_allclose(total, [[3, 1, 0]])
    np.testing.assert_allclose(parts["similarity"], [[1, 0.5, 0]])
    load_rewards({"hit": 1, "ranked": 1}, nothing, nothing)
