"""Tables of histories: which columns hold users, items and times, from files and from frames."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.user_tables import ITEMS, TIMES, TITLES, USERS, as_text, plain
from bigrec_hf.prepare.sources.times import iso_moments


@dataclass(frozen=True)
class ColumnNames:
    """Columns that the caller names; None = found by their names."""

    user: str | None = None
    item: str | None = None
    time: str | None = None


def find_columns(frame: pl.DataFrame, named: ColumnNames, place: str) -> tuple[str, str, str | None]:
    """The columns of users, items and times (None: there is none). Raises BigrecError naming what the table has."""
    user = column_of(frame, named.user, USERS, place, "user")
    rest = [name for name in frame.columns if name != user]
    lists = [name for name in rest if isinstance(frame.schema[name], pl.List | pl.Array)]
    item = lists[0] if named.item is None and len(lists) == 1 else None
    item = item or column_of(frame.select(rest), named.item, (*TITLES, *ITEMS), place, "item")
    time = named.time
    if time is not None and time not in frame.columns:
        raise BigrecError(f"{place} has no column {time!r} among {', '.join(frame.columns)}: check --time_column")
    return user, item, time or next((name for name in rest if plain(name) in TIMES), None)


def column_of(frame: pl.DataFrame, given: str | None, usual: Sequence[str], place: str, what: str) -> str:
    """The column that is `given`, else the first with one of the `usual` names. Raises BigrecError for neither."""
    if given is not None:
        if given not in frame.columns:
            raise BigrecError(
                f"{place} has no column {given!r} among {', '.join(frame.columns)}: check --{what}_column"
            )
        return given
    found = [name for wanted in usual for name in frame.columns if plain(name) == wanted]
    if not found:
        raise BigrecError(
            f"{place} has the columns {', '.join(frame.columns)}, and which one holds the {what}s is not clear: name "
            f"it with --{what}_column"
        )
    return found[0]


def histories_of(
    frame: pl.DataFrame, named: ColumnNames, place: str, separator: str | None = None
) -> tuple[pl.Series, list[list[str]], bool]:
    """Users, each one's items as text, oldest first, and whether the column's name says that they are titles.

    One row per user with all its items (a list, a JSON list, or text cut at `separator`, which only files without lists
    have; None: a text is one item), or one row per user and item, in the order of the times, equal times and tables
    without times in the order of the rows. Users are in the order in which they first occur. Raises BigrecError for
    columns that are not found, users or items that are null, a user with two lists, and times that are neither numbers
    nor dates.
    """
    user, item, time = find_columns(frame, named, place)
    if frame[user].null_count():
        row = int(frame[user].is_null().arg_max() or 0)
        raise BigrecError(f"{place}: row {row}: {user} is missing: fill it in, or remove the row")
    titled = plain(item) in TITLES
    if _holds_lists(frame[item], item):
        if frame[user].is_duplicated().any():
            twice = frame[user].filter(frame[user].is_duplicated())[0]
            raise BigrecError(f"{place}: the user {twice!r} has two histories: keep one of the rows")
        return frame[user], [split_cell(value, separator) for value in frame[item].to_list()], titled
    if frame[item].null_count():
        row = int(frame[item].is_null().arg_max() or 0)
        raise BigrecError(f"{place}: row {row}: {item} is missing: fill it in, or remove the row")
    columns = [frame[user].alias("user"), as_text(frame[item]).alias("item")]
    order = pl.int_range(pl.len()) if time is None else pl.lit(_times(frame[time], place))
    table = pl.DataFrame(columns).with_columns(order.alias("order"))
    grouped = table.group_by("user", maintain_order=True).agg(pl.col("item").sort_by("order", maintain_order=True))
    return grouped["user"], grouped["item"].to_list(), titled


def _holds_lists(values: pl.Series, name: str) -> bool:
    """Whether each cell is a whole history: by its type, or for text by the column's name or the first cell."""
    if isinstance(values.dtype, pl.List | pl.Array):
        return True
    first = next((value for value in values if value), "") if values.dtype == pl.String else ""
    return plain(name) in ("history", "historytitles", "items", "titles") or str(first).startswith('["')


def split_cell(value: Any, separator: str | None) -> list[str]:
    """The items of one cell."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return []
    if isinstance(value, str):
        if value.lstrip().startswith("["):
            try:
                value = json.loads(value)
            except json.JSONDecodeError:
                return _cut(value, separator)
        else:
            return _cut(value, separator)
    return [str(part) for part in value if part is not None]


def _cut(text: str, separator: str | None) -> list[str]:
    return [text.strip()] if separator is None else [part.strip() for part in text.split(separator)]


def _times(values: pl.Series, place: str) -> pl.Series:
    """Times as numbers that sort."""
    if values.dtype.is_temporal() or values.dtype.is_numeric():
        found = values.to_physical().cast(pl.Float64)
    else:
        found = values.cast(pl.Float64, strict=False)
        if found.null_count():
            moments = iso_moments(values).to_physical().cast(pl.Float64)
            found = moments if moments.null_count() < found.null_count() else found
    if found.null_count():
        row = int(found.is_null().arg_max() or 0)
        raise BigrecError(
            f"{place}: row {row}: {values.name} is {values[row]!r}, neither a number nor an ISO date: fix it"
        )
    return found
