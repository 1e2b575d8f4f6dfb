"""Scoring a rankings table: hand-computed, then options, then the stage's files."""

import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from bigrec_hf.metrics.ndcg_hr.ranking import Ranking

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import write_table
from bigrec_hf.data.rankings import rankings_table
from bigrec_hf.score import stage as score
from bigrec_hf.score.stage import results_table, score_rankings
from bigrec_hf.settings import RunSettings, ScoreSettings


def make_table(ranks=(0, 2, 9), empty=(False, False, True), in_catalog=(True, False, False), ids=None):
    n = len(ranks)
    ranking = Ranking(np.array(ranks), np.full((n, 1), -1, np.int32), np.full((n, 1), np.inf, np.float32))
    ids = ids or [f"e{i}" for i in range(n)]
    return rankings_table(
        ids, [0] * n, ranking, {"n_items": 9}, empty=empty, in_catalog=in_catalog, in_history=in_catalog
    )


def test_hand_computed():
    results, per_example = score_rankings(make_table(), [1, 3], bootstrap=0)
    assert results["hr@1"] == pytest.approx(1 / 3) and results["hr@3"] == pytest.approx(2 / 3)
    assert results["ndcg@3"] == pytest.approx((1 + 1 / math.log2(4)) / 3)
    assert (results["n_examples"], results["n_scored"], results["n_empty"]) == (3, 3, 1)
    assert results["in_catalog"] == pytest.approx(1 / 3)
    assert results["n_items"] == 9
    assert per_example["hr@3"].to_pylist() == [1, 1, 0]
    assert per_example["ndcg@3"].to_pylist() == [1, 0.5, 0]
    assert per_example.column_names[:6] == ["example_id", "user_id", "rank", "empty", "in_catalog", "in_history"]
    assert per_example["user_id"].to_pylist() == [None] * 3 and results["n_users"] is None
    json.dumps(results)


def test_drop_empty_is_the_references_mean():
    results, per_example = score_rankings(make_table(), [3], drop_empty=True, bootstrap=0)
    assert (results["hr@3"], results["n_examples"], results["n_scored"]) == (1.0, 3, 2)
    assert per_example.num_rows == 3


def test_intervals():
    results, _ = score_rankings(make_table((0, 8) * 50, (False,) * 100, (True,) * 100), [1], bootstrap=500, seed=1)
    assert 0.3 < results["hr@1_low"] < 0.5 < results["hr@1_high"] < 0.7


def test_users_are_what_is_resampled():
    ranks, flags = [0] * 50 + [8] * 50, ((False,) * 100, (True,) * 100)
    by_user, per_example = score_rankings(
        make_table(ranks, *flags, ids=[f"{i // 25}:{i % 25}" for i in range(100)]), [1, 3], bootstrap=400
    )
    by_row, _ = score_rankings(make_table(ranks, *flags), [1, 3], bootstrap=400)
    assert per_example["user_id"].to_pylist() == [str(i // 25) for i in range(100)]
    assert by_user["hr@1"] == by_row["hr@1"] == 0.5
    assert (by_user["n_users"], by_row["n_users"]) == (4, None)
    assert by_user["design_effect"] == pytest.approx(25 * 4 / 3) and by_row["design_effect"] == 1.0
    assert by_user["hr@1_high"] - by_user["hr@1_low"] > 3 * (by_row["hr@1_high"] - by_row["hr@1_low"])
    # 50 hits of which 25 come from each of two users: worth 1.5 hits
    assert (by_user["wilson"], by_row["wilson"]) == (["ndcg@1", "ndcg@3", "hr@1", "hr@3"], [])


def test_dropped_answers_are_not_resampled():
    table = make_table([0, 0, 9, 9], [False, False, True, True], [True] * 4, ["a:1", "b:1", "c:1", "c:2"])
    results, per_example = score_rankings(table, [1], drop_empty=True, bootstrap=50)
    assert (results["hr@1"], results["n_scored"], results["n_users"]) == (1.0, 2, 2)
    assert results["hr@1_low"] == pytest.approx(2 / (2 + 1.959964**2))  # Wilson's, of two hits in two
    assert per_example.num_rows == 4


def test_a_baseline_has_no_text_shares():
    results, _ = score_rankings(make_table(in_catalog=(None, None, None)), [1], bootstrap=0)
    assert results["in_catalog"] is None
    assert results_table({"random": results}, [1]).splitlines()[-1] == "| random | 0.3333 | 0.3333 | 3 | 1 | - |"


@pytest.mark.parametrize(
    ("ks", "options", "message"),
    [([1, 10], {}, r"K=10 is larger than the catalog \(9 items\)"), ([1], {"confidence": 2.0}, "confidence=2.0")],
)
def test_faults(ks, options, message):
    with pytest.raises(BigrecError, match=message):
        score_rankings(make_table(), ks, **options)


def test_nothing_left():
    with pytest.raises(BigrecError, match="all 1 generations are empty"):
        score_rankings(make_table([9], [True], [False]), [1], drop_empty=True)
    with pytest.raises(BigrecError, match="no example"):
        score_rankings(make_table([], [], []), [1])


def test_the_stage(tmp_path, capsys):
    folder = tmp_path / "finetuned"
    with pytest.raises(BigrecError, match="run `bigrec-hf ground` first"):
        score.main(run=RunSettings(run_dir=str(tmp_path)), score=ScoreSettings())
    write_table(make_table(), folder / "rankings.parquet")
    score.main(run=RunSettings(run_dir=str(tmp_path), seed=5), score=ScoreSettings(ks=[3, 1]))
    results = json.loads((folder / "results.json").read_text())
    assert results["hr@3"] == pytest.approx(2 / 3) and results["seed"] == 5 and "hr@3_low" in results
    assert pq.read_table(folder / "per_example.parquet")["rank"].to_pylist() == [0, 2, 9]
    assert "NDCG@1 | NDCG@3 | HR@1 | HR@3" in capsys.readouterr().out
    with pytest.raises(BigrecError, match="no run folder"):
        score.main(run=RunSettings(), score=ScoreSettings())
