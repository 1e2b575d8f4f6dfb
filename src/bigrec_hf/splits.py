"""From interactions to examples: per-user sequences, history -> target pairs, splits, samples.

Everything is whole-array work on numpy; an example is two indices into the user-major interaction arrays (where its
history begins, and its target), so ten million examples take 160 MB.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from bigrec_hf.protocols import Protocol

SAMPLE_SIZE, SAMPLE_SEED = 5000, 42  # the reference's valid_5000 and test_5000


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
