"""Prepared sets from frames of pandas, polars or Arrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigrec_hf.common.files import temporary_folder
from bigrec_hf.data.user_tables import as_polars
from bigrec_hf.prepare.stage import prepare_dataset


def prepare_frame(interactions: Any, prepared_dir: str | Path, items: Any = None, **options: Any) -> Path:
    """Prepare a table of interactions: one row is a user, an item, and where known its title, rating and time.

    `interactions`, `items` (id and title; without it, titles are in `interactions`): frames of pandas, polars or Arrow,
    columns found as those of `--source tabular`. `options`: the other settings of `prepare`, e.g. `noun="books"`,
    `user_column="reader"`, or `overwrite_prepared=True` to replace the set of another table. Returns `prepared_dir`.
    Raises BigrecError as `prepare` does.
    """
    with temporary_folder() as folder:
        for name, frame in (("interactions", interactions), ("items", items)):
            if frame is not None:
                as_polars(frame, name).write_parquet(Path(folder) / f"{name}.parquet")
        return prepare_dataset("tabular", folder, prepared_dir, **{"dataset_name": "interactions", **options})
