"""Breakdown by history length and target popularity, variety of the lists: by hand, properties, faults."""

from __future__ import annotations

import json
import math
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import write_table
from bigrec_hf.report.breakdown import (
    HISTORY_BINS,
    POPULARITY_GROUPS,
    break_down,
    group_scores,
    history_groups,
    list_facts,
    popularity_groups,
)
from tests.helpers.run_folders import make_run


def names(counts) -> list[str]:
    return [POPULARITY_GROUPS[group] for group in popularity_groups(counts)]


def test_popularity_groups_by_hand():
    # 12 training targets, thirds at 4 and 8: 0 stand above the first item, 5 above the second, 8 above the next two
    assert names([3, 5, 0, 2, 2]) == ["middle", "head", "unseen", "tail", "tail"]
    assert names([1, 1, 1, 1]) == ["head"] * 4  # equally popular items stay together
    assert names([100, 1, 0]) == ["head", "tail", "unseen"]


@given(st.lists(st.integers(0, 30), min_size=1, max_size=40))
def test_popularity_groups_against_the_definition(counts):
    total = sum(counts)
    expected = []
    for count in counts:
        above = sum(other for other in counts if other > count)
        group = "head" if 3 * above < total else "middle" if 3 * above < 2 * total else "tail"
        expected.append("unseen" if count == 0 else group)
    assert names(counts) == expected


def test_history_groups_by_hand():
    group, labels = history_groups([0, 1, 2, 3, 5, 6, 9, 10, 19, 20, 49, 50, 1000])
    found = ["0", "1-2", "1-2", "3-5", "3-5", "6-9", "6-9", "10-19", "10-19", "20-49", "20-49", "50+", "50+"]
    assert [labels[g] for g in group] == found
    assert len(labels) == len(HISTORY_BINS)


def test_list_facts_by_hand():
    # first two of each list: 0 1, 0 2, 0 1 -> frequencies 3 2 1 0 of 6
    facts = list_facts([[0, 1, 3], [0, 2, 3], [0, 1, 2]], 4, 2)
    assert facts["coverage"] == 0.75
    assert facts["entropy"] == pytest.approx((0.5 * math.log(2) + math.log(3) / 3 + math.log(6) / 6) / math.log(4))
    # Gini: mean absolute difference over twice the mean; the 16 ordered pairs of 3 2 1 0 differ by 20 in sum
    assert facts["gini"] == pytest.approx((20 / 16) / (2 * 1.5))
    assert list_facts([[1], [1]], 4, 1) == {"coverage": 0.25, "entropy": 0.0, "gini": 0.75}
    assert list_facts([[0, 1], [2, 3]], 4, 2) == pytest.approx({"coverage": 1.0, "entropy": 1.0, "gini": 0.0})
    assert list_facts([[], []], 4, 2) == {"coverage": 0.0, "entropy": 0.0, "gini": 1.0}  # nothing but empty answers


@given(st.lists(st.lists(st.integers(0, 7), max_size=4, unique=True), min_size=1, max_size=12), st.integers(1, 4))
def test_list_facts_against_slow_definitions(lists, k):
    facts = list_facts(lists, 8, k)
    counts = Counter(row for rows in lists for row in rows[:k])
    total = sum(counts.values())
    assert facts["coverage"] == len(counts) / 8
    if total:
        entropy = -sum(n / total * math.log(n / total) for n in counts.values()) / math.log(8)
        pairs = sum(abs(counts[a] - counts[b]) for a in range(8) for b in range(8))
        assert facts["entropy"] == pytest.approx(entropy, abs=1e-12)
        assert facts["gini"] == pytest.approx(pairs / (2 * 8 * total), abs=1e-12)


def test_group_scores():
    values = np.array([[1.0, 0.2], [0.0, 0.4], [1.0, 0.9]])
    group, users = np.array([2, 2, 0]), np.array([0, 0, 1])
    found = group_scores(values, ["hr@1", "ndcg@5"], group, ["a", "b", "c"], users)
    assert [(g["group"], g["n"]) for g in found] == [("a", 1), ("c", 2)]  # empty groups are left out
    assert found[1]["hr@1"] == 0.5 and found[1]["ndcg@5"] == pytest.approx(0.3)
    assert found[1]["hr@1_low"] == pytest.approx(1 - found[1]["hr@1_high"])
    alone = group_scores(values, ["hr@1", "ndcg@5"], group, ["a", "b", "c"], np.arange(3))
    assert alone[1]["hr@1_low"] == pytest.approx(0.0945, abs=1e-4)  # Wilson's interval of 1 in 2


