"""Parquet files of a prepared set, written in chunks with explicit types, and the texts of examples."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bigrec_hf.common.columns import Columns
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.data.prompts import build_input, build_instruction, build_output
from bigrec_hf.prepare.splits import ExampleRanges, Sequences

CHUNK = 250_000  # rows per row group: bounds memory
SPLITS = ("train", "validation", "test")

EXAMPLE_SCHEMA = pa.schema(
    [
        (Columns.EXAMPLE_ID, pa.string()),
        (Columns.USER_ID, pa.string()),
        (Columns.HISTORY, pa.list_(pa.int32())),
        (Columns.HISTORY_RATINGS, pa.list_(pa.float32())),
        (Columns.TARGET, pa.int32()),
        (Columns.RATING, pa.float32()),
        (Columns.TIMESTAMP, pa.int64()),
    ]
)
ITEM_SCHEMA = pa.schema(
    [
        (Columns.ROW, pa.int32()),
        (Columns.ITEM_ID, pa.string()),
        (Columns.TITLE, pa.string()),
        (Columns.TRAIN_COUNT, pa.int64()),
    ]
)
INTERACTION_SCHEMA = pa.schema(
    [
        (Columns.USER_ID, pa.string()),
        (Columns.ROW, pa.int32()),
        (Columns.RATING, pa.float32()),
        (Columns.TIMESTAMP, pa.int64()),
    ]
)
TEXT_SCHEMA = pa.schema(
    [(name, pa.string()) for name in (Columns.EXAMPLE_ID, Columns.INSTRUCTION, Columns.INPUT, Columns.OUTPUT)]
)


def write_tables(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    """Write `tables` as one parquet file, one row group each; without tables the file contains only the schema."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # ids and histories hardly repeat within a chunk: dictionaries would not be worth their time
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as writer:
        for table in made_ahead(tables):
            if len(table):  # `datasets` cannot read an empty row group, but can read a file without row groups
                writer.write_table(table.cast(schema), row_group_size=CHUNK)


