"""Examples as text, from prepared sets (folder or Hub id) and the reference's JSON files, in one common format."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, Features, List, Value

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, read_table, readable
from bigrec_hf.common.fingerprints import cached_sha256, file_fingerprint
from bigrec_hf.common.hub_names import fetch_file, is_hub_id
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.data.prompts import build_input_prefix, build_instruction, parse_input
from bigrec_hf.data.samples import evaluation_sample
from bigrec_hf.metrics.ndcg_hr.names import split_revision
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
FACTS_FILE = "facts.json"  # identifies a folder as a prepared set
SPLITS = ("train", "validation", "test")
PREPARED_FILES = (  # the tables of a prepared set: all of its files but facts and card
    *(f"data/{config}/{split}.parquet" for config in ("default", "text") for split in SPLITS),
    *("data/items/train.parquet", "data/interactions/train.parquet"),
)
CONTENT = "files_sha256"  # in the facts: the sha256 of each table by its path (sets of earlier releases lack it)


def load_facts(dataset: str) -> dict[str, Any]:
    """`facts.json` of a prepared set, folder or Hub id. Raises BigrecError if it is not one."""
    _check_place(dataset)
    file = fetch_file(dataset, FACTS_FILE, "dataset")
    if file is None:
        raise BigrecError(f"{dataset!r} is not a prepared set (no facts.json): create one with `bigrec-hf prepare`")
    facts = read_json(file)
    with readable(file):
        for name in ("noun", "verb"):
            if not isinstance(facts[name], str):
                raise ValueError(f"{name} is {facts[name]!r}")
    return facts


def find_table(dataset: str, config: str, split: str) -> Path:
    """The parquet file of one configuration and split of a prepared set, downloaded if the set is on the Hub.

    Raises BigrecError if there is no such file.
    """
    _check_place(dataset)
    file = fetch_file(dataset, f"data/{config}/{split}.parquet", "dataset")
    if file is None:
        raise BigrecError(
            f"{dataset!r} is not a prepared set (no data/{config}/{split}.parquet): create one with `bigrec-hf prepare`"
        )
    facts = fetch_file(dataset, FACTS_FILE, "dataset", optional=True)
    known = {} if facts is None else read_json(facts).get(CONTENT, {})
    check_unchanged(file, known.get(f"data/{config}/{split}.parquet"))
    return file


def check_unchanged(file: Path, sha256: str | None) -> None:
    """Raise BigrecError if a table of a prepared set is lost, or not the one that was prepared. `sha256`: its hash in
    the set's facts; None: unknown."""
    if sha256 is not None and (not file.is_file() or cached_sha256(file) != sha256):
        what = "was changed" if file.is_file() else "was removed"
        raise BigrecError(
            f"{file} {what} since the set was prepared: prepare the set again (or remove {CONTENT} from its "
            f"{FACTS_FILE}, if this was on purpose)"
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


def _check_place(dataset: str) -> None:
    if not Path(split_revision(dataset)[0]).is_dir() and not is_hub_id(dataset):
        raise BigrecError(f"data set folder {dataset!r} does not exist: create it with `bigrec-hf prepare`")


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


def read_json_file(path: Path) -> Any:
    """The content of a UTF-8 JSON file, with or without a byte order mark. Raises BigrecError naming file and line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if not text.strip():
            raise BigrecError(f"{path}: the file is empty: recreate or remove it")
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BigrecError(f"{path}:{error.lineno}: not valid JSON ({error.msg}): recreate or remove it") from error
    except UnicodeDecodeError as error:
        raise BigrecError(f"{path}: not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except BigrecError:
        raise
    except (RecursionError, ValueError) as error:
        raise BigrecError(f"{path}: cannot be read as JSON ({error}): recreate or remove it") from error


def check_characters(text: str, place: str) -> None:
    """Raise BigrecError for a text with half a surrogate pair (JSON can spell it), which no file could hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise BigrecError(f"{place} holds {half}, half of a character: correct that text") from error


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


def data_mark(data: DataSettings) -> list[str]:
    """Fingerprints of the data: of the content of local facts and JSON files; for Hub data sets, name and revision.

    Raises BigrecError if a table of a local set is not the one that its facts describe.
    """
    marks = []
    for name in data.dataset:
        local = Path(split_revision(name)[0]) / FACTS_FILE
        marks.append(file_fingerprint(local) if local.is_file() else name)
        for table, sha256 in load_facts(name).get(CONTENT, {}).items() if local.is_file() else ():
            check_unchanged(local.parent / table, sha256)
    for path in [*data.train_json, *data.validation_json, *data.test_json, *([data.catalog] if data.catalog else [])]:
        marks.append(file_fingerprint(path) if Path(path).is_file() else path)
    return marks


def describe_data(data: DataSettings) -> dict[str, Any]:
    """Return the facts of the first prepared data set that a report shows."""
    if not data.dataset:
        return {}
    facts = load_facts(data.dataset[0])
    kept = ("name", "source", "preset", "users", "items", "examples", "repeated_targets", "duplicate_titles", "sha256")
    return {key: facts[key] for key in kept if key in facts}
