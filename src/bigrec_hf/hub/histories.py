"""What a caller may pass to a recommender (one history of titles, or several; candidates), and what comes back."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import check_characters
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.metrics.ndcg_hr.titles import clean_title

if TYPE_CHECKING:
    from bigrec_hf.hub.items import Item


class Found(NamedTuple):
    """The answer to one history: texts and their scores, best first, and the ranked items."""

    texts: list[str]
    scores: list[float]
    items: list[Item]


@dataclass(frozen=True)
class ItemChoice:
    """How many items are recommended for each of n histories, and which."""

    top_k: int
    candidates: np.ndarray | None = None  # (m,) int64 catalog rows, ascending; None = the whole catalog
    hidden: list[list[int]] | None = None  # by history: positions among the candidates that are excluded, -1 = none

    def part(self, positions: Sequence[int]) -> ItemChoice:
        """Return the choice for the histories at these positions."""
        return self if self.hidden is None else replace(self, hidden=[self.hidden[i] for i in positions])

    def places(self, rows: Sequence[int], hidden: Sequence[int]) -> list[int]:
        """Return the positions of catalog rows among the candidates, in order, without those that are `hidden`."""
        found = list(rows)
        if self.candidates is not None:
            place = {int(row): at for at, row in enumerate(self.candidates)}
            found = [place[row] for row in rows if row in place]
        left_out = set(hidden)
        return [place for place in found if place not in left_out]

    def catalog_rows(self, places: np.ndarray) -> np.ndarray:
        """Return the catalog rows of positions among the candidates, in the same shape; -1 stays."""
        if self.candidates is None:
            return places
        return np.where(places >= 0, self.candidates[places], -1)


def choose_items(
    histories: Sequence[Sequence[str]],
    catalog: Catalog,
    top_k: int,
    *,
    exclude_seen: bool,
    candidates: np.ndarray | None = None,
) -> ItemChoice:
    """The choice for these histories. `candidates`: as `candidate_rows`.

    With `exclude_seen` every row with a title of the history is excluded, because any of them may be meant.
    """
    if not exclude_seen:
        return ItemChoice(top_k, candidates)
    known = catalog.rows_by_title
    hidden = [[row for title in titles for row in known.get(clean_title(title), ())] for titles in histories]
    if candidates is not None:
        place = np.full(len(catalog), -1)
        place[candidates] = np.arange(len(candidates))
        hidden = [place[rows].tolist() for rows in hidden]
    return ItemChoice(top_k, candidates, hidden)


def candidate_rows(candidates: Any, catalog: Catalog) -> np.ndarray:
    """Catalog rows, (m,) int64 ascending, of item ids or titles, in any order; a title means every row with it.

    Raises BigrecError for a string instead of a list, for none, and for one that the catalog lacks.
    """
    if isinstance(candidates, str | bytes | Mapping) or not isinstance(candidates, Iterable):
        raise BigrecError(f"candidates is {candidates!r:.80}: give a list of item ids or titles")
    row_of = {item_id: row for row, item_id in enumerate(catalog.item_ids)}
    rows: set[int] = set()
    names = [str(name) for name in candidates]
    unknown = []
    for name in names:
        found = [row_of[name]] if name in row_of else catalog.rows_by_title.get(clean_title(name), [])
        rows.update(found)
        unknown += [] if found else [name]
    if unknown:
        raise BigrecError(
            f"the candidate {unknown[0]!r:.80} is neither an item id nor a title of the catalog "
            f"({len(unknown)} of {len(names)} are unknown){did_you_mean(unknown[0], catalog)}"
        )
    if not rows:
        raise BigrecError("candidates is empty: give at least one item id or title, or omit it for all items")
    return np.array(sorted(rows), np.int64)


def nearest_titles(title: str, catalog: Catalog, n: int = 3) -> list[str]:
    """Up to `n` titles of the catalog that an unknown title may stand for: those that continue it, then those spelled
    alike, whatever their case."""
    wanted = clean_title(title).casefold()
    titles: dict[str, str] = {}
    for known in catalog.rows_by_title:
        titles.setdefault(known.casefold(), known)
    longer = sorted((key for key in titles if wanted and key.startswith(wanted)), key=lambda key: (len(key), key))
    alike = difflib.get_close_matches(wanted, titles, n=n)
    return [titles[key] for key in dict.fromkeys([*longer, *alike])][:n]


def did_you_mean(title: str, catalog: Catalog) -> str:
    """Return `; did you mean "...", "..."?`, or "" if no title is similar."""
    near = nearest_titles(title, catalog)
    return f"; did you mean {', '.join(map(repr, near))}?" if near else ""


def as_histories(history: Any) -> tuple[list[list[str]], bool]:
    """The histories as lists of titles, and whether the caller passed a single one. BigrecError for anything else."""
    given = _as_list(history)
    single = bool(given) and isinstance(given[0], str)
    histories = [given] if single else [_as_list(titles) for titles in given]
    for titles in histories:
        wrong = [title for title in titles if not isinstance(title, str)]
        if wrong:
            raise BigrecError(f"a history contains {wrong[0]!r:.80}, which is not a title: titles are strings")
        for title in titles:
            check_characters(title, f"a history's title {title!r:.80}")  # no tokenizer takes it
    return histories, single


def _as_list(values: Any) -> list[Any]:
    """The values as a list. BigrecError for a string, which would become letters, and for a set, which has no order."""
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        what = "a string" if isinstance(values, str) else type(values).__name__
        raise BigrecError(f"cannot recommend from {what} ({values!r:.80}): give a list of titles, or a list of lists")
    return list(values)


def check_top_k(top_k: Any) -> int:
    """`top_k` as an int, at least 1. Raises BigrecError."""
    if isinstance(top_k, bool) or not isinstance(top_k, Integral) or top_k < 1:
        raise BigrecError(
            f"top_k is {top_k!r}: expected a whole number of items, at least 1 (all items if there are fewer)"
        )
    return int(top_k)
