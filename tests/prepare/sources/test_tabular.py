"""Tables and sequences: every file kind gives the same data; faults name file and line."""

from __future__ import annotations

import json

import polars as pl
import pytest

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.prepare.sources.columns import ColumnNames
from bigrec_hf.prepare.sources.sequences import find_sequence_files, load_sequences
from bigrec_hf.prepare.sources.tabular import find_tabular_files, load_tabular
from bigrec_hf.prepare.stage import prepare_dataset

ITEMS = pl.DataFrame({"item_id": ["a", "b", "c"], "title": ["One", 'Two, "2"', "Three"]})
ROWS = pl.DataFrame(
    {"user_id": ["9", "9", "2"], "item_id": ["b", "a", "b"], "rating": [1.5, 2.0, 5.0], "timestamp": [30, 20, 10]}
)


def write(frame, path):
    if path.suffix == ".parquet":
        frame.write_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dicts()))
    else:
        csv = path.suffix == ".csv"
        frame.write_csv(path, separator="," if csv else "\t", quote_style="necessary" if csv else "never")


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_kind_of_file_gives_the_same_data(tmp_path, ending):
    write(ROWS, tmp_path / f"interactions{ending}")
    write(ITEMS, tmp_path / f"items{ending}")
    files = find_tabular_files(tmp_path, None, None)
    raw = load_tabular(files["ratings"], files["items"], timestamp_unit="s")
    assert raw.catalog.titles == ["One", 'Two, "2"', "Three"]
    assert raw.rows.tolist() == [1, 0, 1]
    assert raw.user_ids.to_list() == ["9", "2"]
    assert raw.ratings.tolist() == [1.5, 2.0, 5.0]
    assert raw.times.tolist() == [30, 20, 10]


def test_columns_by_name_and_titles_in_the_interactions(tmp_path):
    table = ROWS.rename({"user_id": "who", "item_id": "what", "timestamp": "when"}).with_columns(
        name=pl.Series(["Two", "One", "Zwei"])
    )
    write(table, tmp_path / "log.csv")
    raw = load_tabular(
        tmp_path / "log.csv",
        None,
        named=ColumnNames("who", "what", "name", timestamp="when"),
        timestamp_unit="ms",
    )
    assert raw.catalog.item_ids == ["b", "a"]  # first appearance
    assert raw.catalog.titles == ["Two", "One"]
    assert raw.facts["notes"] == {"items with more than one title (the first is used)": 1}
    assert raw.time_divisor == 1000


def test_without_time_and_rating_only_the_order_counts(tmp_path):
    write(ROWS.select("user_id", "item_id"), tmp_path / "ratings.csv")
    write(ITEMS, tmp_path / "items.csv")
    raw = load_tabular(tmp_path / "ratings.csv", tmp_path / "items.csv")
    assert raw.ratings is None
    assert raw.times is None


@pytest.mark.parametrize(
    "times",
    [
        pl.Series(["1970-01-02", "1970-01-01T00:00:30Z", "1970-01-01 00:00:01.5"]),
        pl.Series([86_400_000, 30_000, 1_500]).cast(pl.Datetime("ms")),
    ],
)
def test_dates_are_utc(tmp_path, times):
    write(ROWS.with_columns(timestamp=times), tmp_path / "ratings.parquet")
    write(ITEMS, tmp_path / "items.csv")
    raw = load_tabular(tmp_path / "ratings.parquet", tmp_path / "items.csv")
    assert raw.times.tolist() == [86400, 30, 1]


