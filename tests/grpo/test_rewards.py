"""Rewards, each by hand; functions of one's own; faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import catalog_sha256, load_catalog
from bigrec_hf.data.sequences import ItemSequences
from bigrec_hf.grpo.groups import Groups
from bigrec_hf.grpo.percentile import EASE, Percentile, ease_scores, item_scores, model_mark, percentiles
from bigrec_hf.grpo.rewards import hit, load_rewards, ndcg, ranked
from bigrec_hf.rank.sasrec.model import SasRecConfig, SasRecModel
from bigrec_hf.rank.sasrec.trainer import score_histories

SEQUENCES = ItemSequences(np.array([0, 1, 2, 0, 1, 3, 4, 1, 0]), np.array([0, 3, 6, 9]))


def nothing():
    raise AssertionError("not needed")


def groups(rows, targets, ranks=None, target_ranks=None, histories=None) -> Groups:
    rows = np.array(rows)
    shape = rows.shape
    return Groups(
        [f"e{number}" for number in range(len(rows))],
        histories or [[0]] * len(rows),
        np.array(targets),
        np.array(target_ranks if target_ranks is not None else [1] * len(rows)),
        rows,
        np.array(ranks) if ranks is not None else np.tile(np.arange(1, shape[1] + 1), (len(rows), 1)),
        np.zeros(shape),
        np.full(shape, 1 / shape[1]),
    )


def own(groups: Groups) -> np.ndarray:
    return groups.rows * 10.0


def wrong_shape(groups: Groups) -> np.ndarray:
    return np.zeros(3)


def test_hit():
    assert hit(groups([[5, 6, 7], [5, 6, 7]], [6, 1])).tolist() == [[0, 1, 0], [0, 0, 0]]


def test_ranked_penalizes_wrong_titles_by_place_where_the_group_has_a_hit():
    d = [1.0, 1 / np.log2(3), 0.5]
    expected = [[-d[0] / sum(d), 0, -d[2] / sum(d)], [0, 0, 0]]
    np.testing.assert_allclose(ranked(groups([[5, 6, 7], [5, 6, 7]], [6, 1])), expected)


def test_ndcg_is_what_the_whole_list_would_lose_without_the_title():
    """Target at rank 3: without a title above it, it would be at rank 2; without one below, nothing changes."""
    found = ndcg(groups([[5, 6, 7]], [6], ranks=[[1, 3, 9]], target_ranks=[3]))
    np.testing.assert_allclose(found, [[0.5 - 1 / np.log2(3), 0.5, 0]])
    first = ndcg(groups([[5, 6]], [5], ranks=[[1, 2]], target_ranks=[1]))
    np.testing.assert_allclose(first, [[1, 0]])


def test_percentiles_of_ease_follow_the_training_sequences():
    """Items 0 and 1 occur together three times, 0 and 2 once. The history's own item has a score of 0, as has item 5,
    which never occurs: none of five others is lower, one is equal."""
    reward = load_rewards({"percentile": 1}, lambda: ease_scores(SEQUENCES, 6), nothing)
    values, _ = reward(groups([[1, 2, 5]], [1], histories=[[0]]))
    assert values[0, 0] == 1
    assert 0.1 < values[0, 1] < 1
    assert values[0, 2] == pytest.approx(0.1)


def test_percentiles_count_ties_half():
    found = percentiles(np.array([1.0, 0.0, 1.0, 3.0, 2.0]), np.array([3, 1, 0, 4]))
    np.testing.assert_allclose(found, [1, 0, 1.5 / 4, 0.75])


def test_percentiles_of_a_model_of_histories():
    """The nearer to the newest item of the history, the higher. Two of four items are farther from item 2 than 3 is and
    one is as far; none is farther than 4 and one is as far."""
    reward = Percentile(lambda histories: np.array([[-abs(item - own[-1]) for item in range(5)] for own in histories]))
    found = reward(groups([[2, 3, 4], [0, 3, 4]], [1, 1], histories=[[0, 2], [0]]))
    np.testing.assert_allclose(found, [[1, 2.5 / 4, 0.5 / 4], [1, 0.25, 0]])


def save_sasrec(folder, catalog_sha: str, n_items: int) -> str:
    torch.manual_seed(0)
    config = SasRecConfig(n_items=n_items, hidden_size=8, max_length=5, catalog_sha256=catalog_sha)
    SasRecModel(config).save_pretrained(folder)
    return str(folder)


def test_percentiles_of_a_saved_sasrec(tiny_prepared, tmp_path):
    catalog = load_catalog(tiny_prepared)
    folder = save_sasrec(tmp_path / "model", catalog_sha256(catalog), len(catalog))
    found = item_scores(folder, tiny_prepared, SEQUENCES)([[3, 1], [2]])
    expected = score_histories(SasRecModel.from_pretrained(folder), [[3, 1], [2]], counts=np.zeros(20))
    np.testing.assert_array_equal(found, expected)
    assert found.shape == (2, 20) and not np.allclose(found[0], found[1])
    best = groups([np.argsort(-found[0])[:3]], [1], histories=[[3, 1]])
    values, _ = load_rewards({"percentile": 1}, lambda: item_scores(folder, tiny_prepared, SEQUENCES), nothing)(best)
    np.testing.assert_allclose(values, [[1, 18 / 19, 17 / 19]])


def test_the_model_of_the_percentile_is_checked(tiny_prepared, tiny_model_dir, tmp_path):
    folder = save_sasrec(tmp_path / "model", "another", 20)
    with pytest.raises(BigrecError, match="belongs to another catalog"):
        item_scores(folder, tiny_prepared, SEQUENCES)
    assert model_mark(EASE) == {}
    mark = model_mark(folder)
    assert mark == model_mark(save_sasrec(tmp_path / "moved", "another", 20))
    assert mark != model_mark(save_sasrec(tmp_path / "other", "different", 20))
    with pytest.raises(BigrecError, match=r"neither ease nor the folder of a SASRec model \(it has no config\.json\)"):
        model_mark("runs/no/such")
    with pytest.raises(BigrecError, match="its model is of another kind"):
        model_mark(tiny_model_dir)


def test_weights_add_up_and_functions_are_found_by_name():
    reward = load_rewards({"hit": 2, f"{__name__}.own": 0.5}, nothing, nothing)
    total, parts = reward(groups([[5, 6]], [6]))
    assert total.tolist() == [[25, 32]]
    assert parts["hit"].tolist() == [[0, 1]] and parts[f"{__name__}.own"].tolist() == [[50, 60]]


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ({"hits": 1}, "unknown reward 'hits': choose among hit, ranked, ndcg, percentile, similarity"),
        ({"hit": "much"}, "weight of reward 'hit' is 'much'"),
        ({"hit": True}, "is True"),
        ({"hit": float("nan")}, "is nan"),
        ({"no.such.thing": 1}, "cannot be imported"),
        ({f"{__name__}.no_such_thing": 1}, "cannot be imported"),
        ({f"{__name__}.SEQUENCES": 1}, "is a ItemSequences"),
        ({}, "no reward is named"),
    ],
)
def test_wrong_names_and_weights(weights, words):
    with pytest.raises(BigrecError, match=words):
        load_rewards(weights, nothing, nothing)


def test_a_reward_of_another_shape():
    with pytest.raises(BigrecError, match=r"returned \(3,\) numbers for \(1, 2\) titles"):
        load_rewards({f"{__name__}.wrong_shape": 1}, nothing, nothing)(groups([[5, 6]], [6]))
