"""Score: NDCG@K and HR@K of a rankings.parquet, first per example, then as means with intervals over users (`users`).

Reads `<run_dir>/<method>/rankings.parquet`, writes `results.json` (flat) and `per_example.parquet` beside it. A method
whose parameter is chosen per metric and K has a rank for each: the scores then come from `ranks_by_metric.parquet`
(example_id and one int64 column per key, such as `ndcg@10`), and everything else from `rankings.parquet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_table, write_json, write_table
from bigrec_hf.common.fingerprints import file_fingerprint
from bigrec_hf.data.generations import GENERATIONS_FILE
from bigrec_hf.data.rankings import (
    GENERATIONS_KEY,
    HYBRID,
    RANKINGS_FILE,
    RANKS_BY_METRIC_FILE,
    SCORE_FILES,
    table_settings,
)
from bigrec_hf.data.run_folder import run_folder
from bigrec_hf.metrics.ndcg_hr.scores import check_ks, hr_per_example, ndcg_per_example
from bigrec_hf.score.users import intervals, user_codes, user_ids

if TYPE_CHECKING:
    from bigrec_hf.settings import RunSettings, ScoreSettings


RESULTS_FILE, PER_EXAMPLE_FILE = SCORE_FILES
GAINS = {"ndcg": ndcg_per_example, "hr": hr_per_example}


def score_rankings(
    table: pa.Table,
    ks: Sequence[int],
    *,
    drop_empty: bool = False,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    by_metric: pa.Table | None = None,
) -> tuple[dict[str, Any], pa.Table]:
    """Return results (flat, JSON-able) and per-example scores of a rankings table (RANKINGS_SCHEMA).

    `by_metric`: the ranks from which each metric and K is computed (see the module), instead of those of the table.

    Results: `ndcg@K`, `hr@K`, `..._low`/`..._high` where bootstrap > 0 (`users.intervals`), n_users (null: unknown, so
    every example counts as its own user), wilson (the metrics whose interval is Wilson's because their hits are too
    rare for a bootstrap), design_effect (of HR at the largest K: the ratio of the variance to that of independent
    examples), n_examples (all), n_scored (in the mean), n_empty, the rates in_catalog and in_history over all examples
    (null for a baseline, which has no text), and every setting that matters. Raises BigrecError for no example, K
    larger than the catalog, or `by_metric` of other rankings or without a required metric and K.
    """
    settings = table_settings(table)
    rank = table[C.RANK].to_numpy()
    empty = table[C.EMPTY].to_numpy(zero_copy_only=False).astype(bool)
    try:
        ks = check_ks(ks, settings["n_items"])
    except ValueError as error:
        raise BigrecError(f"scoring: {error}") from error
    kept = ~empty if drop_empty else np.ones(len(rank), bool)
    if not kept.any():
        why = f"all {len(rank)} generations are empty: with drop_empty nothing is left" if len(rank) else "no example"
        raise BigrecError(f"scoring: {why} to score")
    keys = [f"{metric}@{k}" for metric in ("ndcg", "hr") for k in ks]
    ranks = dict.fromkeys(keys, rank) if by_metric is None else _ranks_by_metric(table, by_metric, keys)
    gains = {key: GAINS[key.partition("@")[0]](own, int(key.partition("@")[2])) for key, own in ranks.items()}
    results: dict[str, Any] = {key: float(gain[kept].mean()) for key, gain in gains.items()}
    users = user_ids(table[C.EXAMPLE_ID].to_pylist())
    codes = user_codes(users, len(rank))[kept]
    if bootstrap:
        found = intervals(np.column_stack(list(gains.values()))[kept], codes, bootstrap, confidence, seed)
        for key, low, high in zip(keys, found.low, found.high, strict=True):
            results |= {f"{key}_low": float(low), f"{key}_high": float(high)}
        results["wilson"] = [key for key, rare in zip(keys, found.wilson, strict=True) if rare]
        results["design_effect"] = float(found.design_effect[-1])
    results |= {
        "n_examples": len(rank),
        "n_scored": int(kept.sum()),
        "n_users": None if users is None else len(np.unique(codes)),
        "n_empty": int(empty.sum()),
        "in_catalog": _share(table[C.IN_CATALOG]),
        "in_history": _share(table[C.IN_HISTORY]),
        "median_rank": float(np.median(rank)),
        "drop_empty": drop_empty,
        "bootstrap": bootstrap,
        "confidence": confidence,
        "seed": seed,
        **settings,
    }
    per_example = table.select([C.EXAMPLE_ID, C.RANK, C.EMPTY, C.IN_CATALOG, C.IN_HISTORY])
    per_example = per_example.add_column(
        1, C.USER_ID, pa.array(users, pa.string()) if users else pa.nulls(len(rank), pa.string())
    )
    for k in ks:
        for key in (f"ndcg@{k}", f"hr@{k}"):
            per_example = per_example.append_column(key, pa.array(gains[key]))
    return results, per_example


def _ranks_by_metric(table: pa.Table, by_metric: pa.Table, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the ranks, (n,) int64, of each key. Raises BigrecError if they belong to another rankings table."""
    same = table_settings(by_metric) == table_settings(table)
    if not same or by_metric[C.EXAMPLE_ID].to_pylist() != table[C.EXAMPLE_ID].to_pylist():
        raise BigrecError(f"{RANKS_BY_METRIC_FILE} belongs to other rankings: make both again with `bigrec-hf rerank`")
    missing = [key for key in keys if key not in by_metric.column_names]
    if missing:
        raise BigrecError(f"no parameter has been chosen for {missing[0]}: run `bigrec-hf rerank` with these --ks")
    return {key: by_metric[key].to_numpy() for key in keys}


