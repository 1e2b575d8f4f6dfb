"""The dense objective: a user's training history is one sequence of titles, and every title of it is a target.

The usual objective has one target per prompt, so ten titles are read for one target. Here each title is read once and
is a target once. Sequences are cut into segments of up to `max_length` tokens at random positions, which differ in
every epoch, so that contexts of all lengths occur.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.sequences import ItemSequences
from bigrec_hf.models.trie_loss import Choices

BLOCK = 50  # batches whose segments are sorted by length
ROWS, FIRST = "rows", "first"  # columns: catalog rows, oldest first; the place of the first one with a loss


def cut_sequences(
    sequences: ItemSequences, lengths: np.ndarray, *, room: int, context: int, rng: np.random.Generator
) -> np.ndarray:
    """Return segments of at most `room` tokens that cover the sequences: (n, 2) int64, ranges of `sequences.items`.

    `lengths`: number of tokens in each catalog row's title. The first segment of a sequence has a random number of
    tokens, the others as many as fit, starting with the last `context` items of the segment before, so that each item
    except the first of a user is a target once. If not even `context` + 1 titles fit, the title after them is not a
    target.
    """
    tokens = np.concatenate([[0], np.cumsum(lengths[sequences.items])])
    segments = []
    for begin, end in zip(sequences.starts[:-1].tolist(), sequences.starts[1:].tolist(), strict=True):
        limit = int(rng.integers(1, room + 1)) if tokens[end] - tokens[begin] > room else room
        while end - begin > context:
            stop = min(int(np.searchsorted(tokens, tokens[begin] + limit, side="right")) - 1, end)
            if stop - begin > context:
                segments.append((begin, stop))
            if stop == end:
                break
            begin, limit = max(stop - context, begin + (limit == room)), room
    return np.array(segments, np.int64).reshape(-1, 2)


def batches_of_like_length(n_tokens: np.ndarray, *, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a random order in which each batch holds segments of similar length, (n,) int64.

    Shuffled segments are sorted by length within blocks of BLOCK batches, and the batches of each block are shuffled
    again. In random batches of four users of Amazon games, 42 % of all tokens would be padding; 4 % remain.
    """
    order = rng.permutation(len(n_tokens))
    parts = []
    for start in range(0, len(order), BLOCK * batch_size):
        block = order[start : start + BLOCK * batch_size]
        block = block[np.argsort(n_tokens[block], kind="stable")]
        n_full = len(block) // batch_size
        full = block[: n_full * batch_size].reshape(n_full, batch_size)
        parts += [full[rng.permutation(n_full)].ravel(), block[n_full * batch_size :]]
    return np.concatenate([np.empty(0, np.int64), *parts])


def dense_segments(
    sequences: ItemSequences,
    lengths: np.ndarray,
    *,
    epochs: float,
    room: int,
    context: int,
    seed: int,
    batch_size: int = 1,
) -> tuple[Dataset, dict[str, int]]:
    """Return all segments of a training, epoch by epoch, each cut and shuffled independently; and counts.

    `lengths`: number of tokens in each catalog row's title, 0 for a title without text. Items without text, and titles
    longer than `room` tokens, are dropped from the sequences. `epochs` may be a fraction: the last epoch is then cut
    short. `batch_size` segments in a row have about the same length. Raises BigrecError if no segment is left.
    """
    fits = (lengths > 0) & (lengths <= room)
    keep = fits[sequences.items]
    kept_before = np.concatenate([[0], np.cumsum(keep)])
    sequences = ItemSequences(sequences.items[keep], kept_before[sequences.starts])
    tokens = np.concatenate([[0], np.cumsum(lengths[sequences.items])])
    parts = []
    for epoch in range(int(np.ceil(epochs))):
        rng = np.random.default_rng([seed, epoch])
        segments = cut_sequences(sequences, lengths, room=room, context=context, rng=rng)
        n_tokens = tokens[segments[:, 1]] - tokens[segments[:, 0]]
        segments = segments[batches_of_like_length(n_tokens, batch_size=batch_size, rng=rng)]
        parts.append(segments[: round(len(segments) * min(1.0, epochs - epoch))])
    segments = np.concatenate(parts)
    if not len(segments):
        raise BigrecError(
            f"no training history has more than {context} titles of at most {room} tokens: lower dense_context or "
            "raise max_length"
        )
    sizes = segments[:, 1] - segments[:, 0]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    places = np.arange(offsets[-1]) + np.repeat(segments[:, 0] - offsets[:-1], sizes)
    table = pa.table(
        {
            ROWS: pa.LargeListArray.from_arrays(offsets, sequences.items[places].astype(np.int32)),
            FIRST: np.full(len(segments), context, np.int32),
        }
    )
    counts = {
        "n_train_targets": int((sizes - context).sum()),
        "n_train_tokens": int(lengths[sequences.items[places]].sum()),
        "n_items_left_out": int((~keep).sum()),
    }
    return Dataset(table), counts


