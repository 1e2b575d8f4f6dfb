"""Any table of interactions: CSV, TSV, JSON lines or parquet; titles in the same or another file.

Files named .csv may quote fields; in others, tab-separated ones above all, quotes are part of the text, as titles
contain them.
"""

from __future__ import annotations

import ast
import csv
import re
import shlex
from pathlib import Path

import numpy as np
import polars as pl

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_table, readable
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.data.user_tables import as_text
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.prepare.sources.base import (
    RawData,
    encode_items,
    encode_users,
    require_folder,
    untitled_mask,
    with_title,
)
from bigrec_hf.prepare.sources.columns import (
    ColumnNames,
    Columns,
    find,
    interaction_columns,
    item_columns,
    possible_times,
)
from bigrec_hf.prepare.sources.delimited import STRING, read_delimited, read_header
from bigrec_hf.prepare.sources.json_lines import first_object, read_json_lines
from bigrec_hf.prepare.sources.times import numbers_of, place_of, times_of, years_text

WINDOW = re.compile("hist|seq|item|title", re.IGNORECASE)  # names of columns that hold one item an interaction
USUAL_STEMS = ("interactions", "ratings")  # of the names of tables
PACKED = {  # first bytes of files that are no text, and what to do with them
    b"\x1f\x8b": "a gzip file: unpack it",
    b"PK\x03\x04": "a zip file or a spreadsheet: save it as CSV",
}
ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".jsonl.gz", ".json", ".parquet")


def find_tabular_files(raw_dir: Path | None, ratings: Path | None, items: Path | None) -> dict[str, Path]:
    """`interactions.*` or `ratings.*`, and `items.*` or `movies.*` if there is one, unless given explicitly.

    Under other names, the only table in the folder, or of two tables the one with a column of users, is taken for the
    interactions. Raises BigrecError if that is not clear.
    """
    if ratings is None:
        folder = require_folder(raw_dir)
        tables = sorted(file for file in folder.iterdir() if file.name.endswith(ENDINGS) and file.is_file())
        tables = [file for file in tables if file != items]
        named = [file for file in tables if file.name.split(".")[0] in USUAL_STEMS]
        with_users = [file for file in named or tables if find(_column_names(file, None, None), "user")]
        found = named if len(named) == 1 else with_users if len(with_users) == 1 else tables
        if len(found) != 1:
            listed = ", ".join(file.name for file in tables) or "no table"
            raise BigrecError(
                f"{folder}: expected one table of interactions (interactions.csv, ratings.csv, ...), found {listed}: "
                "give it with --ratings_file"
            )
        ratings = found[0]
        rest = [file for file in tables if file != ratings]
        if items is None and not named and len(rest) == 1:
            items = rest[0]
    if items is None:
        folder = raw_dir or ratings.parent
        usual = [folder / (stem + ending) for stem in ("items", "movies") for ending in ENDINGS]
        items = next((file for file in usual if file.is_file()), None)
    return {"ratings": ratings} if items is None else {"ratings": ratings, "items": items}


