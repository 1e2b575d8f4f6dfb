"""Presets and their filters: which interactions count, and how titles are cleaned.

The presets are the protocols of BIGRec, Bi-Step-Rec and DecodingMatters (`d3`), and leave-one-out; settings override a
preset's values.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl

from bigrec_hf.common.errors import BigrecError

PRESETS = ("bigrec-movie", "bigrec-game", "leave-one-out", "d3")
WINDOW = 10  # history items per example, in every preset
D3_FROM, D3_TO, D3_FIRST_YEAR, D3_CORE, D3_SEED = "2017-10-01", "2018-11-01", 1996, 5, 42


@dataclass(frozen=True)
class Protocol:
    """A preset with the caller's settings filled in: which interactions count, which positions become examples."""

    preset: str
    window: int
    min_history: int
    k_core: int
    min_items: int
    min_rating: float
    date_from: str | None
    date_to: str | None
    train_fraction: float
    validation_fraction: float
    validation_count: int = 0
    test_count: int = 0
    validation_from: str | None = None
    test_from: str | None = None

    @property
    def needs_time(self) -> bool:
        """Whether examples are split by target time, which needs timestamps."""
        return self.preset != "leave-one-out"

    @property
    def shuffles_rows(self) -> bool:
        """Whether catalog rows are shuffled, as DecodingMatters does."""
        return self.preset == "d3"


def resolve_protocol(
    preset: str,
    *,
    window: int = 0,
    min_history: int = 0,
    k_core: int = 0,
    min_items: int = 10_000,
    min_rating: float = 0.0,
    date_from: str | None = None,
    date_to: str | None = None,
    train_fraction: float = 0.8,
    validation_fraction: float = 0.1,
    validation_count: int = 0,
    test_count: int = 0,
    validation_from: str | None = None,
    test_from: str | None = None,
) -> Protocol:
    """Replace zeros and Nones by the preset's values. Raises BigrecError for values out of range."""
    if preset not in PRESETS:
        raise BigrecError(f"unknown preset {preset!r}: choose from {', '.join(PRESETS)}")
    for name, value in (
        ("window", window),
        ("min_history", min_history),
        ("k_core", k_core),
        ("min_items", min_items),
    ):
        if value < 0:
            raise BigrecError(f"{name} is {value}: give a positive number, or 0 for the preset's value")
    if train_fraction <= 0 or validation_fraction < 0 or train_fraction + validation_fraction > 1 + 1e-9:
        raise BigrecError(
            f"train_fraction {train_fraction} and validation_fraction {validation_fraction}: "
            "the first must be positive and their sum at most 1"
        )
    _check_cuts(preset, validation_count, test_count, validation_from, test_from)
    if test_count or test_from:
        train_fraction = validation_fraction = 0.0
    is_d3 = preset == "d3"
    window = window or WINDOW
    date_from, date_to = (date_from or D3_FROM, date_to or D3_TO) if is_d3 else (date_from, date_to)
    for name, text in (("date_from", date_from), ("date_to", date_to)):
        if text is not None:
            parse_date(text, name)
    return Protocol(
        preset=preset,
        window=window,
        min_history=min_history or (window if preset in ("bigrec-movie", "bigrec-game") else 1),
        k_core=k_core or (D3_CORE if is_d3 else 1),
        min_items=min_items if is_d3 else 0,
        min_rating=min_rating,
        date_from=date_from,
        date_to=date_to,
        train_fraction=train_fraction,
        validation_fraction=validation_fraction,
        validation_count=validation_count,
        test_count=test_count,
        validation_from=validation_from,
        test_from=test_from,
    )


def _check_cuts(
    preset: str, validation_count: int, test_count: int, validation_from: str | None, test_from: str | None
) -> None:
    """Raise BigrecError for splits by counts or dates that contradict each other or the preset."""
    by_count, by_date = bool(validation_count or test_count), bool(validation_from or test_from)
    if preset == "leave-one-out" and (by_count or by_date):
        raise BigrecError("leave-one-out splits by position, not by counts or dates: choose another --preset")
    if by_count and by_date:
        raise BigrecError("splits are given by counts and by dates: give either *_count or *_from")
    if by_count and not test_count:
        raise BigrecError(f"validation_count is {validation_count} without a test split: give --test_count too")
    if by_date:
        if not (validation_from and test_from):
            raise BigrecError("splits by dates need both --validation_from and --test_from")
        if parse_date(validation_from, "validation_from") > parse_date(test_from, "test_from"):
            raise BigrecError(f"validation_from {validation_from} is later than test_from {test_from}: exchange them")


def check_enough_items(protocol: Protocol, n_with: int, n_users: int, place: str, *, most: bool) -> None:
    """Raise BigrecError if no user has enough items for an example; if `most`, also where most users have not.

    `n_with`: users with an example. `most` is for tables, whose columns may be others than they seem.
    """
    if n_with and not (most and 2 * n_with < n_users):
        return
    some = "none" if not n_with else f"only {n_with:,}"
    remedy = f"lower min_history (now {protocol.min_history}), or choose another preset"
    if protocol.min_history <= 1:
        remedy = "give more interactions, and check --user_column"
    if n_with:
        remedy = (
            "drop short users with --short_users true or --k_core; where each row is a history with its target, use "
            "--source windows"
        )
    raise BigrecError(
        f"{place}: {some} of {n_users:,} users has enough items for an example under preset {protocol.preset}: {remedy}"
    )


