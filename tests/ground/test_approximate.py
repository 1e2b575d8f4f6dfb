"""Approximate search: exact where all cells are looked into, honest about what it does not know elsewhere."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from bigrec_hf.metrics.ndcg_hr.ranking import rank_catalog

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.rankings import table_settings
from bigrec_hf.ground import stage as ground_stage
from bigrec_hf.ground.approximate import number_of_cells, rank_approximately
from bigrec_hf.ground.distance import ground_answers
from bigrec_hf.score.stage import score_rankings
from bigrec_hf.settings import RankOptions
from tests.ground.test_ground import answers, encode, make_index

faiss = pytest.importorskip("faiss", reason="the extra faiss is not installed")


def clusters(n, d=16, seed=0):
    rng = np.random.default_rng(seed)
    centers = 8 * rng.standard_normal((40, d)) + 100  # a large common component, as hidden states have
    return (centers[rng.integers(0, 40, n)] + rng.standard_normal((n, d))).astype(np.float32)


def test_all_cells_give_the_exact_ranking():
    items, queries = clusters(2000), clusters(50, seed=1)
    items[7] = items[1500]  # equal distances: by row
    targets = [[i, 1999 - i] for i in range(50)]
    found = rank_approximately(queries, items, targets, 20, n_probe=10_000)
    exact = rank_catalog(queries, items, targets, 20)
    np.testing.assert_array_equal(found.top_rows, exact.top_rows)
    np.testing.assert_array_equal(found.top_distances, exact.top_distances)
    np.testing.assert_array_equal(found.rank, np.where(exact.rank < 20, exact.rank, 2000))


def test_few_cells_miss_some_and_find_most():
    items, queries = clusters(5000), clusters(200, seed=1)
    targets = [[0]] * 200
    exact = rank_catalog(queries, items, targets, 10).top_rows
    recall = []
    for n_probe in (1, 16):
        found = rank_approximately(queries, items, targets, 10, n_probe=n_probe).top_rows
        recall.append(np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, exact, strict=True)]))
    assert recall[0] < recall[1] and recall[1] > 0.9


def test_cells_too_small_for_k_leave_gaps():
    items = clusters(200)
    found = rank_approximately(items[:3], items, [[0], [1], [2]], 150, n_probe=1)
    assert found.rank.tolist() == [0, 0, 0]
    assert (found.top_rows == -1).any() and np.isinf(found.top_distances[found.top_rows == -1]).all()
    assert number_of_cells(1) == 1 and number_of_cells(1_000_000) == 4000


def test_grounding_says_how_far_ranks_are_known():
    inputs = answers(["one", "four"], [2, 4])
    table = ground_answers(inputs, make_index(), encode, RankOptions(top_k=2), search="faiss")
    assert table["rank"].to_pylist() == [0, 5] and table["top_rows"].to_pylist() == [[0, 2], [1, 3]]
    assert table_settings(table)["ranks_known_to"] == 2
    assert score_rankings(table, [2], bootstrap=0)[0]["hr@2"] == 0.5
    with pytest.raises(BigrecError, match="3"):
        score_rankings(table, [3], bootstrap=0)
    with pytest.raises(BigrecError, match="--search exact"):
        ground_answers(inputs, make_index(), encode, RankOptions(exclude_history=True), search="faiss")


def test_without_faiss(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(BigrecError, match=r"pip install 'bigrec_hf\[faiss\]'"):
        ground_answers(answers(["one"], [2]), make_index(), encode, RankOptions(), search="faiss")
    assert ground_stage.ground_answers(answers(["one"], [2]), make_index(), encode, RankOptions())[
        "rank"
    ].to_pylist() == [0]


def test_the_benchmark_measures_recall(monkeypatch, capsys):
    from benchmarks import approximate as benchmark

    arguments = ["approximate", "--made_up", "2000x8", "--queries", "20", "--probes", "1", "1000"]
    monkeypatch.setattr(sys, "argv", arguments)
    benchmark.main()
    rows = [line.split("|") for line in capsys.readouterr().out.splitlines() if line.startswith("| 1")]
    assert [float(cell) for cell in rows[1][4:7]] == [1.0, 1.0, 1.0]
    assert float(rows[0][6]) < 1.0
