"""Each user's training sequence of catalog rows, rebuilt from the training examples alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from bigrec_hf.common.columns import Columns as C


@dataclass(frozen=True)
class ItemSequences:
    """Sequences of catalog rows, oldest first, concatenated."""

    items: np.ndarray  # (total,) int64
    starts: np.ndarray  # (n + 1,) int64, where each sequence begins

    def take(self, numbers: np.ndarray) -> ItemSequences:
        """The sequences of these numbers, in that order."""
        lengths = np.diff(self.starts)[numbers]
        return ItemSequences(
            self.items[_ranges(self.starts[numbers], lengths)], np.concatenate([[0], np.cumsum(lengths)])
        )

    def __len__(self) -> int:
        """Number of sequences."""
        return len(self.starts) - 1


def training_sequences(train: pa.Table) -> ItemSequences:
    """One sequence for each user's run of consecutive training examples: the first history, then all targets.

    `train` is the `default` configuration's train split (user_id, history, target; a user's examples oldest first, as
    `prepare` writes them). Nothing else is read, so a model learns only what the training examples contain:

    - bigrec-movie, bigrec-game, d3 split all examples by target time, so a user's training examples are the oldest:
      the sequence ends with the user's last target before the split, and users without a training example have none.
    - leave-one-out trains on targets among a user's first n - 2 items: the sequence ends there, before the validation
      and the test target. (A test history does include the validation target as input, as usual for this protocol.)

    An example that does not continue the user's previous one (its history does not end with that one's target) starts
    a new sequence with its own history.
    """
    histories, targets = train[C.HISTORY].combine_chunks(), train[C.TARGET].to_numpy()
    if not len(targets):
        return ItemSequences(np.empty(0, np.int64), np.zeros(1, np.int64))
    users = train[C.USER_ID].combine_chunks().dictionary_encode().indices.to_numpy()
    offsets, flat = _flat(histories)
    order = np.argsort(users, kind="stable")
    users, targets, lengths = users[order], targets[order], np.diff(offsets)[order]
    begins = offsets[:-1][order]
    newest = np.full(len(order), -1, np.int64)
    newest[lengths > 0] = flat[(begins + lengths - 1)[lengths > 0]]
    follows = np.zeros(len(order), bool)
    follows[1:] = (users[1:] == users[:-1]) & (newest[1:] == targets[:-1])
    sizes = np.where(follows, 1, lengths + 1)  # items that each example adds
    ends = np.cumsum(sizes)
    items = np.empty(ends[-1], np.int64)
    items[ends - 1] = targets
    first = np.flatnonzero(~follows)
    items[_ranges(ends[first] - sizes[first], lengths[first])] = flat[_ranges(begins[first], lengths[first])]
    return ItemSequences(items, np.append(ends[first] - sizes[first], ends[-1]))


def _flat(lists: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """(n + 1,) int64 offsets and the values of a list column."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], lists.flatten().to_numpy().astype(np.int64)


def _ranges(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Indices begins[i] .. begins[i] + lengths[i] - 1 for every i, concatenated."""
    return np.repeat(begins - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
