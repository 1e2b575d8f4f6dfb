"""Breakdown of a run's results by history length and by the target's popularity, and how varied the lists are.

Written to `breakdown.json` in every method's folder. A mean over all examples hides a method that only does well on
blockbusters, or that recommends the same list to everyone.

Popularity groups, by how often an item is a training target (`Columns.TRAIN_COUNT`): an item is **head** if the items
more popular than it account for less than a third of all training targets, **middle** if for less than two thirds,
**tail** otherwise, and **unseen** if it never is a training target. Equally popular items are thus in the same group,
and each of the first three groups accounts for about a third of the training targets.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_table, write_json
from bigrec_hf.data.run_folder import RECIPE_FILE
from bigrec_hf.report.rows import METRICS, Row, markdown_table, row_labels
from bigrec_hf.score.significance import read_method_scores
from bigrec_hf.score.users import intervals, user_codes, user_ids

BREAKDOWN_FILE = "breakdown.json"
HISTORY_BINS = (0, 1, 3, 6, 10, 20, 50)  # the smallest length in each bin
POPULARITY_GROUPS = ("head", "middle", "tail", "unseen")
LIST_KS = (1, 5, 10, 50)  # cut-offs of coverage and diversity


def popularity_groups(train_counts: Sequence[int] | np.ndarray) -> np.ndarray:
    """(n_items,) int, index into POPULARITY_GROUPS for every catalog row. `train_counts`  # (n_items,), at least 0."""
    counts = np.asarray(train_counts, np.int64)
    levels, level = np.unique(counts, return_inverse=True)
    mass = np.bincount(level, weights=counts, minlength=len(levels))  # training targets at each level of popularity
    above = mass.sum() - np.cumsum(mass)  # ... at higher levels
    group = np.searchsorted([mass.sum() / 3, 2 * mass.sum() / 3], above, side="right")
    return np.where(counts == 0, 3, group[level])


def history_groups(lengths: Sequence[int] | np.ndarray) -> tuple[np.ndarray, list[str]]:
    """(index of each length's bin, labels of all bins), bins as HISTORY_BINS: `0`, `1-2`, ..., `50+`."""
    group = np.searchsorted(HISTORY_BINS, lengths, side="right") - 1
    labels = [f"{low}" if high - low == 1 else f"{low}-{high - 1}" for low, high in itertools.pairwise(HISTORY_BINS)]
    return group, [*labels, f"{HISTORY_BINS[-1]}+"]


def group_scores(
    values: np.ndarray, metrics: Sequence[str], group: np.ndarray, labels: Sequence[str], users: np.ndarray
) -> list[dict[str, Any]]:
    """One record per non-empty group: its label, n, and each metric's mean with its 95% interval (`users.intervals`).

    values: (n, n_metrics) float64 per-example scores. group: (n,) int, index into labels. users: (n,) int, codes.
    """
    records = []
    for index, label in enumerate(labels):
        mine, their_users = values[group == index], users[group == index]
        if len(mine) == 0:
            continue
        ends = intervals(mine, np.unique(their_users, return_inverse=True)[1])
        record: dict[str, Any] = {"group": label, "n": len(mine)}
        for column, metric in enumerate(metrics):
            record[metric] = float(mine[:, column].mean())
            record[f"{metric}_low"], record[f"{metric}_high"] = float(ends.low[column]), float(ends.high[column])
        records.append(record)
    return records


def list_facts(top_rows: Sequence[Sequence[int]], n_items: int, k: int) -> dict[str, float]:
    """How varied the first k items of all lists are, taken together.

    coverage: fraction of the catalog that is in any list. entropy: of the recommended items' frequencies, divided by
    log n_items: 1 if every item is recommended equally often, log k / log n_items if everyone gets the same list. gini:
    of all items' frequencies (0 for items never recommended): 0 = all equal, near 1 = concentrated on a few items.
    """
    rows = np.concatenate([np.asarray(row[:k], np.int64) for row in top_rows] or [np.empty(0, np.int64)])
    counts = np.sort(np.bincount(rows, minlength=n_items)).astype(np.float64)
    if counts.sum() == 0:
        return {"coverage": 0.0, "entropy": 0.0, "gini": 1.0}
    share = counts[counts > 0] / counts.sum()
    entropy = -(share * np.log(share)).sum() / np.log(n_items) if n_items > 1 else 0.0
    gini = (2.0 * np.arange(1, n_items + 1) - n_items - 1.0) @ counts / (n_items * counts.sum())
    return {
        "coverage": float(np.count_nonzero(counts) / n_items),
        "entropy": float(abs(entropy)),  # no -0.0
        "gini": float(gini),
    }


