"""Ready windows of D3, ReRe and MiniOneRec: rows, order and splits as given; faults name the line."""

from __future__ import annotations

import csv
import json
import os
import re
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.earlier import earlier_items
from bigrec_hf.prepare.stage import prepare_dataset

DAY = 86_400
START = 1_500_000_000
COLUMNS = ["item_title", "item_id", "rating", "timestamp"]  # those that also have a history


def windows_of(events, titles, window=10):
    """Examples as D3 writes them: every position of a user's (item, rating, time) but the first, sorted by time."""
    rows = []
    for user, own in events.items():
        for i in range(1, len(own)):
            past = own[max(0, i - window) : i]
            row = {"user_id": user}
            parts = ([titles[item], item, rating, time] for item, rating, time in (*past, own[i]))
            for name, column in zip(COLUMNS, zip(*parts, strict=True), strict=True):
                row[f"history_{name}"], row[name] = list(column[:-1]), column[-1]
            rows.append(row)
    return sorted(rows, key=lambda row: row["timestamp"])


def write_set(folder: Path, splits, titles, ending=".csv", info="info.txt", semantic=False):
    for split, rows in splits.items():
        file = folder / f"{split}{ending}"
        file.parent.mkdir(parents=True, exist_ok=True)
        if ending == ".json":
            file.write_text(json.dumps(rows))
        elif ending == ".jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            with file.open("w", newline="") as handle:
                writer = csv.DictWriter(handle, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)  # lists as Python literals
    lines = [f"<a_{row}>\t{title}\t{row}\n" if semantic else f"{title}\t{row}\n" for row, title in enumerate(titles)]
    (folder / info).parent.mkdir(parents=True, exist_ok=True)
    (folder / info).write_text("".join(lines), encoding="utf-8")
    return folder


TITLES = ["Zelda", 'Mario\'s "World"', "None", "Zelda"]
EVENTS = {
    "u2": [(0, 5.0, START), (1, 4.0, START + DAY), (2, 1.0, START + 3 * DAY)],
    "u1": [(3, 3.0, START), (0, 2.0, START + 2 * DAY), (1, 5.0, START + 4 * DAY), (3, 5.0, START + 5 * DAY)],
}


@pytest.fixture
def splits():
    rows = windows_of(EVENTS, TITLES)
    return {"train": rows[:3], "valid": rows[3:4], "test": rows[4:]}


def examples(prepared, split):
    return pl.read_parquet(prepared / f"data/default/{split}.parquet")


@pytest.mark.parametrize(("ending", "semantic"), [(".csv", False), (".csv", True), (".json", False), (".jsonl", True)])
def test_rows_order_and_splits_are_as_given(tmp_path, splits, ending, semantic):
    raw = write_set(tmp_path / "raw", splits, TITLES, ending, semantic=semantic)
    prepared = prepare_dataset("windows", raw, tmp_path / "p")
    train = examples(prepared, "train")
    # targets by time: u2 at day 1, u1 at day 2, u2 at day 3; the ids tell the two Zeldas apart
    assert train["user_id"].to_list() == ["u2", "u1", "u2"]
    assert train["history"].to_list() == [[0], [3], [0, 1]]
    assert train["target"].to_list() == [1, 0, 2]
    assert train["history_ratings"].to_list() == [[5.0], [3.0], [5.0, 4.0]]
    assert train["rating"].to_list() == [4.0, 2.0, 1.0]
    assert train["timestamp"].to_list() == [START + DAY, START + 2 * DAY, START + 3 * DAY]
    assert examples(prepared, "validation")["history"].to_list() == [[3, 0]]
    assert examples(prepared, "test")["target"].to_list() == [3]
    items = pl.read_parquet(prepared / "data/items/train.parquet")
    assert items["title"].to_list() == TITLES
    assert items["train_count"].to_list() == [1, 1, 1, 0]
    facts = json.loads((prepared / "facts.json").read_text())
    assert (facts["preset"], facts["users"], facts["max_history"], facts["noun"]) == ("given", 2, 3, "items")
    assert facts["time_span"]["test"] == ["2017-07-19T02:40:00Z"] * 2
    assert "protocol" not in facts
    assert "| users | 2, 0 of them" in (prepared / "README.md").read_text()


def test_the_users_interactions_are_put_together(tmp_path, splits):
    prepared = prepare_dataset("windows", write_set(tmp_path / "raw", splits, TITLES), tmp_path / "p")
    interactions = pl.read_parquet(prepared / "data/interactions/train.parquet")
    assert interactions.rows() == [
        (user, item, rating, time) for user, events in EVENTS.items() for item, rating, time in events
    ]
    test = examples(prepared, "test")
    assert test["example_id"].to_list() == ["u1:3"]
    assert [rows.tolist() for rows in earlier_items(str(prepared), test["example_id"].to_list())] == [[3, 0, 1]]


