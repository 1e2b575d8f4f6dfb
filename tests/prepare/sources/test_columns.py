"""A user's own table in one attempt: columns by their usual names, units of times, what is missing."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.prepare.sources.columns import ColumnNames
from bigrec_hf.prepare.sources.tabular import find_tabular_files, load_tabular
from bigrec_hf.prepare.sources.times import UNITS, time_divisor, times_of
from bigrec_hf.prepare.stage import prepare_dataset

SECONDS = [1_500_000_000, 1_500_086_400, 1_600_000_000]


def table(path, header, rows):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


@pytest.mark.parametrize(
    "header",
    [
        "user_id,item_id,title,rating,timestamp",
        "userId,movieId,Title,Rating,time",
        "reviewerID,asin,name,overall,unixReviewTime",
        "User,Item,Item Title,Stars,when",
        "uid,ISBN,Book-Title,score,date",
        "customer,product,product_name,star_rating,created_at",
    ],
)
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns", "iso"])
def test_usual_names_and_units_are_found(tmp_path, header, unit):
    stamps = ["2017-07-14T02:40:00Z", "2017-07-15 02:40:00", "2020-09-13T14:26:40+02:00"]
    times = stamps if unit == "iso" else [seconds * UNITS[unit] for seconds in SECONDS]
    rows = [f"u,{item},T{item},{item}.5,{time}" for item, time in zip((3, 1, 2), times, strict=True)]
    raw = load_tabular(table(tmp_path / "log.csv", header, rows), None)
    assert (raw.times // raw.time_divisor).tolist() == SECONDS
    assert raw.catalog.titles == ["T3", "T1", "T2"]
    assert raw.ratings.tolist() == [3.5, 1.5, 2.5]
    assert raw.facts["columns"]["time"] == f"{header.split(',')[-1]} (2017 to 2020)"


def test_all_that_is_missing_is_named_together_with_the_likeliest_match(tmp_path):
    file = table(tmp_path / "log.csv", "reader,volume_id,label,points,when_read", ["a,1,A,5,2020-01-01"])
    with pytest.raises(BigrecError) as caught:
        load_tabular(file, None)
    message = str(caught.value)
    assert "no column for the user, the item and the title among reader, volume_id, label, points, when_read" in message
    for flag in ("--user_column", "--item_column", "--title_column", "--items_file"):
        assert flag in message
    assert "\n" not in message
    named = ColumnNames("reader", "volume_id", "label", timestamp="whn_read")
    with pytest.raises(BigrecError, match=r"'whn_read' \(--timestamp_column\) among .*--timestamp_column when_read"):
        load_tabular(file, None, named=named)
    file = table(tmp_path / "log.csv", "user_name,item_id,title", ["a,1,A"])
    with pytest.raises(BigrecError, match=r"no column for the user among .*: give --user_column user_name$"):
        load_tabular(file, None)


def test_a_name_with_a_space_is_quoted(tmp_path):
    file = table(tmp_path / "log.csv", "user,The title,when", ["u,A,2020-01-01"])
    with pytest.raises(BigrecError, match=r"--title_column 'The title'"):
        load_tabular(file, None)


@pytest.mark.parametrize(("column", "value"), [("purchase_date", "7"), ("t", "2020-01-01")])
def test_a_time_column_is_never_ignored_silently(tmp_path, capsys, column, value):
    rows = [f"u,{item},{value}" for item in "abc"]
    table(tmp_path / "ratings.csv", f"user,title,{column}", rows)
    prepared = prepare_dataset("tabular", tmp_path, tmp_path / "set")
    said = f"time = none, the order of the rows counts (--timestamp_column {column} if that holds times)"
    assert said in capsys.readouterr().out
    notes = json.loads((prepared / "facts.json").read_text())["notes"]
    assert notes["columns that may hold times, not used"] == column


def test_of_two_time_columns_the_other_is_named(tmp_path, capsys):
    rows = [f"u,{item},2020-01-01,{time}" for item, time in zip("abc", SECONDS, strict=True)]
    table(tmp_path / "ratings.csv", "user,title,date,timestamp", rows)
    prepared = prepare_dataset("tabular", tmp_path, tmp_path / "set")
    assert "time = timestamp (2017 to 2020), not date" in capsys.readouterr().out
    notes = json.loads((prepared / "facts.json").read_text())["notes"]
    assert notes["columns that may hold times, not used"] == "date"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv.gz", b"\x1f\x8b\x08\x00", "this is a gzip file: unpack it"),
        ("x.csv", b"PK\x03\x04\x00", "this is a zip file or a spreadsheet: save it as CSV"),
        ("x.json", b'[{"user": 1}]', "x.json:1: the file holds a JSON array: write one object per line instead"),
        ("x.csv", b"user,title\nu,A\nv,B\n", "none of 2 users .*: give more interactions, and check --user_column"),
    ],
)
def test_files_of_another_kind_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BigrecError, match=message):
        prepare_dataset("tabular", None, tmp_path / "set", ratings_file=str(tmp_path / name))


@pytest.mark.parametrize(("file", "name"), [("books.csv", "books"), ("ratings.csv", "shop"), ("loans.v2.tsv", "loans")])
def test_a_set_is_named_after_its_table(tmp_path, file, name):
    (tmp_path / "shop").mkdir()
    separator = "\t" if file.endswith(".tsv") else ","
    lines = [separator.join(fields) for fields in (("user", "title"), *(("u", title) for title in "ABC"))]
    (tmp_path / "shop" / file).write_text("\n".join(lines) + "\n")
    prepared = prepare_dataset("tabular", None, tmp_path / "set", ratings_file=str(tmp_path / "shop" / file))
    assert json.loads((prepared / "facts.json").read_text())["name"] == name


def test_what_the_columns_are_taken_for_is_printed(tmp_path, capsys):
    rows = [f"u,{item},{time}" for item, time in zip("abc", SECONDS, strict=True)]
    table(tmp_path / "ratings.csv", "user,book,when", rows)
    table(tmp_path / "items.csv", "id,name", ["a,A", "b,B", "c,C"])
    prepare_dataset("tabular", tmp_path, tmp_path / "set")
    said = "columns: user = user, item = book, title = name of items.csv, item of items.csv = id, "
    assert said + "time = when (2017 to 2020)" in capsys.readouterr().out


def test_without_ids_the_titles_are_the_items(tmp_path):
    raw = load_tabular(table(tmp_path / "log.csv", "user,title", ["u,B", "u,A", "v,B"]), None)
    assert (raw.catalog.item_ids, raw.catalog.titles, raw.rows.tolist()) == (["B", "A"], ["B", "A"], [0, 1, 0])


def test_the_table_with_users_is_found_under_any_name(tmp_path):
    books = table(tmp_path / "books.csv", "isbn,title", ["1,A"])
    loans = table(tmp_path / "loans.csv", "reader_id,user,isbn", ["x,u,1"])
    assert find_tabular_files(tmp_path, None, None) == {"ratings": loans, "items": books}
    assert find_tabular_files(tmp_path, None, books) == {"ratings": loans, "items": books}
    table(tmp_path / "more.csv", "user,isbn", ["u,1"])
    with pytest.raises(BigrecError, match=r"found books.csv, loans.csv, more.csv: give it with --ratings_file"):
        find_tabular_files(tmp_path, None, None)
    ratings = table(tmp_path / "ratings.csv", "user,isbn", ["u,1"])
    assert find_tabular_files(tmp_path, None, None)["ratings"] == ratings


def test_whole_numbers_stored_as_floats_are_ids_without_a_point(tmp_path):
    frame = pl.DataFrame({"user": [1.0, 2.0], "item": [7, 8], "title": ["A", "B"], "date": [None, None]})
    frame.drop("date").write_parquet(tmp_path / "log.parquet")
    raw = load_tabular(tmp_path / "log.parquet", None)
    assert (raw.user_ids.to_list(), raw.catalog.item_ids) == (["1", "2"], ["7", "8"])


@pytest.mark.parametrize("times", [[1, 2, 3], [20_200_101, 20_200_102], [0, 1_500_000_000], [5e17, 9e18]])
def test_implausible_times_are_refused_unless_their_unit_is_given(tmp_path, times):
    values = pl.Series("when", times)
    with pytest.raises(BigrecError, match=r"when runs from .*1990 and 2100: .*--timestamp_unit"):
        times_of(values, None, tmp_path / "x.csv", 2)
    assert times_of(values, "ms", tmp_path / "x.csv", 2)[1] == 1000


@given(st.integers(631_152_000, 4_102_444_799), st.sampled_from(list(UNITS)))
def test_every_plausible_time_has_one_unit(seconds, unit):
    times = np.array([seconds * UNITS[unit]], np.int64)
    assert time_divisor(times, None, "t", "x") == UNITS[unit]
