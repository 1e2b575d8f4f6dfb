"""The results published by Bi-Step-Rec, as a table to show next to one's own.

`published_results.csv` transcribes them (movie and game) figure by figure; rows that contradict themselves are marked,
not corrected.
"""

from __future__ import annotations

import csv
import importlib.resources

from bigrec_hf.report.rows import METRICS, markdown_table


def published_rows(dataset: str) -> list[dict[str, str]]:
    """The published rows of `movie` or `game`, each with `marks`: how its figures contradict each other, if they do."""
    text = importlib.resources.files("bigrec_hf.report").joinpath("published_results.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(text.splitlines()))
    hits = sorted((key for key in rows[0] if key.startswith("hr@")), key=lambda key: int(key[3:]))
    from_5 = [f"{metric}@{k}" for metric in METRICS for k in (5, 10, 20, 50)]
    for row in rows:
        marks = []
        if abs(float(row["hr@1"]) - float(row["ndcg@1"])) > 1e-4:
            marks.append("HR@1 and NDCG@1 differ")
        values = [float(row[key]) for key in hits]
        if values != sorted(values):
            marks.append("HR falls as K grows")
        twins = [other for other in rows if other is not row and all(other[key] == row[key] for key in from_5[:4])]
        if twins and marks:
            marks.append(f"repeats {twins[0]['model']}, epoch {twins[0]['epoch']}, from NDCG@5 on")
        row["marks"] = "; ".join(marks)
    return [row for row in rows if row["dataset"] == dataset]


def published_table(dataset: str) -> str:
    """The published rows as Markdown, contradictory ones marked with a dagger and explained below."""
    rows = published_rows(dataset)
    ks = [1, 3, 5, 10, 20, 50]
    keys = [f"{metric}@{k}" for metric in METRICS for k in ks]
    body = []
    for row in rows:
        epoch = f", epoch {row['epoch']}" if row["epoch"] else ""
        prompts = f", {row['train_prompt']} + {row['inference_prompt']}" if row["train_prompt"] else ""
        dagger = " †" if row["marks"] else ""
        body.append(
            [f"{row['model']}, {row['train_samples']} examples{epoch}{prompts}{dagger}"] + [row[k] for k in keys]
        )
    header = ["published by Bi-Step-Rec"] + [f"{title}@{k}" for title in METRICS.values() for k in ks]
    lines = [markdown_table(header, body)]
    marked = [
        f"{row['model']} {row['train_prompt']}, epoch {row['epoch']}: {row['marks']}" for row in rows if row["marks"]
    ]
    if marked:
        lines += ["", "† as published, though inconsistent: " + ". ".join(marked) + "."]
    return "\n".join(lines)