def read_histories(run_folder: str | Path) -> dict[str, list[int]]:
    """Example id -> history (catalog rows) from the run's generations; empty if it has none."""
    for file in sorted(Path(run_folder).glob("*/generations.parquet")):
        table = read_table(file, columns=[C.EXAMPLE_ID, C.HISTORY])
        return dict(zip(table[C.EXAMPLE_ID].to_pylist(), table[C.HISTORY].to_pylist(), strict=True))
    return {}


def read_items(run_folder: str | Path) -> tuple[np.ndarray, list[str]] | None:
    """(train counts, titles), one per catalog row, of the prepared set in the run's recipe; None if it names none.

    Raises BigrecError if the set no longer exists.
    """
    from bigrec_hf.data.examples import load_config
    from bigrec_hf.settings.recipes import read_recipe

    recipe = Path(run_folder) / RECIPE_FILE
    content = read_recipe(recipe) if recipe.is_file() else {}
    dataset = content.get("data", {}).get("dataset")
    if not dataset:
        return None
    items = load_config(dataset[0], "items", "train")
    return np.asarray(items[C.TRAIN_COUNT]), list(items[C.TITLE])


def break_down(
    folder: str | Path, histories: dict[str, list[int]], items: tuple[np.ndarray, list[str]] | None
) -> dict[str, Any]:
    """The breakdown of one method folder (rankings.parquet and per_example.parquet); None for what is unknown.

    Raises BigrecError if the two files or the catalog do not belong together.
    """
    from bigrec_hf.data.rankings import RANKINGS_FILE, table_settings
    from bigrec_hf.metrics.ndcg_hr.titles import clean_title

    scores = read_method_scores([folder])
    users = user_codes(user_ids(scores.example_ids), len(scores.example_ids))
    path = Path(folder) / RANKINGS_FILE
    if not path.is_file():
        raise BigrecError(f"{path} does not exist: run `bigrec-hf ground` first")
    table = read_table(path)
    if table[C.EXAMPLE_ID].to_pylist() != scores.example_ids:
        raise BigrecError(f"{path} and the scores next to it cover different examples: run `bigrec-hf score` again")
    targets = table[C.TARGET].to_numpy()
    top_rows = table[C.TOP_ROWS].to_pylist()
    n_items = table_settings(table)["n_items"]
    known = [histories[example] for example in scores.example_ids if example in histories]
    found: dict[str, Any] = {
        "n_examples": len(targets),
        "history": None,
        "popularity": None,
        "repeated_targets": None,
        "duplicate_title_targets": None,
    }
    if len(known) == len(targets):
        group, labels = history_groups([len(history) for history in known])
        found["history"] = group_scores(scores.values, scores.metrics, group, labels, users)
        found["repeated_targets"] = float(
            np.mean([target in history for target, history in zip(targets, known, strict=True)])
        )
    if items is not None:
        counts, titles = items
        if len(counts) != n_items:
            raise BigrecError(
                f"{path} ranks {n_items} items, but the prepared set has {len(counts)}: use a run with unchanged data"
            )
        group = popularity_groups(counts)[targets]
        found["popularity"] = group_scores(scores.values, scores.metrics, group, POPULARITY_GROUPS, users)
        _, title, n_rows = np.unique([clean_title(t) for t in titles], return_inverse=True, return_counts=True)
        found["duplicate_title_targets"] = float((n_rows[title[targets]] > 1).mean())
    longest = max(map(len, top_rows), default=0)
    found["lists"] = {str(k): list_facts(top_rows, n_items, k) for k in LIST_KS if k <= longest}
    found["distinct_first_items"] = len({row[0] for row in top_rows if row})
    return found


