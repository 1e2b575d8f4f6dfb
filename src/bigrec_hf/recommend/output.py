"""Recommendations as rows, in parquet, CSV or JSON lines, and the record of the job that wrote them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, write_atomically
from bigrec_hf.hub.histories import Found

SUFFIXES = (".parquet", ".csv", ".jsonl")


def rows_table(users: pl.Series, found: Sequence[Found], fallback: Sequence[bool]) -> pl.DataFrame:
    """One row per user and rank: user, rank (from 1), item_id, title, score, text, fallback.

    text: the first generated title, or the likeliest one; null for rankers that write none. fallback: the history held
    no title of the catalog, so that the items are the most popular ones.
    """
    counts = [len(one.items) for one in found]
    owner = [number for number, n in enumerate(counts) for _ in range(n)]
    items = [item for one in found for item in one.items]
    columns = {
        C.USER: users.gather(owner),
        C.RANK: pl.Series([rank for n in counts for rank in range(1, n + 1)], dtype=pl.Int32),
        C.ITEM_ID: pl.Series([item.item_id for item in items], dtype=pl.String),
        C.TITLE: pl.Series([item.title for item in items], dtype=pl.String),
        C.SCORE: pl.Series([item.score for item in items], dtype=pl.Float32),
        C.TEXT: pl.Series(
            [found[number].texts[0] if found[number].texts else None for number in owner], dtype=pl.String
        ),
        C.FALLBACK: pl.Series([bool(fallback[number]) for number in owner], dtype=pl.Boolean),
    }
    return pl.DataFrame([values.alias(name) for name, values in columns.items()])


def check_output(output: str) -> Path:
    """The file to write. Raises BigrecError for another kind of file, and for a folder."""
    path = Path(output)
    if path.suffix not in SUFFIXES or path.is_dir():
        raise BigrecError(f"--output is {output!r}: give a file that ends in {', '.join(SUFFIXES)}")
    return path


def record_file(output: Path) -> Path:
    """The record beside an output: the settings and the numbers of the job that wrote it."""
    return output.with_name(output.name + ".json")


def is_done(output: Path, key: str, *, overwrite: bool) -> bool:
    """Whether the output is this job's, which `key` identifies. Raises BigrecError for another's, unless it may be
    replaced."""
    if not output.exists():
        return False
    record = read_json(record_file(output))
    if record.get("fingerprint") == key and record.get("bytes") == output.stat().st_size:
        return True
    if overwrite:
        return False
    what = "of other settings, users or models" if record else "of an unknown origin"
    raise BigrecError(f"{output} holds recommendations {what}: give another --output, or replace it with --overwrite")


def write_rows(output: Path, tables: Iterable[pa.Table]) -> tuple[int, int]:
    """Write tables one after another into one file, completely or not at all; returns the number of rows, and of users
    who have any."""
    n_rows = n_users = 0

    def count(table: pa.Table) -> None:
        nonlocal n_rows, n_users
        n_rows += len(table)
        n_users += pc.sum(pc.equal(table[C.RANK], 1)).as_py() or 0

    def write(path: Path) -> None:
        if output.suffix == ".parquet":
            writer = None
            for table in tables:
                writer = writer or pq.ParquetWriter(path, table.schema)
                writer.write_table(table)
                count(table)
            if writer is not None:
                writer.close()
            return
        with path.open("wb") as stream:
            for number, table in enumerate(tables):
                _append(stream, pl.DataFrame(table), output.suffix, header=number == 0)
                count(table)

    write_atomically(output, write)
    return n_rows, n_users


def describe_without_items(n_users: int) -> str:
    """A line about users who have no row; "" if there is none."""
    if not n_users:
        return ""
    return f"users without any item: {n_users:,} (all candidates are in their history, or the model wrote no title)"


def _append(stream: BinaryIO, frame: pl.DataFrame, suffix: str, *, header: bool) -> None:
    if suffix == ".csv":
        frame.write_csv(stream, include_header=header)
    else:
        frame.write_ndjson(stream)


def shown(frame: pl.DataFrame) -> str:
    """Rows for people: the text that was generated, then a line per item."""
    lines: list[str] = []
    for row in frame.iter_rows(named=True):
        if row[C.RANK] == 1:
            lines += [f"generated: {row[C.TEXT]}"] if row[C.TEXT] is not None else []
            lines += ["no known title in the history: the most popular items"] if row[C.FALLBACK] else []
        lines.append(f"{row[C.RANK]:>3}  {row[C.TITLE]}  ({row[C.ITEM_ID]}, {row[C.SCORE]:.4g})")
    return "\n".join(lines)
