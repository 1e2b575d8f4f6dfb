"""Windows over training sequences and padded histories, by whole-array NumPy operations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bigrec_hf.data.sequences import ItemSequences
from bigrec_hf.rank.sasrec.model import IGNORED


def windows(sequences: ItemSequences, length: int, stride: int, padding_id: int) -> tuple[np.ndarray, np.ndarray]:
    """Return inputs and labels, both (n, length) int64: windows of `length` items and, for each item, the next one.

    The windows of a sequence end at its end and every `stride` items before. With stride `length` every item after the
    first is a label once; with a smaller stride up to length / stride times, after histories of different lengths.
    Windows are padded on the left with `padding_id`, where labels are -100.
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
    """Return the latest `length` items of each history, (n, length) int64, left-padded; rows below 0 are dropped."""
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
    """Windows that return whole batches at once; use with `collate`."""

    def __init__(self, inputs: np.ndarray, labels: np.ndarray):
        self.inputs, self.labels = torch.from_numpy(inputs), torch.from_numpy(labels)

    def __len__(self) -> int:
        """Return the number of windows."""
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return one window and its labels, (L,) int64 each."""
        return {"input_ids": self.inputs[index], "labels": self.labels[index]}

    def __getitems__(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """Return a batch of windows and their labels, (B, L) int64 each."""
        rows = torch.as_tensor(indices)
        return {"input_ids": self.inputs[rows], "labels": self.labels[rows]}


def collate(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the batch as `WindowDataset.__getitems__` made it."""
    return batch
