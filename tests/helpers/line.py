"""A world of five titles on a line, for tests of distances, and generations to ground in it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bigrec_hf.data.catalog import Catalog
from bigrec_hf.ground.index import CatalogIndex

FACTS = dict.fromkeys(("encoder", "revision", "kind", "dtype", "template", "catalog_sha256"), "x")
TITLES = ["one", "three", "one", "six", "ten"]
POSITIONS = {"one": 1, "three": 3, "six": 6, "ten": 10}


def encode(texts):
    """A number in words on a line; anything else lies at 4.4."""
    return np.array([[POSITIONS.get(text, 4.4)] for text in texts], np.float32)


def make_index():
    return CatalogIndex(Catalog([f"i{row}" for row in range(5)], TITLES), encode(TITLES), FACTS)


def write_generations(path, targets=(2, 3), titles=("one", "six"), texts=(["one", "x"], []), **changes):
    columns = {
        "example_id": ["x", "y"][: len(targets)],
        "target": pa.array(targets, pa.int32()),
        "target_title": list(titles),
        "history": [[0]] * len(targets),
        "texts": pa.array(list(texts), pa.list_(pa.string())),
        **changes,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: column for name, column in columns.items() if column is not None}), path)
    return path
