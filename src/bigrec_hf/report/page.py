"""The report as one HTML file that needs nothing else: no script, no address, plots inside (templates/report.html)."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment
from markupsafe import Markup

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, readable, write_atomically
from bigrec_hf.common.version import __version__
from bigrec_hf.data.run_folder import MANIFEST, run_name, seed_folders
from bigrec_hf.report import plots
from bigrec_hf.report.breakdown import break_down, read_histories, read_items
from bigrec_hf.report.differences import Differences, legend
from bigrec_hf.report.notes import intervals_note
from bigrec_hf.report.plots import leading_rows, looks
from bigrec_hf.report.rows import METRICS, Row, cutoffs, format_number, format_score, row_labels
from bigrec_hf.report.samples import hits_and_misses
from bigrec_hf.report.svg import draw_svg

PAGE = "report.html"
TEMPLATE = Path(__file__).parent / "templates" / PAGE
EXAMPLES, NEAR = 20, 10  # examples in words; a hit is among the first NEAR
REWARDED = "grpo_adapter"  # folder of the adapter that was trained with rewards
SHOWN_KS = (1, 10, 50)  # of the short table, where scored


def write_page(
    path: str | Path,
    run_dirs: Sequence[str | Path],
    rows: Sequence[Row],
    compared: Differences,
    facts: Sequence[Sequence[str]],
    notes: Sequence[str],
) -> list[str]:
    """Write the page of rows that have been loaded and compared; returns lines to print, the path in the last.

    `facts`: sentences on each run; `notes`: sentences on all rows. Titles and names are escaped wherever they go.
    """
    text = build_page(run_dirs, rows, compared, facts, notes)
    # a lone surrogate in a title cannot be encoded
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="replace"))
    return [*([] if plots.has_matplotlib() else [plots.MISSING]), f"report: {path}"]


def build_page(
    run_dirs: Sequence[str | Path],
    rows: Sequence[Row],
    compared: Differences,
    facts: Sequence[Sequence[str]],
    notes: Sequence[str],
) -> str:
    """The HTML of `write_page`."""
    names = [run_name(run_dir) for run_dir in run_dirs]
    labels, ks = row_labels(rows), cutoffs(rows)
    metric = compared.tested[0] if compared.tested else f"ndcg@{max(k for k in ks if k <= max(NEAR, ks[0]))}"
    leading = leading_rows(rows, compared.reference, metric)
    broken = breakdowns(leading)
    content = {
        "title": ", ".join(names),
        "version": __version__,
        "runs": [{"name": name, "facts": lines} for name, lines in zip(names, facts, strict=True)],
        "notes": [*notes, *legend(rows, compared)],
        "several_seeds": any(len(row.folders) > 1 for row in rows),
        "intervals": intervals_note(rows),
        "table": table(leading, labels, compared, [f"{m}@{k}" for m in METRICS for k in shown_ks(ks)]),
        "best_by": metric.upper(),
        "all": [table(rows, labels, compared, [f"{m}@{k}" for k in ks]) for m in METRICS],
        "answers": answers(rows, labels),
        "n_rows": len(rows),
        "reference": labels[compared.reference.key] if compared.reference else None,
        "figures": figures(run_dirs, leading, labels, compared, broken, metric) if plots.has_matplotlib() else [],
        "missing": None if plots.has_matplotlib() else plots.MISSING,
        "examples": [examples(run_dir, rows, name) for name, run_dir in zip(names, run_dirs, strict=True)],
        "near": NEAR,
        "settings": [[key, *values] for key, values in settings_differences(run_dirs)],
        "manifests": [manifest(run_dir, name) for name, run_dir in zip(names, run_dirs, strict=True)],
    }
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(content)


def shown_ks(ks: Sequence[int]) -> list[int]:
    """SHOWN_KS as far as they are scored; if fewer than two are, the first and the last cut-off."""
    found = [k for k in SHOWN_KS if k in ks]
    return found if len(found) > 1 else sorted({ks[0], ks[-1]})


def table(rows: Sequence[Row], labels: dict[str, str], compared: Differences, keys: Sequence[str]) -> dict[str, Any]:
    """Header and cells; a cell is its mean, its spread, and `better`, `worse` or nothing."""
    body = []
    for row in rows:
        cells = []
        for key in keys:
            mark = compared.mark(row, key)
            mean, _, rest = format_score(row, key).partition(" ")
            cells.append({"mean": mean, "rest": rest, "mark": mark})
        body.append({"label": labels[row.key], "is_reference": row is compared.reference, "cells": cells})
    return {"header": [key.upper() for key in keys], "rows": body}


def answers(rows: Sequence[Row], labels: dict[str, str]) -> list[list[str]]:
    """Of each row: label, examples, empty answers, distinct answers, share in the catalog, median rank."""
    return [
        [
            labels[row.key],
            *(format_number(row, key) for key in ("n_examples", "n_empty", "n_distinct")),
            format_number(row, "in_catalog", "{:.1%}"),
            f"{format_number(row, 'median_rank')} of {format_number(row, 'n_items')}",
        ]
        for row in rows
    ]


def breakdowns(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Row key -> the breakdown of its first seed; rows whose files or data are gone have none."""
    of_run: dict[Path, tuple[Any, Any]] = {}
    found = {}
    for row in rows:
        run = row.folders[0].parent
        try:
            if run not in of_run:
                of_run[run] = read_histories(run), read_items(run)
            found[row.key] = break_down(row.folders[0], *of_run[run])
        except BigrecError:
            continue
    return found


