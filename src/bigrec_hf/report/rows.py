"""The rows of a report: every method of every run, over its seeds if there are several, and their cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json
from bigrec_hf.data.generations import GENERATE_FILE
from bigrec_hf.data.run_folder import run_name, seed_folders

RESULTS_FILE = "results.json"
METHODS = {  # subfolders of a run and their labels, in the order of the table; any others follow under their own names
    "random": "random",
    "popularity": "popularity",
    "cooccurrence": "co-occurrence",
    "itemknn": "ItemKNN",
    "ease": "EASE",
    "sasrec": "SASRec",
    "zero_shot": "zero-shot LM",
    "history": "history's titles",
    "finetuned": "fine-tuned LM",
    "grpo": "fine-tuned LM, rewards",
}
METRICS = {"ndcg": "NDCG", "hr": "HR"}


@dataclass(frozen=True)
class Row:
    """One method of one run."""

    run: str
    method: str
    folders: list[Path]  # one per seed
    results: list[dict[str, Any]]  # results.json of each folder, with n_distinct of its generate.json

    @property
    def key(self) -> str:
        """The row's name in `compare_to`."""
        return f"{self.run}/{self.method}"

    @property
    def label(self) -> str:
        """The method's label (`method_label`)."""
        return method_label(self.method)

    def values(self, key: str) -> list[float]:
        """The value of each seed that has one."""
        return [results[key] for results in self.results if results.get(key) is not None]


def method_label(method: str) -> str:
    """The label of a method; that of a derived one (`finetuned_popularity`) begins with the known method's."""
    base = max((name for name in METHODS if f"{method}_".startswith(f"{name}_")), key=len, default="")
    rest = method.removeprefix(base).strip("_").replace("_", " ")
    return ", ".join(filter(None, [METHODS.get(base), rest]))


def load_rows(run_dirs: Sequence[str | Path]) -> list[Row]:
    """One row per method of each run, baselines first; a folder that has results.json itself is also a row.

    Raises BigrecError for a folder without results, or for two runs of the same name.
    """
    if not run_dirs:
        raise BigrecError("no run given: give one or more run folders, e.g. `bigrec-hf report runs/quickstart`")
    names = [run_name(run_dir) for run_dir in run_dirs]
    if len(set(names)) < len(names):
        raise BigrecError("two of the run folders have the same name: rename one, as tables tell runs apart by name")
    rows = []
    for name, run_dir in zip(names, run_dirs, strict=True):
        folders: dict[str, list[Path]] = {}
        for folder in seed_folders(run_dir):
            own = folder / RESULTS_FILE  # a method's folder, or what `evaluate` wrote
            for file in [*([own] if own.is_file() else []), *sorted(folder.glob(f"*/{RESULTS_FILE}"))]:
                folders.setdefault(run_name(file.parent), []).append(file.parent)
        if not folders:
            raise BigrecError(f"{str(run_dir)!r} contains no results: create them with `bigrec-hf run --config RECIPE`")
        known = [method for method in METHODS if method in folders]
        for method in [*known, *(method for method in folders if method not in METHODS)]:
            rows.append(Row(name, method, folders[method], [_results(folder) for folder in folders[method]]))
    return rows


def _results(folder: Path) -> dict[str, Any]:
    """A method's results and its number of distinct generations: low if everyone gets the same few titles."""
    return read_json(folder / RESULTS_FILE) | {"n_distinct": read_json(folder / GENERATE_FILE).get("n_distinct")}


def row_labels(rows: Sequence[Row]) -> dict[str, str]:
    """Row key -> label; with the run's name if there are several runs, with the number of seeds if these differ."""
    runs, seeds = {row.run for row in rows}, {len(row.folders) for row in rows}
    return {
        row.key: (f"{row.run}: " if len(runs) > 1 else "")
        + row.label
        + (f" ({len(row.folders)} seed{'s' if len(row.folders) > 1 else ''})" if len(seeds) > 1 else "")
        for row in rows
    }


def cutoffs(rows: Sequence[Row]) -> list[int]:
    """Every K of the rows' results, ascending."""
    keys = {key for row in rows for results in row.results for key in results if key.startswith("hr@")}
    return sorted(int(key[3:]) for key in keys if key[3:].isdigit())


def spread(values: Sequence[float]) -> tuple[float, float, float, float]:
    """(mean, sample standard deviation, least, greatest) of several seeds' values; for one, the deviation is 0."""
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return float(np.mean(values)), deviation, min(values), max(values)


def format_score(row: Row, key: str, mark: str = "") -> str:
    """`0.0240 [0.0120, 0.0380] ▲`; for several seeds `0.0240 ± 0.0021 (0.0220..0.0262)`; `-` without a value."""
    values = row.values(key)
    if not values:
        return "-"
    mean, deviation, least, greatest = spread(values)
    low, high = row.results[0].get(f"{key}_low"), row.results[0].get(f"{key}_high")
    if len(row.folders) > 1:
        text = f"{mean:.4f} ± {deviation:.4f} ({least:.4f}..{greatest:.4f})"
    else:
        text = f"{mean:.4f}" if low is None else f"{mean:.4f} [{low:.4f}, {high:.4f}]"
    return f"{text} {mark}".rstrip()


def format_number(row: Row, key: str, form: str = "{:.0f}") -> str:
    """The mean over the seeds in `form`, `-` if no result has it."""
    values = row.values(key)
    return form.format(np.mean(values)) if values else "-"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column left-aligned, the others right-aligned."""
    align = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, align, *rows])
