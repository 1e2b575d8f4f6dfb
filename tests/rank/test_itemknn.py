"""ItemKNN: by hand, and against a dense computation."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.sequences import ItemSequences
from bigrec_hf.rank.baselines import itemknn
from bigrec_hf.rank.baselines.itemknn import itemknn_models, nearest_neighbors

# a: 0 1, b: 0 1 2, c: 1, d: 3
SEQUENCES = ItemSequences(np.array([0, 1, 0, 1, 2, 1, 3]), np.array([0, 2, 5, 6, 7]))


def test_by_hand():
    # users per item: 2 3 1 1; with both: (0, 1) 2, (0, 2) 1, (1, 2) 1
    s01, s02, s12 = 2 / 6**0.5, 1 / 2**0.5, 1 / 3**0.5
    expected = [[0, s01, s02, 0], [s01, 0, s12, 0], [s02, s12, 0, 0], [0, 0, 0, 0]]
    first, second = itemknn_models(SEQUENCES, 4, [2, 1], [0.0])
    assert first.parameters == {"neighbors": 2, "shrinkage": 0.0}
    np.testing.assert_allclose(first.weights().toarray(), expected, rtol=1e-6)
    # one neighbor a column: of 0 it is 1 (.82 > .71), of 1 it is 0, of 2 it is 0
    np.testing.assert_allclose(
        second.weights().toarray(), [[0, s01, s02, 0], [s01, 0, 0, 0], [0] * 4, [0] * 4], rtol=1e-6
    )


def test_shrinkage_takes_rare_items_down():
    (model,) = itemknn_models(SEQUENCES, 4, [2], [10.0])
    weights = model.weights().toarray()
    assert weights[0, 1] == pytest.approx(2 / (6**0.5 + 10)) and weights[0, 2] == pytest.approx(1 / (2**0.5 + 10))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 12), st.integers(1, 12), st.sampled_from([0, 1, 20]))
def test_equals_dense(seed, n_users, n_items, k, shrinkage):
    x = (np.random.default_rng(seed).random((n_users, n_items)) < 0.4).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(itemknn, "BLOCK", 3)
        weights = nearest_neighbors(csr_array(x), k, shrinkage).weights(k).toarray()
    common, counts = x.T.astype(float) @ x, x.sum(axis=0).astype(float)
    with np.errstate(invalid="ignore"):
        similar = np.nan_to_num(common / (np.sqrt(np.outer(counts, counts)) + shrinkage))
    np.fill_diagonal(similar, 0)
    for j in range(n_items):
        order = [i for i in np.lexsort((np.arange(n_items), -similar[:, j])) if similar[i, j] > 0][:k]
        expected = np.zeros(n_items)
        expected[order] = similar[order, j]
        np.testing.assert_allclose(weights[:, j], expected, rtol=1e-5)


def test_faults():
    for k, shrinkage in ((0, 0.0), (1, -1.0), (1, float("nan"))):
        with pytest.raises(BigrecError, match="give at least 1 neighbor"):
            nearest_neighbors(csr_array((2, 2)), k, shrinkage)
