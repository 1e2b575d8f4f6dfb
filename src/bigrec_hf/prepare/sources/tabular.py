"""Any table of interactions: CSV, TSV, JSON lines or parquet, with named columns; titles in the same or another file.

Comma-separated files may quote fields; with other separators, quotes are part of the text, as titles contain them.
"""

from __future__ import annotations

import ast
import csv
import re
from pathlib import Path

import numpy as np
import polars as pl

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.prepare.sources.base import (
    RawData,
    encode_items,
    encode_users,
    find_file,
    require_folder,
    untitled_mask,
    whole_times,
    with_title,
)
from bigrec_hf.prepare.sources.delimited import STRING, read_delimited, read_header
from bigrec_hf.prepare.sources.json_lines import first_object, read_json_lines

WINDOW = re.compile("hist|seq|item|title", re.IGNORECASE)  # names of columns that hold one item an interaction
ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".jsonl.gz", ".json", ".parquet")


def find_tabular_files(raw_dir: Path | None, ratings: Path | None, items: Path | None) -> dict[str, Path]:
    """`interactions.*` or `ratings.*`, and `items.*` or `movies.*` if there is one, unless given explicitly."""
    if ratings is None:
        names = tuple(stem + ending for stem in ("interactions", "ratings") for ending in ENDINGS)
        ratings = find_file(require_folder(raw_dir), names, "interactions file", "--ratings_file")
    if items is None:
        folder = raw_dir or ratings.parent
        found = [folder / (stem + ending) for stem in ("items", "movies") for ending in ENDINGS]
        items = next((file for file in found if file.is_file()), None)
    return {"ratings": ratings} if items is None else {"ratings": ratings, "items": items}


def load_tabular(
    ratings: Path,
    items: Path | None,
    *,
    user_column: str = "user_id",
    item_column: str = "item_id",
    title_column: str = "title",
    rating_column: str | None = None,
    timestamp_column: str | None = None,
    timestamp_unit: str = "s",
    separator: str | None = None,
    encoding: str | None = None,
    drop_untitled: bool = False,
) -> RawData:
    """Read a table of interactions. Without `items`, titles come from `title_column` of the interactions themselves.

    Times may be numbers (`timestamp_unit`) or ISO dates; without a time column the file's order is used. Raises
    BigrecError for a missing column, an empty or unreadable field, an item id that occurs twice in `items`, or an item
    without a title (unless `drop_untitled`).
    """
    names = _column_names(ratings, separator, encoding)
    _refuse_windows(ratings, separator, encoding)
    rating = _optional_column(rating_column, "rating", names, ratings)
    timestamp = _optional_column(timestamp_column, "timestamp", names, ratings)
    own_titles = items is None
    wanted = [user_column, item_column, *([title_column] if own_titles else []), *filter(None, (rating, timestamp))]
    for name in wanted:
        if name not in names:
            remedy = (
                "give --items_file"
                if name == title_column
                else f"give its name, e.g. with --{_setting_of(name, wanted)}_column"
            )
            raise BigrecError(f"{ratings}: no column {name!r} among {', '.join(names)}: {remedy}")
    required = [name for name in wanted if name != title_column]
    frame, first_line = _read_table(ratings, names, wanted, required, separator, encoding)
    n_raw = frame.height
    ids = frame[item_column]
    conflicts = 0
    if own_titles:
        titled = with_title(frame.select(item_column, title_column), title_column)
        distinct = titled.unique(item_column, keep="first", maintain_order=True)
        conflicts = titled.unique().height - distinct.height
        catalog = Catalog(distinct[item_column].to_list(), distinct[title_column].to_list())
    else:
        assert items is not None
        catalog = _read_items(items, item_column, title_column, separator, encoding)
    rows = encode_items(ids, catalog)
    missing = untitled_mask(rows, ids, ratings, first_line, drop_untitled)
    ratings_of = None if rating is None else _numbers(frame[rating], ratings, first_line)
    times = None
    if timestamp is not None:
        divisor = 1000 if timestamp_unit == "ms" else 1
        times = _times(frame[timestamp], divisor, ratings, first_line)
    user_ids, users = encode_users(frame[user_column].filter(~missing))
    return RawData(
        catalog=catalog,
        user_ids=user_ids,
        users=users,
        rows=rows[~missing],
        ratings=None if ratings_of is None else ratings_of[~missing].astype(np.float32),
        times=None if times is None else times[~missing],
        raw_rows=n_raw,
        files=[ratings] if items is None else [ratings, items],
        time_divisor=1000 if timestamp_unit == "ms" else 1,
        dropped={"item without a title": int(missing.sum())},
        facts={
            "encoding": encoding or "utf-8",
            "notes": {"items with more than one title (the first is used)": conflicts} if conflicts else {},
            "licence": {"name": "Terms of the source: not recorded in its files", "redistribution": "unknown"},
        },
    )


def _refuse_windows(path: Path, separator: str | None, encoding: str | None) -> None:
    """Raise BigrecError for a table whose histories are lists: each row is an example, not an interaction."""
    if path.suffix == ".parquet":
        first: dict[str, object] = {
            name: [] for name, kind in pl.read_parquet_schema(path).items() if isinstance(kind, pl.List)
        }
    elif _is_json(path):
        first = first_object(path, encoding)
    else:
        with path.open(encoding=encoding or "utf-8", errors="replace", newline="") as file:
            reader = csv.DictReader(file, delimiter=_separator(path, separator))
            first = dict(next(reader, {}))
    lists = [name for name, value in first.items() if WINDOW.search(str(name)) and _is_list(value)]
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