def dense_validation(
    histories: Sequence[Sequence[int]], targets: Sequence[int], lengths: np.ndarray, *, room: int, max_history: int
) -> Dataset:
    """Return one row per validation example: its last `max_history` titles as context, and its target.

    The oldest titles are dropped if the row takes more than `room` tokens. Targets that no row can hold are dropped.
    """
    rows, first = [], []
    for history, target in zip(histories, targets, strict=True):
        if target < 0 or not 0 < lengths[target] <= room:
            continue
        kept = [row for row in history[-max_history:] if row >= 0 and lengths[row] > 0] if max_history > 0 else []
        n_tokens = int(lengths[[*kept, target]].sum())
        while n_tokens > room:
            n_tokens -= int(lengths[kept[0]])
            kept = kept[1:]
        rows.append([*kept, target])
        first.append(len(kept))
    return Dataset.from_dict({ROWS: rows, FIRST: first})


@dataclass(frozen=True)
class DenseCollator:
    """Collate rows of items into a right-padded batch with the positions that have a loss.

    With `choices` (the trie loss) these are the positions at which a target title has several continuations, and the
    targets are trie nodes. Without, they are all positions of a target title, and the targets are tokens.
    """

    header: Sequence[int]
    titles: Sequence[Sequence[int]]  # token ids by catalog row, end token included
    choices: Choices | None = None
    pad_id: int = 0

    def __call__(self, examples: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch, all int64, with P losses.

        `input_ids` (B, T); `labels` (B, 1 + n), -100 and then the catalog rows of the targets, -100 for other titles:
        the trainer counts targets from the second column on, as in a language model's labels; `positions` (P,), indices
        into B * T; `nodes` (P,), for the trie loss only; `targets` (P,)."""
        texts = [[*self.header, *(t for row in example[ROWS] for t in self.titles[row])] for example in examples]
        width = max(map(len, texts))
        most = max(len(example[ROWS]) for example in examples)
        input_ids = np.full((len(texts), width), self.pad_id, np.int64)
        labels = np.full((len(texts), 1 + most), -100, np.int64)
        positions, nodes, targets = [], [], []
        for number, (example, text) in enumerate(zip(examples, texts, strict=True)):
            input_ids[number, : len(text)] = text
            begin = number * width + len(self.header) - 1  # what comes next is predicted one position before it
            for place, row in enumerate(example[ROWS]):
                title = self.titles[row]
                if place >= example[FIRST]:
                    labels[number, 1 + place] = row
                    if self.choices is None:
                        positions.append(begin + np.arange(len(title)))
                        targets.append(np.asarray(title))
                    else:
                        own = self.choices.of(row)
                        positions.append(begin + self.choices.position[own])
                        nodes.append(self.choices.node[own])
                        targets.append(self.choices.child[own])
                begin += len(title)
        batch = {"input_ids": input_ids, "labels": labels, "positions": np.concatenate(positions)}
        if self.choices is not None:
            batch["nodes"] = np.concatenate(nodes)
        batch["targets"] = np.concatenate(targets)
        return {name: torch.from_numpy(values.astype(np.int64)) for name, values in batch.items()}
