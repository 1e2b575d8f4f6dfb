"""Choosing parameters on validation examples: grids, curves, the choice and its files, and checks against leaks.

Every stage that chooses a parameter calls the checks before it reads a test target: no test example may be among those
on which the parameter is chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, write_table
from bigrec_hf.data.examples import load_config
from bigrec_hf.data.generations import GENERATE_FILE, GENERATIONS_FILE, read_ids
from bigrec_hf.data.run_folder import VALIDATION_DIR, split_folders
from bigrec_hf.metrics.ndcg_hr.scores import check_ks, hr_per_example, ndcg_per_example

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings, RunSettings

CHOICE_FILE = "choice.json"  # what was tried and chosen, in a method's folder
CURVE_FILE = "curve.parquet"
PRIMARY = "ndcg@10"  # where one choice must represent all
GRIDS = {  # those of the reference's scripts, and 0, 0.01 .. 1 for a weight
    "movie": (*(i / 100 for i in range(100)), *map(float, range(1, 100))),
    "game": (*(i / 100 for i in range(1, 101)), *(float(i) for i in range(2, 100))),
    "popularity": tuple(map(float, range(100))),
    "unit": tuple(i / 100 for i in range(101)),
}


@dataclass(frozen=True)
class Choice:
    """The value chosen for each `metric@K`, and the curve it was chosen from."""

    grid: list[float]  # (g,)
    curves: dict[str, np.ndarray]  # "ndcg@10" -> (g,) float64, the validation metric at each grid value
    chosen: dict[str, float]


def metric_keys(ks: Sequence[int]) -> list[str]:
    """Return ndcg@K and hr@K for each cut-off, ascending."""
    return [f"{metric}@{k}" for metric in ("ndcg", "hr") for k in sorted(set(ks))]


def check_cutoffs(ks: Sequence[int], n_items: int) -> None:
    """Raise BigrecError, naming the flag, for a cut-off K that exceeds the catalog."""
    try:
        check_ks(ks, n_items)
    except ValueError as error:
        raise BigrecError(f"--ks: {error}") from error


def split_key(key: str) -> tuple[str, int]:
    """Split a metric: `ndcg@10` -> ("ndcg", 10). Raises BigrecError for anything but ndcg@K or hr@K."""
    metric, _, k = key.partition("@")
    if metric not in ("ndcg", "hr") or not k.isdigit() or int(k) < 1:
        raise BigrecError(f"{key!r} is not a metric: write ndcg@K or hr@K, such as ndcg@10")
    return metric, int(k)


def mean_metrics(ranks: np.ndarray, key: str) -> np.ndarray:
    """Return the mean metric of each column of `ranks`, (n, g) int64 0-based, as (g,) float64.

    The sum runs over how often each rank occurs, so that grid values with the same ranks, in whatever order of
    examples, get exactly the same mean, and the first of them is chosen.
    """
    metric, k = split_key(key)
    gain = (ndcg_per_example if metric == "ndcg" else hr_per_example)(np.arange(k + 1), k)  # the last is a miss: 0
    counts = [np.bincount(np.minimum(column, k), minlength=k + 1) for column in ranks.T]
    return np.array([float(gain @ count) / len(ranks) for count in counts])


def choose_value(ranks: np.ndarray, grid: Sequence[float], ks: Sequence[int], choose_by: str = "each") -> Choice:
    """Choose the best grid value for every metric and K on *validation* ranks, (n, len(grid)) int64.

    Of equally good values the first in the grid is chosen; a metric that is 0 everywhere gives 0. `choose_by`: "each" =
    separately for every metric and K, or one of them, e.g. "ndcg@10", for all. A value is always chosen for ndcg@10 as
    well, because the complete ranking is stored for it. Raises BigrecError for no example or a wrong `choose_by`.
    """
    if len(ranks) == 0:
        raise BigrecError("there is no validation example to choose on: generate for the validation split first")
    keys = metric_keys(check_ks(ks))
    measured = list(dict.fromkeys([*keys, PRIMARY, *([choose_by] if choose_by != "each" else [])]))
    curves = {key: mean_metrics(ranks, key) for key in measured}
    best = {key: float(grid[int(np.argmax(curve))]) if curve.any() else 0.0 for key, curve in curves.items()}
    chosen = {key: best[key if choose_by == "each" else choose_by] for key in dict.fromkeys([*keys, PRIMARY])}
    return Choice([float(value) for value in grid], curves, chosen)


def save_curves(choice: Choice, folder: str | Path, parameter: str) -> None:
    """Write curve.parquet: the values of the parameter in grid order, and one column per metric and K."""
    table = pa.table({parameter: choice.grid, **choice.curves})
    write_table(table, Path(folder) / CURVE_FILE)


def check_validation(validation_ids: Sequence[str], data: DataSettings) -> None:
    """Raise BigrecError if examples to choose on are not from the validation split, as far as the data show."""
    if data.split == "validation":
        raise BigrecError(
            "split is 'validation': a parameter chosen there cannot be evaluated there; evaluate on --split test"
        )
    if data.dataset and not (data.test_json or data.validation_json):
        known = set(load_config(data.dataset[0], "default", "validation")[C.EXAMPLE_ID])
        other = [example_id for example_id in validation_ids if example_id not in known]
        if other:
            raise BigrecError(
                f"{len(other)} of {len(validation_ids)} examples to choose on (such as {other[0]!r}) are not in the "
                f"validation split of {data.dataset[0]!r}: generate {VALIDATION_DIR}/ with --split validation"
            )


def check_disjoint(validation_ids: Sequence[str], test_ids: Sequence[str]) -> None:
    """Raise BigrecError if an example to choose on is also evaluated."""
    shared = sorted(set(validation_ids) & set(test_ids))
    if shared:
        raise BigrecError(
            f"{len(shared)} of {len(validation_ids)} validation examples are also evaluated (such as {shared[0]!r}): "
            "parameters must not be chosen on the examples they are evaluated on; generate for the validation split"
        )


def check_same_adapter(validation: Path, test: Path) -> None:
    """Raise BigrecError if two generations files were written by different adapters, according to generate.json."""
    facts = [read_json(path.with_name(GENERATE_FILE)) for path in (validation, test)]
    if all(facts) and facts[0].get("adapter_sha256") != facts[1].get("adapter_sha256"):
        raise BigrecError(
            f"{validation} and {test} were written by different adapters: generate the validation examples again"
        )


def checked_generations(run: RunSettings, data: DataSettings) -> dict[str, Path]:
    """Return the method's generations files: `validation` to choose parameters on, `test` to apply them to.

    Raises BigrecError if a file is missing, if its examples are not from the validation split, if the files share an
    example, or if different adapters wrote them.
    """
    files = {split: place / run.method / GENERATIONS_FILE for split, place in split_folders(run).items()}
    for file in files.values():
        if not file.is_file():
            raise BigrecError(
                f"{file} does not exist: parameters are chosen on validation examples and applied to the evaluated "
                "ones, so generate both"
            )
    ids = {split: read_ids(file) for split, file in files.items()}
    check_validation(ids["validation"], data)
    check_disjoint(ids["validation"], ids["test"])
    check_same_adapter(files["validation"], files["test"])
    return files