def test_windows_that_do_not_go_on_are_kept_but_are_no_interactions(tmp_path, splits):
    splits["train"][2] |= {f"history_{name}": splits["train"][2][f"history_{name}"][:1] for name in COLUMNS}  # [0] -> 2
    prepared = prepare_dataset("windows", write_set(tmp_path / "raw", splits, TITLES), tmp_path / "p")
    assert examples(prepared, "train")["history"].to_list() == [[0], [3], [0]]
    assert len(set(examples(prepared, "train")["example_id"])) == 3
    assert pl.read_parquet(prepared / "data/interactions/train.parquet").height == 0
    notes = json.loads((prepared / "facts.json").read_text())["notes"]
    assert notes["users whose windows do not continue each other (no interactions)"] == 1


def test_without_ids_ratings_and_times_titles_decide_and_ambiguous_ones_are_counted(tmp_path, splits, capsys):
    for rows in splits.values():
        for row in rows:
            for name in COLUMNS[1:]:
                del row[name], row[f"history_{name}"]
    prepared = prepare_dataset("windows", write_set(tmp_path / "raw", splits, TITLES), tmp_path / "p")
    train = examples(prepared, "train")
    assert train["history"].to_list() == [[0], [0], [0, 1]]  # the first Zelda
    assert train["rating"].null_count() == train["timestamp"].null_count() == 3
    notes = json.loads((prepared / "facts.json").read_text())["notes"]
    # places: the history of each of the five rows, the second target, the last target
    assert notes["titles of several catalog rows, read as the first"] == "1 titles (9 places)"
    assert "warning: 1 titles (9 places) occur in several rows" in capsys.readouterr().err


def test_folders_with_a_file_per_data_set(tmp_path, splits):
    raw = tmp_path / "raw"
    for name in ("Office", "Games"):
        part = {f"{split}/{name}_5": rows for split, rows in splits.items()}
        write_set(raw, part, TITLES if name == "Games" else ["x"], info=f"info/{name}_5.txt")
    with pytest.raises(BigrecError, match=r"one file for info, found Games_5.txt, Office_5.txt: .*--items_file"):
        prepare_dataset("windows", raw, tmp_path / "p")
    prepared = prepare_dataset("windows", raw, tmp_path / "p", items_file=str(raw / "info/Games_5.txt"))
    assert examples(prepared, "test")["target"].to_list() == [3]
    with pytest.raises(BigrecError, match=r"not in .*Office_5.txt"):
        prepare_dataset("windows", raw, tmp_path / "q", items_file=str(raw / "info/Office_5.txt"))


def test_times_in_milliseconds_are_recognized(tmp_path, splits):
    for rows in splits.values():
        for row in rows:
            row["timestamp"] *= 1000
            row["history_timestamp"] = [time * 1000 for time in row["history_timestamp"]]
    prepared = prepare_dataset("windows", write_set(tmp_path / "raw", splits, TITLES), tmp_path / "p")
    assert examples(prepared, "test")["timestamp"].to_list() == [START + 5 * DAY]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item_title": "Tetris"}, r"train.csv:3: the title 'Tetris' is not in .*info.txt"),
        ({"history_item_title": ["Tetris"]}, r"train.csv:3: the title 'Tetris' is not in"),
        ({"item_id": 9}, r"train.csv:3: the item id '9' is not in"),
        ({"item_id": 1}, r"train.csv:3: the item id '1' is 'Mario.*, not 'Zelda'"),
        ({"history_item_title": "Zelda"}, r"train.csv:3: history_item_title is 'Zelda', not a list"),
        ({"history_item_title": ["Zelda"] * 2}, r"train.csv:3: histories of different lengths \(history_item_title 2,"),
        ({"history_rating": ["x"]}, r"train.csv:3: rating holds \['x', .*, not only numbers"),
        ({"user_id": ""}, r"train.csv:3: the field user_id is empty"),
        ({"timestamp": 12}, r"timestamp runs from 12 to 15.*--timestamp_unit"),
    ],
)
def test_faults_name_the_line(tmp_path, splits, change, message):
    splits["train"][1] |= change
    raw = write_set(tmp_path / "raw", splits, TITLES)
    with pytest.raises(BigrecError, match=message):
        prepare_dataset("windows", raw, tmp_path / "p")