@pytest.mark.parametrize(
    ("interactions", "items", "options", "message"),
    [
        ("user_id,what\n1,a\n", None, {}, "interactions.csv: no column for the item among user_id, what: give --item"),
        ("user_id,item_id\n1,a\n", None, {"rating": "pts"}, r"no column for 'pts' \(--rating_column\) among user_id"),
        ("user_id,item_id\n1,a\n1,z\n", None, {}, "interactions.csv:3: item 'z' has no title"),
        ("user_id,item_id\n1,a\n,a\n", None, {}, "interactions.csv:3: the field user_id is empty"),
        ("user_id,item_id,rating\n1,a,1\n1,b,x\n", None, {}, "interactions.csv:3: rating is 'x', not a number"),
        (
            "user_id,item_id,timestamp\n1,a,1\n1,b,x\n",
            None,
            {},
            "interactions.csv:3: timestamp is 'x', neither a number nor",
        ),
        ("user_id,item_id,timestamp\n1,a,2001-01-01\n1,b,x\n", None, {}, "csv:3: timestamp is 'x', not an ISO date"),
        (
            "user_id,item_id,timestamp\n1,a,1\n1,b,1e300\n",
            None,
            {},
            "interactions.csv:3: timestamp is 1e\\+300, not a time",
        ),
        ("user_id,item_id,item_id\n1,a,b\n", None, {}, "a column name occurs twice"),
        ("user_id,item_id\n1,a,b\n", None, {}, "interactions.csv:2: expected 2 fields"),
        ("user_id,item_id\n", None, {}, "no data lines"),
        ("", None, {}, "empty or has no header"),
        ("user_id::item_id\n1::a\n", None, {"separator": "::"}, "separator is '::': give a single character"),
        ("user_id,item_id\n1,a\n", "item_id,title\na,A\nb,B\na,C\n", {}, "items.csv:4: item id 'a' occurs twice"),
        ("user_id,item_id\n1,a\n", "item_id,title\na,\n", {}, "items.csv:2: the field title is empty"),
        ("user_id,item_id\n1,a\n", 'item_id,title\nb,B\na," "\n', {}, "items.csv:3: item 'a' has no title"),
        ("user_id,item_id\n1,a\n", 'item_id,title\na,""\n', {}, "items.csv:2: "),
        (
            "user_id,item_id\n1,a\n",
            "item_id,label\na,A\n",
            {},
            "items.csv: no column for the title among item_id, label: .*--title_column",
        ),
    ],
)
def test_faults_name_file_line_and_remedy(tmp_path, interactions, items, options, message):
    (tmp_path / "interactions.csv").write_text(interactions)
    (tmp_path / "items.csv").write_text(items or "item_id,title\na,A\nb,B\n")
    named = ColumnNames(rating=options.pop("rating", None))
    with pytest.raises(BigrecError, match=message):
        load_tabular(tmp_path / "interactions.csv", tmp_path / "items.csv", named=named, **options)


def test_missing_titles_are_dropped_on_request(tmp_path):
    (tmp_path / "interactions.csv").write_text("user_id,item_id,title\n1,a,A\n1,b,\n2,b,\n")
    with pytest.raises(BigrecError, match=r"interactions.csv:3: item 'b' has no title \(2 such interactions\)"):
        load_tabular(tmp_path / "interactions.csv", None)
    raw = load_tabular(tmp_path / "interactions.csv", None, drop_untitled=True)
    assert (raw.rows.tolist(), raw.dropped) == ([0], {"item without a title": 2})


def test_spaces_and_quotes_are_no_title(tmp_path):
    (tmp_path / "interactions.tsv").write_text('user_id\titem_id\ttitle\n1\ta\tA\n1\tb\t" "\n2\tc\t  \n2\td\t""\n')
    with pytest.raises(BigrecError, match=r"interactions.tsv:3: item 'b' has no title \(3 such interactions\)"):
        load_tabular(tmp_path / "interactions.tsv", None)
    raw = load_tabular(tmp_path / "interactions.tsv", None, drop_untitled=True)
    assert (raw.catalog.titles, raw.dropped) == (["A"], {"item without a title": 3})


def test_another_separator_and_encoding(tmp_path):
    (tmp_path / "log.txt").write_text("user_id|item_id|title\n1|a|Café\n", encoding="utf-16")
    raw = load_tabular(tmp_path / "log.txt", None, separator="|", encoding="utf-16")
    assert raw.catalog.titles == ["Café"]
    with pytest.raises(BigrecError, match=r"log\.txt:1: the header cannot be read .*--encoding"):
        load_tabular(tmp_path / "log.txt", None, separator="|")


def test_null_ids_in_parquet_name_the_row(tmp_path):
    write(ROWS.with_columns(user_id=pl.Series(["1", None, "2"])), tmp_path / "interactions.parquet")
    write(ITEMS, tmp_path / "items.csv")
    with pytest.raises(BigrecError, match=r"interactions.parquet: row 1: user_id is null"):
        load_tabular(tmp_path / "interactions.parquet", tmp_path / "items.csv")


# --- sequences --------------------------------------------------------------------------------------------------------


def sequences(folder, text, **options):
    (folder / "Games.item").write_text("item_id:token\ttitle:token_seq\n0\tZero\n1\tOne\n2\tTwo\n")
    (folder / "sequences.tsv").write_text(text)
    files = find_sequence_files(folder, None, None)
    return load_sequences(files["ratings"], files["items"], **options)


