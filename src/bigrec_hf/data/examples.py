"""Examples as text, from prepared sets (folder or Hub id) and the reference's JSON files, in one common format."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Features, List, Value

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import check_characters, read_json_file, read_table
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.data.prepared import find_table, load_facts
from bigrec_hf.data.prompts import build_input_prefix, build_instruction, parse_input
from bigrec_hf.data.samples import evaluation_sample
from bigrec_hf.metrics.ndcg_hr.titles import clean_title

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings

EXAMPLE_FEATURES = Features(
    {
        C.EXAMPLE_ID: Value("string"),
        C.INSTRUCTION: Value("string"),
        C.INPUT_PREFIX: Value("string"),
        C.HISTORY: List(Value("int32")),
        C.HISTORY_TITLES: List(Value("string")),
        C.TARGET: Value("int32"),
        C.TARGET_TITLE: Value("string"),
    }
)


def load_config(dataset: str, config: str, split: str) -> Dataset:
    """One configuration and split of a prepared set, from its folder or from the Hub.

    The parquet file is read directly: `load_dataset` caches a folder by its name and its files' relative names, so two
    runs whose sets are both called `data` would get each other's examples. This also downloads no more than one file.
    """
    return Dataset(read_table(find_table(dataset, config, split)))


def load_titles(dataset: str) -> np.ndarray:
    """The titles of a prepared set's items, (n_items,) str objects, indexed by catalog row."""
    return np.asarray(load_config(dataset, "items", "train")[C.TITLE], dtype=object)


def evaluation_rows(n: int, sample: int) -> np.ndarray:
    """Rows of the reference's evaluation sample, in drawn order (`data.samples`); `sample` 0 = all rows, in order."""
    return evaluation_sample(n, sample) if sample > 0 else np.arange(n)


def load_examples(
    dataset: str, split: str, *, sample: int = 0, seed: int | None = None, cache_dir: str | Path | None = None
) -> Dataset:
    """Examples of a prepared set with their texts (EXAMPLE_FEATURES).

    `sample` > 0 draws that many: like the reference's evaluation sets if `seed` is None, otherwise with
    `Dataset.shuffle(seed).select(range(sample))` like its training. With `cache_dir` the ids are kept in a file there
    that is mapped into memory, and texts are rendered as rows are read, so a split may be larger than memory.
    Raises BigrecError if the split is empty.
    """
    facts, titles = load_facts(dataset), load_titles(dataset)
    names = [C.EXAMPLE_ID, C.HISTORY, C.TARGET]
    if cache_dir is None:
        rows = load_config(dataset, "default", split)
    else:
        file = glob.escape(str(find_table(dataset, "default", split)))
        rows = Dataset.from_parquet(file, columns=names, cache_dir=str(cache_dir))
    if len(rows) == 0:
        raise BigrecError(f"split {split!r} of {dataset!r} is empty: prepare more data or choose another split")
    if seed is None:
        rows = rows.select(evaluation_rows(len(rows), sample))
    else:
        rows = rows.shuffle(seed=seed)
        rows = rows.select(range(min(sample, len(rows)))) if sample > 0 else rows
    if cache_dir is not None:
        return rows.with_transform(lambda batch: example_columns(batch, facts, titles))
    columns = {name: rows[name] for name in names}
    return Dataset.from_dict(example_columns(columns, facts, titles), features=EXAMPLE_FEATURES)


def example_columns(rows: dict[str, Sequence[Any]], facts: dict[str, Any], titles: np.ndarray) -> dict[str, Any]:
    """EXAMPLE_FEATURES for rows (ids, histories, targets) of a prepared set with these facts and titles."""
    histories, targets = list(rows[C.HISTORY]), list(rows[C.TARGET])
    n = len(targets)
    return {
        C.EXAMPLE_ID: rows[C.EXAMPLE_ID],
        C.INSTRUCTION: [build_instruction(facts["noun"], facts["verb"], facts.get("noun_singular"))] * n,
        C.INPUT_PREFIX: [build_input_prefix(facts["noun"], facts["verb"])] * n,
        C.HISTORY: histories,
        C.HISTORY_TITLES: [[titles[row] for row in history] for history in histories],
        C.TARGET: targets,
        C.TARGET_TITLE: [titles[row] for row in targets],
    }


