"""Training sequences from training examples, windows over them, and padded histories: whole-array work on numpy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch

from bigrec_hf.columns import Columns as C
from bigrec_hf.sasrec.model import IGNORED


@dataclass(frozen=True)
class ItemSequences:
    """Sequences of catalog rows, oldest first, end to end."""

    items: np.ndarray  # (total,) int64
    starts: np.ndarray  # (n + 1,) int64, where each sequence begins

    def __len__(self) -> int:
        return len(self.starts) - 1


def training_sequences(train: pa.Table) -> ItemSequences:
    """One sequence for each user's run of consecutive training examples: the first one's history, then all targets.

    `train` is the `default` configuration's train split (user_id, history, target; a user's examples oldest first, as
    `prepare` writes them). Nothing else is read, so what is learned is what the training examples hold:

    - bigrec-movie, bigrec-game, d3 cut all examples by target time, so a user's training examples are the oldest ones:
      the sequence ends with the user's last target before the cut, and users without a training example give none.
    - leave-one-out trains on targets among a user's first n - 2 items: the sequence ends there, before the validation
      and the test target. (A test history does hold the validation target, as input, as usual for this protocol.)

    An example that does not follow on the user's previous one (its history does not end with that one's target) begins
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
    sizes = np.where(follows, 1, lengths + 1)  # what each example adds
    ends = np.cumsum(sizes)
    items = np.empty(ends[-1], np.int64)
    items[ends - 1] = targets
    first = np.flatnonzero(~follows)
    items[_ranges(ends[first] - sizes[first], lengths[first])] = flat[_ranges(begins[first], lengths[first])]
    return ItemSequences(items, np.append(ends[first] - sizes[first], ends[-1]))


def windows(sequences: ItemSequences, length: int, stride: int, padding_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels, both (n, length) int64: windows of `length` items and, for each, the item after it.

    A sequence's windows end at its end and every `stride` items before; with stride `length` every item after the first
    is a label once, with a smaller stride up to length / stride times, with longer and shorter histories before it.
    Windows are padded on the left with `padding_id`, labels there are -100.
    """
    sizes = np.diff(sequences.starts)
    counts = np.maximum(-(-(sizes - 1) // stride), 0)
    owner = np.repeat(np.arange(len(sizes)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    ends = sizes[owner] - number * stride  # exclusive, within the sequence: the last label is at ends - 1
    index = ends[:, None] - 1 - np.arange(length, 0, -1)[None, :]  # input positions within the sequence
    real = index >= 0
    at = np.where(real, index + sequences.starts[:-1][owner][:, None], 0)
    inputs = np.where(real, sequences.items[at], padding_id)
    labels = np.where(real, sequences.items[np.where(real, at + 1, 0)], IGNORED)
    return inputs, labels


def pad_histories(histories: Sequence[Sequence[int]], length: int, padding_id: int) -> np.ndarray:
    """(n, length) int64: the newest `length` items of each history, padded on the left; rows below 0 are left out."""
    sizes = np.fromiter(map(len, histories), np.int64, len(histories))
    flat = np.concatenate([np.empty(0, np.int64), *(np.asarray(h, np.int64) for h in histories)])
    if (flat < 0).any():
        owner = np.repeat(np.arange(len(sizes)), sizes)[flat >= 0]
        flat, sizes = flat[flat >= 0], np.bincount(owner, minlength=len(sizes))
    index = np.cumsum(sizes)[:, None] - np.arange(length, 0, -1)[None, :]
    real = np.arange(length, 0, -1)[None, :] <= sizes[:, None]
    padded = np.full((len(sizes), length), padding_id, np.int64)
    padded[real] = flat[index[real]]
    return padded


class WindowDataset(torch.utils.data.Dataset):
    """Windows that hand out whole batches at once; use with `collate`."""

    def __init__(self, inputs: np.ndarray, labels: np.ndarray):
        self.inputs, self.labels = torch.from_numpy(inputs), torch.from_numpy(labels)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.inputs[index], "labels": self.labels[index]}

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        rows = torch.as_tensor(indices)
        return {"input_ids": self.inputs[rows], "labels": self.labels[rows]}


def collate(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The batch as `WindowDataset.__getitems__` gives it."""
    return batch


def _flat(lists: pa.ListArray) -> tuple[np.ndarray, np.ndarray]:
    """(n + 1,) int64 offsets and the values of a list column."""
    offsets = lists.offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0], lists.flatten().to_numpy().astype(np.int64)


def _ranges(begins: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Indices begins[i] .. begins[i] + lengths[i] - 1 of every i, end to end."""
    return np.repeat(begins - (np.cumsum(lengths) - lengths), lengths) + np.arange(lengths.sum())
