"""Frames of ranked items from Python: by hand, of every library, and equal to the same table as a file."""

from __future__ import annotations

import json
import math

import pandas as pd
import polars as pl
import pytest

from bigrec_hf import cli, evaluate_frame
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.examples import load_config

LONG = {  # RecTools: the rows in any order
    "user_id": [1, 2, 1, 1, 3, 2],
    "item_id": [11, 13, 10, 99, 11, 12],
    "rank": [1, 1, 2, 3, 1, 2],
    "score": [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
}
NEXT = {"user_id": [1, 2, 3], "item_id": [10, 10, 11], "weight": [1.0, 5.0, 1.0]}  # at place 2, a miss, at place 1


@pytest.mark.parametrize("make", [pd.DataFrame, pl.DataFrame, lambda data: pl.DataFrame(data).to_arrow()])
@pytest.mark.parametrize("without", ["rank", "score"])
def test_three_users_by_hand(make, without):
    given = {name: values for name, values in LONG.items() if name != without}
    results, per_example = evaluate_frame(make(given), make(NEXT), ks=[1, 3], bootstrap=0)
    assert (results["hr@1"], results["hr@3"]) == (pytest.approx(1 / 3), pytest.approx(2 / 3))
    assert results["ndcg@3"] == pytest.approx((1 / math.log2(3) + 1) / 3)
    assert (results["n_examples"], results["n_items"]) == (3, 5)  # 10 to 13, and 99
    assert isinstance(per_example, pd.DataFrame if make is pd.DataFrame else pl.DataFrame)
    assert dict(zip(per_example["example_id"], per_example["hr@3"], strict=True)) == {"1": 1.0, "2": 0.0, "3": 1.0}


def test_a_prepared_sets_split_and_the_same_as_a_file(tiny_prepared, tmp_path, capsys):
    examples = load_config(tiny_prepared, "default", "test")
    rows = [
        {"user_id": example["example_id"], "item_id": str(1 + (example["target"] + shift) % 20), "rank": place}
        for number, example in enumerate(examples)
        for place, shift in enumerate([number % 3, 5, 7], start=1)
    ]
    frame = pl.DataFrame(rows)
    results, per_example = evaluate_frame(frame, dataset=tiny_prepared, ks=[1, 5])
    assert results["hr@1"] == pytest.approx(sum(number % 3 == 0 for number in range(len(examples))) / len(examples))
    assert results["n_items"] == 20 and results["hr@1_low"] <= results["hr@1"] <= results["hr@1_high"]
    frame.write_csv(tmp_path / "lists.csv")
    flags = ["--dataset", tiny_prepared, "--ks", "1", "5", "--output_dir", str(tmp_path / "out"), "--debug"]
    assert cli.main(["evaluate", "--generations", str(tmp_path / "lists.csv"), *flags]) == 0
    assert json.loads((tmp_path / "out/results.json").read_text()) == results
    assert pl.read_parquet(tmp_path / "out/per_example.parquet").equals(per_example)


def test_columns_can_be_named_and_lists_given(capsys):
    frame = pl.DataFrame({"who": ["a", "b"], "got": [["x", "y"], ["y"]], "wanted": ["y", "x"]})
    names = {"user_column": "who", "item_column": "got", "target_column": "wanted"}
    results, _ = evaluate_frame(frame, ks=[1, 2], bootstrap=0, **names)
    assert (results["hr@1"], results["hr@2"], results["n_items"]) == (0.0, 0.5, 2)
    more = pl.DataFrame({"user": ["a", "b", "c"], "item": ["x", "y", "x"]})
    results, _ = evaluate_frame(frame.drop("wanted"), more, ks=[1], bootstrap=0, user_column="who", item_column="got")
    assert results["hr@1"] == 1.0
    assert "1 of 3 users with a target have no list in the frame and do not count" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("frame", "targets", "words"),
    [
        ({"user": ["a"], "text": ["Zelda"]}, None, "generated texts, which must be grounded"),
        ({"user": ["a", "a"], "item": ["x", "y"]}, None, "no score or rank orders them"),
        ({"user": ["a"], "item": ["x"]}, None, "the truth with --targets"),
        ({"user": ["a"], "item": ["x"]}, {"user": ["b"], "item": ["x"]}, "'a' has no target"),
        ({"user": ["a"], "item": ["x"]}, {"user": ["a", "a"], "item": ["x", "y"]}, "has the targets 'x' and 'y'"),
        ({"user": ["a"], "item": ["x"]}, {"nobody": ["a"]}, "a column of users and one of targets"),
        ({"user": [], "item": []}, None, "has no rows"),
        ({"user": ["a"], "thing": ["x"]}, None, "which of the columns user, thing"),
    ],
)
def test_what_does_not_fit_is_said(frame, targets, words):
    with pytest.raises(BigrecError, match=words):
        evaluate_frame(pl.DataFrame(frame), None if targets is None else pl.DataFrame(targets), ks=[1])
    with pytest.raises(BigrecError, match="cannot read predictions from int"):
        evaluate_frame(3)