def parse_date(text: str, name: str) -> int:
    """ISO date or time (UTC unless it has a time zone) -> UNIX seconds. Raises BigrecError for anything else."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BigrecError(f"{name} is {text!r}: give an ISO date such as 2017-10-01") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


# --- titles and interactions ----------------------------------------------------------------------------------------


def long_titles(titles: pl.Series) -> pl.Series:
    """Title rule of BIGRec's game data: longer than one character; other titles become null."""
    return titles.set(titles.str.len_chars() <= 1, None)


def d3_titles(titles: pl.Series) -> pl.Series:
    """Title rule of DecodingMatters: unescaped, stripped; null with `<span id`, below 2 characters or over 20 words."""
    cleaned = (
        titles.str.replace_all("&quot;", '"', literal=True)
        .str.replace_all("&amp;", "&", literal=True)
        .str.strip_chars(" ")
        .str.strip_chars('"')
    )
    refused = titles.str.contains("<span id", literal=True)
    refused |= (cleaned.str.len_chars() <= 1) | (cleaned.str.count_matches(" ", literal=True) + 1 > 20)
    return cleaned.set(refused, None)


def k_core_mask(users: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    """(n,) bool: the largest subset in which every user and every row occurs at least `k` times."""
    kept = np.arange(len(users))
    while k > 1 and len(kept):
        n_user, n_row = np.bincount(users[kept]), np.bincount(rows[kept])
        enough = (n_user[users[kept]] >= k) & (n_row[rows[kept]] >= k)
        if enough.all():
            break
        kept = kept[enough]
    mask = np.zeros(len(users), dtype=bool)
    mask[kept] = True
    return mask


def filter_interactions(
    protocol: Protocol,
    users: np.ndarray,
    rows: np.ndarray,
    ratings: np.ndarray | None,
    times: np.ndarray | None,
    time_divisor: int = 1,
) -> tuple[np.ndarray, dict[str, int], str | None]:
    """Apply rating filter, date window and k-core.

    Returns the (n,) bool mask of kept interactions, the number dropped by reason, and the start date used: under d3 it
    moves back one year at a time, to 1996 at the earliest, while fewer than `min_items` items remain. Raises
    BigrecError for a filter that needs ratings or times which the source lacks.
    """
    dropped: dict[str, int] = {}
    mask = np.ones(len(users), dtype=bool)
    if protocol.min_rating > 0:
        if ratings is None:
            raise BigrecError(f"min_rating {protocol.min_rating} needs ratings, but the source has none: leave it at 0")
        mask = ratings >= protocol.min_rating
        dropped["rating below min_rating"] = int((~mask).sum())
    date_from = protocol.date_from
    if times is None and (protocol.needs_time or date_from or protocol.date_to):
        raise BigrecError(
            f"preset {protocol.preset} with date_from {date_from} needs timestamps, but the source only has an order: "
            "use --preset leave-one-out without dates"
        )
    while True:
        kept, reasons = mask, {}
        if date_from:
            assert times is not None
            early = kept & (times < parse_date(date_from, "date_from") * time_divisor)
            kept, reasons["before date_from"] = kept & ~early, int(early.sum())
        if protocol.date_to:
            assert times is not None
            late = kept & (times > parse_date(protocol.date_to, "date_to") * time_divisor)
            kept, reasons["after date_to"] = kept & ~late, int(late.sum())
        if protocol.k_core > 1:
            inside = np.flatnonzero(kept)
            core = k_core_mask(users[inside], rows[inside], protocol.k_core)
            kept = np.zeros_like(mask)
            kept[inside[core]] = True
            reasons[f"outside the {protocol.k_core}-core"] = int((~core).sum())
        n_items = np.count_nonzero(np.bincount(rows[kept]))
        if n_items >= protocol.min_items or date_from is None or int(date_from[:4]) <= D3_FIRST_YEAR:
            return kept, dropped | reasons, date_from
        date_from = _year_earlier(date_from)


def _year_earlier(date: str) -> str:
    return f"{int(date[:4]) - 1}{date[4:].replace('-02-29', '-02-28')}"


def first_appearance(codes: np.ndarray) -> np.ndarray:
    """Distinct codes in order of first appearance."""
    first = np.full(int(codes.max(initial=0)) + 1, len(codes))
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)  # the last assignment remains: the earliest position
    order = np.argsort(first, kind="stable")
    return order[: np.count_nonzero(first < len(codes))].astype(codes.dtype)


def shuffled(codes: np.ndarray) -> np.ndarray:
    """The order in which DecodingMatters puts its items: `random.seed(42); random.shuffle(items)`."""
    order = list(range(len(codes)))
    random.Random(D3_SEED).shuffle(order)
    return codes[order]