def figures(
    run_dirs: Sequence[str | Path],
    rows: Sequence[Row],
    labels: dict[str, str],
    compared: Differences,
    broken: dict[str, dict[str, Any]],
    metric: str,
) -> list[dict[str, Any]]:
    """The page's figures in groups, each with a title, a sentence and its <svg> elements; none without anything."""
    shown = looks(rows, labels)
    groups: list[dict[str, Any]] = []

    def add(title: str, text: str, drawings: Sequence[tuple[str, Callable[[Any], None]]], height: float = 4.1) -> None:
        if drawings:
            start = 1 + sum(len(group["svgs"]) for group in groups)
            svgs = [
                Markup(draw_svg(draw, html.escape(said), start + number, (4.8, height)))
                for number, (said, draw) in enumerate(drawings)
            ]
            groups.append({"title": title, "text": text, "svgs": svgs})

    if compared.reference is not None:
        reference = labels[compared.reference.key]
        add(
            f"Differences to {reference}",
            f"Points to the right are better. Bars: {1 - compared.alpha:.0%} paired bootstrap intervals, one by one; "
            f"filled: significant after correction (p < {compared.alpha:g}).",
            plots.difference_drawings(compared, shown, reference),
            1.5 + 0.42 * len(shown),
        )

    def curve(name: str) -> Callable[[Any], None]:
        return lambda axes: plots.draw_curves(axes, rows, shown, name)

    if len(cutoffs(rows)) > 1:
        add(
            "Metric against K",
            "How long a list must be. Shaded: the intervals of the table.",
            [(f"{title} at K against K", curve(name)) for name, title in METRICS.items()],
        )
    coverage = {
        key: {int(k): facts["coverage"] for k, facts in one["lists"].items()}
        for key, one in broken.items()
        if one["lists"]
    }
    if coverage:
        add(
            "Reach",
            "How much of the catalog is recommended to anyone: few items for everyone, or many.",
            [("Share of the catalog in any list of K", lambda axes: plots.draw_coverage(axes, coverage, shown))],
        )

    def by_group(part: str, title: str) -> list[tuple[str, Callable[[Any], None]]]:
        found = {
            key: {
                f"{group['group']}\n({group['n']:,})": (
                    *(group[metric + end] for end in ("", "_low", "_high")),
                    group["n"],
                )
                for group in one[part]
            }
            for key, one in broken.items()
            if one[part] and metric in one[part][0]
        }
        said = f"{metric.upper()} by {title}"
        return [(said, lambda axes: plots.draw_groups(axes, found, shown, said))] if found else []

    add(
        "For whom it works",
        "By how many items the history has, and how popular the target is (head, middle, tail: about a third of the "
        "training targets each; unseen: never one). In brackets: examples; intervals of few leave the plot.",
        by_group("history", "history length") + by_group("popularity", "popularity of the target"),
    )
    histories = {run_name(run_dir): learning_history(run_dir) for run_dir in run_dirs}
    histories = {name: history for name, history in histories.items() if history}
    if histories:
        add(
            "Training",
            "Training loss averaged over stretches of steps.",
            [("Training and validation loss", lambda axes: plots.draw_learning(axes, histories))],
        )
    rewarded = {run_name(run_dir): learning_history(run_dir, REWARDED) for run_dir in run_dirs}
    drawings = plots.reward_drawings({name: history for name, history in rewarded.items() if history})
    text = "Averaged over stretches of steps. Reward and hits are those of the groups that a step learned from."
    add("Reinforcement learning", text, [(title, draw) for _, title, draw in drawings])
    return groups


