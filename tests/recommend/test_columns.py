"""Tables of histories: columns found by their names, both layouts, orders, and what is refused."""

from __future__ import annotations

import json
from collections import Counter

import pandas as pd
import polars as pl
import pytest

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.data.user_tables import as_polars, read_user_table
from bigrec_hf.recommend.columns import ColumnNames, histories_of
from bigrec_hf.recommend.mixes import Histories
from bigrec_hf.recommend.users import Users, describe_unknown, match_items, read_names, why_unknown

NONE = ColumnNames()
LONG = {"userId": ["b", "a", "b", "a"], "book": ["x", "y", "z", "w"]}


def read(frame, named=NONE, **options):
    users, items, titled = histories_of(frame, named, "the table", **options)
    return users.to_list(), items, titled


@pytest.mark.parametrize(
    ("frame", "named", "expected"),
    [
        ({"user": [2, 1], "history": [["x", "y"], []]}, NONE, ([2, 1], [["x", "y"], []], False)),
        ({"uid": ["u"], "titles": ['["a, b", "c"]']}, NONE, (["u"], [["a, b", "c"]], True)),
        ({"user": ["u", "v"], "history": ["a|b ", None]}, NONE, (["u", "v"], [["a|b"], []], False)),
        ({"user": ["u"], "liked": [["a"]], "n": [3]}, NONE, (["u"], [["a"]], False)),
        (LONG, ColumnNames(item="book"), (["b", "a"], [["x", "z"], ["y", "w"]], False)),
        (
            LONG | {"when": ["9", "10", "8", "10"]},
            ColumnNames(item="book"),
            (["b", "a"], [["z", "x"], ["y", "w"]], False),
        ),
        (
            {"who": ["a", "a"], "title": ["x", "y"], "seen": ["2024-03-01T10:00:00Z", "2024-02-28"]},
            ColumnNames(user="who", time="seen"),
            (["a"], [["y", "x"]], True),
        ),
        (
            {"user": ["a", "a"], "item": [7, 5], "date": pd.to_datetime(["2024-02-01", "2024-01-01"])},
            NONE,
            (["a"], [["5", "7"]], False),
        ),
        (  # as pandas has ids in a column with gaps
            {"user": ["a", "a"], "item": [7.0, 5.0]},
            NONE,
            (["a"], [["7", "5"]], False),
        ),
        (  # zones as `prepare` reads them: 10:00+02:00 is 08:00
            {"user": ["a", "a"], "item": ["x", "y"], "time": ["2024-01-01T09:00:00Z", "2024-01-01T10:00:00+02:00"]},
            NONE,
            (["a"], [["y", "x"]], False),
        ),
    ],
)
def test_layouts_by_hand(frame, named, expected):
    assert read(pl.DataFrame(frame), named) == expected


def test_texts_are_cut_at_a_given_separator_only():
    frame = pl.DataFrame({"user": ["u", "v"], "history": ["a|b ", None]})
    assert read(frame, separator="|")[1] == [["a", "b"], []]
    assert read(frame, separator=";")[1] == [["a|b"], []]


def test_files_and_frames_of_every_kind_are_read_alike(tmp_path):
    frame = pl.DataFrame({"user": ["b", "a", "b"], "item": ["x, y", "y", 'z "w"'], "time": [2, 1, 1]})
    frame.write_csv(tmp_path / "f.csv")
    frame.write_csv(tmp_path / "f.tsv", separator="\t")
    frame.write_ndjson(tmp_path / "f.jsonl")
    frame.write_parquet(tmp_path / "f.parquet")
    expected = (["b", "a"], [['z "w"', "x, y"], ["y"]], False)
    for name in ("f.csv", "f.tsv", "f.jsonl", "f.parquet"):
        assert read(read_user_table(tmp_path / name)) == expected, name
    for given in (frame, frame.lazy(), frame.to_pandas(), frame.to_arrow()):
        assert read(as_polars(given)) == expected


@pytest.mark.parametrize(
    ("frame", "named", "message"),
    [
        ({"a": ["u"], "b": ["x"]}, NONE, "the table has the columns a, b, and which one holds the users is not clear"),
        ({"user": ["u"], "b": ["x"]}, NONE, "holds the items is not clear: name it with --item_column"),
        ({"user": ["u"], "b": ["x"]}, ColumnNames(item="c"), "no column 'c' among b: check --item_column"),
        ({"user": ["u"], "item": ["x"]}, ColumnNames(time="c"), "no column 'c' .* check --time_column"),
        ({"user": ["u", None], "item": ["x", "y"]}, NONE, "row 1: user is missing"),
        ({"user": ["u", "v"], "item": ["x", None]}, NONE, "row 1: item is missing"),
        ({"user": ["u", "u"], "history": [["x"], ["y"]]}, NONE, "the user 'u' has two histories"),
        (
            {"user": ["u"], "item": ["x"], "date": ["yesterday"]},
            NONE,
            "row 0: date is 'yesterday', neither a number nor",
        ),
        ({"user": ["u"] * 3, "item": ["x"] * 3, "time": ["2020", "1", "5/6/2020"]}, NONE, "row 2: time is '5/6/2020'"),
    ],
)
def test_tables_that_are_refused(frame, named, message):
    with pytest.raises(BigrecError, match=message):
        read(pl.DataFrame(frame), named)


