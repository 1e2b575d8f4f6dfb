"""Users and their histories in terms of a catalog: from a table, from a prepared set, or from titles typed in."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.data.earlier import user_sequences
from bigrec_hf.data.user_tables import as_text, read_user_table
from bigrec_hf.hub.histories import did_you_mean
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.recommend.columns import ITEMS, TITLES, USERS, column_of, split_cell
from bigrec_hf.recommend.mixes import Histories

KINDS = ("auto", "titles", "ids")
CATEGORIES = ("category", "categories", "genre", "genres", "tags", "type", "department")  # usual names, as `plain`
SHOWN = 3  # unknown titles that are named with the nearest known ones


@dataclass(frozen=True)
class Users:
    """Users and their histories, oldest item first."""

    ids: pl.Series  # distinct
    histories: Histories
    unknown: Counter[str]  # items that are not in the catalog, and how often they occur

    def part(self, start: int, stop: int) -> Users:
        """Some of the users; `unknown` stays that of all."""
        histories = Histories(self.histories.titles[start:stop], self.histories.rows[start:stop])
        return Users(self.ids[start:stop], histories, self.unknown)

    def to_arrow(self) -> pa.Table:
        """The users as a table, for another process; without `unknown`."""
        ids = self.ids.to_arrow(compat_level=pl.CompatLevel.oldest())
        titles = pa.array(self.histories.titles, pa.list_(pa.string()))
        return pa.table({"id": ids, "titles": titles, "rows": pa.array(self.histories.rows, pa.list_(pa.int64()))})

    @classmethod
    def from_arrow(cls, table: pa.Table) -> Users:
        """The users of such a table."""
        histories = Histories(table["titles"].to_pylist(), table["rows"].to_pylist())
        return cls(pl.Series(table["id"]), histories, Counter())

    @property
    def without_known(self) -> np.ndarray:
        """(n,) bool: no title of the history is in the catalog."""
        return np.array([not any(row >= 0 for row in rows) for rows in self.histories.rows], bool)


def match_items(ids: pl.Series, items: Sequence[Sequence[str]], catalog: Catalog, kind: str) -> tuple[Users, str]:
    """The users' items as catalog titles and rows, and what the items were read as: "titles" or "ids".

    With the kind `auto` the one that knows more of the distinct items. Unknown titles stay in a history, as the
    language model reads them like any other; unknown ids are left out, as they mean nothing to it. Both are counted.
    """
    row_of_id = {item_id: row for row, item_id in enumerate(catalog.item_ids)}
    row_of_title = {title: rows[0] for title, rows in catalog.rows_by_title.items()}
    distinct = {item for history in items for item in history}
    if kind == "auto":
        by_id = sum(item in row_of_id for item in distinct)
        kind = "ids" if by_id > sum(clean_title(item) in row_of_title for item in distinct) else "titles"
    if kind == "ids":
        known = {item: row_of_id.get(item, -1) for item in distinct}
    else:
        known = {item: row_of_title.get(clean_title(item), -1) for item in distinct}
    rows = [[known[item] for item in history] for history in items]
    unknown = Counter(item for history in items for item in history if known[item] < 0)
    if kind == "ids":
        rows = [[row for row in history if row >= 0] for history in rows]
        titles = [[catalog.titles[row] for row in history] for history in rows]
    else:
        titles = [list(history) for history in items]
    return Users(ids, Histories(titles, rows), unknown), kind


def dataset_users(dataset: str, wanted: str, catalog: Catalog) -> Users:
    """Users of a prepared set with all their items; `wanted`: `all`, or a file with a user per line (or a table with a
    column of users). Raises BigrecError for a user that the set lacks."""
    names, rows, starts = user_sequences(dataset)
    position = {name: number for number, name in enumerate(names.to_pylist())}
    if wanted == "all":
        chosen = list(position)
    else:
        chosen = read_names(Path(wanted), "user")
        missing = [name for name in chosen if name not in position]
        if missing:
            raise BigrecError(
                f"{wanted}: {dataset!r} has no user {missing[0]!r} ({len(missing)} of {len(chosen)} are unknown): "
                "remove them, or give their histories with --histories"
            )
    histories = [rows[starts[position[name]] : starts[position[name] + 1]].tolist() for name in chosen]
    titles = [[catalog.titles[row] for row in history] for history in histories]
    return Users(pl.Series("user", chosen, pl.String), Histories(titles, histories), Counter())


def read_names(path: Path, what: str) -> list[str]:
    """Distinct names from a file, in its order: a text file with one per line, or the column of a table that is named
    after users (`what` "user") or items. Raises BigrecError for a missing or empty file."""
    if path.suffix in (".txt", ""):
        if not path.is_file():
            raise BigrecError(f"{path} does not exist: give a file with one {what} per line")
        names = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
    else:
        frame = read_user_table(path, f"{what}s")
        usual = USERS if what == "user" else ("itemid", *ITEMS, *TITLES)
        column = frame.columns[0] if len(frame.columns) == 1 else column_of(frame, None, usual, str(path), what)
        names = as_text(frame[column]).drop_nulls().to_list()
    found = list(dict.fromkeys(name for name in names if name))
    if not found:
        raise BigrecError(f"{path} is empty: give at least one {what}")
    return found


def read_category(path: Path, column: str | None, wanted: Sequence[str]) -> list[str]:
    """Distinct items of a table that are in any of the `wanted` categories, whatever their case, in its order.

    `column`: that of the categories (None: found by its name); a cell holds one, a list, or several separated by |.
    Raises BigrecError for columns that are not found, and for a category that no item has.
    """
    frame = read_user_table(path, "items with their categories")
    place = column_of(frame, column, CATEGORIES, str(path), "category")
    item = column_of(frame.drop(place), None, ("itemid", *ITEMS, *TITLES), str(path), "item")
    cells = [split_cell(cell, "|") for cell in frame[place].to_list()]
    known = Counter(category.strip() for cell in cells for category in cell if category.strip())
    asked = {category.strip().casefold(): category for category in wanted}
    missing = [asked[key] for key in asked if key not in {name.casefold() for name in known}]
    if missing:
        near = difflib.get_close_matches(missing[0], known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(n for n, _ in known.most_common(10))}"
        raise BigrecError(f"{path}: no item has {missing[0]!r} in the column {place}: {hint}")
    chosen = pl.Series([any(part.strip().casefold() in asked for part in cell) for cell in cells], dtype=pl.Boolean)
    return list(dict.fromkeys(as_text(frame[item]).filter(chosen).drop_nulls().to_list()))


def describe_unknown(users: Users, catalog: Catalog, kind: str) -> list[str]:
    """Lines about the items that are not in the catalog, the most frequent ones with the nearest titles."""
    if not users.unknown:
        return []
    n_items, n_distinct = users.unknown.total(), len(users.unknown)
    what = "titles" if kind == "titles" else "item ids"
    use = "only the language model reads them" if kind == "titles" else "they are left out"
    lines = [f"{n_items:,} history entries ({n_distinct:,} {what}) are not in the catalog: {use}"]
    for item, n in users.unknown.most_common(SHOWN):
        hint = did_you_mean(item, catalog) if kind == "titles" else ""
        lines.append(f"  {item!r:.80}, {n:,} times{hint}")
    return lines


def why_unknown(users: Users, catalog: Catalog, kind: str) -> str:
    """One line for histories without a single known item: what they hold, what the catalog holds, the likely cause."""
    ids, titles = set(catalog.item_ids), set(catalog.rows_by_title)
    names = [item for item, _ in users.unknown.most_common()]
    known = f"{catalog.titles[0]!r} (id {catalog.item_ids[0]!r})"
    if not names:
        cause = "all histories are empty: check --item_column"
    elif kind == "titles" and any(name in ids for name in names):
        cause = f"they hold ids such as {names[0]!r}: read them so with --items_are ids"
    elif kind == "ids" and any(clean_title(name) in titles for name in names):
        cause = f"they hold titles such as {names[0]!r}: read them so with --items_are titles"
    elif {_bare(name) for name in names} & {_bare(name) for name in ids}:
        cause = (
            f"ids such as {names[0]!r} have lost or gained zeros or `.0`, the catalog has {known}: write ids as text"
        )
    else:
        cause = f"they hold {names[0]!r}, the catalog {known}: check --item_column, and that it is the same catalog"
    return f"NO USER HAS A KNOWN TITLE, so everyone gets the most popular items; {cause}"


def _bare(item_id: str) -> str:
    """An id without what programs add to numbers or take from them: leading zeros and `.0`."""
    return item_id.strip().removesuffix(".0").lstrip("0")
