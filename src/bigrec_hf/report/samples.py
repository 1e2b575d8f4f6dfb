"""A few examples of a run in words: the history, what the model wrote, the top of the list, what came next."""

from __future__ import annotations

from pathlib import Path

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, read_table
from bigrec_hf.data.catalog import catalog_source, load_catalog
from bigrec_hf.data.generations import GENERATE_FILE, GENERATIONS_FILE
from bigrec_hf.data.rankings import RANKINGS_FILE

SHOWN_HISTORY = 5  # latest titles
SHOWN_LIST = 5


def sample_recommendations(folder: str | Path, n: int = 3) -> list[str]:
    """The first `n` examples of a method's folder as Markdown, one list item each; [] where a file is missing.

    The first ones as they were drawn, not picked: hits and misses as they come.
    """
    folder = Path(folder)
    files = folder / GENERATIONS_FILE, folder / RANKINGS_FILE
    data = read_json(folder / GENERATE_FILE).get("data", {})
    if not all(file.is_file() for file in files) or not data:
        return []
    try:
        titles = load_catalog(catalog_source(data.get("catalog"), data.get("dataset") or [])).titles
    except BigrecError:  # the run was moved away from its data
        return []
    generations = read_table(files[0], columns=[C.TARGET_TITLE, C.HISTORY, C.TEXTS]).slice(0, n).to_pylist()
    rankings = read_table(files[1], columns=[C.RANK, C.TOP_ROWS]).slice(0, n).to_pylist()
    lines = []
    for example, ranking in zip(generations, rankings, strict=True):
        history = [titles[row] for row in example[C.HISTORY][-SHOWN_HISTORY:] if row >= 0]
        top = [titles[row] for row in ranking[C.TOP_ROWS][:SHOWN_LIST] if row >= 0]
        texts = example[C.TEXTS] or [""]
        lines.append(
            f"- history: {'; '.join(history) or 'none'}\n"
            f"  - generated: {texts[0] or 'nothing'}\n"
            f"  - top {len(top)}: {'; '.join(top)}\n"
            f"  - next in truth: {example[C.TARGET_TITLE]} (rank {ranking[C.RANK] + 1:,})"
        )
    return lines