def read_input(record: dict[str, Any], place: str) -> tuple[str, list[str]]:
    """Prefix and history titles of a record's `input`. Raises BigrecError naming the `place` if it is malformed."""
    try:
        return parse_input(record[C.INPUT])
    except BigrecError as error:
        raise BigrecError(f"{place}: {error}") from error


def load_json_examples(
    path: str, *, rows_by_title: dict[str, list[int]] | None = None, sample: int = 0, seed: int | None = None
) -> Dataset:
    """Examples of a reference JSON file (instruction, input, output), with the columns of `load_examples`.

    `rows_by_title` (clean title -> catalog rows), if given, fills `target` and `history`: an unknown target gets row
    -1, unknown history titles are left out. Raises BigrecError naming the file and the record if a field is missing.
    """
    if not Path(path).is_file():
        raise BigrecError(f"{path!r} does not exist: give one of the reference's JSON files")
    records = read_json_file(Path(path))
    if not isinstance(records, list) or not records:
        raise BigrecError(f"{path!r} must contain a JSON array with at least one record")
    known = rows_by_title or {}
    columns: dict[str, list[Any]] = {name: [] for name in EXAMPLE_FEATURES}
    for number, record in enumerate(records):
        fields = record if isinstance(record, dict) else {}
        missing = [f for f in (C.INSTRUCTION, C.INPUT, C.OUTPUT) if not isinstance(fields.get(f), str)]
        if missing:
            raise BigrecError(
                f"{path}, record {number}: no text field {missing[0]!r}; expected instruction, input, output"
            )
        for name in (C.INSTRUCTION, C.INPUT, C.OUTPUT):
            check_characters(record[name], f"{path}, record {number}: {name}")
        prefix, titles = read_input(record, f"{path}, record {number}")
        rows = [known.get(clean_title(title), [-1])[0] for title in titles]
        target = clean_title(record[C.OUTPUT])
        columns[C.EXAMPLE_ID].append(f"{Path(path).stem}#{number}")
        columns[C.INSTRUCTION].append(record[C.INSTRUCTION])
        columns[C.INPUT_PREFIX].append(prefix)
        columns[C.HISTORY].append([row for row in rows if row >= 0])
        columns[C.HISTORY_TITLES].append(titles)
        columns[C.TARGET].append(known.get(target, [-1])[0])
        columns[C.TARGET_TITLE].append(target)
    examples = Dataset.from_dict(columns, features=EXAMPLE_FEATURES)
    if seed is None:
        return examples.select(evaluation_rows(len(examples), sample))
    examples = examples.shuffle(seed=seed)
    return examples.select(range(min(sample, len(examples)))) if sample > 0 else examples


def read_train_counts(dataset: str) -> np.ndarray:
    """(n_items,) int64: how often each item is a training target."""
    return np.asarray(load_config(dataset, "items", "train")[C.TRAIN_COUNT], np.int64)


def own_items(dataset: str, catalog: Catalog) -> Dataset:
    """The items of a prepared set. Raises BigrecError if the catalog does not consist of them."""
    items = load_config(dataset, "items", "train")
    if list(items[C.TITLE]) != catalog.titles:
        raise BigrecError(
            f"the catalog's rows are not the items of {dataset!r}, which histories and train counts refer to: "
            "omit --catalog"
        )
    return items


def catalog_train_counts(data: DataSettings, catalog: Catalog) -> list[int] | None:
    """How often each catalog row is a training target; None without a prepared set.

    Raises BigrecError if the catalog does not consist of that set's items.
    """
    if not data.dataset:
        return None
    return own_items(data.dataset[0], catalog)[C.TRAIN_COUNT]
