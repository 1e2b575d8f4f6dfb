"""The reference's JSON arrays of `{"instruction", "input", "output"}`: read as a prepared set, and written from one.

Written files equal those of `json.dump(rows, file, indent=4)`: ASCII with `\\uXXXX` escapes, like the reference's own
(`WALL\\u00c2\\u00b7E`). Reading gives the same strings for any layout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from bigrec_hf.common.columns import Columns
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog, load_catalog, read_items_parquet, read_text
from bigrec_hf.data.prompts import build_input, build_instruction, build_output, parse_input
from bigrec_hf.data.samples import evaluation_sample
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.prepare.sources.base import require_folder
from bigrec_hf.prepare.splits import ExampleRanges, Sequences
from bigrec_hf.prepare.tables import join_titles

FILES_OF = {
    "train": ("train.json",),
    "validation": ("valid.json", "validation.json", "valid_5000.json"),
    "test": ("test.json", "test_5000.json"),
}
FIELDS = (Columns.INSTRUCTION, Columns.INPUT, Columns.OUTPUT)
PREFIX = re.compile(r"The user has (?P<verb>.+?) the following (?P<noun>.+) before:")
# what pandas takes for a missing value when the reference reads its CSV: such a target title becomes "nan"
PANDAS_MISSING = {"-1.#IND", "1.#QNAN", "1.#IND", "-1.#QNAN", "#N/A N/A", "#N/A", "N/A", "n/a", "NA", "<NA>", "#NA"}
PANDAS_MISSING |= {"NULL", "null", "NaN", "-NaN", "nan", "-nan", "None"}
CHUNK = 100_000  # examples rendered at once


# --- reading ----------------------------------------------------------------------------------------------------------


def find_reference_files(raw_dir: Path | None, items: Path | None) -> dict[str, Path]:
    """`train.json`, `valid.json` (or `valid_5000.json`), `test.json` (or `test_5000.json`): those that exist."""
    folder = require_folder(raw_dir)
    files = {
        split: next(folder / name for name in names if (folder / name).is_file())
        for split, names in FILES_OF.items()
        if any((folder / name).is_file() for name in names)
    }
    if not files:
        raise BigrecError(f"{folder}: found none of train.json, valid.json, test.json: check --raw_dir")
    return files if items is None else files | {"items": items}


@dataclass(frozen=True)
class ReferenceSet:
    """Examples read from the reference's files; each is a sequence of its own, as the files do not name users."""

    catalog: Catalog
    user_ids: pl.Series
    sequences: Sequences
    splits: dict[str, ExampleRanges]
    facts: dict[str, Any]


def load_reference_json(
    files: dict[str, Path], encoding: str | None = None, drop_untitled: bool = False
) -> ReferenceSet:
    """Read the reference's files; `files["items"]` is the catalog, else all titles in order of first appearance.

    A title that occurs in several catalog rows means the first. A target `nan` that is not a title is the title `None`,
    which the reference lost through pandas. Raises BigrecError for a malformed record or titles outside the catalog
    (unless `drop_untitled`: such examples are dropped and counted).
    """
    catalog_file = files.get("items")
    catalog = None if catalog_file is None else load_catalog(catalog_file, encoding)
    rows_of: dict[str, int] = {} if catalog is None else {t: rows[0] for t, rows in catalog.rows_by_title.items()}
    flat: list[int] = []
    ids: list[str] = []
    titles: list[str] = []
    lengths: list[int] = []
    n_examples = {"train": 0, "validation": 0, "test": 0}
    dropped = repaired = raw = 0
    prefix = ""
    for split, n in n_examples.items():
        if split not in files:
            continue
        for number, (found, history, target) in enumerate(_records(files[split])):
            raw += 1
            prefix = prefix or found
            keys = [clean_title(title) for title in (*history, target)]
            if catalog is None:
                for key, title in zip(keys, (*history, target), strict=True):
                    if key and key not in rows_of:
                        rows_of[key] = len(titles)
                        titles.append(title)
            elif keys[-1] == "nan" and "nan" not in rows_of and "None" in rows_of:
                keys[-1], repaired = "None", repaired + 1
            unknown = [key for key in keys if key not in rows_of]
            if unknown and catalog is None and not drop_untitled:
                raise BigrecError(
                    f"{files[split]}: record {number}: a title is empty: fix the record, or drop such examples with "
                    "--drop_untitled true"
                )
            if unknown and not drop_untitled:
                raise BigrecError(
                    f"{files[split]}: record {number}: the title {unknown[0]!r} is not in {catalog_file}: give the "
                    "catalog's --encoding (the reference read it as latin-1), or drop such examples with "
                    "--drop_untitled true"
                )
            if unknown:
                dropped += 1
                continue
            flat.extend(rows_of[key] for key in keys)
            lengths.append(len(keys))
            ids.append(f"{split}-{number}")
            n += 1
        n_examples[split] = n
    if not lengths:
        names = ", ".join(path.name for split, path in files.items() if split != "items")
        raise BigrecError(f"{names}: none of {raw} records can be used: check --raw_dir and --items_file")
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    sequences = Sequences(
        users=np.repeat(np.arange(len(lengths), dtype=np.uint32), lengths),
        rows=np.asarray(flat, dtype=np.int32),
        ratings=None,
        times=None,
        starts=starts,
    )
    bounds = np.cumsum([0, *n_examples.values()])
    splits = {
        split: ExampleRanges(starts[:-1][low:high], starts[1:][low:high] - 1)
        for split, low, high in zip(n_examples, bounds[:-1], bounds[1:], strict=True)
    }
    words = PREFIX.fullmatch(prefix)
    facts: dict[str, Any] = {
        **(
            {"noun": words["noun"], "noun_singular": words["noun"].removesuffix("s"), "verb": words["verb"]}
            if words
            else {}
        ),
        "encoding": encoding or "utf-8",
        "max_history": max(lengths) - 1,
        "interactions": {"raw": 0, "dropped": {}, "kept": 0},
        "notes": {
            "records": raw,
            "users": "unknown: every example counts as one",
            **({"records dropped, a title is not in the catalog": dropped} if dropped else {}),
            **({'targets "nan" read as the title None': repaired} if repaired else {}),
        },
        "licence": {"name": "Terms of the source: not recorded in its files", "redistribution": "unknown"},
    }
    catalog = catalog or Catalog([str(row) for row in range(len(titles))], titles)
    return ReferenceSet(catalog, pl.Series(ids, dtype=pl.String), sequences, splits, facts)