def test_other_files_are_told_apart(tmp_path, splits):
    raw = write_set(tmp_path / "raw", splits, TITLES)
    (raw / "info.txt").rename(raw / "info.bak")
    with pytest.raises(BigrecError, match=r"found no info file .*--items_file"):
        prepare_dataset("windows", raw, tmp_path / "p")
    (raw / "info.bak").rename(raw / "info.txt")
    (raw / "train.csv").write_text("who,what\n1,2\n")
    with pytest.raises(BigrecError, match=r"expected the columns user_id, .*found who, what"):
        prepare_dataset("windows", raw, tmp_path / "p")
    (raw / "train.csv").unlink()
    with pytest.raises(BigrecError, match="found no train file"):
        prepare_dataset("windows", raw, tmp_path / "p")
    record = {"instruction": "", "input": "", "output": ""}
    (raw / "train.json").write_text(json.dumps([record]))
    with pytest.raises(BigrecError, match="--source reference-json"):
        prepare_dataset("windows", raw, tmp_path / "p")


def test_tabular_refuses_windows(tmp_path, splits):
    raw = write_set(tmp_path / "raw", splits, TITLES)
    for ending in (".csv", ".jsonl", ".parquet"):
        file = tmp_path / f"x{ending}"
        if ending == ".csv":
            file.write_bytes((raw / "train.csv").read_bytes())
        elif ending == ".jsonl":
            file.write_text(json.dumps(splits["train"][0]) + "\n")
        else:
            pl.DataFrame(splits["train"]).write_parquet(file)
        with pytest.raises(BigrecError, match=r"history_item_title holds lists: .*--source windows"):
            prepare_dataset("tabular", None, tmp_path / "p", ratings_file=str(file), title_column="item_title")


def test_tabular_refuses_a_table_with_mostly_short_users(tmp_path):
    lines = [f"{user},{item},T{item},{START + item}" for user in range(5) for item in range(2 if user else 4)]
    (tmp_path / "ratings.csv").write_text("\n".join(["user_id,item_id,title,timestamp", *lines, ""]))
    with pytest.raises(BigrecError, match=r"only 1 of 5 users has enough .*--short_users true .*--source windows"):
        prepare_dataset("tabular", tmp_path, tmp_path / "p")
    prepared = prepare_dataset("tabular", tmp_path, tmp_path / "p", short_users=True)
    facts = json.loads((prepared / "facts.json").read_text())
    assert (facts["users"], facts["users_without_example"], facts["preset"]) == (5, 4, "leave-one-out")


@given(st.data())
@settings(max_examples=20)
def test_any_windows_come_back_unchanged(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("windows")
    names = data.draw(st.lists(st.text("aé',\"[]", min_size=1), min_size=1))
    titles = [f"{name} {row}" for row, name in enumerate(names)]
    event = st.tuples(st.integers(0, len(titles) - 1), st.integers(1, 5), st.integers(0, 3))
    drawn = data.draw(st.lists(st.lists(event, min_size=2, max_size=6), min_size=1, max_size=4))
    events = {}
    for user, own in enumerate(drawn):
        days = [START + DAY * day for day in sorted(day for *_, day in own)]
        events[str(user)] = [(item, float(rating), day) for (item, rating, _), day in zip(own, days, strict=True)]
    rows = windows_of(events, titles, window=3)
    raw = write_set(folder / "raw", {"train": rows}, titles)
    prepared = prepare_dataset("windows", raw, folder / "p")
    found = examples(prepared, "train")
    assert found["user_id"].to_list() == [row["user_id"] for row in rows]
    assert found["history"].to_list() == [row["history_item_id"] for row in rows]
    assert found["target"].to_list() == [row["item_id"] for row in rows]
    assert found["history_ratings"].to_list() == [row["history_rating"] for row in rows]
    assert found["timestamp"].to_list() == [row["timestamp"] for row in rows]
    assert len(set(found["example_id"])) == len(rows)


@pytest.mark.skipif("BIGREC_HF_DATA" not in os.environ, reason="BIGREC_HF_DATA is not set")
def test_movielens_windows_equal_the_preset_that_made_them(tmp_path):
    """The examples of bigrec-movie, written as windows and read back, are the same rows in the same order."""
    raw = Path(os.environ["BIGREC_HF_DATA"]) / "ml-latest-small"
    prepared = prepare_dataset("movielens", raw, tmp_path / "p")
    items = pl.read_parquet(prepared / "data/items/train.parquet")
    titles = items["title"].to_list()
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        rows = [
            {
                "user_id": row["user_id"],
                "history_item_title": [titles[item] for item in row["history"]],
                "item_title": titles[row["target"]],
                "history_item_id": row["history"],
                "item_id": row["target"],
                "history_rating": row["history_ratings"],
                "rating": row["rating"],
            }
            for row in examples(prepared, split).to_dicts()
        ]
        write_set(tmp_path / "w", {name: rows}, titles)
    again = prepare_dataset("windows", tmp_path / "w", tmp_path / "q")
    for split in ("train", "validation", "test"):
        columns = ["user_id", "history", "target", "history_ratings", "rating"]
        assert examples(again, split).select(columns).equals(examples(prepared, split).select(columns))
    facts = json.loads((again / "facts.json").read_text())
    assert not re.search("do not go on", json.dumps(facts["notes"]))
