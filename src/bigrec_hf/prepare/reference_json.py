"""The reference's JSON arrays of `{"instruction", "input", "output"}`: read as a prepared set, and written from one.

Written files equal those of `json.dump(rows, file, indent=4)`: ASCII with `\\uXXXX` escapes, like the reference's own
(`WALL\\u00c2\\u00b7E`). Reading gives the same strings for any layout.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from bigrec_hf.common.columns import Columns
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import check_characters, read_json_file
from bigrec_hf.data.catalog import Catalog, load_catalog, read_items_parquet
from bigrec_hf.data.prepared import load_facts
from bigrec_hf.data.prompts import build_input, build_instruction, build_output, parse_input
from bigrec_hf.data.samples import evaluation_sample
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.prepare.ready import ItemLookup, ReadySet, id_text
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


def load_reference_json(files: dict[str, Path], encoding: str | None = None, drop_untitled: bool = False) -> ReadySet:
    """Read the reference's files; `files["items"]` is the catalog, else all titles in order of first appearance.

    Each example is a sequence of its own, as the files do not name users. A title that occurs in several catalog rows
    means the first, which is counted and warned of, unless the records have ids: `item_id` of the target and
    `history_item_id`. A target `nan` that is not a title is the title `None`, which the reference lost through pandas.
    Raises BigrecError for a malformed record or titles outside the catalog (unless `drop_untitled`: such examples are
    dropped and counted).
    """
    catalog_file = files.get("items")
    given = None if catalog_file is None else load_catalog(catalog_file, encoding)
    lookup = None if given is None else ItemLookup(given, str(catalog_file))
    rows_of: dict[str, int] = {}  # without a catalog file
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
        for number, record in enumerate(_records(files[split])):
            raw += 1
            prefix = prefix or record.prefix
            try:
                if lookup is None:
                    rows = [_first_row(title, rows_of, titles) for title in record.titles]
                else:
                    names, was_nan = _with_none(record, lookup.catalog)
                    rows = [lookup.row(*named) for named in zip(names, record.item_ids, strict=True)]
                    repaired += was_nan
            except BigrecError as error:
                if drop_untitled:
                    dropped += 1
                    continue
                remedy = "fix the record"
                if lookup is not None:
                    remedy = "give the catalog's --encoding (the reference read it as latin-1)"
                raise BigrecError(
                    f"{files[split]}: record {number}: {error}: {remedy}, or drop such examples with "
                    "--drop_untitled true"
                ) from error
            flat.extend(rows)
            lengths.append(len(rows))
            ids.append(f"{split}-{number}")
            n += 1
        n_examples[split] = n
    if not lengths:
        files_read = ", ".join(path.name for split, path in files.items() if split != "items")
        raise BigrecError(f"{files_read}: none of {raw} records can be used: check --raw_dir and --items_file")
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
        "notes": {
            "records": raw,
            **({} if lookup is None else lookup.notes("the records")),
            **({"records dropped, a title is not in the catalog": dropped} if dropped else {}),
            **({'targets "nan" read as the title None': repaired} if repaired else {}),
        },
        "licence": {"name": "Terms of the source: not recorded in its files", "redistribution": "unknown"},
    }
    catalog = given or Catalog([str(row) for row in range(len(titles))], titles)
    return ReadySet(catalog, pl.Series(ids, dtype=pl.String), sequences, splits, facts, names_users=False)


class Record(NamedTuple):
    """One record: the input's prefix, the history's titles and then the target's, and as many ids ("" = unknown)."""

    prefix: str
    titles: list[str]
    item_ids: list[str]


def _first_row(title: str, rows_of: dict[str, int], titles: list[str]) -> int:
    """The row of a title in a catalog that grows by every new title. Raises BigrecError for an empty one."""
    key = clean_title(title)
    if not key:
        raise BigrecError("a title is empty")
    if key not in rows_of:
        rows_of[key] = len(titles)
        titles.append(title)
    return rows_of[key]


def _with_none(record: Record, catalog: Catalog) -> tuple[list[str], bool]:
    """The titles, with `None` for a target `nan` that only pandas can have written; and whether that was the case."""
    known = catalog.rows_by_title
    was_nan = clean_title(record.titles[-1]) == "nan" and "nan" not in known and "None" in known
    return ([*record.titles[:-1], "None"] if was_nan else record.titles), was_nan


def _records(path: Path) -> Iterator[Record]:
    """The records of one file. Raises BigrecError naming the record that is malformed."""
    records = read_json_file(path)
    if not isinstance(records, list):
        raise BigrecError(f"{path}: expected a JSON array of records: check --raw_dir")
    for number, record in enumerate(records):
        for name in FIELDS:
            if not isinstance(record, dict) or not isinstance(record.get(name), str):
                raise BigrecError(f"{path}: record {number}: the text field {name} is missing: fix the record")
            check_characters(record[name], f"{path}: record {number}: {name}")
        try:
            prefix, history = parse_input(record[Columns.INPUT])
        except BigrecError as error:
            raise BigrecError(f"{path}: record {number}: {error}") from error
        output = record[Columns.OUTPUT].strip()
        if len(output) < 3 or not (output[0] == output[-1] == '"'):
            raise BigrecError(
                f"{path}: record {number}: output {output!r} is not a title in double quotes: fix the record"
            )
        item_ids = [""] * (len(history) + 1)
        if Columns.ITEM_ID in record and isinstance(record.get(f"history_{Columns.ITEM_ID}"), list):
            item_ids = [id_text(item) for item in (*record[f"history_{Columns.ITEM_ID}"], record[Columns.ITEM_ID])]
            if len(item_ids) != len(history) + 1:
                raise BigrecError(
                    f"{path}: record {number}: {len(item_ids) - 1} ids for {len(history)} history titles: fix it"
                )
        yield Record(prefix, [*history, output[1:-1]], item_ids)


# --- writing ----------------------------------------------------------------------------------------------------------


def export_reference_json(prepared: Path, folder: Path) -> list[Path]:
    """Write train, valid, test, valid_5000 and test_5000.json from a prepared set; returns the files.

    Rows, order and strings are the reference's. Under `bigrec-game`, a target title that pandas takes for a missing
    value (`None`) is written as "nan", as in the reference's files.
    """
    facts = load_facts(str(prepared))
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
