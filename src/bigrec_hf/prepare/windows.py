"""Ready windows as BIGRec, D3, ReRe and MiniOneRec publish them: one row is a history and its target, splits are given.

`train`, `valid`, `test` (folders with one file each, or files so named; CSV, JSON array or JSON lines) have the columns
`user_id`, `history_item_title`, `item_title` and, where known, `history_item_id`, `item_id`, `history_rating`,
`rating`, `history_timestamp`, `timestamp`; lists are literals (`['A', 'B']`) or JSON. `info` is the catalog:
`title<TAB>id`, or `semantic id<TAB>title<TAB>id`. Rows, their order and the splits are kept as given.
"""

from __future__ import annotations

import ast
import contextlib
import csv
import io
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import read_catalog_file, read_text
from bigrec_hf.prepare.ready import ItemLookup, ReadySet, id_text
from bigrec_hf.prepare.sources.base import require_folder, whole_times
from bigrec_hf.prepare.sources.json_lines import parse_line
from bigrec_hf.prepare.sources.times import time_divisor
from bigrec_hf.prepare.splits import ExampleRanges, Sequences

SPLITS = {"train": ("train",), "validation": ("valid", "validation", "val"), "test": ("test",)}
DATA_ENDINGS = (".csv", ".json", ".jsonl")
INFO_ENDINGS = (".txt", ".tsv")
USER = "user_id"
TITLE, ID, RATING, TIME = "item_title", "item_id", "rating", "timestamp"


# --- files ------------------------------------------------------------------------------------------------------------


def find_window_files(raw_dir: Path | None, items: Path | None) -> dict[str, Path]:
    """Role (`train`, `validation`, `test`, `items`) -> file. Raises BigrecError if one is missing or ambiguous.

    Where a folder has a file for each of several data sets, the one with the stem of `items` is taken.
    """
    folder = require_folder(raw_dir)
    items = items or _only_file(folder, ("info",), INFO_ENDINGS, None)
    if items is None:
        raise BigrecError(f"{folder}: found no info file (info.txt, or a folder info): give it with --items_file")
    found = {split: _only_file(folder, names, DATA_ENDINGS, items.stem) for split, names in SPLITS.items()}
    files = {split: file for split, file in found.items() if file is not None}
    if "train" not in files:
        raise BigrecError(
            f"{folder}: found no train file (train.csv, train.json, or a folder train with one): check --raw_dir"
        )
    return files | {"items": items}


def _only_file(folder: Path, names: tuple[str, ...], endings: tuple[str, ...], stem: str | None) -> Path | None:
    """`folder/NAME.ENDING`, or the file in `folder/NAME`; of several files the one called `stem`."""
    found = [folder / (name + ending) for name in names for ending in endings]
    inside = [file for name in names if (folder / name).is_dir() for file in (folder / name).iterdir()]
    found = [file for file in found if file.is_file()] + sorted(f for f in inside if f.suffix in endings)
    found = [file for file in found if file.stem == stem] or found if len(found) > 1 else found
    if len(found) > 1:
        raise BigrecError(
            f"{folder}: expected one file for {names[0]}, found {', '.join(file.name for file in found)}: choose the "
            "data set with --items_file INFO_FILE (the files of the same name are taken), or keep one file each"
        )
    return found[0] if found else None


# --- rows -------------------------------------------------------------------------------------------------------------


class Window(NamedTuple):
    """One row: parallel lists over the history and then the target; None if the file has no such column."""

    user: str
    rows: list[int]
    ratings: list[float] | None
    times: list[float] | None


