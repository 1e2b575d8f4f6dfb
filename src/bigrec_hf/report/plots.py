"""The plot of a run (extra: bench): metrics over K for all methods."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bigrec_hf.common.files import write_atomically
from bigrec_hf.report.rows import METRICS, Row, cutoffs, row_labels, spread

METRICS_PLOT = "metrics.png"
COLORS = 10  # in matplotlib's own cycle
STYLES = ("o-", "s--", "^:")


def metric_curve(row: Row, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(ks, mean, low, high) of one row, (n_ks,) each; low and high: the interval, or the least and greatest seed."""
    points = []
    for k in cutoffs([row]):
        key = f"{metric}@{k}"
        mean, _, least, greatest = spread(row.values(key))
        low, high = row.results[0].get(f"{key}_low", mean), row.results[0].get(f"{key}_high", mean)
        points.append((k, mean, least, greatest) if len(row.folders) > 1 else (k, mean, low, high))
    ks, mean, low, high = np.array(points, np.float64).T
    return ks, mean, low, high


def metrics_figure(rows: Sequence[Row]) -> Any:
    """A matplotlib figure: one panel per metric, one line per row over log K, intervals shaded if rows are few."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    labels = row_labels(rows)
    for axes, (metric, title) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
        for number, row in enumerate(rows):
            ks, mean, low, high = metric_curve(row, metric)
            style = STYLES[number // COLORS % len(STYLES)]  # colors repeat, so the line style changes
            (line,) = axes.plot(ks, mean, style, markersize=3, label=labels[row.key])
            if len(rows) <= COLORS:  # more intervals would hide each other; the report's tables have them
                axes.fill_between(ks, low, high, alpha=0.12, color=line.get_color(), linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(cutoffs(rows), [str(k) for k in cutoffs(rows)])
        axes.minorticks_off()
        axes.set(xlabel="K", ylabel=f"{title}@K", ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def plot_rows(run_dir: str | Path, rows: Sequence[Row]) -> list[str]:
    """Draw metrics.png into the run folder. Returns a line with its path, or one that says why there is none."""
    if importlib.util.find_spec("matplotlib") is None:
        return ["no plots: matplotlib is not installed (pip install 'bigrec_hf[bench]')"]
    file = Path(run_dir) / METRICS_PLOT
    write_atomically(file, partial(metrics_figure(rows).savefig, format="png", dpi=130))
    return [f"plot: {file}"]
