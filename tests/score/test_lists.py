"""Prediction files of other systems: the same lists in every format, against each system's own definition."""

from __future__ import annotations

import json
import math

import polars as pl
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog, load_catalog, semantic_ids
from bigrec_hf.score.lists import list_rankings
from bigrec_hf.score.prediction_files import (
    PredictionColumns,
    Predictions,
    read_prediction_table,
    read_run,
    read_scored_json,
    read_targets,
)
from bigrec_hf.score.stage import score_rankings
from bigrec_hf.settings import DataSettings, RankOptions

TITLES = ["Zelda", "Mario", "Tetris", "Zelda"]
LISTS = {"u": ["i1", "i0", "zz"], "v": ["i3", "i2"], "w": ["i1"]}
TARGETS = {"u": "i0", "v": "i0", "w": "i1"}  # place 1; a miss, though i3 has the title of i0; place 0


@pytest.fixture
def place(tmp_path):
    lines = [f"<s{row}>\t{title}\ti{row}\n" for row, title in enumerate(TITLES)]
    (tmp_path / "info.txt").write_text("".join(lines))
    rows = [(user, item, 9 - at, at) for user, items in LISTS.items() for at, item in enumerate(items)]
    long = pl.DataFrame(rows, schema=["user_id", "item_id", "score", "rank"], orient="row")
    shuffled = long.sample(fraction=1, shuffle=True, seed=1).sort("user_id", maintain_order=True)
    shuffled.drop("rank").write_csv(tmp_path / "scores.csv")
    shuffled.drop("score").write_parquet(tmp_path / "ranks.parquet")
    wide = pl.DataFrame({"user": list(LISTS), "items": list(LISTS.values()), "target": list(TARGETS.values())})
    wide.write_parquet(tmp_path / "wide.parquet")
    wide.write_ndjson(tmp_path / "wide.jsonl")
    for name, join in (("pipes", "|".join), ("literals", str), ("json", json.dumps)):
        cells = pl.Series("items", [join(items) for items in LISTS.values()])
        wide.with_columns(cells).write_csv(tmp_path / f"{name}.tsv", separator="\t")
    run = [f"{user} Q0 {item} {at + 1} {9 - at} tag" for user, items in LISTS.items() for at, item in enumerate(items)]
    (tmp_path / "system.run").write_text("\n".join(run) + "\n")
    scores = {user: {item: -at for at, item in enumerate(items)} for user, items in LISTS.items()}
    (tmp_path / "ranx.json").write_text(json.dumps(scores))
    records = [{"output": TARGETS[user] + "\n", "predict": LISTS[user]} for user in LISTS]
    (tmp_path / "peer.json").write_text(json.dumps(records))
    semantic = [
        {"output": f"<s{TARGETS[user][1:]}>", "predict": [f"<s{item[1:]}>" for item in LISTS[user]]} for user in LISTS
    ]
    (tmp_path / "semantic.json").write_text(json.dumps(semantic))
    (tmp_path / "qrels").write_text("".join(f"{user} 0 {item} 1\n{user} 0 zz 0\n" for user, item in TARGETS.items()))
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        *("scores.csv", "ranks.parquet", "wide.parquet", "wide.jsonl", "pipes.tsv", "literals.tsv", "json.tsv"),
        *("system.run", "ranx.json", "peer.json", "semantic.json"),
    ],
)
def test_every_format_gives_the_same_ranks(place, name, capsys):
    command = ["evaluate", "--generations", str(place / name), "--catalog", str(place / "info.txt"), "--debug"]
    command += ["--ks", "1", "2", "--bootstrap", "0", "--output_dir", str(place / "out")]
    in_file = name in ("peer.json", "semantic.json") or "wide" in name or name.endswith(".tsv")
    command += ["--lists"] if name.endswith("r.json") or name == "semantic.json" else []
    assert cli.main(command if in_file else [*command, "--targets", str(place / "qrels")]) == 0
    rankings = pq.read_table(place / "out/rankings.parquet")
    assert rankings["rank"].to_pylist() == [1, 4, 0]
    assert rankings["target"].to_pylist() == [0, 0, 1]
    results = json.loads((place / "out/results.json").read_text())
    assert results["hr@2"] == pytest.approx(2 / 3)
    assert results["ndcg@2"] == pytest.approx((1 / math.log2(3) + 1) / 3)
    assert not (place / "out/index").exists()  # nothing was embedded


