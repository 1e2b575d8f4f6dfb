"""Prepared sets as files: where their facts and tables are, and whether they are still those that were prepared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, readable
from bigrec_hf.common.fingerprints import cached_sha256, file_fingerprint
from bigrec_hf.common.hub_names import fetch_file, is_hub_id
from bigrec_hf.metrics.ndcg_hr.names import split_revision

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings

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


def _check_place(dataset: str) -> None:
    if not Path(split_revision(dataset)[0]).is_dir() and not is_hub_id(dataset):
        raise BigrecError(f"data set folder {dataset!r} does not exist: create it with `bigrec-hf prepare`")


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
