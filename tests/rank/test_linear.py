"""Linear models' inputs, scores and the choice of parameters, by hand."""

import numpy as np
import pytest
from scipy.sparse import csr_array

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.rank.baselines.linear import Fitted, choose_model, history_matrix, linear_scores

COUNTS = np.array([0, 3, 1, 9])


def test_inputs_by_hand():
    histories = [[0, 1, 2], [2, 0, 2], [-1, 3], []]
    assert history_matrix(histories, 4, 0.5).toarray().tolist() == [
        [0.25, 0.5, 1, 0],
        [0.5, 0, 1, 0],  # of the two 2 the newest counts
        [0, 0, 0, 1],
        [0, 0, 0, 0],
    ]
    assert history_matrix(histories, 4, 1.0, last=2).toarray().tolist()[:2] == [[0, 1, 1, 0], [1, 0, 1, 0]]
    assert history_matrix([], 4).shape == (0, 4)


@pytest.mark.parametrize("kind", [np.asarray, csr_array])
def test_scores_by_hand(kind):
    weights = np.array([[0, 1, 0, 0], [2, 0, 0, 0], [4, 0, 0, 0], [0, 0, 0, 0]], np.float32)
    scores = linear_scores(history_matrix([[0, 1, 2], [3], []], 4, 0.5), kind(weights), COUNTS)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores[0], [0.5 * 2 + 1 * 4, 0.25, 0, 0], atol=1e-6)
    assert np.argsort(-scores[1], kind="stable").tolist() == [3, 1, 2, 0]  # no weights: by popularity
    np.testing.assert_allclose(scores[2], np.log1p(COUNTS), rtol=1e-6)  # no history


def model(name, weights):
    return Fitted({"name": name}, lambda: np.asarray(weights, np.float32))


def test_choice_by_hand():
    to_next = model(1, [[0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]])
    to_none = model(0, np.zeros((4, 4)))
    histories, targets = [[0, 1], [1, 2]], [[2], [3]]
    chosen = choose_model([to_none, to_next], [0.5, 2.0], histories, targets, COUNTS, metric="hr@1")
    # with a decay of 2 the older item counts more: its successor, already in the history, comes first
    assert chosen.parameters == {"name": 1, "decay": 0.5} and chosen.value == 1.0
    assert [row["hr@1"] for row in chosen.table] == [0.5, 0.5, 1.0, 0.0]
    left_out = choose_model([to_next], [2.0, 0.5], histories, targets, COUNTS, metric="hr@1", exclude=histories)
    assert left_out.parameters == {"name": 1, "decay": 2.0}  # the first of two that are equally good
    one = choose_model([to_next], [1.0], [[1, 0]], [[2]], COUNTS, metric="hr@1", last=1)
    assert one.value == 0.0  # the only item it sees leads to 1


def test_faults():
    with pytest.raises(BigrecError, match="no validation example"):
        choose_model([model(0, np.zeros((4, 4)))], [1.0], [], [], COUNTS)
    for models, decays in (([], [1.0]), ([model(0, np.zeros((4, 4)))], [])):
        with pytest.raises(BigrecError, match="no parameters to choose from"):
            choose_model(models, decays, [[0]], [[1]], COUNTS)
