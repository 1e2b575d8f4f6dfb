"""From interactions to examples: per-user sequences, history -> target pairs, splits, samples.

Everything operates on whole numpy arrays. An example is two indices into the interaction arrays sorted by user (the
start of its history, and its target), so ten million examples take 160 MB.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.prepare.protocols import Protocol, parse_date


@dataclass(frozen=True)
class Sequences:
    """Interactions by user, in order of first appearance, each user's oldest first (ties in file order)."""

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
    order = user_time_order(users, times)
    starts = np.concatenate([[0], np.cumsum(np.bincount(users))]).astype(np.int64)
    return Sequences(
        users=users[order],
        rows=rows[order],
        ratings=None if ratings is None else ratings[order],
        times=None if times is None else times[order],
        starts=starts,
    )


def user_time_order(users: np.ndarray, times: np.ndarray | None) -> np.ndarray:
    """(n,) int64, the stable order by (user, time), or by user alone if there are no times."""
    if times is None or not len(times):
        return np.argsort(users, kind="stable")
    first, span = int(times.min()), int(times.max()) - int(times.min()) + 1
    if (int(users.max()) + 1) * span > np.iinfo(np.int64).max:
        return np.lexsort((times, users))
    # as one number: five times as fast if users come in blocks, as in MovieLens's files
    return np.argsort(users.astype(np.int64) * span + (times - first), kind="stable")


@dataclass(frozen=True)
class ExampleRanges:
    """History -> target pairs as indices into `Sequences`: the history is `begins[i] .. targets[i] - 1`."""

    begins: np.ndarray  # (m,) int64
    targets: np.ndarray  # (m,) int64

    def __len__(self) -> int:
        """Number of examples."""
        return len(self.targets)

    def take(self, indices: np.ndarray) -> ExampleRanges:
        """The examples at `indices`  # (k,) int, in that order."""
        return ExampleRanges(self.begins[indices], self.targets[indices])

    def chunks(self, size: int) -> Iterator[ExampleRanges]:
        """Consecutive parts of at most `size` examples."""
        for start in range(0, len(self), size):
            yield ExampleRanges(self.begins[start : start + size], self.targets[start : start + size])

    def history(self) -> tuple[np.ndarray, np.ndarray]:
        """Arrow-style lists: (m + 1,) int32 offsets, and the flat int64 indices of all histories."""
        lengths = self.targets - self.begins
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        flat = np.repeat(self.begins - offsets[:-1], lengths) + np.arange(offsets[-1])
        return offsets.astype(np.int32), flat


def _cuts(protocol: Protocol, times: np.ndarray, time_divisor: int) -> tuple[int, int]:
    """Where validation and test begin among target times (n,), ascending. Raises BigrecError if the counts exceed n."""
    n = len(times)
    if protocol.test_from and protocol.validation_from:
        dates = (parse_date(protocol.validation_from, "validation_from"), parse_date(protocol.test_from, "test_from"))
        first, second = np.searchsorted(times, np.array(dates) * time_divisor, side="left")
        return int(first), int(second)
    if protocol.test_count:
        second = n - protocol.test_count
        if second - protocol.validation_count <= 0:
            raise BigrecError(
                f"validation_count {protocol.validation_count:,} and test_count {protocol.test_count:,} leave nothing "
                f"of {n:,} examples for training: lower them"
            )
        return second - protocol.validation_count, second
    upto = round(protocol.train_fraction + protocol.validation_fraction, 12)
    return int(n * protocol.train_fraction), int(n * upto)


def split_examples(protocol: Protocol, sequences: Sequences, time_divisor: int = 1) -> dict[str, ExampleRanges]:
    """Examples of train, validation and test, in their final order; times are in `1 / time_divisor` seconds.

    Time protocols: the examples of all users are sorted (stably) by target time and cut at the fractions (by default
    `int(n * 0.8)` and `int(n * 0.9)`), or by counts or dates. Leave-one-out: each user's last item is the test target,
    the one before it the validation target, and earlier ones are training targets.
    """
    position = sequences.positions
    if (
        protocol.preset == "bigrec-game"
    ):  # users with few items still give their last position, even without any history
        length = np.diff(sequences.starts)[sequences.users]
        targets = np.flatnonzero(position >= np.minimum(protocol.min_history, length - 1))
    else:
        targets = np.flatnonzero(position >= protocol.min_history)
    if protocol.preset == "leave-one-out":
        length = np.diff(sequences.starts)[sequences.users[targets]]
        from_end = (length - position[targets])[length >= 3]
        targets = targets[length >= 3]
        parts = {"train": targets[from_end > 2], "validation": targets[from_end == 2], "test": targets[from_end == 1]}
    else:
        assert sequences.times is not None
        targets = targets[np.argsort(sequences.times[targets], kind="stable")]
        first, second = _cuts(protocol, sequences.times[targets], time_divisor)
        parts = {"train": targets[:first], "validation": targets[first:second], "test": targets[second:]}
    return {
        split: ExampleRanges(np.maximum(sequences.starts[sequences.users[at]], at - protocol.window), at)
        for split, at in parts.items()
    }


def users_with_example(sequences: Sequences, splits: Iterable[ExampleRanges]) -> int:
    """How many users have an example in some split."""
    found = np.zeros(len(sequences.starts) - 1, dtype=bool)
    for examples in splits:
        found[sequences.users[examples.targets]] = True
    return int(found.sum())


def repeated_targets(sequences: Sequences, splits: Iterable[ExampleRanges]) -> np.ndarray:
    """(n,) bool: the entries that are the target of an example whose history already contains their row.

    No entry may be the target of two examples.
    """
    lengths = np.zeros(
        len(sequences.rows), dtype=np.int32
    )  # length of the history of the example with this target, or 0
    for examples in splits:
        lengths[examples.targets] = examples.targets - examples.begins
    found = np.zeros(len(lengths), dtype=bool)
    for back in range(1, int(lengths.max(initial=0)) + 1):
        found[back:] |= (lengths[back:] >= back) & (sequences.rows[back:] == sequences.rows[:-back])
    return found
