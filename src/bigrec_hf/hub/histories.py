"""What a caller may pass to a recommender: one history of titles, or several."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from numbers import Integral
from typing import Any

from bigrec_hf.common.errors import BigrecError


def as_histories(history: Any) -> tuple[list[list[str]], bool]:
    """The histories as lists of titles, and whether the caller passed a single one. BigrecError for anything else."""
    given = _as_list(history)
    single = bool(given) and isinstance(given[0], str)
    histories = [given] if single else [_as_list(titles) for titles in given]
    for titles in histories:
        wrong = [title for title in titles if not isinstance(title, str)]
        if wrong:
            raise BigrecError(f"a history contains {wrong[0]!r:.80}, which is not a title: titles are strings")
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
