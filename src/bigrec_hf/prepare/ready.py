"""Sets whose examples and splits are made already (`reference-json`, `windows`), and how their items are looked up."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.prepare.sources.base import RawData
from bigrec_hf.prepare.splits import ExampleRanges, Sequences


@dataclass(frozen=True)
class ReadySet:
    """Examples as a source gives them, in its order and splits."""

    catalog: Catalog
    user_ids: pl.Series  # (n_users,) string, by user code
    sequences: Sequences
    splits: dict[str, ExampleRanges]
    facts: dict[str, Any]
    time_divisor: int = 1
    names_users: bool = True  # False: every example counts as a separate user
    whole: bool = False  # the sequences are what the users did, each interaction once

    def interactions(self, files: list[Path]) -> RawData:
        """The users' interactions, oldest first; none unless they are known (`whole`)."""
        known = slice(None) if self.whole else slice(0)
        ratings, times = self.sequences.ratings, self.sequences.times
        return RawData(
            catalog=self.catalog,
            user_ids=self.user_ids,
            users=self.sequences.users[known],
            rows=self.sequences.rows[known],
            ratings=None if ratings is None else ratings[known],
            times=None if times is None else times[known],
            raw_rows=0,
            files=files,
            time_divisor=self.time_divisor,
        )

    def described(self) -> dict[str, Any]:
        """The facts that only the source knows, over those that `describe_splits` counts."""
        known = len(self.sequences.rows) if self.whole else 0
        interactions: dict[str, Any] = {"raw": None, "dropped": {}, "kept": known}
        unknown = {} if self.names_users else {"users": None, "users_without_example": 0}
        return {"interactions": interactions, **unknown}


def id_text(value: Any) -> str:
    """An id as text: 12, 12.0 (as pandas writes a column with gaps) and "12" are the same; "" if there is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


@dataclass
class ItemLookup:
    """Catalog rows by id or title; counts the titles of several rows for which no id tells which is meant."""

    catalog: Catalog
    place: str  # the catalog's file, for messages
    ambiguous: dict[str, int] = field(default_factory=dict)  # title -> how often it was looked up without an id

    def __post_init__(self) -> None:
        """Make the look-up tables."""
        self._by_id = {item_id: row for row, item_id in enumerate(self.catalog.item_ids)}
        self._clean = [clean_title(title) for title in self.catalog.titles]

    def row(self, title: str, item_id: str = "") -> int:
        """The row of the id, whose title must be the same; without an id, the first row of the title.

        An empty title goes by its id alone. Raises BigrecError saying what is wrong, without the place.
        """
        key = clean_title(title)
        rows = self.catalog.rows_by_title.get(key, [])
        if key and not rows:
            raise BigrecError(f"the title {title!r} is not in {self.place}")
        if not item_id:
            if not rows:
                raise BigrecError("a title is empty and there is no id")
            if len(rows) > 1:
                self.ambiguous[key] = self.ambiguous.get(key, 0) + 1
            return rows[0]
        row = self._by_id.get(item_id)
        if row is None:
            raise BigrecError(f"the item id {item_id!r} is not in {self.place}")
        if key and self._clean[row] != key:
            raise BigrecError(f"the item id {item_id!r} is {self.catalog.titles[row]!r} in {self.place}, not {title!r}")
        return row

    def notes(self, what: str) -> dict[str, str]:
        """A fact on ambiguous titles, printed as a warning too; {} if there were none."""
        if not self.ambiguous:
            return {}
        times = sum(self.ambiguous.values())
        text = f"{len(self.ambiguous):,} titles ({times:,} places)"
        shown = ", ".join(map(repr, list(self.ambiguous)[:3]))
        print(
            f"warning: {text} occur in several rows of {self.place}, e.g. {shown}: the first is taken, as {what} have "
            "no item ids",
            file=sys.stderr,
            flush=True,
        )
        return {"titles of several catalog rows, read as the first": text}
