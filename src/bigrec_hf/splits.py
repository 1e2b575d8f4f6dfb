"""From interactions to examples: filters, per-user sequences, history -> target pairs, splits, samples.

Everything is whole-array work on numpy; an example is two indices into the user-major interaction arrays (where its
history begins, and its target), so ten million examples take 160 MB. Protocols: BIGRec, Bi-Step-Rec, DecodingMatters.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np
import polars as pl

from bigrec_hf.errors import BigrecError

WINDOW = 10  # history items of an example, in every preset
D3_FROM, D3_TO, D3_FIRST_YEAR, D3_CORE, D3_SEED = "2017-10-01", "2018-11-01", 1996, 5, 42
SAMPLE_SIZE, SAMPLE_SEED = 5000, 42  # the reference's valid_5000 and test_5000


@dataclass(frozen=True)
class Protocol:
    """A preset with the caller's free settings filled in: which interactions count, which positions become examples."""

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

    @property
    def needs_time(self) -> bool:
        return self.preset != "leave-one-out"

    @property
    def shuffles_rows(self) -> bool:
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
) -> Protocol:
    """Fill the zeros and Nones with the preset's own values. Raises BigrecError for values out of range."""
    if preset not in ("bigrec-movie", "bigrec-game", "leave-one-out", "d3"):
        raise BigrecError(f"unknown preset {preset!r}: choose bigrec-movie, bigrec-game, leave-one-out or d3")
    for name, value in (
        ("window", window),
        ("min_history", min_history),
        ("k_core", k_core),
        ("min_items", min_items),
    ):
        if value < 0:
            raise BigrecError(f"{name} is {value}: give a positive number, or 0 for the preset's own")
    if train_fraction <= 0 or validation_fraction < 0 or train_fraction + validation_fraction > 1 + 1e-9:
        raise BigrecError(
            f"train_fraction {train_fraction} and validation_fraction {validation_fraction}: "
            "the first must be positive, their sum at most 1"
        )
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
    )


def parse_date(text: str, name: str) -> int:
    """ISO date or time, UTC unless it says otherwise -> UNIX seconds."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise BigrecError(f"{name} is {text!r}: give an ISO date such as 2017-10-01") from error
    return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


# --- titles and interactions ----------------------------------------------------------------------------------------


def long_titles(titles: pl.Series) -> pl.Series:
    """Title rule of BIGRec's game data: longer than one character; the others become null."""
    return titles.set(titles.str.len_chars() <= 1, None)


def d3_titles(titles: pl.Series) -> pl.Series:
    """Title rule of DecodingMatters: unescaped, stripped; null with `<span id`, one character or more than 20 words."""
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

    Returns the (n,) bool mask of kept interactions, the number dropped by reason, and the window's start as used: under
    d3 it moves one year earlier, not before 1996, while fewer than `min_items` items remain.
    """
    dropped: dict[str, int] = {}
    mask = np.ones(len(users), dtype=bool)
    if protocol.min_rating > 0:
        if ratings is None:
            raise BigrecError(f"min_rating {protocol.min_rating} needs ratings, this source has none: leave it at 0")
        mask = ratings >= protocol.min_rating
        dropped["rating below min_rating"] = int((~mask).sum())
    date_from = protocol.date_from
    if times is None and (protocol.needs_time or date_from or protocol.date_to):
        raise BigrecError(
            f"preset {protocol.preset} with date_from {date_from} needs timestamps, this source has only an order: "
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
        n_items = len(np.unique(rows[kept]))
        if n_items >= protocol.min_items or date_from is None or int(date_from[:4]) <= D3_FIRST_YEAR:
            return kept, dropped | reasons, date_from
        date_from = f"{int(date_from[:4]) - 1}{date_from[4:]}"


def first_appearance(codes: np.ndarray) -> np.ndarray:
    """Distinct codes in order of first appearance."""
    distinct, first = np.unique(codes, return_index=True)
    return distinct[np.argsort(first, kind="stable")]


def shuffled(codes: np.ndarray) -> np.ndarray:
    """The order DecodingMatters gives its items: `random.seed(42); random.shuffle(items)`."""
    order = list(range(len(codes)))
    random.Random(D3_SEED).shuffle(order)
    return codes[order]


# --- sequences and examples -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sequences:
    """Interactions, users in order of first appearance and each user's entries oldest first (ties: file order)."""

    users: np.ndarray  # (n,) uint32 user codes, ascending
    rows: np.ndarray  # (n,) int32 catalog rows
    ratings: np.ndarray | None  # (n,) float32
    times: np.ndarray | None  # (n,) int64
    starts: np.ndarray  # (n_users + 1,) int64, where each user's entries begin

    @property
    def positions(self) -> np.ndarray:
        """(n,) int64, 0-based position of each entry in its user's sequence."""
        return np.arange(len(self.users)) - self.starts[self.users]


