"""The results published by Bi-Step-Rec, as a table to show next to one's own.

`published_results.csv` transcribes them (movie and game) figure by figure, from the README of commit 312e591; rows that
contradict themselves are marked, not corrected.
"""

from __future__ import annotations

import csv
import importlib.resources
import itertools
from math import log2

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.report.rows import METRICS, markdown_table

KS = (1, 3, 5, 10, 20, 50)
FIGURES = [f"{metric}@{k}" for metric in METRICS for k in KS]
METHODS = {"sft": "SFT", "zero-shot": "zero-shot", "latent": "latent", "grpo": "GRPO", "sft+grpo": "SFT + GRPO"}
ROUNDING = 1e-4  # of a difference of two figures with four decimals
BEST = "ndcg@10"  # by which the best rows are chosen


def published_rows(dataset: str) -> list[dict[str, str]]:
    """The published rows of `movie` or `game`, each with `marks`: how its entries contradict each other, if they do."""
    text = importlib.resources.files("bigrec_hf.report").joinpath("published_results.csv").read_text(encoding="utf-8")
    rows = [row for row in csv.DictReader(text.splitlines()) if row["dataset"] == dataset]
    for row in rows:
        marks = contradictions(row)
        for other in rows:
            same = sum(other[key] == row[key] for key in FIGURES)
            if other is not row and same >= len(FIGURES) - 1:
                marks.append(f"equals {row_label(other)} in {same} of {len(FIGURES)} figures")
        row["marks"] = "; ".join(marks)
    return rows


def contradictions(row: dict[str, str]) -> list[str]:
    """What cannot be true of one row: its settings, or HR and NDCG of the same rankings."""
    marks = []
    if row["epoch"] == "0" and row["train_samples"] != "0":
        marks.append(f"{row['train_samples']} examples, but no epoch")
    if row["train_prompt"] == "none" and int(row["epoch"]) > 0:
        marks.append("trained, but without a training prompt")
    hr, ndcg = ({k: float(row[f"{metric}@{k}"]) for k in KS} for metric in ("hr", "ndcg"))
    if hr[1] != ndcg[1]:
        marks.append("HR@1 and NDCG@1 differ")
    for low, high in itertools.pairwise(KS):
        hits, gain = hr[high] - hr[low], ndcg[high] - ndcg[low]
        falls = [title for title, difference in (("HR", hits), ("NDCG", gain)) if difference < 0]
        marks += [f"{title} falls from K = {low} to {high}" for title in falls]
        # a hit at rank r (from 1) adds 1 / log2(r + 1), and these are at ranks low + 1 to high
        least, most = (hits - ROUNDING) / log2(high + 1) - ROUNDING, (hits + ROUNDING) / log2(low + 2) + ROUNDING
        if not falls and not least <= gain <= most:
            marks.append(f"NDCG@{low} and NDCG@{high} do not fit HR")
    return marks


def row_label(row: dict[str, str]) -> str:
    """Model, method, examples, epochs and prompts of a published row."""
    trained = row["train_samples"] != "0" or row["epoch"] not in ("", "0")
    return ", ".join(
        filter(
            None,
            [
                row["model"],
                METHODS[row["method"]] + (f" on {row['train_samples']} examples" if trained else ""),
                f"epoch {row['epoch']}" if row["epoch"] and trained else "",
                f"{row['train_prompt']} + {row['inference_prompt']}" if row["train_prompt"] else "",
                f"beta {row['beta']}" if row["beta"] else "",
                "reward: similarity only" if row["reward"] == "similarity" else "",
            ],
        )
    )


def choose_rows(rows: list[dict[str, str]], shown: str) -> list[dict[str, str]]:
    """`all` rows, those of one model, or the `best` of each model and method by NDCG@10 (the first of equals)."""
    if shown == "all":
        return rows
    if shown == "best":
        best: dict[tuple[str, str], dict[str, str]] = {}
        for row in rows:
            key = (row["model"], row["method"])
            if key not in best or float(row[BEST]) > float(best[key][BEST]):
                best[key] = row
        return list(best.values())
    chosen = [row for row in rows if row["model"].lower() == shown.lower()]
    if not chosen:
        names = ", ".join(dict.fromkeys(row["model"] for row in rows))
        raise BigrecError(f"published_rows={shown!r} is neither best, all nor a model with published rows: {names}")
    return chosen


def published_table(dataset: str, shown: str = "best") -> str:
    """The published rows that `choose_rows` gives as Markdown, contradictory ones marked and explained below."""
    rows = published_rows(dataset)
    chosen = choose_rows(rows, shown)
    body = [[row_label(row) + (" †" if row["marks"] else ""), *(row[key] for key in FIGURES)] for row in chosen]
    header = ["published by Bi-Step-Rec"] + [f"{title}@{k}" for title in METRICS.values() for k in KS]
    lines = [markdown_table(header, body)]
    if shown == "best" and len(chosen) < len(rows):
        lines += ["", f"Of {len(rows)} published rows, the best of each model and method by NDCG@10 on these examples."]
    marked = [f"{row_label(row)}: {row['marks']}" for row in chosen if row["marks"]]
    if marked:
        lines += ["", "† as published, though inconsistent: " + ". ".join(marked) + "."]
    return "\n".join(lines)
