"""Score: NDCG@K and HR@K of a rankings.parquet, per example first, then means with bootstrap intervals.

Reads `<run_dir>/<method>/rankings.parquet`, writes `results.json` (flat) and `per_example.parquet` beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bigrec_hf.columns import Columns as C
from bigrec_hf.errors import BigrecError
from bigrec_hf.ground import RANKINGS_FILE, table_settings, write_table
from bigrec_hf.metrics.ndcg_hr.scores import (
    bootstrap_intervals,
    check_ks,
    hr_per_example,
    mean_scores,
    ndcg_per_example,
)
from bigrec_hf.runs import write_json

if TYPE_CHECKING:
    from bigrec_hf.settings import RunSettings, ScoreSettings

RESULTS_FILE = "results.json"
PER_EXAMPLE_FILE = "per_example.parquet"


def score_rankings(
    table: pa.Table,
    ks: Sequence[int],
    *,
    drop_empty: bool = False,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[dict[str, Any], pa.Table]:
    """Results (flat, JSON-able) and per-example scores of a rankings table (ground.RANKINGS_SCHEMA).

    Results: `ndcg@K`, `hr@K`, `..._low`/`..._high` where bootstrap > 0, n_examples (all), n_scored (in the mean),
    n_empty, the shares in_catalog and in_history over all examples (null for a baseline, which writes no text), and
    every setting that has a say. Raises BigrecError for no example, or K larger than the catalog.
    """
    settings = table_settings(table)
    rank = table[C.RANK].to_numpy()
    empty = table[C.EMPTY].to_numpy(zero_copy_only=False).astype(bool)
    try:
        ks = check_ks(ks, settings["n_items"])
        if drop_empty and empty.all():
            raise ValueError(f"all {len(rank)} answers are empty: with drop_empty nothing is left to score")
        scored = rank[~empty] if drop_empty else rank
        results: dict[str, Any] = mean_scores(scored, ks)
        if bootstrap:
            results |= bootstrap_intervals(scored, ks, bootstrap, confidence, seed)
    except ValueError as error:
        raise BigrecError(f"scoring: {error}") from error
    results |= {
        "n_examples": len(rank),
        "n_scored": len(scored),
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
    for k in ks:
        per_example = per_example.append_column(f"ndcg@{k}", pa.array(ndcg_per_example(rank, k)))
        per_example = per_example.append_column(f"hr@{k}", pa.array(hr_per_example(rank, k)))
    return results, per_example


def _share(column: pa.ChunkedArray) -> float | None:
    values = [value for value in column.to_pylist() if value is not None]
    return sum(values) / len(values) if values else None


def write_results(results: dict[str, Any], per_example: pa.Table, folder: str | Path) -> None:
    """Write results.json and per_example.parquet into `folder`, each moved into place."""
    folder = Path(folder)
    write_table(per_example, folder / PER_EXAMPLE_FILE)
    write_json(folder / RESULTS_FILE, results)


def results_table(rows: dict[str, dict[str, Any]], ks: Sequence[int]) -> str:
    """A Markdown table, a row a name: NG@K and HR@K (with 4 digits), examples, and the share of catalog titles."""
    head = ["", *(f"NG@{k}" for k in ks), *(f"HR@{k}" for k in ks), "examples", "empty", "in catalog"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, results in rows.items():
        share = results["in_catalog"]
        cells = [f"{results[f'{metric}@{k}']:.4f}" for metric in ("ndcg", "hr") for k in ks]
        cells += [str(results["n_scored"]), str(results["n_empty"]), "-" if share is None else f"{share:.1%}"]
        lines.append("| " + " | ".join([name, *cells]) + " |")
    return "\n".join(lines)


def score_folder(
    folder: str | Path,
    ks: Sequence[int],
    *,
    drop_empty: bool = False,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """Score `folder`/rankings.parquet into results.json and per_example.parquet beside it; returns the results."""
    rankings = Path(folder) / RANKINGS_FILE
    if not rankings.is_file():
        raise BigrecError(f"{rankings} does not exist: run `bigrec-hf ground` first")
    results, per_example = score_rankings(
        pq.read_table(rankings), ks, drop_empty=drop_empty, bootstrap=bootstrap, confidence=confidence, seed=seed
    )
    write_results(results, per_example, folder)
    return results


def main(run: RunSettings, score: ScoreSettings) -> None:
    """Write `<run_dir>/<method>/results.json` and `per_example.parquet`; print the table."""
    if run.run_dir is None:
        raise BigrecError("no run folder given: name it with --output_dir or --config RECIPE")
    results = score_folder(Path(run.run_dir) / run.method, **vars(score), seed=run.seed)
    print(results_table({run.method: results}, sorted(set(score.ks))))


if __name__ == "__main__":
    from bigrec_hf.cli import main as cli_main

    sys.exit(cli_main(["score", *sys.argv[1:]]))