def _share(column: pa.ChunkedArray) -> float | None:
    values = [value for value in column.to_pylist() if value is not None]
    return sum(values) / len(values) if values else None


def write_results(results: dict[str, Any], per_example: pa.Table, folder: str | Path) -> None:
    """Write results.json and per_example.parquet into `folder`, each moved into place."""
    folder = Path(folder)
    write_table(per_example, folder / PER_EXAMPLE_FILE)
    write_json(folder / RESULTS_FILE, results)


def results_table(rows: dict[str, dict[str, Any]], ks: Sequence[int]) -> str:
    """Return a Markdown table, one row per name: NDCG@K and HR@K, examples, and the rate of catalog titles."""
    head = ["", *(f"NDCG@{k}" for k in ks), *(f"HR@{k}" for k in ks), "examples", "empty", "in catalog"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, results in rows.items():
        share = results["in_catalog"]
        cells = [f"{results[f'{metric}@{k}']:.4f}" for metric in ("ndcg", "hr") for k in ks]
        cells += [str(results["n_scored"]), str(results["n_empty"]), "-" if share is None else f"{share:.1%}"]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def check_rankings_are_current(rankings: Path) -> None:
    """Raise BigrecError if the generations beside the rankings are not the ones that were ranked.

    For a hybrid ranking they are those of the plain method. Rankings of baselines have none.
    """
    ranked = table_settings(read_table(rankings, columns=[])).get(GENERATIONS_KEY)
    generations = rankings.parent.with_name(rankings.parent.name.removesuffix(HYBRID)) / GENERATIONS_FILE
    if ranked is not None and generations.is_file() and file_fingerprint(generations) != ranked:
        raise BigrecError(
            f"{rankings} ranks other texts than {generations} has now: run `bigrec-hf ground` again, then `score`"
        )


def score_folder(
    folder: str | Path,
    ks: Sequence[int],
    *,
    drop_empty: bool = False,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Score `folder`/rankings.parquet into results.json and per_example.parquet beside it; return the results."""
    rankings = Path(folder) / RANKINGS_FILE
    if not rankings.is_file():
        raise BigrecError(f"{rankings} does not exist: run `bigrec-hf ground` first")
    check_rankings_are_current(rankings)
    by_metric = rankings.with_name(RANKS_BY_METRIC_FILE)
    results, per_example = score_rankings(
        read_table(rankings),
        ks,
        drop_empty=drop_empty,
        bootstrap=bootstrap,
        confidence=confidence,
        seed=seed,
        by_metric=read_table(by_metric) if by_metric.is_file() else None,
    )
    write_results(results, per_example, folder)
    return results


def main(run: RunSettings, score: ScoreSettings) -> None:
    """Write `<run_dir>/<method>/results.json` and `per_example.parquet`; print the table."""
    results = score_folder(run_folder(run) / run.method, **vars(score), seed=run.seed)
    print(results_table({run.method: results}, sorted(set(score.ks))))
