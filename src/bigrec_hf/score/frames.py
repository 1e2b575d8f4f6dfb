"""Ranked items in frames of pandas, polars or Arrow, scored as `bigrec-hf evaluate` scores a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog, load_catalog
from bigrec_hf.data.user_tables import as_polars
from bigrec_hf.score.lists import list_rankings
from bigrec_hf.score.prediction_files import PredictionColumns, predictions_of, targets_of
from bigrec_hf.score.stage import score_rankings
from bigrec_hf.settings import DataSettings, RankOptions


def evaluate_frame(
    predictions: Any,
    targets: Any = None,
    *,
    dataset: str | None = None,
    split: str = "test",
    catalog: str | Path | None = None,
    ks: Sequence[int] = (1, 5, 10),
    duplicates: str = "best",
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    user_column: str | None = None,
    item_column: str | None = None,
    rank_column: str | None = None,
    score_column: str | None = None,
    target_column: str | None = None,
) -> tuple[dict[str, Any], Any]:
    """NDCG@K and HR@K of a frame of ranked items, such as RecTools and RecBole make; nothing is embedded.

    Args:
        predictions: a row per user and item with a rank (the least is the best) or a score (the largest is), or a row
            per user with a list. Columns are found by their usual names (user_id, item_id, rank, ...) unless they are
            given. Items are ids or titles.
        targets: a frame with a row per user, its columns users and items: what came next. By default a column of
            `predictions`, else the `split` of `dataset`.
        dataset: prepared set, folder or Hub id.
        catalog: what `evaluate --catalog` takes (default: the items of `dataset`; without one, the items that occur,
            which then are what `n_items` and `median_rank` count).
        ks: the cut-offs; `duplicates`, `bootstrap` (resamples, 0 = no intervals), `confidence` and `seed` as in the
            settings of `score`.

    Returns the results (as results.json has them) and a frame of the same kind with the rank and gains of each example.
    Raises BigrecError for columns that are not found, generated texts, and targets that are missing or unknown.
    """
    frame = as_polars(predictions, "predictions")
    if not frame.height:
        raise BigrecError("the frame of predictions has no rows: recommend for at least one user")
    names = PredictionColumns(
        user=user_column, item=item_column, rank=rank_column, score=score_column, target=target_column
    )
    found = predictions_of(frame, names, "the frame", "row")
    if found.texts:
        raise BigrecError(
            "the frame holds generated texts, which must be grounded: name a column of items, or write the frame to a "
            "file for `bigrec-hf evaluate`"
        )
    truth = None if targets is None else targets_of(as_polars(targets, "targets"), "the frame of targets")
    if catalog or dataset:
        items = load_catalog(str(catalog or dataset))
    else:
        items = occurring_items(found.entries, found.targets, truth)
    table = list_rankings(
        found,
        items,
        RankOptions(duplicates=duplicates),
        DataSettings(dataset=[dataset] if dataset else [], split=split),
        targets=truth,
        place="the frame",
    )
    results, scores = score_rankings(table, ks, bootstrap=bootstrap, confidence=confidence, seed=seed)
    per_example = pl.DataFrame(scores)
    return results, per_example.to_pandas() if type(predictions).__module__.startswith("pandas") else per_example


def occurring_items(
    entries: Sequence[Sequence[str]], targets: Sequence[str] | None, truth: dict[str, str] | None
) -> Catalog:
    """The items of lists and targets as a catalog, named by themselves."""
    names = sorted({item for own in entries for item in own} | set(targets or ()) | set((truth or {}).values()))
    return Catalog(names, names)