def test_files_that_are_refused(tmp_path):
    (tmp_path / "bad.parquet").write_text("no")
    (tmp_path / "semicolons.csv").write_text("user;title\na;b\n")
    (tmp_path / "latin.csv").write_bytes("user,title\na,é\n".encode("latin-1"))
    (tmp_path / "ragged.csv").write_text('user,title\na,"b\nc"\nd,e,f\n')
    for name, message in (
        ("x.xlsx", "is not a table"),
        ("x.csv", "does not exist: give a file of histories"),
        ("bad.parquet", "cannot be read as"),
        ("semicolons.csv", "the header is one field, 'user;title': separate the columns by commas, not ';'"),
        ("latin.csv", "is not UTF-8: save it as UTF-8"),
        ("ragged.csv", r"line 4 has 3 fields, the header 2\): fix the file"),
    ):
        with pytest.raises(BigrecError, match=message):
            read_user_table(tmp_path / name, "histories")
    with pytest.raises(BigrecError, match=r"cannot read histories \(.*\): give each column one type, ids as text"):
        as_polars(pd.DataFrame({"user": ["a", 1]}))
    with pytest.raises(BigrecError, match="does not exist: give a file of items"):
        read_names(tmp_path / "none.csv", "item")
    with pytest.raises(BigrecError, match="cannot read histories from dict"):
        as_polars({"user": [1]})
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(BigrecError, match="is empty: give at least one user"):
        read_names(tmp_path / "empty.txt", "user")


@pytest.mark.parametrize("missing", ["user", "title", "time"])
def test_nan_is_a_missing_value(missing, tmp_path):
    columns = {"user": [1.0, 2.0], "title": [3.0, 4.0], "time": [5.0, 6.0]}
    columns[missing] = [columns[missing][0], float("nan")]
    frame = pl.DataFrame(columns)
    frame.write_parquet(tmp_path / "f.parquet")
    for given in (as_polars(frame), as_polars(frame.to_pandas()), read_user_table(tmp_path / "f.parquet")):
        with pytest.raises(BigrecError, match=f"row 1: {missing} is (missing|None)"):
            read(given)


CATALOG = Catalog(["1", "2", "3"], ["Emma (1815)", "Persuasion", "2"])


@pytest.mark.parametrize("ids", [["a", "ü'\n", ""], [3, 1, 2]])
def test_users_travel_between_processes_unchanged(ids):
    users = Users(pl.Series(ids), Histories([["Emma", "x"], [], ["\u2603"]], [[0, -1], [], [1]]), Counter({"x": 1}))
    found = Users.from_arrow(users.to_arrow())
    assert found.ids.equals(users.ids) and found.ids.dtype == users.ids.dtype
    assert found.histories == users.histories


def test_items_are_matched_as_what_most_of_them_are():
    users, kind = match_items(pl.Series(["a", "b"]), [["1", "3", "9"], ["8"]], CATALOG, "auto")
    assert kind == "ids"
    assert users.histories.titles == [["Emma (1815)", "2"], []] and users.histories.rows == [[0, 2], []]
    assert users.unknown == {"9": 1, "8": 1} and users.without_known.tolist() == [False, True]
    users, kind = match_items(pl.Series(["a"]), [["Persuasion", "Emma", "2", "Emma"]], CATALOG, "auto")
    assert kind == "titles"  # "2" is both: the id of Persuasion, and a title
    assert users.histories.titles == [["Persuasion", "Emma", "2", "Emma"]] and users.histories.rows == [[1, -1, 2, -1]]
    assert describe_unknown(users, CATALOG, kind) == [
        "2 history entries (1 titles) are not in the catalog: only the language model reads them",
        "  'Emma', 2 times; did you mean 'Emma (1815)'?",
    ]
    assert match_items(pl.Series(["a"]), [["2"]], CATALOG, "ids")[0].histories.rows == [[1]]


def test_names_from_files(tmp_path):
    (tmp_path / "a.txt").write_text("u1\nu 2\n\nu1\n")
    (tmp_path / "b.csv").write_text("n,user_id\n1,u1\n2,u 2\n")
    (tmp_path / "c.csv").write_text("whoever\nu1\nu 2\n")
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps({"title": name}) for name in ("u1", "u 2")))
    assert [read_names(tmp_path / name, "user") for name in ("a.txt", "b.csv", "c.csv", "d.jsonl")] == [
        ["u1", "u 2"]
    ] * 4


@pytest.mark.parametrize(
    ("items", "kind", "cause"),
    [
        ([["1", "2"]], "titles", "they hold ids such as '1': read them so with --items_are ids"),
        ([["Emma"]], "ids", "they hold titles such as 'Emma': read them so with --items_are titles"),
        ([["01", "02"]], "ids", "ids such as '01' have lost or gained zeros"),
        ([["1.0"]], "ids", "ids such as '1.0' have lost or gained zeros"),
        ([["Hamlet"]], "titles", "they hold 'Hamlet', the catalog 'Emma' (id '1'): check --item_column"),
        ([[], []], "titles", "all histories are empty"),
    ],
)
def test_the_likely_cause_of_histories_without_a_known_item(items, kind, cause):
    users, _ = match_items(pl.Series("user", range(len(items))), items, Catalog(["1", "2"], ["Emma", "Dracula"]), kind)
    assert users.without_known.all()
    (line,) = why_unknown(users, Catalog(["1", "2"], ["Emma", "Dracula"]), kind).splitlines()
    assert line.startswith("NO USER HAS A KNOWN TITLE") and cause in line