def _records(path: Path, encoding: str | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, columns) of every row of a CSV file, a JSON array or JSON lines."""
    text = read_text(path, encoding or "utf-8")
    if path.suffix == ".csv":
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True, restkey="\0more")
        line = 2
        try:
            for record in reader:
                place = f"{path}:{line}"
                if "\0more" in record or None in record.values():
                    n = len(reader.fieldnames or ())
                    raise BigrecError(f"{place}: expected {n} fields: fix the line")
                yield place, record
                line = reader.line_num + 1
        except csv.Error as error:
            raise BigrecError(f"{path}:{reader.line_num}: {error}: fix the quotes") from error
        return
    if text.lstrip().startswith("["):
        try:
            records = json.loads(text)
        except ValueError as error:
            line = getattr(error, "lineno", 1)
            raise BigrecError(f"{path}:{line}: not valid JSON ({error}): fix the file") from error
        yield from ((f"{path}: record {number}", record) for number, record in enumerate(records))
    else:
        lines = enumerate(text.split("\n"), start=1)
        yield from ((f"{path}:{n}", parse_line(line, path, n)) for n, line in lines if line.strip())


def _list(value: Any, name: str, place: str) -> list[Any]:
    """A list, or the literal of one."""
    if isinstance(value, str):
        try:  # numbers and JSON first: several times as fast
            value = json.loads(value)
        except ValueError:
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                value = ast.literal_eval(value)
    if not isinstance(value, list):
        raise BigrecError(f"{place}: {name} is {str(value)[:60]!r}, not a list: fix the row")
    return value


def _numbers(values: list[Any], name: str, place: str) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = [math.nan]
    if not all(map(math.isfinite, numbers)):
        raise BigrecError(f"{place}: {name} holds {values!r}, not only numbers: fix the row")
    return numbers


def read_windows(path: Path, lookup: ItemLookup, encoding: str | None = None) -> Iterator[Window]:
    """The rows of one split. Raises BigrecError naming the line of a fault: a missing column, lists of different
    lengths, a title that is not in the catalog."""
    has: set[str] = set()
    for place, record in _records(path, encoding):
        if not isinstance(record, dict):
            raise BigrecError(f"{place}: expected an object with the columns of a window: fix the file")
        if not has:
            has = set(record)
            _check_columns(path, record)
        missing = has - set(record)
        if missing:
            raise BigrecError(f"{place}: the field {sorted(missing)[0]} is missing: fix the row")

        def both(name: str, place: str = place, record: dict[str, Any] = record) -> list[Any] | None:
            """History and target of a column."""
            if name not in record or f"history_{name}" not in record:
                return None
            return [*_list(record[f"history_{name}"], f"history_{name}", place), record[name]]

        titles, ids = both(TITLE), both(ID)
        columns = {TITLE: titles, ID: ids, RATING: both(RATING), TIME: both(TIME)}
        lengths = {name: len(values) for name, values in columns.items() if values is not None}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"history_{name} {n - 1}" for name, n in lengths.items())
            raise BigrecError(f"{place}: histories of different lengths ({listed}): fix the row")
        n = next(iter(lengths.values()))
        try:
            named = zip(titles or [""] * n, ids or [""] * n, strict=True)
            rows = [lookup.row("" if title is None else str(title), id_text(item)) for title, item in named]
        except BigrecError as error:
            raise BigrecError(f"{place}: {error}: fix the row, or give the info file of this data set") from error
        user = id_text(record[USER])
        if not user:
            raise BigrecError(f"{place}: the field {USER} is empty: fix the row")
        numbers = [
            None if values is None else _numbers(values, name, place)
            for name, values in columns.items()
            if name in (RATING, TIME)
        ]
        yield Window(user, rows, *numbers)


def _check_columns(path: Path, record: dict[str, Any]) -> None:
    if {"instruction", "input", "output"} <= set(record):
        raise BigrecError(f"{path}: these are records of instruction, input and output: use --source reference-json")
    by_title, by_id = ({name, f"history_{name}"} <= set(record) for name in (TITLE, ID))
    if USER not in record or not (by_title or by_id):
        raise BigrecError(
            f"{path}: expected the columns {USER}, history_{TITLE}, {TITLE} (or history_{ID}, {ID}), found "
            f"{', '.join(map(str, record))}: rename them"
        )


# --- sequences --------------------------------------------------------------------------------------------------------


@dataclass
class _User:
    """What the windows say about one user, in order; a window that does not continue the one before it starts a
    new chain."""

    rows: list[int] = field(default_factory=list)
    ratings: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    chain: int = 0  # where the current chain begins
    chains: int = 0

    def add(self, window: Window) -> tuple[int, int]:
        """Append what is new; returns begin and target of the example, as positions in this user's entries."""
        n = len(window.rows) - 1
        goes_on = 0 < n <= len(self.rows) - self.chain and self.rows[-n:] == window.rows[:-1]
        if not goes_on:
            self.chain, self.chains = len(self.rows), self.chains + 1
        new = slice(n, None) if goes_on else slice(None)
        self.rows += window.rows[new]
        self.ratings += (window.ratings or [])[new]
        self.times += (window.times or [])[new]
        return len(self.rows) - 1 - n, len(self.rows) - 1


