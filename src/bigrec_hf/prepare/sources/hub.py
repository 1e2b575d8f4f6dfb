"""Interactions of any data set that `datasets.load_dataset` reads, from the Hub or a local folder, as tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import temporary_folder
from bigrec_hf.common.hub_names import hub_errors
from bigrec_hf.metrics.ndcg_hr.names import split_revision
from bigrec_hf.prepare.sources.columns import ColumnNames, interaction_columns, item_columns, possible_times

if TYPE_CHECKING:
    from datasets import Dataset, Features

RATINGS, ITEMS = "interactions.parquet", "items.parquet"


def fetch_tables(
    name: str, folder: Path, named: ColumnNames, config: str | None = None, items_config: str | None = None
) -> dict[str, Path]:
    """Write the interactions of a data set, and its items if `items_config` names them, to `folder`; returns the files.

    `name`: a Hub id, `@revision` allowed, or a folder. All splits of a configuration count, in their order. Only the
    columns that `prepare` uses are written. Raises BigrecError if the data set cannot be loaded, and as
    `interaction_columns`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # a local folder is cached by its name: another folder's content must not be found there
    with temporary_folder() as cache:
        cache_dir = str(cache) if Path(split_revision(name)[0]).is_dir() else None
        parts = load_parts(name, config, cache_dir)
        first: dict[str, Any] = next(iter(parts[0]), {})
        columns = interaction_columns(parts[0].column_names, named, items_config is None, name)
        parts = _ids_as_text(parts, (columns.user, columns.item), name, config, cache_dir)
        files = {"ratings": _write(parts, [*columns.wanted, *possible_times(first, columns)], folder / RATINGS)}
        if items_config is not None:
            parts = load_parts(name, items_config, cache_dir)
            own = item_columns(parts[0].column_names, named, f"{name}, configuration {items_config}")
            parts = _ids_as_text(parts, own[:1], name, items_config, cache_dir)
            files["items"] = _write(parts, own, folder / ITEMS)
    return files


def _ids_as_text(
    parts: list[Dataset], ids: Sequence[str], name: str, config: str | None, cache_dir: str | None
) -> list[Dataset]:
    """The same parts; those of CSV files whose ids have been taken for numbers are read again with the ids as text, in
    which 007 and 7 are different."""
    from datasets import Value

    features = parts[0].features.copy()
    wrong = [column for column in ids if features[column] != Value("string")]
    if parts[0].info.builder_name != "csv" or not wrong:
        return parts
    features.update({column: Value("string") for column in wrong})
    return load_parts(name, config, cache_dir, features)


def load_parts(
    name: str, config: str | None, cache_dir: str | None = None, features: Features | None = None
) -> list[Dataset]:
    """All splits of a configuration, those with rows; `features`: the columns' types, as the data set has them unless
    given. Raises BigrecError in one line."""
    from datasets import DatasetDict, load_dataset
    from datasets.exceptions import DatasetsError

    path, revision = split_revision(name)
    try:
        with hub_errors(name):
            loaded = load_dataset(path, config, revision=revision, cache_dir=cache_dir, features=features)
    except (DatasetsError, OSError, ValueError) as error:
        what = f"{name!r}" if config is None else f"configuration {config!r} of {name!r}"
        reason = " ".join(str(error).split())[:300]
        raise BigrecError(
            f"{what} cannot be loaded as a data set ({reason}): check --dataset, and choose one of its configurations "
            "with --hub_config"
        ) from error
    parts = list(loaded.values()) if isinstance(loaded, DatasetDict) else [loaded]
    parts = [part for part in parts if len(part)]
    if not parts:
        raise BigrecError(f"{name!r} has no rows: choose another data set")
    return parts


def _write(parts: Sequence[Dataset], columns: Sequence[str], file: Path) -> Path:
    """Write these columns of all parts to one parquet file. Raises BigrecError if a part lacks one."""
    from datasets import concatenate_datasets

    for part in parts:
        missing = [name for name in columns if name not in part.column_names]
        if missing:
            raise BigrecError(
                f"the split {part.split} has no column {missing[0]!r}, it has {', '.join(part.column_names)}: the "
                "splits differ, choose a configuration with --hub_config"
            )
    concatenate_datasets([part.select_columns(list(columns)) for part in parts]).to_parquet(file)
    return file
