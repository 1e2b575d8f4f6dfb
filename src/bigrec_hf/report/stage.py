"""The `report` stage: tables over runs and their baselines, from the stages' files, next to the published figures.

Every figure comes with its spread: bootstrap intervals over the examples or, for several seeds, the spread over them.
Marks show which differences to a reference row are significant (`report.differences`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, whole_records, write_atomically
from bigrec_hf.data.run_folder import MANIFEST, run_name, seed_folders
from bigrec_hf.report.breakdown import break_down_rows, breakdown_tables
from bigrec_hf.report.differences import Differences, compare_rows, differences_tables, legend
from bigrec_hf.report.notes import candidates_note, intervals_note, stale_note
from bigrec_hf.report.page import PAGE, REWARDED, learning_history, write_page
from bigrec_hf.report.plot_files import plot_learning, plot_rows
from bigrec_hf.report.published import published_table
from bigrec_hf.report.readme_tables import update_readme
from bigrec_hf.report.rows import (
    METRICS,
    Row,
    cutoffs,
    format_number,
    format_score,
    load_rows,
    markdown_table,
    row_labels,
)
from bigrec_hf.report.samples import sample_recommendations
from bigrec_hf.settings import ReportSettings

README = ("readme_columns", "readme_rows", "update_readme")  # settings of the tables in Markdown files
TEXT = "report.md"


def score_tables(rows: Sequence[Row], differences: Differences) -> list[str]:
    """One table per metric (a row per run and method, a column per K, with marks), then one on the generations."""
    labels, ks = row_labels(rows), cutoffs(rows)
    tables = []
    for metric, title in METRICS.items():
        keys = [f"{metric}@{k}" for k in ks]
        body = [
            [labels[row.key], *(format_score(row, key, differences.mark(row, key)) for key in keys)] for row in rows
        ]
        tables.append(markdown_table(["", *(f"{title}@{k}" for k in ks)], body))
    body = [
        [
            labels[row.key],
            *(format_number(row, key) for key in ("n_examples", "n_empty", "n_distinct")),
            *(format_number(row, key, "{:.1%}") for key in ("in_catalog", "in_history")),
            f"{format_number(row, 'median_rank')} of {format_number(row, 'n_items')}",
        ]
        for row in rows
    ]
    header = ["", "examples", "empty answers", "distinct answers", "in the catalog", "from the history", "median rank"]
    return [*tables, markdown_table(header, body)]


def run_facts(run_dir: str | Path) -> list[str]:
    """What a reader needs to know to trust the table, from the manifest: data, seeds, training, machine."""
    folders = seed_folders(run_dir)
    manifest = read_json(folders[0] / MANIFEST)
    lines = []
    data = manifest.get("data", {})
    if data:
        users = "unknown" if data["users"] is None else f"{data['users']:,}"
        line = (
            f"- data: {data['name']} ({data['preset']}), {users} users, {data['items']:,} items; "
            f"{data['repeated_targets']['all']:.1%} of targets are already in their history"
        )
        duplicates = data.get("duplicate_titles", {}).get("without_quotes_and_spaces")
        if duplicates:
            share = duplicates["rows"] / max(data["items"], 1)
            line += f"; {duplicates['rows']:,} items ({share:.1%}) share their title with another"
        lines.append(line)
    if folders != [Path(run_dir)]:
        seeds = ", ".join(folder.name.removeprefix("seed-") for folder in folders)
        lines.append(f"- seeds: {seeds}; training and time below are those of the first")
    training = manifest.get("training", {})
    if training:
        lines.append(
            f"- training: {training['n_train']:,} examples, {training['optimizer_steps']} steps, "
            f"{training['trainable_parameters']:,} of {training['total_parameters']:,} parameters, "
            f"{training['seconds']:.0f} s"
        )
    sasrec = read_json(folders[0] / "sasrec" / "training.json")
    if sasrec:
        lines.append(
            f"- SASRec: {sasrec['sequences']:,} training sequences, {sasrec['epochs_done']:g} epochs, "
            f"{sasrec['seconds']:.0f} s"
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


def cell_notes(rows: Sequence[Row]) -> list[str]:
    """Sentences that explain what was ranked and what the cells hold, and warn of rows that are not comparable."""
    notes = [*filter(None, [stale_note(rows)]), candidates_note(rows), *filter(None, [intervals_note(rows)])]
    results = [results for row in rows for results in row.results]
    if any(len(row.folders) > 1 for row in rows):
        notes.append("With several seeds: mean ± standard deviation (least..greatest) over the seeds.")
    if len({found.get("n_examples") for found in results}) > 1:
        notes.append("The rows are over different numbers of examples: they are not comparable one by one.")
    return notes


def build_report(
    run_dirs: Sequence[str | Path],
    published: str | None = None,
    *,
    published_rows: str = "best",
    compare_to: str | None = None,
    significance_level: float = 0.05,
    permutations: int = 10_000,
    test_metrics: Sequence[str] = ("ndcg@10", "hr@10"),
    differences: bool = False,
    breakdown: bool = False,
) -> str:
    """The whole report as Markdown (the arguments: settings.ReportSettings)."""
    rows = load_rows(run_dirs)
    compared = compare_rows(rows, compare_to, significance_level, permutations, test_metrics)
    table = published_table(published, published_rows) if published else None
    return report_text(run_dirs, rows, compared, table, differences, breakdown)


def report_text(
    run_dirs: Sequence[str | Path],
    rows: Sequence[Row],
    compared: Differences,
    published: str | None,
    differences: bool,
    breakdown: bool,
) -> str:
    """The report on rows that have already been loaded and compared. `published`: a table to show below them."""
    names = [run_name(run_dir) for run_dir in run_dirs]
    parts = [f"# {', '.join(names)}", ""]
    for name, run_dir in zip(names, run_dirs, strict=True):
        parts += ([f"{name}:", ""] if len(names) > 1 else []) + run_facts(run_dir) + [""]
    for paragraph in [*cell_notes(rows), *legend(rows, compared), *score_tables(rows, compared)]:
        parts += [paragraph, ""]
    if differences and compared.comparisons and compared.reference:
        label = row_labels(rows)[compared.reference.key]
        least = min(1.0, len(compared.comparisons) / (1 + compared.permutations))
        parts += [
            f"Differences to *{label}*, with {1 - compared.alpha:.0%} paired bootstrap intervals (not corrected) and "
            f"corrected p (random sign flips cannot show one below {least:.4f}, the correction's share of one in "
            f"{compared.permutations + 1:,}):",
            "",
        ]
        for table in differences_tables(rows, compared):
            parts += [table, ""]
    if breakdown:
        for paragraph in breakdown_tables(rows, break_down_rows(rows)):
            parts += [paragraph, ""]
    for name, run_dir in zip(names, run_dirs, strict=True):
        samples = sample_recommendations(seed_folders(run_dir)[0] / "finetuned")
        if samples:
            parts += [f"The first {len(samples)} examples of {name}, as drawn:", "", *samples, ""]
    if published:
        parts += [published, ""]
        parts += ["Published rows: 5,000 examples of the full data sets, llama-7b encoder; other data, other rows.", ""]
    return "\n".join(parts)


def command_line(report: ReportSettings) -> list[str]:
    """The command that makes a README's tables: the runs, and every setting that affects them if not the default."""
    command = ["bigrec-hf", "report", *report.runs]
    usual = asdict(ReportSettings())
    for name in ("compare_to", "significance_level", "permutations", "test_metrics", *README):
        value = getattr(report, name)
        if value != usual[name]:
            command += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return command


