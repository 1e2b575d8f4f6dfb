"""Plots of a report: metrics against K, differences, learning curves, the share of the catalog, groups of examples.

At most LINES rows are drawn: the reference, then the best. A row has the same color and mark in every plot, colors that
people who are color-blind tell apart (Okabe and Ito 2008).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bigrec_hf.report.differences import Differences
from bigrec_hf.report.rows import METRICS, Row, cutoffs, row_labels, spread
from bigrec_hf.score.significance import Comparison

GROUP_FIGURES = {  # of the log of the stage grpo: field -> label
    "reward": "reward",
    "hit_rate": "target in the group",
    "zero_advantage": "groups without advantage",
    "frac_reward_zero_std": "groups without advantage (TRL)",
}
COLORS = ("#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9")
MARKS = "osD^vP"
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
LINES = len(COLORS)
LONGEST_LABEL = 34  # characters
FEW = 30  # examples
MISSING = "no plots: matplotlib is not installed (pip install matplotlib)"


@dataclass(frozen=True)
class Look:
    """How a row is drawn and named."""

    label: str
    color: str
    mark: str
    dash: Any


def has_matplotlib() -> bool:
    """Whether plots can be drawn."""
    return importlib.util.find_spec("matplotlib") is not None


def leading_rows(rows: Sequence[Row], reference: Row | None, metric: str, n: int = LINES) -> list[Row]:
    """The reference and the best others by `metric` (such as ndcg@10), at most `n`, in the order of `rows`."""

    def merit(row: Row) -> tuple[bool, float]:
        values = row.values(metric)
        return row is reference, float(np.mean(values)) if values else -1.0

    best = sorted(rows, key=merit, reverse=True)[:n]  # stable
    return [row for row in rows if row in best]


def looks(rows: Sequence[Row], labels: Mapping[str, str] | None = None) -> dict[str, Look]:
    """Row key -> how it is drawn; at most LINES rows. `labels`: by row key (default: `row_labels`)."""
    labels = labels or row_labels(rows)
    styles = zip(COLORS, MARKS, DASHES, strict=True)
    return {row.key: Look(short(labels[row.key]), *style) for row, style in zip(rows, styles, strict=False)}


def short(label: str) -> str:
    """A label that leaves room for the plot."""
    return label if len(label) <= LONGEST_LABEL else label[: LONGEST_LABEL - 1] + "…"


def metric_curve(row: Row, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(ks, mean, low, high) of one row, (n_ks,) each; low and high: the interval, or the least and greatest seed."""
    points = []
    for k in cutoffs([row]):
        key = f"{metric}@{k}"
        mean, _, least, greatest = spread(row.values(key))
        low, high = row.results[0].get(f"{key}_low", mean), row.results[0].get(f"{key}_high", mean)
        points.append((k, mean, least, greatest) if len(row.folders) > 1 else (k, mean, low, high))
    table = np.array(points, np.float64).reshape(-1, 4)
    return table[:, 0], table[:, 1], table[:, 2], table[:, 3]


def draw_curves(axes: Any, rows: Sequence[Row], shown: Mapping[str, Look], metric: str) -> None:
    """A metric against log K: a line for each row, its interval shaded."""
    for row in rows:
        look, (ks, mean, low, high) = shown[row.key], metric_curve(row, metric)
        axes.plot(ks, mean, color=look.color, linestyle=look.dash, marker=look.mark, markersize=4, label=look.label)
        axes.fill_between(ks, low, high, alpha=0.13, color=look.color, linewidth=0)
    _log_ks(axes, cutoffs(rows))
    axes.set(title=f"{METRICS[metric]}@K", ylim=(0, None))


def draw_differences(
    axes: Any, found: Mapping[str, Comparison], shown: Mapping[str, Look], alpha: float, reference: str, metric: str
) -> None:
    """A difference to the reference and its interval for each row; filled if it is significant."""
    names = [key for key in shown if key in found]
    for place, key in enumerate(names):
        one, look = found[key], shown[key]
        error = [[one.difference - one.low], [one.high - one.difference]]
        fill = look.color if one.mark(alpha) else "none"
        axes.errorbar(
            one.difference, place, xerr=error, color=look.color, fmt=look.mark, mfc=fill, markersize=7, capsize=3
        )
    axes.axvline(0, color=axes.spines["bottom"].get_edgecolor(), linewidth=1)
    axes.set_yticks(range(len(names)), [shown[key].label for key in names])
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set(title=f"{metric}, difference to\n{short(reference)}", xlabel="worse  ←  difference  →  better")


def difference_drawings(
    compared: Differences, shown: Mapping[str, Look], reference: str
) -> list[tuple[str, Callable[[Any], None]]]:
    """Title and function that draws, of each tested metric in which shown rows are compared with `reference`."""
    drawings: list[tuple[str, Callable[[Any], None]]] = []
    for metric in compared.tested:
        found = {key: one for (key, name), one in compared.comparisons.items() if name == metric and key in shown}
        if found:
            name = metric.upper()
            draw = partial(
                draw_differences, found=found, shown=shown, alpha=compared.alpha, reference=reference, metric=name
            )
            drawings.append((f"Difference of each method to {reference} in {name}", draw))
    return drawings