def test_semantic_ids_are_those_of_the_rows(place):
    (place / "info.txt").write_text("<b>\tMario\t1\n<a>\tZelda\t0\n")
    assert semantic_ids(str(place / "info.txt")) == ["<a>", "<b>"]
    assert load_catalog(place / "info.txt").titles == ["Zelda", "Mario"]
    (place / "info.txt").write_text("Mario\t1\nZelda\t0\n")
    assert semantic_ids(str(place / "info.txt")) is None


def peer_metrics(lists, targets, k):
    """HR@k and NDCG@k as MiniOneRec counts them: the first entry equal to the target, quotes and spaces aside."""
    places = [
        next((at for at, entry in enumerate(own) if entry.strip(' \n"') == target.strip(' \n"')), math.inf)
        for own, target in zip(lists, targets, strict=True)
    ]
    found = [at for at in places if at < k]
    return len(found) / len(lists), sum(1 / math.log2(at + 2) for at in found) / len(lists)


@given(st.data())
def test_equal_to_the_peers_own_metric(data):
    titles = [f"T{row}" for row in range(8)]
    entry = st.sampled_from([*titles, "unknown"]).map(lambda title: f'"{title}"\n')
    lists = data.draw(st.lists(st.lists(entry, max_size=6), min_size=1, max_size=6))
    targets = [f'"{data.draw(st.sampled_from(titles))}"\n' for _ in lists]
    found = Predictions([str(i) for i in range(len(lists))], lists, targets)
    catalog = Catalog([f"id{row}" for row in range(8)], titles)
    table = list_rankings(found, catalog, RankOptions(), DataSettings())
    results, _ = score_rankings(table, [1, 3, 5], bootstrap=0)
    for k in (1, 3, 5):
        hr, ndcg = peer_metrics(lists, targets, k)
        assert results[f"hr@{k}"] == pytest.approx(hr, abs=1e-9)
        assert results[f"ndcg@{k}"] == pytest.approx(ndcg, abs=1e-9)


def test_the_output_of_recommend_is_ranked_items(tmp_path):
    rows = {"user": ["u", "u"], "rank": [2, 1], "item_id": ["i0", "i1"], "title": ["Zelda", "Mario"]}
    pl.DataFrame(rows | {"score": [0.1, 0.2], "text": ["Mario", "Mario"]}).write_csv(tmp_path / "recs.csv")
    found = read_prediction_table(tmp_path / "recs.csv", PredictionColumns())
    assert found == Predictions(["u"], [["i1", "i0"]], None)
    assert read_prediction_table(tmp_path / "recs.csv", PredictionColumns(text="text")).texts


def test_titles_of_several_rows_count_as_duplicates_say():
    catalog = Catalog(["a", "b"], ["Zelda", "Zelda"])
    by_title = Predictions(["x"], [["Zelda"]], ["Zelda"])
    by_id = Predictions(["x"], [["b", "a"]], ["a"])
    assert list_rankings(by_title, catalog, RankOptions(), DataSettings())["rank"].to_pylist() == [0]
    assert list_rankings(by_id, catalog, RankOptions(), DataSettings())["rank"].to_pylist() == [1]