def _setting_of(name: str, wanted: list[str]) -> str:
    return ("user", "item")[wanted.index(name)] if wanted.index(name) < 2 else "title"


def _optional_column(given: str | None, usual: str, names: list[str], path: Path) -> str | None:
    if given is not None and given not in names:
        raise BigrecError(f"{path}: no column {given!r} among {', '.join(names)}: check --{usual}_column")
    return given or (usual if usual in names else None)


def _is_json(path: Path) -> bool:
    return any(path.name.endswith(ending) for ending in (".json", ".jsonl", ".json.gz", ".jsonl.gz"))


def _separator(path: Path, separator: str | None) -> str:
    cut = (separator or ("," if path.suffix == ".csv" else "\t")).replace("\\t", "\t")
    if len(cut.encode()) != 1:
        raise BigrecError(f"separator is {separator!r}: give a single character")
    return cut


def _column_names(path: Path, separator: str | None, encoding: str | None) -> list[str]:
    if path.suffix == ".parquet":
        return list(pl.read_parquet_schema(path))
    if _is_json(path):
        return list(first_object(path, encoding))
    return read_header(path, _separator(path, separator), encoding or "utf-8")


def _read_table(
    path: Path, names: list[str], wanted: list[str], required: list[str], separator: str | None, encoding: str | None
) -> tuple[pl.DataFrame, int | None]:
    """The `wanted` columns as text (parquet: as typed, ids as text), and the line of the first row (None: no lines)."""
    if path.suffix == ".parquet":
        frame = pl.read_parquet(path, columns=wanted)
        for name in required:
            if frame[name].null_count():
                row = int(frame[name].is_null().arg_max() or 0)
                raise BigrecError(f"{path}: row {row}: {name} is null: fix or remove the row")
        if frame.height == 0:
            raise BigrecError(f"{path}: the file contains no rows: write it again")
        return frame.with_columns(
            pl.col(name).cast(STRING) for name in wanted if not frame[name].dtype.is_temporal()
        ), None
    if _is_json(path):
        return read_json_lines(path, dict.fromkeys(wanted, STRING), tuple(required), encoding), None
    cut = _separator(path, separator)
    columns = dict.fromkeys(names, STRING)
    if len(columns) != len(names):
        raise BigrecError(f"{path}:1: a column name occurs twice in {', '.join(names)}: rename one")
    frame = read_delimited(
        path, cut, columns, required, header=True, quotes=cut == ",", encoding=encoding or "utf-8", optional=wanted
    )
    return frame, 2


def _read_items(path: Path, item: str, title: str, separator: str | None, encoding: str | None) -> Catalog:
    names = _column_names(path, separator, encoding)
    for name, setting in ((item, "item_column"), (title, "title_column")):
        if name not in names:
            raise BigrecError(f"{path}: no column {name!r} among {', '.join(names)}: give its name with --{setting}")
    frame, first_line = _read_table(path, names, [item, title], [item, title], separator, encoding)
    twice = frame[item].is_duplicated()
    if twice.any():
        at = int((~frame[item].is_first_distinct()).arg_max() or 0)
        place = f"{path}:{at + first_line}" if first_line else f"{path}: row {at}"
        raise BigrecError(f"{place}: item id {frame[item][at]!r} occurs twice: remove one of the two")
    titles = frame[title].to_list()
    untitled = next((row for row, text in enumerate(titles) if not clean_title(text)), None)
    if untitled is not None:
        place = f"{path}:{untitled + first_line}" if first_line else f"{path}: row {untitled}"
        raise BigrecError(f"{place}: item {frame[item][untitled]!r} has no title: give it one or remove the line")
    return Catalog(frame[item].to_list(), titles)


def _numbers(values: pl.Series, path: Path, first_line: int | None) -> np.ndarray:
    numbers = values.cast(pl.Float64, strict=False)
    bad = (numbers.is_null() | ~numbers.is_finite().fill_null(False)).to_numpy()
    if bad.any():
        at = int(np.argmax(bad))
        place = f"{path}:{at + first_line}" if first_line else f"{path}: row {at}"
        raise BigrecError(f"{place}: {values.name} is {values[at]!r}, not a number: fix or remove the line")
    return numbers.to_numpy()


def _times(values: pl.Series, divisor: int, path: Path, first_line: int | None) -> np.ndarray:
    """(n,) int64 in `1 / divisor` seconds, from numbers, ISO dates or times (UTC), or temporal columns."""
    if values.dtype == STRING and values[0].count("-") > 1:
        text = values.str.replace("T", " ", literal=True).str.strip_suffix("Z")
        moments = text.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="ms", strict=False)
        moments = moments.fill_null(text.str.to_datetime("%Y-%m-%d", time_unit="ms", strict=False))
        if moments.null_count():
            at = int(moments.is_null().arg_max() or 0)
            place = f"{path}:{at + first_line}" if first_line else f"{path}: row {at}"
            raise BigrecError(f"{place}: {values.name} is {values[at]!r}, not an ISO date or time in UTC: fix the line")
        values = moments
    if values.dtype.is_temporal():
        return values.cast(pl.Datetime("ms")).dt.timestamp("ms").to_numpy() * divisor // 1000
    return whole_times(_numbers(values, path, first_line), values.name, path, first_line)