def draw_learning(axes: Any, histories: Mapping[str, Sequence[Mapping[str, float]]]) -> None:
    """Training loss (averaged over stretches of steps) and validation loss, of at most LINES / 2 trainings.

    By targets seen where every entry says it (`targets`), else by `epoch`.
    """
    known = all("targets" in entry for history in histories.values() for entry in history)
    x = "targets" if known else "epoch"
    for number, (name, history) in enumerate(list(histories.items())[: LINES // 2]):
        color = COLORS[number]
        prefix = f"{short(name)}: " if len(histories) > 1 else ""
        places, losses = smoothed([(entry[x], entry["loss"]) for entry in history if "loss" in entry])
        axes.plot(places, losses, color=color, alpha=0.55, label=f"{prefix}training")
        points = [(entry[x], entry["eval_loss"]) for entry in history if "eval_loss" in entry]
        if points:
            label = f"{prefix}validation"
            axes.plot(*zip(*points, strict=True), color=color, marker=MARKS[number], linestyle="--", label=label)
    axes.set(title="Learning curve", xlabel="targets seen" if known else "epochs", ylabel="loss (nats)")


def reward_drawings(
    histories: Mapping[str, Sequence[Mapping[str, float]]],
) -> list[tuple[str, str, Callable[[Any], None]]]:
    """Name of a file, title and function that draws, of the logs of the stage grpo by run: figures of the groups and,
    where evaluations ranked the validation examples, NDCG and HR. Nothing without logs."""
    fields = {name for history in histories.values() for entry in history for name in entry}
    ranks = {name: name.removeprefix("eval_") for name in sorted(fields) if name.startswith("eval_") and "@" in name}
    groups = {name: label for name, label in GROUP_FIGURES.items() if name in fields}
    wanted = (
        ("rewards.png", "Reward, hits and groups without advantage", groups),
        ("validation.png", "Validation examples, all titles ranked", ranks),
    )
    return [
        (file, title, partial(draw_log, histories=histories, fields=found, title=title))
        for file, title, found in wanted
        if found
    ]


def draw_log(
    axes: Any, histories: Mapping[str, Sequence[Mapping[str, float]]], fields: Mapping[str, str], title: str
) -> None:
    """Fields (name -> label) of the logs of at most LINES trainings, averaged over stretches of entries; by examples
    seen where every entry says it (`targets`: one per example), else by `epoch`."""
    known = all("targets" in entry for history in histories.values() for entry in history)
    x = "targets" if known else "epoch"
    for number, (run, history) in enumerate(list(histories.items())[:LINES]):
        prefix = f"{short(run)}: " if len(histories) > 1 else ""
        for place, (field, label) in enumerate(fields.items()):
            color = COLORS[number if len(histories) > 1 else place % LINES]
            points = smoothed([(entry[x], entry[field]) for entry in history if field in entry])
            axes.plot(*points, color=color, linestyle=DASHES[place % LINES], label=f"{prefix}{label}")
    axes.set(title=title, xlabel="examples seen" if known else "epochs")


def smoothed(points: Sequence[tuple[float, float]], n: int = 60) -> tuple[list[float], list[float]]:
    """At most `n` points: the means of consecutive stretches of equal length."""
    if not points:
        return [], []
    parts = np.array_split(np.array(points, np.float64), min(n, len(points)))
    return [float(part[:, 0].mean()) for part in parts], [float(part[:, 1].mean()) for part in parts]


def draw_coverage(axes: Any, coverage: Mapping[str, Mapping[int, float]], shown: Mapping[str, Look]) -> None:
    """The share of the catalog in any list of K items, by row key and K, against log K."""
    for key, look in shown.items():
        if coverage.get(key):
            ks, shares = zip(*sorted(coverage[key].items()), strict=True)
            percent = [100 * share for share in shares]
            axes.plot(ks, percent, color=look.color, linestyle=look.dash, marker=look.mark, label=look.label)
    _log_ks(axes, sorted({k for shares in coverage.values() for k in shares}))
    axes.set(title="Share of the catalog in any list", ylabel="% of the items", ylim=(0, None))


def draw_groups(
    axes: Any,
    groups: Mapping[str, Mapping[str, tuple[float, float, float, int]]],
    shown: Mapping[str, Look],
    title: str,
) -> None:
    """(mean, low, high, n) of each group of n examples, by row key and group: points side by side, with intervals.

    The wide intervals of groups of few examples do not set the scale.
    """
    names = list(dict.fromkeys(name for found in groups.values() for name in found))
    drawn = [key for key in shown if groups.get(key)]
    for number, key in enumerate(drawn):
        look, shift = shown[key], (number - (len(drawn) - 1) / 2) * 0.13
        places = [places for places, name in enumerate(names) if name in groups[key]]
        mean, low, high, _ = np.array([groups[key][names[place]] for place in places]).T
        axes.errorbar(
            np.array(places) + shift,
            mean,
            yerr=[np.maximum(mean - low, 0), np.maximum(high - mean, 0)],
            color=look.color,
            fmt=look.mark,
            markersize=5,
            capsize=2,
            label=look.label,
        )
    tops = [high if n >= FEW else mean for row in groups.values() for mean, _, high, n in row.values()]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set(title=title, ylim=(0, 1.08 * max(tops) or None))


def _log_ks(axes: Any, ks: Sequence[int]) -> None:
    axes.set_xscale("log")
    axes.set_xticks(ks, [str(k) for k in ks])
    axes.minorticks_off()
    axes.set_xlabel("K")


def figure_of(draw: Callable[[Any], None], size: tuple[float, float] = (4.8, 4.1)) -> Any:
    """A matplotlib figure of one plot, its legend (if lines are labelled) below it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.grid(alpha=0.6, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    if handles:
        longest = max(map(len, names))
        figure.legend(handles, names, loc="outside lower left", ncols=2 if longest < 24 else 1, frameon=False)
    return figure