def made_ahead(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same tables; each is computed, in a separate thread, while the caller works on the one before it."""
    with ThreadPoolExecutor(1) as executor:
        coming = executor.submit(next, tables, None)
        while (table := coming.result()) is not None:
            coming = executor.submit(next, tables, None)
            yield table


def numbers(values: np.ndarray, kind: pa.DataType | None = None) -> pa.Array:
    """`pa.array(values, kind)` without missing values; that function imports pandas, a sixth of a small set's time.

    Raises pyarrow.ArrowInvalid for a value that `kind` cannot hold.
    """
    values = np.ascontiguousarray(values)
    array = pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [None, pa.py_buffer(values)])
    return array if kind is None else array.cast(kind)


def texts(values: list[str]) -> pa.Array:
    """`pa.array(values)` for strings, without pandas."""
    return pl.Series(values, dtype=pl.String).to_arrow().cast(pa.string())


def _optional(values: np.ndarray | None, n: int, kind: pa.DataType) -> pa.Array:
    return pa.nulls(n, kind) if values is None else numbers(values, kind)


def example_ids(user_ids: pa.Array, sequences: Sequences, examples: ExampleRanges) -> pa.Array:
    """`{user_id}:{position of the target in the user's sequence}`, one string per example."""
    codes = sequences.users[examples.targets]
    position = examples.targets - sequences.starts[codes]
    colon = texts([":"])[0]
    return pc.binary_join_element_wise(user_ids.take(numbers(codes)), numbers(position).cast(pa.string()), colon)


def example_tables(
    user_ids: pa.Array, sequences: Sequences, examples: ExampleRanges, time_divisor: int
) -> Iterator[pa.Table]:
    """The `default` config of one split, chunk by chunk."""
    for part in examples.chunks(CHUNK):
        offsets, flat = part.history()
        at, n = part.targets, len(part)
        lists = numbers(offsets, pa.int32())
        ratings = sequences.ratings
        yield pa.table(
            [
                example_ids(user_ids, sequences, part),
                user_ids.take(numbers(sequences.users[at])),
                pa.ListArray.from_arrays(lists, numbers(sequences.rows[flat], pa.int32())),
                pa.nulls(n, pa.list_(pa.float32()))
                if ratings is None
                else pa.ListArray.from_arrays(lists, numbers(ratings[flat], pa.float32())),
                numbers(sequences.rows[at], pa.int32()),
                _optional(None if ratings is None else ratings[at], n, pa.float32()),
                _optional(None if sequences.times is None else sequences.times[at] // time_divisor, n, pa.int64()),
            ],
            schema=EXAMPLE_SCHEMA,
        )


def interaction_tables(
    user_ids: pa.Array,
    users: np.ndarray,
    rows: np.ndarray,
    ratings: np.ndarray | None,
    times: np.ndarray | None,
    time_divisor: int,
) -> Iterator[pa.Table]:
    """The `interactions` config in file order, chunk by chunk."""
    for start in range(0, len(rows), CHUNK):
        part = slice(start, start + CHUNK)
        n = len(rows[part])
        yield pa.table(
            [
                user_ids.take(numbers(users[part])),
                numbers(rows[part], pa.int32()),
                _optional(None if ratings is None else ratings[part], n, pa.float32()),
                _optional(None if times is None else times[part] // time_divisor, n, pa.int64()),
            ],
            schema=INTERACTION_SCHEMA,
        )


def item_table(catalog: Catalog, train_count: np.ndarray) -> pa.Table:
    """The `items` config: one row per catalog row."""
    return pa.table(
        [
            numbers(np.arange(len(catalog)), pa.int32()),
            texts(catalog.item_ids),
            texts(catalog.titles),
            numbers(train_count, pa.int64()),
        ],
        schema=ITEM_SCHEMA,
    )


def render_inputs(quoted_titles: pl.Series, offsets: np.ndarray, rows: np.ndarray, noun: str, verb: str) -> pl.Series:
    """`prompts.build_input` for many examples at once.

    `quoted_titles`: each catalog title in double quotes; `offsets` (m + 1,) and flat `rows`: m lists in Arrow's layout.
    """
    prefix, joint, tail = build_input(noun, verb, ["\0", "\0"]).split('"\0"')
    return prefix + join_titles(quoted_titles, offsets, rows, joint) + tail


def join_titles(quoted_titles: pl.Series, offsets: np.ndarray, rows: np.ndarray, joint: str) -> pl.Series:
    """(m,) strings: the titles of each list of rows, joined; an empty list gives an empty string."""
    titles = quoted_titles.gather(rows).to_arrow().cast(pa.large_string())
    lists = pa.LargeListArray.from_arrays(numbers(offsets, pa.int64()), titles)
    return pl.Series(pl.from_arrow(lists)).list.join(joint)


def text_tables(
    user_ids: pa.Array,
    sequences: Sequences,
    examples: ExampleRanges,
    catalog: Catalog,
    *,
    noun: str,
    noun_singular: str,
    verb: str,
) -> Iterator[pa.Table]:
    """The `text` config of one split: instruction, input, output as the reference writes them."""
    instruction = build_instruction(noun, verb, noun_singular)
    quoted = pl.Series([build_output(title) for title in catalog.titles], dtype=pl.String)
    for part in examples.chunks(CHUNK):
        offsets, flat = part.history()
        yield pa.table(
            [
                example_ids(user_ids, sequences, part),
                pa.repeat(texts([instruction])[0], len(part)),
                render_inputs(quoted, offsets, sequences.rows[flat], noun, verb).to_arrow().cast(pa.string()),
                quoted.gather(sequences.rows[part.targets]).to_arrow().cast(pa.string()),
            ],
            schema=TEXT_SCHEMA,
        )
