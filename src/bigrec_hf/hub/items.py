"""The items of a recommender: the catalog, how often each item is a training target, and the items of one result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_table, write_table
from bigrec_hf.common.hub_names import fetch_file
from bigrec_hf.data.catalog import Catalog, load_catalog, read_items_parquet
from bigrec_hf.data.examples import load_config
from bigrec_hf.hub.bundle import Bundle
from bigrec_hf.hub.config import CATALOG_FILE


@dataclass(frozen=True)
class Item:
    """One recommended item: its catalog row (0-based), id and title.

    `score`: larger is better; the log-probability of the title, or the negative `distance`. `distance`: Euclidean, of
    the item's title to the generated one; None if the catalog is ranked by probability.
    """

    row: int
    item_id: str
    title: str
    score: float
    distance: float | None = None


def ranked_items(catalog: Catalog, rows: Sequence[int], costs: Sequence[float], *, distances: bool) -> list[Item]:
    """The items of one ranking, best first, without its padding (row -1); `costs`: ascending, the negative scores."""
    return [
        Item(
            int(row),
            catalog.item_ids[row],
            catalog.titles[row],
            0.0 - float(cost),  # no -0.0
            float(cost) if distances else None,
        )
        for row, cost in zip(rows, costs, strict=True)
        if row >= 0
    ]


def bundle_catalog(bundle: Bundle) -> Catalog:
    """The catalog of a recommender without an index. Raises BigrecError if it names none."""
    name = bundle.config.catalog
    if name is None:
        raise BigrecError(f"{bundle.adapter} names neither an index nor a catalog: publish its index with it")
    if name != CATALOG_FILE:
        return load_catalog(name)
    file = fetch_file(bundle.adapter, CATALOG_FILE, "model")
    if file is None:
        raise BigrecError(f"{bundle.adapter} lacks its {CATALOG_FILE}: publish it again")
    return read_items_parquet(file)


def bundle_train_counts(bundle: Bundle, catalog: Catalog) -> np.ndarray | None:
    """(n_items,) int64: how often each item is a training target; None if neither the published adapter nor a
    prepared set says so."""
    if bundle.run_dir is None:
        file = fetch_file(bundle.adapter, CATALOG_FILE, "model", optional=True)
        if file is not None and C.TRAIN_COUNT in (table := read_table(file)).column_names:
            return table[C.TRAIN_COUNT].to_numpy()
    return dataset_train_counts(bundle.dataset, catalog) if bundle.dataset else None


def dataset_train_counts(dataset: str, catalog: Catalog) -> np.ndarray | None:
    """As `bundle_train_counts`, from a prepared set; None if its items are not this catalog."""
    items = load_config(dataset, "items", "train")
    if list(items[C.TITLE]) != catalog.titles:
        return None
    return np.asarray(items[C.TRAIN_COUNT], np.int64)


def write_items(folder: Path, catalog: Catalog, train_counts: np.ndarray | None) -> None:
    """Write `catalog.parquet`: row, item_id, title and, where known, train_count."""
    columns = {
        C.ROW: pa.array(range(len(catalog)), pa.int32()),
        C.ITEM_ID: pa.array(catalog.item_ids, pa.string()),
        C.TITLE: pa.array(catalog.titles, pa.string()),
    }
    if train_counts is not None:
        columns[C.TRAIN_COUNT] = pa.array(train_counts, pa.int64())
    write_table(pa.table(columns), folder / CATALOG_FILE)