def break_down_rows(rows: Sequence[Row]) -> dict[str, list[dict[str, Any]]]:
    """Row key -> the breakdown of each of its folders; each is also written to its folder as breakdown.json."""
    of_run: dict[Path, tuple[dict[str, list[int]], Any]] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        for folder in row.folders:
            run = folder.parent
            if run not in of_run:
                of_run[run] = read_histories(run), read_items(run)
            record = break_down(folder, *of_run[run])
            write_json(folder / BREAKDOWN_FILE, record)
            found.setdefault(row.key, []).append(record)
    return found


def breakdown_tables(rows: Sequence[Row], breakdowns: dict[str, list[dict[str, Any]]], k: int = 10) -> list[str]:
    """Paragraphs and tables of the breakdown, at the scored K nearest to `k`; means over the seeds."""
    labels = row_labels(rows)
    records = [record for found in breakdowns.values() for record in found]
    parts = ["Breakdown of the same examples" + _shares(records) + "."]
    titles = {
        "history": "By number of history items:",
        "popularity": "By popularity of the target (head, middle, tail: items of about a third of the training targets "
        "each, the most popular first; unseen: never a training target):",
    }
    for part, title in titles.items():
        groups = {group["group"]: group["n"] for record in records for group in record[part] or []}
        if not groups:
            parts.append(f"{title} unknown, for want of the run's {_SOURCES[part]}.")
            continue
        order = [g for g in (*POPULARITY_GROUPS, *history_groups([])[1]) if g in groups]
        for metric, name in METRICS.items():
            key = _nearest(records, part, metric, k)
            header = [f"{name}@{key.partition('@')[2]}", *(f"{group} (n = {groups[group]})" for group in order)]
            body = [[labels[row.key], *(_cell(breakdowns[row.key], part, g, key) for g in order)] for row in rows]
            parts += [title, markdown_table(header, body)] if metric == "ndcg" else [markdown_table(header, body)]
    ks = sorted({int(key) for record in records for key in record["lists"]})
    header = ["", *(f"{name}@{key}" for name in ("coverage", "entropy", "Gini") for key in ks), "distinct first items"]
    body = []
    for row in rows:
        found = breakdowns[row.key]
        cells = [
            "-"
            if any(str(key) not in r["lists"] for r in found)
            else f"{np.mean([r['lists'][str(key)][name] for r in found]):{form}}"
            for name, form in (("coverage", ".1%"), ("entropy", ".3f"), ("gini", ".3f"))
            for key in ks
        ]
        body.append([labels[row.key], *cells, f"{np.mean([r['distinct_first_items'] for r in found]):.0f}"])
    parts += [
        "How varied the lists are: coverage = share of the catalog in any list; entropy of the recommended items, 1 = "
        "all equally often; Gini = 0 if all are equally frequent, near 1 if a few are recommended almost always:",
        markdown_table(header, body),
    ]
    return parts


_SOURCES = {"history": "generations.parquet", "popularity": "prepared set"}


def _shares(records: Sequence[dict[str, Any]]) -> str:
    """How many targets are in their history, or share their title with other items; equal for all methods of a run."""
    texts = []
    for key, text in (
        ("repeated_targets", "of the targets are in their history"),
        ("duplicate_title_targets", "have a title that several items share"),
    ):
        shares = sorted({record[key] for record in records if record[key] is not None})
        if shares:
            texts.append(" to ".join(f"{share:.1%}" for share in dict.fromkeys([shares[0], shares[-1]])) + f" {text}")
    return f": {', '.join(texts)}" if texts else ""


def _nearest(records: Sequence[dict[str, Any]], part: str, metric: str, k: int) -> str:
    """The scored metric@K with K nearest to `k`."""
    keys = {key for record in records for group in record[part] or [] for key in group}
    ks = [int(key.partition("@")[2]) for key in keys if key.startswith(f"{metric}@") and "_" not in key]
    return f"{metric}@{min(ks, key=lambda candidate: (abs(candidate - k), candidate))}"


def _cell(records: Sequence[dict[str, Any]], part: str, group: str, key: str) -> str:
    """Mean of a group, with its interval if there is only one seed."""
    found = [g for record in records for g in record[part] or [] if g["group"] == group and key in g]
    if not found:
        return "-"
    mean = f"{np.mean([g[key] for g in found]):.4f}"
    return mean if len(found) > 1 else f"{mean} [{found[0][f'{key}_low']:.4f}, {found[0][f'{key}_high']:.4f}]"