def build_sequences(
    users: np.ndarray, rows: np.ndarray, ratings: np.ndarray | None, times: np.ndarray | None
) -> Sequences:
    """Stable sort by (user, time); user codes must be 0..m-1 in order of first appearance."""
    order = np.argsort(users, kind="stable") if times is None else np.lexsort((times, users))
    starts = np.concatenate([[0], np.cumsum(np.bincount(users))]).astype(np.int64)
    return Sequences(
        users=users[order],
        rows=rows[order],
        ratings=None if ratings is None else ratings[order],
        times=None if times is None else times[order],
        starts=starts,
    )


@dataclass(frozen=True)
class Examples:
    """History -> target pairs as indices into `Sequences`: the history is `begins[i] .. targets[i] - 1`."""

    begins: np.ndarray  # (m,) int64
    targets: np.ndarray  # (m,) int64

    def __len__(self) -> int:
        return len(self.targets)

    def take(self, indices: np.ndarray) -> Examples:
        return Examples(self.begins[indices], self.targets[indices])

    def chunks(self, size: int) -> Iterator[Examples]:
        """Consecutive parts of at most `size` examples."""
        for start in range(0, len(self), size):
            yield Examples(self.begins[start : start + size], self.targets[start : start + size])

    def history(self) -> tuple[np.ndarray, np.ndarray]:
        """Arrow-style lists: (m + 1,) int32 offsets, and the flat int64 indices of all histories."""
        lengths = self.targets - self.begins
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        flat = np.repeat(self.begins - offsets[:-1], lengths) + np.arange(offsets[-1])
        return offsets.astype(np.int32), flat


def split_examples(protocol: Protocol, sequences: Sequences) -> dict[str, Examples]:
    """Examples of train, validation and test, in their final order.

    Time protocols: all users' examples in one stable sort by target time, cut at `int(n * 0.8)` and `int(n * 0.9)`.
    Leave-one-out: each user's last item is the test target, the one before validation, earlier ones training.
    """
    position = sequences.positions
    length = np.diff(sequences.starts)[sequences.users]
    leave_one_out = protocol.preset == "leave-one-out"
    if protocol.preset == "bigrec-game":  # short users give their last position, were it without any history
        eligible = position >= np.minimum(protocol.min_history, length - 1)
    else:
        eligible = position >= protocol.min_history
    if leave_one_out:
        eligible &= length >= 3
    targets = np.flatnonzero(eligible)
    if leave_one_out:
        from_end = (length - position)[targets]
        parts = {"train": targets[from_end > 2], "validation": targets[from_end == 2], "test": targets[from_end == 1]}
    else:
        assert sequences.times is not None
        targets = targets[np.argsort(sequences.times[targets], kind="stable")]
        upto = round(protocol.train_fraction + protocol.validation_fraction, 12)
        first, second = int(len(targets) * protocol.train_fraction), int(len(targets) * upto)
        parts = {"train": targets[:first], "validation": targets[first:second], "test": targets[second:]}
    return {
        split: Examples(np.maximum(sequences.starts[sequences.users[at]], at - protocol.window), at)
        for split, at in parts.items()
    }


def repeated_targets(sequences: Sequences, examples: Examples) -> int:
    """How many targets already occur in their own history."""
    if not len(examples):
        return 0
    found = np.zeros(len(examples), dtype=bool)
    target_rows = sequences.rows[examples.targets]
    for back in range(1, int((examples.targets - examples.begins).max()) + 1):
        at = examples.targets - back
        found |= (at >= examples.begins) & (sequences.rows[np.maximum(at, 0)] == target_rows)
    return int(found.sum())


# --- samples --------------------------------------------------------------------------------------------------------


def evaluation_sample(n: int, size: int = SAMPLE_SIZE) -> np.ndarray:
    """Row numbers of `pandas.DataFrame.sample(n=size, random_state=42)`, in drawn order; all n, shuffled, if fewer."""
    return np.random.RandomState(SAMPLE_SEED).choice(n, size=min(n, size), replace=False) if n else np.empty(0, int)


def training_sample(n: int, size: int, seed: int = 0) -> np.ndarray:
    """Row numbers of `datasets.Dataset.shuffle(seed).select(range(size))`; size 0 or above n: all n, shuffled."""
    order = np.random.default_rng(seed).permutation(n)
    return order[:size] if size else order
