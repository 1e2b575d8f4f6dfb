"""Random baseline: every example's catalog in an order of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from bigrec_hf.data.catalog import Catalog
from bigrec_hf.rank.from_scores import baseline_rankings


def random_rankings(
    catalog: Catalog,
    example_ids: Sequence[str],
    targets: Sequence[int],
    histories: Sequence[Sequence[int]] | None = None,
    *,
    seed: int = 0,
    top_k: int = 50,
    exclude_history: bool = False,
    duplicates: str = "best",
) -> pa.Table:
    """Uniformly random order, drawn for example number i from the seed (seed, i).

    Expected HR@K is K / n_items for a title in one row (a little more for titles in several, with duplicates "best").
    """

    def scores(start: int, stop: int) -> np.ndarray:
        return np.stack([np.random.default_rng([seed, i]).random(len(catalog)) for i in range(start, stop)])

    return baseline_rankings(
        "random",
        scores,
        catalog,
        example_ids,
        targets,
        histories,
        top_k=top_k,
        exclude_history=exclude_history,
        duplicates=duplicates,
        baseline_seed=seed,
    )