def learning_history(run_dir: str | Path, adapter: str = "adapter") -> list[dict[str, float]]:
    """The log of an adapter's training: of the finished one, else of the newest checkpoint's; [] without any.

    A finished training's entries also have `targets`, the number of targets seen.
    """
    folder = seed_folders(run_dir)[0] / adapter
    record = read_json(folder / "training.json")
    history, per_epoch = record.get("history"), record.get("n_train_targets", record.get("n_train"))
    if history is None:
        states = sorted(folder.glob("checkpoints/*/trainer_state.json"), key=lambda file: file.stat().st_mtime)
        history = read_json(states[-1]).get("log_history") if states else None
    entries = [entry for entry in history or [] if "epoch" in entry and ("loss" in entry or "eval_loss" in entry)]
    return [{**entry, "targets": entry["epoch"] * per_epoch} if per_epoch else entry for entry in entries]


def examples(run_dir: str | Path, rows: Sequence[Row], name: str) -> dict[str, Any] | None:
    """EXAMPLES hits and misses of the run's first method that writes texts; None if there is none."""
    own = [row for row in rows if row.run == name]
    for row in sorted(own, key=lambda row: row.method != "finetuned"):
        hits, misses, n_hits, n_misses = hits_and_misses(row.folders[0], EXAMPLES, NEAR)
        if hits or misses:
            return {
                "run": name,
                "label": row.label,
                "parts": [("hit", hits, n_hits), ("miss", misses, n_misses)],
                "n_shown": len(hits) + len(misses),
            }
    return None


def settings_differences(run_dirs: Sequence[str | Path]) -> list[tuple[str, list[str]]]:
    """(section.setting, its value in each run) where the runs' recipes differ; [] for a single run."""
    recipes = [flat_recipe(seed_folders(run_dir)[0]) for run_dir in run_dirs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe)
    found = [(key, [recipe.get(key, "-") for recipe in recipes]) for key in keys]
    return [(key, values) for key, values in found if len(set(values)) > 1]


def flat_recipe(folder: Path) -> dict[str, str]:
    """section.setting -> value as text, of the run's recipe.yaml; {} without one."""
    file = folder / "recipe.yaml"
    if not file.is_file():
        return {}
    with readable(file):
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        return {
            f"{section}.{name}": json.dumps(value, ensure_ascii=False, default=str).strip('"')
            for section, values in content.items()
            for name, value in (values or {}).items()
        }


def manifest(run_dir: str | Path, name: str) -> dict[str, Any]:
    """The run's stages with seconds and memory, its packages, and the whole manifest as text."""
    content = read_json(seed_folders(run_dir)[0] / MANIFEST)
    environment = content.get("environment", {})
    return {
        "name": name,
        "stages": [
            [stage, f"{facts.get('seconds', 0):,.1f}", f"{facts.get('process_peak_memory_mib') or 0:,}"]
            for stage, facts in content.get("stages", {}).items()
        ],
        "packages": environment.get("packages", {}),
        "commit": environment.get("git_commit"),
        "text": json.dumps(content, indent=2, ensure_ascii=False) if content else "",
        "recipe": flat_recipe(seed_folders(run_dir)[0]),
    }