def load_tabular(
    ratings: Path,
    items: Path | None,
    *,
    named: ColumnNames = ColumnNames(),  # noqa: B008  (frozen)
    timestamp_unit: str | None = None,
    separator: str | None = None,
    encoding: str | None = None,
    drop_untitled: bool = False,
) -> RawData:
    """Read a table of interactions; without `items`, its own titles count.

    Columns that are not `named` are found by their usual names (`columns.find`). Times may be numbers (their unit is
    told by their size unless given) or ISO dates; without a column of times the file's order is used. Raises
    BigrecError for a missing column, an empty or unreadable field, an item id that occurs twice in `items`, times that
    are implausible in every unit, or an item without a title (unless `drop_untitled`).
    """
    names = _column_names(ratings, separator, encoding)
    first = _first_row(ratings, separator, encoding)
    _refuse_windows(ratings, first)
    columns = interaction_columns(names, named, items is None, str(ratings))
    required = [name for name in columns.wanted if name != columns.title]
    frame, first_line = _read_table(ratings, names, columns.wanted, required, separator, encoding)
    n_raw = frame.height
    ids = frame[columns.item]
    conflicts = 0
    if items is None:
        assert columns.title is not None
        both = frame.select(pl.col(columns.item).alias("id"), pl.col(columns.title).alias("title"))
        titled = with_title(both, "title")
        distinct = titled.unique("id", keep="first", maintain_order=True)
        conflicts = titled.unique().height - distinct.height
        catalog = Catalog(distinct["id"].to_list(), distinct["title"].to_list())
        item_names: dict[str, str] = {}
    else:
        catalog, item_names = _read_items(items, named, separator, encoding)
    rows = encode_items(ids, catalog)
    missing = untitled_mask(rows, ids, ratings, first_line, drop_untitled)
    ratings_of = None if columns.rating is None else numbers_of(frame[columns.rating], ratings, first_line)
    times, divisor = None, 1
    if columns.timestamp is not None:
        times, divisor = times_of(frame[columns.timestamp], timestamp_unit, ratings, first_line)
    user_ids, users = encode_users(frame[columns.user].filter(~missing))
    notes: dict[str, object] = {"items with more than one title (the first is used)": conflicts} if conflicts else {}
    wrapped = sum(len(title) > 1 and title[0] == title[-1] == '"' for title in catalog.titles)
    if wrapped and not _quotes(ratings if items is None else items, separator or "\t"):
        notes["titles in quotes, which are kept (name the file .csv if they only enclose fields)"] = wrapped
    keys = [columns.user, columns.item, *([columns.timestamp] if columns.timestamp is not None else [])]
    repeated = frame.height - frame.select(keys).n_unique()
    if repeated:
        notes[f"rows that repeat {', '.join(keys)} (kept)"] = repeated
    unused = possible_times(first, columns)
    if unused:
        notes["columns that may hold times, not used"] = ", ".join(unused)
    return RawData(
        catalog=catalog,
        user_ids=user_ids,
        users=users,
        rows=rows[~missing],
        ratings=None if ratings_of is None else ratings_of[~missing].astype(np.float32),
        times=None if times is None else times[~missing],
        raw_rows=n_raw,
        files=[ratings] if items is None else [ratings, items],
        time_divisor=divisor,
        dropped={"item without a title": int(missing.sum())},
        facts={
            "encoding": encoding or "utf-8",
            "columns": _described(columns, item_names, times, divisor, unused),
            "notes": notes,
            "licence": {"name": "Terms of the source: not recorded in its files", "redistribution": "unknown"},
        },
    )


def _first_row(path: Path, separator: str | None, encoding: str | None) -> dict[str, object]:
    """Column -> value of the first row."""
    if path.suffix == ".parquet":
        with readable(path, "write it again"):
            return next(pl.read_parquet(path, n_rows=1).iter_rows(named=True), {})
    if _is_json(path):
        return dict(first_object(path, encoding))
    with path.open(encoding=encoding or "utf-8", errors="replace", newline="") as file:
        reader = csv.DictReader(file, delimiter=_separator(path, separator))
        return {str(name): value for name, value in next(reader, {}).items()}


def _refuse_windows(path: Path, first: dict[str, object]) -> None:
    """Raise BigrecError for a table whose histories are lists: each row is an example, not an interaction."""
    lists = [name for name, value in first.items() if WINDOW.search(name) and _is_list(value)]
    if lists:
        raise BigrecError(
            f"{path}: the column {lists[0]} holds lists: the rows are histories with their targets, not interactions: "
            "use --source windows --raw_dir DIR, where DIR holds train, valid, test and info"
        )


def _is_list(value: object) -> bool:
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return False
    return isinstance(value, list)


def _described(
    columns: Columns, item_names: dict[str, str], times: np.ndarray | None, divisor: int, unused: list[str]
) -> dict[str, str]:
    """What each column is taken for, in words."""
    found = {"user": columns.user, "item": columns.item, "title": columns.title, "rating": columns.rating}
    described = {role: name for role, name in found.items() if name is not None} | item_names
    if times is not None:
        rest = f", not {' or '.join(unused)}" if unused else ""
        described["time"] = f"{columns.timestamp} ({years_text(times, divisor)}){rest}"
    elif unused:
        flag = f"--timestamp_column {shlex.quote(unused[0])}"
        described["time"] = f"none, the order of the rows counts ({flag} if that holds times)"
    else:
        described["time"] = "none, the order of the rows counts"
    return described


