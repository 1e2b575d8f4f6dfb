"""Run folders with the files of the later stages, made from ranks: for tests of what reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from bigrec_hf.metrics.ndcg_hr.ranking import Ranking

from bigrec_hf.common.files import write_table
from bigrec_hf.data.rankings import rankings_table
from bigrec_hf.score.stage import score_folder


def make_run(
    folder: Path,
    methods: Mapping[str, Sequence[int]],
    *,
    n_items: int = 20,
    ks: Sequence[int] = (1, 10),
    targets: Sequence[int] | None = None,
    top_rows: Sequence[Sequence[int]] | None = None,
    ids: Sequence[str] | None = None,
    bootstrap: int = 50,
) -> Path:
    """A folder a method, ranked and scored. `methods`: name -> rank of each example's target."""
    for method, ranks in methods.items():
        n = len(ranks)
        rows = np.array(top_rows if top_rows is not None else [[0]] * n, np.int32).reshape(n, -1)
        ranking = Ranking(np.array(ranks), rows, np.zeros(rows.shape, np.float32))
        table = rankings_table(
            ids or [f"e{i}" for i in range(n)],
            targets if targets is not None else [0] * n,
            ranking,
            {"n_items": n_items},
            empty=[False] * n,
            in_catalog=[True] * n,
            in_history=[False] * n,
        )
        write_table(table, folder / method / "rankings.parquet")
        score_folder(folder / method, ks, bootstrap=bootstrap)
    return folder
