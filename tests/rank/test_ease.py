"""EASE: by hand, against its constrained ridge regression, and the choice of its parameters."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.sequences import ItemSequences
from bigrec_hf.rank.baselines import ease
from bigrec_hf.rank.baselines.ease import check_size, ease_models, ease_weights, interaction_matrix

# users a: 0 1, b: 0 1 2, c: 1 2; item 3 was never seen
SEQUENCES = ItemSequences(np.array([0, 1, 0, 1, 2, 1, 1, 2]), np.array([0, 2, 5, 8]))


def test_interactions_by_hand():
    matrix = interaction_matrix(SEQUENCES, 4)
    assert matrix.toarray().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0]]  # the repeated 1 of c counts once


def test_four_items_by_hand():
    # the part of X'X + I that was seen, its determinant is 16, and its inverse
    inverse = [[Fraction(x, 16) for x in row] for row in ([8, -4, 0], [-4, 8, -4], [0, -4, 8])]
    gram = [[3, 2, 1], [2, 4, 2], [1, 2, 3]]
    for i in range(3):
        for j in range(3):
            assert sum(gram[i][k] * inverse[k][j] for k in range(3)) == (i == j)
    expected = np.zeros((4, 4))
    for i in range(3):
        for j in range(3):
            expected[i, j] = 0 if i == j else -inverse[i][j] / inverse[j][j]
    assert expected[:3, :3].tolist() == [[0, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0]]
    weights = ease_weights(interaction_matrix(SEQUENCES, 4), 1.0)
    assert weights.dtype == np.float64
    np.testing.assert_allclose(weights, expected, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(2, 12), st.floats(0.1, 100), st.booleans())
def test_solves_its_constrained_ridge_regression(seed, n_users, n_items, ridge, in_parts):
    x = (np.random.default_rng(seed).random((n_users, n_items)) < 0.4).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        if in_parts:  # users and columns go block by block
            patch.setattr(ease, "PAIRS_AT_ONCE", 7)
            patch.setattr(ease, "BLOCK", 3)
        weights = ease_weights(csr_array(x), ridge)
    assert not np.diag(weights).any()
    gradient = x.T @ (x @ weights - x) + ridge * weights  # half the gradient of the loss
    np.fill_diagonal(gradient, 0)  # there the constraint's multiplier balances it
    assert np.abs(gradient).max() < 1e-6

    def loss(b):
        return np.square(x - x @ b).sum() + ridge * np.square(b).sum()

    step = np.random.default_rng(seed + 1).normal(size=weights.shape)
    np.fill_diagonal(step, 0)
    assert all(loss(weights + scale * step) > loss(weights) for scale in (-0.1, -0.001, 0.001, 0.1))


def test_single_precision_is_close(monkeypatch):
    x = csr_array((np.random.default_rng(0).random((200, 60)) < 0.2).astype(np.float32))
    double = ease_weights(x, 50.0)
    monkeypatch.setattr(ease, "DOUBLE_ITEMS", 10)
    single = ease_weights(x, 50.0)
    assert single.dtype == np.float32
    np.testing.assert_allclose(single, double, atol=1e-6)


def test_faults(monkeypatch):
    with pytest.raises(BigrecError, match=r"30,000 x 30,000 items \(3.4 GiB\).*itemknn"):
        check_size(30_000)
    check_size(30_000, 30_000)
    with pytest.raises(BigrecError, match="more than the 3 items allowed"):
        ease_models(SEQUENCES, 4, [1.0], most=3)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(BigrecError, match="give a positive number"):
            ease_weights(interaction_matrix(SEQUENCES, 4), wrong)
    monkeypatch.setattr(ease, "DOUBLE_ITEMS", 0)
    same = csr_array(np.ones((10**4, 3), np.float32))  # three equal items: singular but for lambda
    with pytest.raises(BigrecError, match="no inverse in float32 with lambda 1e-08"):
        ease_weights(same, 1e-8)
