"""The file of a run's answers, generations.parquet: its columns, the flags of each answer, the counts over all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from bigrec_hf.columns import Columns as C
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.runs import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from datasets import Dataset

GENERATIONS_SCHEMA = pa.schema(
    [
        (C.EXAMPLE_ID, pa.string()),
        (C.TARGET, pa.int32()),
        (C.TARGET_TITLE, pa.string()),
        (C.HISTORY, pa.list_(pa.int32())),
        (C.TEXTS, pa.list_(pa.string())),
        (C.SCORES, pa.list_(pa.float32())),
        (C.EMPTY, pa.bool_()),
        (C.IN_CATALOG, pa.bool_()),
        (C.IN_HISTORY, pa.bool_()),
    ]
)


def answer_flags(
    texts: Sequence[Sequence[str]], histories: Sequence[Sequence[str]], titles: Sequence[str]
) -> dict[str, list[bool]]:
    """Of each example's first text: is it empty, a catalog title, a title of the whole history (as `clean_title`s)."""
    known = {clean_title(title) for title in titles} - {""}
    first = [clean_title(row[0]) for row in texts]
    return {
        C.EMPTY: [not text for text in first],
        C.IN_CATALOG: [text in known for text in first],
        C.IN_HISTORY: [
            bool(text) and text in {clean_title(title) for title in history}
            for text, history in zip(first, histories, strict=True)
        ],
    }


def write_generations(
    path: Path, examples: Dataset, titles: Sequence[str], texts: list[list[str]], scores: list[list[float]]
) -> dict[str, int]:
    """Write generations.parquet. Returns the counts n_examples, n_distinct, n_empty, n_in_catalog, n_in_history."""
    flags = answer_flags(texts, examples[C.HISTORY_TITLES], titles)
    kept = {name: examples[name] for name in (C.EXAMPLE_ID, C.TARGET, C.TARGET_TITLE, C.HISTORY)}
    columns = {name: list(column) for name, column in kept.items()} | {C.TEXTS: texts, C.SCORES: scores} | flags
    table = pa.table(columns, schema=GENERATIONS_SCHEMA)
    write_atomically(path, lambda temporary: pq.write_table(table, temporary))
    distinct = {clean_title(row[0]) for row in texts}
    counts = {"n_examples": len(table), "n_distinct": len(distinct)}
    return counts | {f"n_{name}": sum(values) for name, values in flags.items()}


def print_summary(facts: dict[str, Any]) -> None:
    n = facts["n_examples"]
    shares = ", ".join(
        f"{facts[f'n_{name}'] / n:.1%} {name.replace('_', ' ')}" for name in ("empty", "in_catalog", "in_history")
    )
    speed = facts["titles_per_second"]
    print(f"generate ({facts['method']}): {n} examples, {shares}" + (f"; {speed:.2f} titles/s" if speed else ""))
    if facts["dropped_history_titles"]:
        print(f"generate: {facts['dropped_history_titles']} old history titles left out to fit max_length")
