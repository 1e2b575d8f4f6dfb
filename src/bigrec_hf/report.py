"""Report: tables over runs and their baselines, from the files the stages wrote, beside the published figures.

`published_results.csv` transcribes the results that Bi-Step-Rec publishes (movie and game), figure by figure; rows that
contradict themselves are marked, not mended.
"""

from __future__ import annotations

import csv
import importlib.resources
import sys
from pathlib import Path
from typing import Any

from bigrec_hf.errors import BigrecError
from bigrec_hf.runs import read_json
from bigrec_hf.settings import ReportSettings

RESULTS_FILE = "results.json"
METHODS = {  # subfolders of a run, in the order of the table
    "random": "random",
    "popularity": "popularity",
    "zero_shot": "zero-shot LM",
    "finetuned": "fine-tuned LM",
}
METRICS = {"ndcg": "NDCG", "hr": "HR"}


def load_results(run_dir: str | Path) -> dict[str, dict[str, Any]]:
    """Method -> results.json of one run. Raises BigrecError where the folder holds none."""
    found = {name: read_json(Path(run_dir) / name / RESULTS_FILE) for name in METHODS}
    for name, results in found.items():
        if results:  # a model that gives everyone the same few titles must not look good by its share of catalog titles
            results["n_distinct"] = read_json(Path(run_dir) / name / "generate.json").get("n_distinct")
    found = {name: results for name, results in found.items() if results}
    if not found:
        raise BigrecError(f"{str(run_dir)!r} holds no results: make them with `bigrec-hf run --config RECIPE`")
    return found


def cutoffs(results: dict[str, Any]) -> list[int]:
    """The K of a results.json, ascending."""
    return sorted(int(key.removeprefix("hr@")) for key in results if key.startswith("hr@") and key[3:].isdigit())


def format_score(results: dict[str, Any], key: str) -> str:
    """`0.0240 [0.0120, 0.0380]`, without brackets where no interval was computed; `-` where the K was not."""
    if key not in results:
        return "-"
    text = f"{results[key]:.4f}"
    low, high = results.get(f"{key}_low"), results.get(f"{key}_high")
    return text if low is None else f"{text} [{low:.4f}, {high:.4f}]"


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table; the first column left-aligned, the others right-aligned."""
    align = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, align, *rows])


def score_tables(runs: dict[str, dict[str, dict[str, Any]]]) -> list[str]:
    """One table a metric: a row a run and method, a column a K, intervals in the cells."""
    several = len(runs) > 1
    rows = [
        (f"{run}: {METHODS[method]}" if several else METHODS[method], results)
        for run, methods in runs.items()
        for method, results in methods.items()
    ]
    ks = sorted({k for _, results in rows for k in cutoffs(results)})
    tables = []
    for metric, title in METRICS.items():
        body = [[name, *(format_score(results, f"{metric}@{k}") for k in ks)] for name, results in rows]
        tables.append(markdown_table(["", *(f"{title}@{k}" for k in ks)], body))
    body = []
    for name, results in rows:
        shares = [results.get("in_catalog"), results.get("in_history")]
        body.append(
            [
                name,
                str(results["n_examples"]),
                str(results["n_empty"]),
                "-" if results["n_distinct"] is None else str(results["n_distinct"]),
                *("-" if share is None else f"{share:.1%}" for share in shares),
                f"{results['median_rank']:.0f} of {results['n_items']}",
            ]
        )
    header = ["", "examples", "empty answers", "distinct answers", "in the catalog", "from the history", "median rank"]
    tables.append(markdown_table(header, body))
    return tables


def published_rows(dataset: str) -> list[dict[str, str]]:
    """The published rows of `movie` or `game`, each with `marks`: why its figures contradict themselves, if they do."""
    text = importlib.resources.files("bigrec_hf").joinpath("published_results.csv").read_text(encoding="utf-8")
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


def run_facts(run_dir: str | Path) -> list[str]:
    """What a reader needs to know to trust the table: data, model, training, machine, from the manifest."""
    manifest = read_json(Path(run_dir) / "manifest.json")
    lines = []
    data = manifest.get("data", {})
    if data:
        lines.append(
            f"- data: {data['name']} ({data['preset']}), {data['users']:,} users, {data['items']:,} items; "
            f"{data['repeated_targets']['all']:.1%} of targets already stand in their history"
        )
    training = manifest.get("training", {})
    if training:
        lines.append(
            f"- training: {training['n_train']:,} examples, {training['optimizer_steps']} steps, "
            f"{training['trainable_parameters']:,} of {training['total_parameters']:,} parameters, "
            f"{training['seconds']:.0f} s"
        )
    stages = manifest.get("stages", {})
    if stages:
        seconds = sum(stage["seconds"] for stage in stages.values())
        machine = manifest["environment"]
        lines.append(
            f"- time: {seconds:.0f} s over all stages on {machine['cpus']} CPU(s)"
            + (f", {', '.join(machine['gpus'])}" if machine.get("gpus") else "")
            + f", torch {machine['packages']['torch']}, trl {machine['packages']['trl']}"
        )
    return lines


def build_report(run_dirs: list[str], published: str | None = None) -> str:
    """The whole report as Markdown."""
    if not run_dirs:
        raise BigrecError("no run given: name one or more run folders, e.g. `bigrec-hf report runs/quickstart`")
    runs = {Path(run_dir).name: load_results(run_dir) for run_dir in run_dirs}
    if len(runs) < len(run_dirs):
        raise BigrecError("two of the run folders have the same name: rename one, the table tells runs by it")
    examples = {results.get("n_examples") for methods in runs.values() for results in methods.values()}
    confidence = {
        results["confidence"] for methods in runs.values() for results in methods.values() if results["bootstrap"]
    }
    parts = [f"# {', '.join(runs)}", ""]
    for run_dir in run_dirs:
        facts = run_facts(run_dir)
        parts += ([f"{Path(run_dir).name}:", ""] if len(run_dirs) > 1 else []) + facts + [""]
    if confidence:
        parts += [f"In brackets: {max(confidence):.0%} bootstrap intervals over the examples.", ""]
    if len(examples) > 1:
        parts += ["The rows are over different numbers of examples: they are not comparable one by one.", ""]
    for table in score_tables(runs):
        parts += [table, ""]
    if published:
        parts += [published_table(published), ""]
        parts += ["Published rows: 5,000 examples of the full data sets, llama-7b encoder; other data, other rows.", ""]
    return "\n".join(parts)


def main(report: ReportSettings) -> None:
    """The `report` stage: print the report, and write it where a path is given."""
    text = build_report(report.runs, report.published)
    print(text)
    if report.report_path:
        Path(report.report_path).parent.mkdir(parents=True, exist_ok=True)
        Path(report.report_path).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    from bigrec_hf.cli import main as cli_main

    sys.exit(cli_main(["report", *sys.argv[1:]]))