def load_windows(files: dict[str, Path], encoding: str | None = None, timestamp_unit: str | None = None) -> ReadySet:
    """Read ready windows; `files` as `find_window_files` gives them.

    Each user's sequence is put together from its windows: the first history, then every target. Where a window does not
    continue the one before it of the user, the examples stay as given but what the user did is unknown (no
    `interactions`). Raises BigrecError as `read_windows`.
    """
    lookup = ItemLookup(read_catalog_file(files["items"], encoding), str(files["items"]))
    users: dict[str, _User] = {}
    codes: dict[str, int] = {}
    placed: dict[str, list[tuple[int, int, int]]] = {}  # per split: user code, begin, target
    kinds: set[tuple[bool, bool]] = set()
    for split in SPLITS:
        placed[split] = []
        for window in read_windows(files[split], lookup, encoding) if split in files else ():
            code = codes.setdefault(window.user, len(codes))
            placed[split].append((code, *users.setdefault(window.user, _User()).add(window)))
            kinds.add((window.ratings is None, window.times is None))
    if not codes:
        raise BigrecError(f"{files['train']}: no split has a row: check --raw_dir")
    if len(kinds) > 1:
        raise BigrecError(f"{files['train'].parent}: only some of the splits have ratings or times: give all or none")
    no_ratings, no_times = kinds.pop()
    known = list(users.values())
    starts = np.concatenate([[0], np.cumsum([len(user.rows) for user in known])]).astype(np.int64)
    times = None
    if not no_times:
        times = whole_times(np.concatenate([user.times for user in known]), TIME, files["train"], None)
    sequences = Sequences(
        users=np.repeat(np.arange(len(known), dtype=np.uint32), np.diff(starts)),
        rows=np.concatenate([user.rows for user in known]).astype(np.int32),
        ratings=None if no_ratings else np.concatenate([user.ratings for user in known]).astype(np.float32),
        times=times,
        starts=starts,
    )
    splits = {}
    for split, examples in placed.items():
        at = np.asarray(examples, dtype=np.int64).reshape(-1, 3)
        splits[split] = ExampleRanges(starts[at[:, 0]] + at[:, 1], starts[at[:, 0]] + at[:, 2])
    broken = sum(user.chains > 1 for user in known)
    notes: dict[str, Any] = lookup.notes("the windows")
    if broken:
        notes["users whose windows do not continue each other (no interactions)"] = broken
    longest = max(int((part.targets - part.begins).max(initial=0)) for part in splits.values())
    facts = {
        "encoding": encoding or "utf-8",
        "max_history": longest,
        "notes": notes,
        "licence": {"name": "Terms of the source: not recorded in its files", "redistribution": "unknown"},
    }
    divisor = 1 if times is None else time_divisor(times, timestamp_unit, TIME, str(files["train"]))
    user_ids = pl.Series(list(codes), dtype=pl.String)
    return ReadySet(lookup.catalog, user_ids, sequences, splits, facts, divisor, whole=not broken)