def _is_json(path: Path) -> bool:
    return any(path.name.endswith(ending) for ending in (".json", ".jsonl", ".json.gz", ".jsonl.gz"))


def _separator(path: Path, separator: str | None) -> str:
    cut = (separator or ("," if path.suffix == ".csv" else "\t")).replace("\\t", "\t")
    if len(cut.encode()) != 1:
        raise BigrecError(f"separator is {separator!r}: give a single character")
    return cut


def _quotes(path: Path, cut: str) -> bool:
    return cut in ",;" or path.suffix == ".csv"


def _schema(path: Path) -> pl.Schema:
    with readable(path, "write it again"):
        return pl.Schema(pl.read_parquet_schema(path))


def _column_names(path: Path, separator: str | None, encoding: str | None) -> list[str]:
    if path.suffix == ".parquet":
        return list(_schema(path))
    if _is_json(path):
        return list(first_object(path, encoding))
    with readable(path, "check its name and permissions"), path.open("rb") as file:
        first = file.read(4)
    kind = next((what for start, what in PACKED.items() if first.startswith(start)), None)
    if kind is not None:
        raise BigrecError(f"{path}: this is {kind}")
    cut = _separator(path, separator)
    names = read_header(path, cut, encoding or "utf-8")
    other = next((sign for sign in (";", "\t", ",", "|") if len(names) == 1 and sign in names[0]), None)
    if other is not None:
        shown = "'\\t'" if other == "\t" else f"'{other}'"
        raise BigrecError(f"{path}: the first line holds one field, {names[0]!r}: give --separator {shown}")
    return names


def _read_table(
    path: Path, names: list[str], wanted: list[str], required: list[str], separator: str | None, encoding: str | None
) -> tuple[pl.DataFrame, int | None]:
    """The `wanted` columns as text (parquet: as typed, ids as text), and the line of the first row (None: no lines)."""
    if path.suffix == ".parquet":
        frame = pl.DataFrame(read_table(path, wanted, remedy="write it again"))
        for name in required:
            if frame[name].null_count():
                row = int(frame[name].is_null().arg_max() or 0)
                raise BigrecError(f"{path}: row {row}: {name} is null: fix or remove the row")
        if frame.height == 0:
            raise BigrecError(f"{path}: the file contains no rows: write it again")
        texts = [as_text(frame[name]) for name in wanted if not frame[name].dtype.is_temporal()]
        return frame.with_columns(texts), None
    if _is_json(path):
        return read_json_lines(path, dict.fromkeys(wanted, STRING), tuple(required), encoding), None
    cut = _separator(path, separator)
    columns = dict.fromkeys(names, STRING)
    if len(columns) != len(names):
        raise BigrecError(f"{path}:1: a column name occurs twice in {', '.join(names)}: rename one")
    frame = read_delimited(
        path,
        cut,
        columns,
        required,
        header=True,
        quotes=_quotes(path, cut),
        encoding=encoding or "utf-8",
        optional=wanted,
    )
    return frame, 2


def _read_items(
    path: Path, named: ColumnNames, separator: str | None, encoding: str | None
) -> tuple[Catalog, dict[str, str]]:
    """The items, and what their columns are taken for."""
    names = _column_names(path, separator, encoding)
    item, title = item_columns(names, named, str(path))
    frame, first_line = _read_table(path, names, [item, title], [item, title], separator, encoding)
    twice = frame[item].is_duplicated()
    if twice.any():
        at = int((~frame[item].is_first_distinct()).arg_max() or 0)
        raise BigrecError(
            f"{place_of(path, first_line, at)}: item id {frame[item][at]!r} occurs twice: remove one of the two"
        )
    titles = frame[title].to_list()
    untitled = next((row for row, text in enumerate(titles) if not clean_title(text)), None)
    if untitled is not None:
        raise BigrecError(
            f"{place_of(path, first_line, untitled)}: item {frame[item][untitled]!r} has no title: give it one or "
            "remove the line"
        )
    described = {"title": f"{title} of {path.name}", f"item of {path.name}": item}
    return Catalog(frame[item].to_list(), titles), described
