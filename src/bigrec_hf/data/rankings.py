"""Rankings of a catalog, one row per example: rankings.parquet, its schema and its settings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_table, readable, write_table
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.metrics.ndcg_hr.ranking import Ranking
from bigrec_hf.metrics.ndcg_hr.titles import clean_title

RANKINGS_FILE = "rankings.parquet"
RANKS_BY_METRIC_FILE = "ranks_by_metric.parquet"  # next to it, if a parameter was chosen for each metric
SCORE_FILES = ("results.json", "per_example.parquet")  # which `score` derives from them
METADATA_KEY = b"bigrec_hf"
GENERATIONS_KEY = "generations_fingerprint"  # among the settings: which generations.parquet was ranked
RANKINGS_SCHEMA = pa.schema(
    [
        (C.EXAMPLE_ID, pa.string()),
        (C.TARGET, pa.int32()),
        (C.RANK, pa.int64()),  # number of items if nothing was ranked (an empty text) or the target was excluded
        (C.TOP_ROWS, pa.list_(pa.int32())),  # empty for an empty text
        (C.TOP_DISTANCES, pa.list_(pa.float32())),
        (C.EMPTY, pa.bool_()),
        (C.IN_CATALOG, pa.bool_()),
        (C.IN_HISTORY, pa.bool_()),
    ]
)
HYBRID = "_hybrid"  # suffix of the method folder's name


def target_rows(targets: Sequence[int], catalog: Catalog, duplicates: str) -> list[list[int]]:
    """The catalog rows that count as a hit for each target: all with its title (`duplicates` "best"), or only its own
    ("exact"). Raises BigrecError for a target outside the catalog.
    """
    wrong = [row for row in targets if not 0 <= row < len(catalog)]
    if wrong:
        raise BigrecError(
            f"target row {wrong[0]} is outside the catalog's rows 0 to {len(catalog) - 1} ({len(wrong)} such): "
            "give the catalog these examples were made with"
        )
    if duplicates == "exact":
        return [[row] for row in targets]
    return [catalog.rows_by_title[clean_title(catalog.titles[row])] for row in targets]


def place_among(ranking: Ranking, places: Sequence[int], n: int, n_items: int) -> Ranking:
    """A ranking of some examples, moved to their `places` among `n`; the others are misses (rank n_items, rows -1)."""
    k = ranking.top_rows.shape[1]
    full = Ranking(np.full(n, n_items, np.int64), np.full((n, k), -1, np.int32), np.full((n, k), np.inf, np.float32))
    full.rank[places], full.top_rows[places] = ranking.rank, ranking.top_rows
    full.top_distances[places] = ranking.top_distances
    return full


def rankings_table(
    example_ids: Sequence[str],
    targets: Sequence[int],
    ranking: Ranking,
    settings: dict[str, Any],
    *,
    empty: Sequence[bool],
    in_catalog: Sequence[bool | None],
    in_history: Sequence[bool | None],
) -> pa.Table:
    """RANKINGS_SCHEMA, with `settings` (JSON, at least `n_items`) in its metadata; padding rows (-1) are left out."""
    kept = ranking.top_rows >= 0
    offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
    columns = [
        pa.array(example_ids, pa.string()),
        pa.array(targets, pa.int32()),
        pa.array(ranking.rank, pa.int64()),
        pa.ListArray.from_arrays(offsets, pa.array(ranking.top_rows[kept], pa.int32())),
        pa.ListArray.from_arrays(offsets, pa.array(ranking.top_distances[kept], pa.float32())),
        *(pa.array(list(values), pa.bool_()) for values in (empty, in_catalog, in_history)),
    ]
    schema = RANKINGS_SCHEMA.with_metadata({METADATA_KEY: json.dumps(settings, ensure_ascii=False).encode()})
    return pa.Table.from_arrays(columns, schema=schema)


def table_settings(table: pa.Table) -> dict[str, Any]:
    """The settings a rankings table was made with. Raises BigrecError if it has none."""
    metadata = table.schema.metadata or {}
    if METADATA_KEY not in metadata:
        raise BigrecError("the rankings contain no settings: create them with `bigrec-hf ground`")
    with readable("the settings of the rankings", "create them again with `bigrec-hf ground`"):
        return dict(json.loads(metadata[METADATA_KEY]))


def exclusion(settings: Mapping[str, Any]) -> str:
    """What was excluded from the candidates (none, history or seen), from the settings of rankings or results; those of
    earlier releases say `exclude_history`."""
    return settings.get("exclude") or ("history" if settings.get("exclude_history") else "none")


def read_ranks(path: str | Path) -> np.ndarray:
    """(n,) int64: the target's 0-based rank of every example of a rankings.parquet, in the file's order."""
    return read_table(path, columns=[C.RANK])[C.RANK].to_numpy()


def write_rankings(table: pa.Table, folder: str | Path) -> None:
    """Write a method's rankings. Files derived from its previous rankings are removed first, so that an interruption
    never leaves results next to rankings they were not computed from.
    """
    for name in (RANKS_BY_METRIC_FILE, *SCORE_FILES):
        (Path(folder) / name).unlink(missing_ok=True)
    write_table(table, Path(folder) / RANKINGS_FILE)