@pytest.mark.parametrize("header", ["", "user_id\titem_ids\n", "user_id:token\titem_ids:token_seq\n"])
def test_sequences_in_order_with_and_without_header(tmp_path, header):
    raw = sequences(tmp_path, header + "u1\t2 0 2\nu0\t1\nu1\t0\n")
    assert raw.user_ids.to_list() == ["u1", "u0"]
    assert raw.users.tolist() == [0, 0, 0, 1, 0]
    assert raw.rows.tolist() == [2, 0, 2, 1, 0]
    assert raw.times is None
    assert raw.raw_rows == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("user_id\titem_ids\nu\t0 1\nv\t0 7 1\n", r"sequences.tsv:3: item '7' has no title"),
        ("u\t0 1\nv\t \n", r"sequences.tsv:2: no item ids"),
        ("u\t0 1\nv\n", r"sequences.tsv:2: expected 2 fields"),
        ("u\t0 1\n\t1\n", r"sequences.tsv:2: the field user_id is empty"),
        ("", r"sequences.tsv: the file is empty"),
    ],
)
def test_faulty_sequences_name_the_line(tmp_path, text, message):
    with pytest.raises(BigrecError, match=message):
        sequences(tmp_path, text)


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("items.txt", "Zero\ta\nOne\tb\nTwo, a\tc\n"),
        ("info.txt", "<x_1>\tZero\ta\n<x_2>\tOne\tb\n<x_3>\tTwo, a\tc\n"),
        ("id2name.txt", "Two, a\t2\nZero\t0\nOne\t1\n"),
    ],
)
def test_sequences_with_titles_and_ids_need_no_preset(tmp_path, name, lines):
    (tmp_path / name).write_text(lines)
    ids = "b a c" if "\ta" in lines and name != "id2name.txt" else "1 0 2"
    (tmp_path / "sequences.txt").write_text(f"u\t{ids}\n")
    prepared = prepare_dataset("sequences", tmp_path, tmp_path / "set")
    assert pl.read_parquet(prepared / "data/items/train.parquet")["title"].to_list() == ["Zero", "One", "Two, a"]
    test = pl.read_parquet(prepared / "data/default/test.parquet")
    assert (test["history"].to_list(), test["target"].to_list()) == ([[1, 0]], [2])
    assert json.loads((prepared / "facts.json").read_text())["preset"] == "leave-one-out"


def test_unknown_items_are_dropped_on_request(tmp_path):
    raw = sequences(tmp_path, "u\t0 7 1\nv\t7\n", drop_untitled=True)
    assert (raw.rows.tolist(), raw.user_ids.to_list(), raw.dropped) == ([0, 1], ["u"], {"item without a title": 2})


def rows(separator: str, quote: bool) -> str:
    title = '"He said ""Hi""; ok"' if quote else "Hi"
    lines = [separator.join(["user", "item", "title", "time"])]
    lines += [
        separator.join([f"u{i % 3}", str(i % 5), title if i % 5 == 0 else f"B{i % 5}", str(i)]) for i in range(30)
    ]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_csv_file_may_quote_whatever_separates_it(tmp_path, separator):
    (tmp_path / "r.csv").write_text(rows(separator, True))
    data = load_tabular(tmp_path / "r.csv", None, separator=separator, timestamp_unit="s")
    assert data.catalog.titles[0] == 'He said "Hi"; ok'


def test_quotes_in_tab_separated_text_are_kept_and_said(tmp_path):
    (tmp_path / "r.tsv").write_text(rows("\t", True))
    data = load_tabular(tmp_path / "r.tsv", None, timestamp_unit="s")
    assert data.catalog.titles[0] == '"He said ""Hi""; ok"'
    assert data.facts["notes"]["titles in quotes, which are kept (name the file .csv if they only enclose fields)"] == 1


@pytest.mark.parametrize(("separator", "shown"), [(";", "';'"), ("\t", r"'\\t'"), ("|", r"'\|'")])
def test_the_separator_of_one_field_is_guessed_in_the_remedy(tmp_path, separator, shown):
    (tmp_path / "r.csv").write_text(rows(separator, False))
    with pytest.raises(BigrecError, match=f"holds one field, .*: give --separator {shown}"):
        load_tabular(tmp_path / "r.csv", None)


def test_repeated_rows_are_counted(tmp_path):
    text = rows(",", False)
    (tmp_path / "r.csv").write_text(text + text.split("\n", 1)[1])
    data = load_tabular(tmp_path / "r.csv", None, timestamp_unit="s")
    assert data.facts["notes"]["rows that repeat user, item, time (kept)"] == 30


def test_a_column_with_spaces_is_quoted_in_the_flag_that_is_suggested(tmp_path):
    (tmp_path / "r.csv").write_text("user,item,title,day read\na,1,Emma,2024-01-01\n")
    described = load_tabular(tmp_path / "r.csv", None).facts["columns"]
    assert "(--timestamp_column 'day read' if that holds times)" in described["time"]