def test_the_intervals_of_a_group_are_over_its_users():
    # 25 users with 4 rows each, all hits or all misses: twice as wide as 100 independent rows
    hits = np.repeat(np.arange(25) % 2, 4)[:, None].astype(float)
    group, users = np.zeros(100, int), np.repeat(np.arange(25), 4)
    (clustered,) = group_scores(hits, ["hr@1"], group, ["a"], users)
    (independent,) = group_scores(hits, ["hr@1"], group, ["a"], np.arange(100))
    ratio = (clustered["hr@1_high"] - clustered["hr@1_low"]) / (independent["hr@1_high"] - independent["hr@1_low"])
    assert ratio == pytest.approx(2, rel=0.2)


def test_one_folder_by_hand(tmp_path):
    top = [[0, 1], [0, 2], [0, 1], [0, 3]]
    run = make_run(tmp_path / "r", {"m": [0, 3, 0, 9]}, n_items=4, ks=[1, 4], targets=[0, 1, 2, 0], top_rows=top)
    histories = {"e0": [0, 2], "e1": [0] * 4, "e2": [2, 2], "e3": [1]}
    items = (np.array([6, 3, 1, 0]), ["A", "B", '"A" ', "C"])
    found = break_down(run / "m", histories, items)
    assert found["n_examples"] == 4
    assert [(g["group"], g["n"], g["hr@1"], g["hr@4"]) for g in found["history"]] == [
        ("1-2", 3, pytest.approx(2 / 3), pytest.approx(2 / 3)),
        ("3-5", 1, 0.0, 1.0),
    ]
    # thirds of 10: nothing stands above item 0, 6 above item 1, 9 above item 2
    assert [(g["group"], g["n"], g["hr@1"]) for g in found["popularity"]] == [
        ("head", 2, 0.5), ("middle", 1, 0.0), ("tail", 1, 1.0),
    ]  # fmt: skip
    assert found["repeated_targets"] == 0.5  # e0 and e2
    assert found["duplicate_title_targets"] == 0.75  # e0, e2, e3: items 0 and 2 are both called A
    assert found["lists"]["1"]["coverage"] == 0.25 and list(found["lists"]) == ["1"]
    assert found["distinct_first_items"] == 1
    total = sum(g["n"] * g["ndcg@4"] for g in found["history"]) / 4
    results = json.loads((run / "m" / "results.json").read_text())
    assert total == pytest.approx(results["ndcg@4"])


def test_unknown_parts_are_null(tmp_path):
    run = make_run(tmp_path / "r", {"m": [0, 3]}, n_items=4, ks=[1])
    found = break_down(run / "m", {"e0": []}, None)
    assert (found["history"], found["popularity"], found["repeated_targets"]) == (None, None, None)


def test_faults(tmp_path):
    run = make_run(tmp_path / "r", {"m": [0, 3]}, n_items=4, ks=[1])
    with pytest.raises(BigrecError, match="ranks 4 items, but the prepared set has 2"):
        break_down(run / "m", {}, (np.array([1, 1]), ["A", "B"]))
    scores = pq.read_table(run / "m" / "per_example.parquet")
    write_table(scores.set_column(0, "example_id", pa.array(["e1", "e0"])), run / "m" / "per_example.parquet")
    with pytest.raises(BigrecError, match="cover different examples"):
        break_down(run / "m", {}, None)
    (run / "m" / "rankings.parquet").unlink()
    with pytest.raises(BigrecError, match="bigrec-hf ground"):
        break_down(run / "m", {}, None)


def test_the_report_shows_it_and_writes_it(tmp_path, tiny_prepared, capsys):
    run = make_run(
        tmp_path / "r", {"m": [0, 3, 11], "n": [1, 1, 1]}, ks=[1, 10], top_rows=np.arange(60).reshape(3, 20) % 20
    )
    assert cli.main(["report", str(run), "--breakdown"]) == 0  # neither generations nor a recipe
    text = capsys.readouterr().out
    assert "unknown, for want of the run's generations.parquet" in text and "want of the run's prepared set" in text
    (run / "recipe.yaml").write_text(yaml.safe_dump({"data": {"dataset": [tiny_prepared]}}))
    histories = pa.table({"example_id": ["e2", "e1", "e0"], "history": [[1], [1, 2], [1, 2, 3]]})
    write_table(histories, run / "m" / "generations.parquet")
    assert cli.main(["report", str(run), "--breakdown"]) == 0
    text = capsys.readouterr().out
    found = json.loads((run / "m" / "breakdown.json").read_text())
    assert {g["group"]: g["n"] for g in found["history"]} == {"1-2": 2, "3-5": 1}
    head = "| HR@10 | 1-2 (n = 2) | 3-5 (n = 1) |"
    row = text.splitlines()[text.splitlines().index(head) + 2]
    assert row.startswith("| m | 0.5000 [0.0945, 0.9055] | 1.0000 [0.2065, 1.0000] |")
    assert "Breakdown of the same examples: 0.0% of the targets are in their history, 0.0% have a title" in text
    assert "coverage@1" in text and "distinct first items" in text
