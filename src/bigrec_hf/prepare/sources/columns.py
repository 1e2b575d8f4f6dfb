"""Which columns of a table hold users, items, titles, ratings and times: as named, else by their usual names."""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.user_tables import ITEMS, RATINGS, TIMES, TITLES, USERS, plain

USUAL = {"user": USERS, "item": ITEMS, "title": TITLES, "rating": RATINGS, "timestamp": TIMES}
DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
TIME_WORDS = ("time", "date", "stamp", "day", "when")  # in the name of a column that may hold times


@dataclass(frozen=True)
class ColumnNames:
    """Columns as the caller names them; None = found by their names."""

    user: str | None = None
    item: str | None = None
    title: str | None = None
    rating: str | None = None
    timestamp: str | None = None


@dataclass(frozen=True)
class Columns:
    """The columns of a table of interactions; None if it has none."""

    user: str
    item: str
    title: str | None  # None: titles are in a separate file
    rating: str | None
    timestamp: str | None

    @property
    def wanted(self) -> list[str]:
        """All of them, each once."""
        found = (self.user, self.item, self.title, self.rating, self.timestamp)
        return list(dict.fromkeys(name for name in found if name is not None))


def find(names: Sequence[str], role: str, more: Sequence[str] = ()) -> str | None:
    """The column with the likeliest of the usual names of a role (and `more`), in any spelling; else None."""
    return next((name for usual in (*USUAL[role], *more) for name in names if plain(name) == usual), None)


def interaction_columns(names: Sequence[str], named: ColumnNames, own_titles: bool, place: str) -> Columns:
    """The columns of a table of interactions; `own_titles`: the titles are in it.

    A table without ids of items has its titles as ids. Raises BigrecError naming every column that is missing, all that
    the table has, and the likeliest match of each.
    """
    found: dict[str, str | None] = {}
    missing: list[str] = []
    for role in USUAL:
        given = getattr(named, role)
        if given is not None and given not in names and not (role == "title" and not own_titles):
            missing.append(f"{given!r} (--{role}_column)")
        found[role] = given or find(names, role)
    if not own_titles:
        found["title"] = None
    if found["item"] is None and found["title"] is not None:
        found["item"] = found["title"]
    if found["user"] is None:
        missing.append("the user")
    if found["item"] is None:
        missing.append("the item")
    if own_titles and found["title"] is None:
        missing.append("the title")
    if missing:
        taken = {name for name in found.values() if name is not None}
        roles = [role for role in USUAL if any(role in what for what in missing)]
        remedies = [_likeliest(role, [name for name in names if name not in taken]) for role in roles]
        if "the title" in missing:
            remedies.append("or give titles in a separate file with --items_file")
        what = missing[0] if len(missing) == 1 else f"{', '.join(missing[:-1])} and {missing[-1]}"
        raise BigrecError(f"{place}: no column for {what} among {', '.join(names)}: give {', '.join(remedies)}")
    return Columns(str(found["user"]), str(found["item"]), found["title"], found["rating"], found["timestamp"])


def item_columns(names: Sequence[str], named: ColumnNames, place: str) -> tuple[str, str]:
    """The columns of id and title in a table of items. Raises BigrecError naming what is missing and what it has."""
    item = named.item if named.item in names else find(names, "item", ("id",))
    title = named.title if named.title is not None else find(names, "title")
    missing = [] if item is not None else ["item"]
    missing += [] if title is not None and title in names else ["title"]
    if item is None or title is None or missing:
        rest = [name for name in names if name != item]
        remedies = ", ".join(_likeliest(role, rest) for role in missing)
        raise BigrecError(
            f"{place}: no column for the {' and the '.join(missing)} among {', '.join(names)}: give {remedies}"
        )
    return item, title


def _likeliest(role: str, rest: Sequence[str]) -> str:
    """`--user_column reader`: the flag of a role, with the column whose name is nearest to a usual one, if any is."""

    def likeness(name: str) -> float:
        own = plain(name)
        shared = max((len(usual) for usual in USUAL[role] if len(usual) > 3 and usual in own), default=0)
        return shared + max(difflib.SequenceMatcher(None, own, usual).ratio() for usual in USUAL[role])

    best = max(rest, key=likeness, default=None)
    return f"--{role}_column {shlex.quote(best) if best is not None and likeness(best) >= 0.8 else 'NAME'}"


def possible_times(first: Mapping[str, object], columns: Columns) -> list[str]:
    """Unused columns whose names or values (of the first row, by column) look like times."""
    return [
        name
        for name, value in first.items()
        if name not in columns.wanted
        and (any(word in plain(name) for word in TIME_WORDS) or DATE.match(str(value)) is not None)
    ]