def _records(path: Path) -> Iterator[tuple[str, list[str], str]]:
    """(input prefix, history titles, target title) of each record."""
    try:
        records = json.loads(read_text(path, "utf-8"))
    except json.JSONDecodeError as error:
        raise BigrecError(f"{path}:{error.lineno}: not valid JSON ({error.msg}): fix the file") from error
    if not isinstance(records, list):
        raise BigrecError(f"{path}: expected a JSON array of records: check --raw_dir")
    for number, record in enumerate(records):
        for name in FIELDS:
            if not isinstance(record, dict) or not isinstance(record.get(name), str):
                raise BigrecError(f"{path}: record {number}: the text field {name} is missing: fix the record")
        try:
            prefix, history = parse_input(record[Columns.INPUT])
        except BigrecError as error:
            raise BigrecError(f"{path}: record {number}: {error}") from error
        output = record[Columns.OUTPUT].strip()
        if len(output) < 3 or not (output[0] == output[-1] == '"'):
            raise BigrecError(
                f"{path}: record {number}: output {output!r} is not a title in double quotes: fix the record"
            )
        yield prefix, history, output[1:-1]


# --- writing ----------------------------------------------------------------------------------------------------------


def export_reference_json(prepared: Path, folder: Path) -> list[Path]:
    """Write train, valid, test, valid_5000 and test_5000.json from a prepared set; returns the files.

    Rows, order and strings are the reference's. Under `bigrec-game`, a target title that pandas takes for a missing
    value (`None`) is written as "nan", as in the reference's files.
    """
    facts = json.loads((prepared / "facts.json").read_text(encoding="utf-8"))
    titles = read_items_parquet(prepared / "data/items/train.parquet").titles
    quoted = pl.Series([_escape(build_output(title)) for title in titles], dtype=pl.String)
    targets = quoted
    if facts["preset"] == "bigrec-game":
        missing = ["nan" if title in PANDAS_MISSING else title for title in titles]
        targets = pl.Series([_escape(build_output(title)) for title in missing], dtype=pl.String)
    noun, verb = facts["noun"], facts["verb"]
    instruction = build_instruction(noun, verb, facts.get("noun_singular"))
    head = f'    {{\n        "instruction": "{_escape(instruction)}",\n        "input": "'
    prefix, joint, tail = (_escape(part) for part in build_input(noun, verb, ["\0", "\0"]).split('"\0"'))

    def render(table: pa.Table) -> bytes:
        """The array's objects, joined, without the brackets."""
        history = pl.Series(pl.from_arrow(table[Columns.HISTORY]))
        offsets = np.concatenate([[0], np.cumsum(history.list.len().to_numpy())])
        rows = table[Columns.HISTORY].combine_chunks().flatten().to_numpy()
        inputs = join_titles(quoted, offsets, rows, joint)
        outputs = targets.gather(pl.Series(pl.from_arrow(table[Columns.TARGET])).cast(pl.UInt32))
        parts = (pl.lit(head + prefix), inputs, pl.lit(tail + '",\n        "output": "'), outputs, pl.lit('"\n    }'))
        return pl.select(pl.concat_str(parts).str.join(",\n")).item().encode("ascii")

    folder.mkdir(parents=True, exist_ok=True)
    columns = [Columns.HISTORY, Columns.TARGET]
    written = []
    for split, name in (("train", "train"), ("validation", "valid"), ("test", "test")):
        file = pq.ParquetFile(prepared / "data/default" / f"{split}.parquet")
        parts = (pa.Table.from_batches([batch]) for batch in file.iter_batches(CHUNK, columns=columns))
        written.append(_write_array(folder / f"{name}.json", (render(part) for part in parts)))
        if split != "train":
            table = file.read(columns)
            drawn = table.take(pa.array(evaluation_sample(len(table)), pa.int64()))
            written.append(_write_array(folder / f"{name}_5000.json", iter([render(drawn)])))
    return written


def _escape(text: str) -> str:
    return json.dumps(text)[1:-1]


def _write_array(path: Path, parts: Iterator[bytes]) -> Path:
    """Write rendered objects as one JSON array, atomically."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        between = b"[\n"
        for part in filter(None, parts):
            file.write(between)
            file.write(part)
            between = b",\n"
        file.write(b"[]" if between == b"[\n" else b"\n]")
    temporary.replace(path)
    return path
