"""Training examples read from the split's parquet file as they are needed, for splits that do not fit in memory.

A process holds the titles, the shuffle buffer and one batch of rows; of the file it reads the row groups (250,000 rows
as `prepare` writes them) that its own rows lie in.
"""

from __future__ import annotations

import glob
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from datasets import Dataset, IterableDataset, concatenate_datasets, load_dataset

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.shards import share_of_rows
from bigrec_hf.data.examples import EXAMPLE_FEATURES, example_columns, find_table, load_facts, load_titles
from bigrec_hf.data.samples import training_sample

BATCH_ROWS = 1024  # rows made into texts together


@dataclass(frozen=True)
class Source:
    """The rows of one prepared set's split that are trained on."""

    dataset: str
    file: str  # local path of the parquet file
    group_rows: list[int]  # rows of each row group
    rows: Sequence[int]  # ascending row numbers

    def share(self, ranks: Sequence[int], n_processes: int) -> Sequence[int]:
        """The rows of consecutive processes."""
        first, last = (share_of_rows(len(self.rows), 1, rank, n_processes) for rank in (ranks[0], ranks[-1]))
        return self.rows[first.start : last.stop]


def open_source(dataset: str, split: str, *, sample: int, seed: int) -> Source:
    """A prepared set's split; its rows are counted by the file's metadata.

    `sample` > 0 draws the rows that `load_examples` draws with the same seed (8 bytes a row of the split meanwhile).
    """
    load_facts(dataset)
    file = find_table(dataset, "default", split)
    metadata = pq.read_metadata(file)
    n = metadata.num_rows
    if n == 0:
        raise BigrecError(f"split {split!r} of {dataset!r} is empty: prepare more data or choose another split")
    rows: Sequence[int] = range(n)
    if 0 < sample < n:
        rows = sorted(training_sample(n, sample, seed).tolist())
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    return Source(dataset, str(file), groups, rows)


def read_rows(source: Source, rows: Sequence[int], rng: np.random.Generator | None) -> Iterator[dict[str, list[Any]]]:
    """Ids, histories and targets at these ascending row numbers, batch by batch, as lists.

    With `rng` the row groups come in random order.
    """
    groups = load_dataset(
        "parquet",
        data_files=glob.escape(source.file),
        split="train",  # what `datasets` calls a file of no named split
        streaming=True,
        columns=[C.EXAMPLE_ID, C.HISTORY, C.TARGET],
        batch_size=BATCH_ROWS,
    ).reshard()  # one shard a row group
    starts = np.cumsum([0, *source.group_rows]).tolist()
    order = range(len(source.group_rows)) if rng is None else rng.permutation(len(source.group_rows)).tolist()
    for number in order:
        at, end = starts[number], bisect_left(rows, starts[number + 1])
        first = bisect_left(rows, at)
        if first == end:
            continue
        group = groups.shard(len(source.group_rows), number).with_format("arrow")
        for table in group.iter(BATCH_ROWS):
            last = bisect_left(rows, at + len(table))
            if first < last:
                yield table.take([row - at for row in rows[first:last]]).to_pydict()
            at, first = at + len(table), last
            if first == end:
                break


def draw_examples(datasets: Sequence[str], split: str, *, sample: int, seed: int) -> Dataset:
    """The examples that `load_examples` draws from each set, in the order of the file; the split is not read whole."""
    parts = []
    for name in datasets:
        source = open_source(name, split, sample=sample, seed=seed)
        facts, titles = load_facts(name), load_titles(name)
        columns = [example_columns(rows, facts, titles) for rows in read_rows(source, source.rows, None)]
        parts += [Dataset.from_dict(part, features=EXAMPLE_FEATURES) for part in columns]
    return concatenate_datasets(parts)


def split_columns(columns: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """The rows of a table of lists."""
    return (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


def mix(streams: Sequence[Iterator[Any]], sizes: Sequence[int], rng: np.random.Generator) -> Iterator[Any]:
    """All elements of several streams of these sizes, each next one drawn in proportion to what is left of each."""
    left = np.asarray(sizes, np.int64)
    while left.sum():
        chosen = int(np.searchsorted(left.cumsum(), rng.integers(left.sum()), side="right"))
        left[chosen] -= 1
        yield next(streams[chosen])


def shuffle(stream: Iterator[Any], size: int, rng: np.random.Generator) -> Iterator[Any]:
    """The elements in an order that is random within about `size` of them; 1 = unchanged."""
    buffer: list[Any] = []
    for element in stream:
        if len(buffer) < size:
            buffer.append(element)
            continue
        place = int(rng.integers(size))
        yield buffer[place]
        buffer[place] = element
    for place in rng.permutation(len(buffer)) if size > 1 else range(len(buffer)):
        yield buffer[place]


def stream_examples(
    datasets: Sequence[str], split: str, *, sample: int, seed: int, shuffle_buffer: int, n_processes: int
) -> tuple[IterableDataset, list[Source]]:
    """An endless stream of examples (EXAMPLE_FEATURES) and what it reads; every pass has each example once.

    It has a shard a process, which `accelerate` (`IterableDataset.shard`) hands out: the process reads its own part of
    each set, in an order of its own that follows from `seed`, the pass and `n_processes`. `shuffle_buffer` = 1: in the
    order of the file, sets one after another. Raises BigrecError where a process would have no example.
    """
    sources = [open_source(name, split, sample=sample, seed=seed) for name in datasets]
    parts = [sum(len(source.share([rank], n_processes)) for source in sources) for rank in range(n_processes)]
    if not all(parts):
        raise BigrecError(f"{sum(parts)} examples for {n_processes} processes: launch fewer, or train on more")

    def generate(ranks: list[int]) -> Iterator[dict[str, Any]]:
        shares = [source.share(ranks, n_processes) for source in sources]
        known = [(load_facts(source.dataset), load_titles(source.dataset)) for source in sources]  # only where read

        def read(at: int, rng: np.random.Generator | None) -> Iterator[dict[str, Any]]:
            for rows in read_rows(sources[at], shares[at], rng):
                yield from split_columns(example_columns(rows, *known[at]))

        for number in count():
            if shuffle_buffer == 1:
                yield from chain.from_iterable(read(at, None) for at in range(len(sources)))
                continue
            rng = np.random.default_rng([seed, number, ranks[0]])
            streams = [read(at, rng) for at in range(len(sources))]
            yield from shuffle(mix(streams, list(map(len, shares)), rng), shuffle_buffer, rng)

    ranks = list(range(n_processes))
    return IterableDataset.from_generator(generate, features=EXAMPLE_FEATURES, gen_kwargs={"ranks": ranks}), sources