def chosen_rows(rows: Sequence[Row], methods: Sequence[str]) -> list[Row]:
    """The rows of these methods, in their order. Raises BigrecError for a method without a row."""
    known = dict.fromkeys(row.method for row in rows)
    for method in methods:
        if method not in known:
            raise BigrecError(f"readme_rows names {method!r}, which is not a row: choose from {', '.join(known)}")
    return [row for method in methods for row in rows if row.method == method]


def main(report: ReportSettings) -> None:
    """Print the report, or write it as a page; write its plots and README tables if the settings ask for them."""
    with whole_records(" or ".join(map(str, report.runs)), "run `bigrec-hf score` again"):
        show_report(report)


def show_report(report: ReportSettings) -> None:
    """`main`, whose records may be damaged."""
    rows = load_rows(report.runs)
    tests = (report.significance_level, report.permutations, report.test_metrics)
    compared = compare_rows(rows, report.compare_to, *tests)
    if report.report_format == "markdown":
        table = published_table(report.published, report.published_rows) if report.published else None
        text = report_text(report.runs, rows, compared, table, report.differences, report.breakdown)
        print(text)
        if report.report_path:
            write_atomically(report.report_path, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    shown, own = rows, compared
    if report.readme_rows and (report.plots or report.update_readme):
        shown = chosen_rows(rows, report.readme_rows)
        own = compare_rows(shown, report.compare_to, *tests)
    if report.plots:
        for run_dir in report.runs:
            for line in plot_rows(run_dir, [row for row in shown if row.run == run_name(run_dir)], own):
                print(line)
            for line in plot_learning(run_dir, learning_history(run_dir), learning_history(run_dir, REWARDED)):
                print(line)
    if report.update_readme:
        update_readme(report.update_readme, shown, own, report.readme_columns, command_line(report))
        print(f"updated {report.update_readme}")
    if report.report_format == "html":
        path = report.report_path or Path(report.runs[0]) / PAGE
        print("\n".join(write_page(path, report.runs, rows, compared, page_facts(report.runs), cell_notes(rows))))


def page_facts(run_dirs: Sequence[str | Path]) -> list[list[str]]:
    """`run_facts` of each run, without the marks of a Markdown list."""
    return [[line.removeprefix("- ") for line in run_facts(run_dir)] for run_dir in run_dirs]


def write_report(run_dir: str | Path) -> str:
    """Write report.md and report.html into the folder of a run; returns what to print, the page's path last."""
    rows = load_rows([run_dir])
    compared = compare_rows(rows)
    text = report_text([run_dir], rows, compared, None, differences=False, breakdown=False)
    file = Path(run_dir) / TEXT
    write_atomically(file, lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
    lines = write_page(Path(run_dir) / PAGE, [run_dir], rows, compared, page_facts([run_dir]), cell_notes(rows))
    return "\n".join([text, f"report as text: {file}", *lines])
