"""A few examples of a run in words: the history, what the model wrote, the top of the list, what came next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, read_table
from bigrec_hf.data.catalog import catalog_source, load_catalog
from bigrec_hf.data.generations import GENERATE_FILE, GENERATIONS_FILE
from bigrec_hf.data.rankings import RANKINGS_FILE, read_ranks

SHOWN_HISTORY = 5  # latest titles
SHOWN_LIST = 5


@dataclass(frozen=True)
class Sample:
    """One example in words."""

    history: list[str]  # the latest titles, oldest first
    generated: str
    top: list[str]
    target: str
    rank: int  # of the target, from 0


def read_samples(folder: str | Path, rows: Sequence[int]) -> list[Sample]:
    """The examples in these rows of a method's folder; [] if a file is missing or its data have been moved away."""
    folder = Path(folder)
    files = folder / GENERATIONS_FILE, folder / RANKINGS_FILE
    data = read_json(folder / GENERATE_FILE).get("data", {})
    if not all(file.is_file() for file in files) or not data:
        return []
    try:
        titles = load_catalog(catalog_source(data.get("catalog"), data.get("dataset") or [])).titles
    except BigrecError:
        return []
    generations = read_table(files[0], columns=[C.TARGET_TITLE, C.HISTORY, C.TEXTS])
    rankings = read_table(files[1], columns=[C.RANK, C.TOP_ROWS])
    taken = np.array([row for row in rows if row < min(len(generations), len(rankings))], np.int64)
    return [
        Sample(
            history=[titles[item] for item in example[C.HISTORY][-SHOWN_HISTORY:] if item >= 0],
            generated=(example[C.TEXTS] or [""])[0],
            top=[titles[item] for item in ranking[C.TOP_ROWS][:SHOWN_LIST] if item >= 0],
            target=example[C.TARGET_TITLE],
            rank=ranking[C.RANK],
        )
        for example, ranking in zip(generations.take(taken).to_pylist(), rankings.take(taken).to_pylist(), strict=True)
    ]


def sample_recommendations(folder: str | Path, n: int = 3) -> list[str]:
    """The first `n` examples of a method's folder as Markdown, one list item each; [] if a file is missing.

    The first ones as they were drawn, not picked: hits and misses as they come.
    """
    return [
        f"- history: {'; '.join(sample.history) or 'none'}\n"
        f"  - generated: {sample.generated or 'nothing'}\n"
        f"  - top {len(sample.top)}: {'; '.join(sample.top)}\n"
        f"  - next in truth: {sample.target} (rank {sample.rank + 1:,})"
        for sample in read_samples(folder, range(n))
    ]


def hits_and_misses(folder: str | Path, n: int, k: int) -> tuple[list[Sample], list[Sample], int, int]:
    """The first hits (target among the first `k`) and the first misses of a method's folder, `n` in all, half of each
    where there are as many; and how many there are of either. All empty if the ranks are missing.
    """
    file = Path(folder) / RANKINGS_FILE
    ranks = read_ranks(file) if file.is_file() else np.empty(0, np.int64)
    hits = [row for row, rank in enumerate(ranks) if rank < k]
    misses = [row for row, rank in enumerate(ranks) if rank >= k]
    n_hits = min(len(hits), max(n // 2, n - len(misses)))
    shown = hits[:n_hits], misses[: n - n_hits]
    return read_samples(folder, shown[0]), read_samples(folder, shown[1]), len(hits), len(misses)