def test_the_truth_of_a_prepared_set(tiny_prepared, capsys):
    catalog = load_catalog(tiny_prepared)
    test = pl.read_parquet(f"{tiny_prepared}/data/default/test.parquet")
    data = DataSettings(dataset=[tiny_prepared])
    once = test.filter(~pl.col("user_id").is_duplicated())
    queries = [test["example_id"][0], once.filter(pl.col("example_id") != test["example_id"][0])["user_id"][0]]
    rows = test["target"][0], once.filter(pl.col("user_id") == queries[1])["target"][0]
    found = Predictions(queries, [[catalog.item_ids[row]] for row in rows], None)
    table = list_rankings(found, catalog, RankOptions(), data)
    assert (table["rank"].to_pylist(), table["target"].to_pylist()) == ([0, 0], list(rows))
    assert f"10 of {test.height} examples of the test split are not in the file" in capsys.readouterr().err
    with pytest.raises(BigrecError, match=r"'nobody' is neither an example nor a user with one example.*1 of 1"):
        list_rankings(Predictions(["nobody"], [["1"]], None), catalog, RankOptions(), data)
    with pytest.raises(BigrecError, match=r"give the truth with --targets, or the prepared set with --dataset"):
        list_rankings(found, catalog, RankOptions(), DataSettings())


@pytest.mark.parametrize(
    ("text", "named", "message"),
    [
        ("user,item\nu,a\nu,b\n", {}, "'u' has several rows but no score or rank"),
        ("user,what\nu,a\n", {}, "which of the columns user, what holds the predictions is not clear: .*--item_column"),
        ("who,item\nu,a\n", {}, "no column of users or example ids among who, item: .*--user_column"),
        ("user,item,score\nu,a,x\nu,b,1\n", {}, "row 0: score is not a number"),
        ("user,item,score\nu,a,1\nu,b,NaN\n", {}, "row 1: score is not a number"),
        ("user,item\nu,a\n", {"item": "x"}, "no column 'x' among user, item: check --item_column"),
        ("user,item,score,target\nu,a,1,p\nu,b,2,q\n", {}, "'u' has several targets"),
        ("user,item\n", {}, "has no rows"),
    ],
)
def test_faults_of_tables(tmp_path, text, named, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(BigrecError, match=message):
        read_prediction_table(tmp_path / "x.csv", PredictionColumns(**named))


def test_a_title_with_a_bar_is_cut_in_delimited_text_only(tmp_path):
    frame = pl.DataFrame({"user": ["u"], "title": ["Crossing | Over"]})
    frame.write_ndjson(tmp_path / "x.jsonl")
    frame.write_parquet(tmp_path / "x.parquet")
    frame.write_csv(tmp_path / "x.csv")
    entries = {
        suffix: read_prediction_table(tmp_path / f"x.{suffix}", PredictionColumns()).entries
        for suffix in ("jsonl", "parquet", "csv")
    }
    assert entries == {
        "jsonl": [["Crossing | Over"]],
        "parquet": [["Crossing | Over"]],
        "csv": [["Crossing ", " Over"]],
    }


def test_faults_of_runs_and_targets(tmp_path, place):
    (tmp_path / "x.run").write_text("u Q0 a 1 0.5 tag\nu Q0 b 2\n")
    with pytest.raises(BigrecError, match=r"x.run:2: expected `query Q0 item rank score tag`, found 'u Q0 b 2'"):
        read_run(tmp_path / "x.run")
    (tmp_path / "x.run").write_text("u Q0 a 1 0.5 tag\nu Q0 b 2 nan tag\n")
    with pytest.raises(BigrecError, match=r"x.run:2: the score of 'b' for 'u' is NaN"):
        read_run(tmp_path / "x.run")
    with pytest.raises(BigrecError, match="the score of 'b' for 'u' is NaN"):
        read_scored_json(tmp_path / "x.json", {"u": {"a": 1.0, "b": math.nan}})
    (tmp_path / "q").write_text("u 0 a 1\nu 0 b 1\n")
    with pytest.raises(BigrecError, match="'u' has the targets 'a' and 'b'"):
        read_targets(tmp_path / "q")
    (tmp_path / "t.csv").write_text("user,title\nu,Zelda\n")
    assert read_targets(tmp_path / "t.csv") == {"u": "Zelda"}
    command = ["evaluate", "--generations", str(place / "system.run"), "--catalog", str(place / "info.txt")]
    assert cli.main([*command, "--output_dir", str(tmp_path / "o"), "--targets", str(tmp_path / "t.csv")]) == 2
    assert cli.main([*command, "--output_dir", str(tmp_path / "o"), "--exclude", "history"]) == 2
