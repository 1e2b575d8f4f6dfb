"""Plots of a run: metric against K for all methods with intervals, and gamma curves. By matplotlib (extra: bench)."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from bigrec_hf.errors import BigrecError
from bigrec_hf.rows import METRICS, Row, cutoffs, row_labels, spread
from bigrec_hf.runs import write_atomically

METRICS_PLOT = "metrics.png"
GAMMA_PLOT = "gamma_curves.png"
GAMMA_FILE = "gamma_curve.parquet"  # columns gamma, metric, value and, where there are several, weights


def metric_curve(row: Row, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(ks, mean, low, high) of one row, (n_ks,) each; low and high: interval, or least and greatest of the seeds."""
    points = []
    for k in cutoffs([row]):
        key = f"{metric}@{k}"
        mean, _, least, greatest = spread(row.values(key))
        low, high = row.results[0].get(f"{key}_low", mean), row.results[0].get(f"{key}_high", mean)
        points.append((k, mean, least, greatest) if len(row.folders) > 1 else (k, mean, low, high))
    ks, mean, low, high = np.array(points, np.float64).T
    return ks, mean, low, high


def metrics_figure(rows: Sequence[Row]) -> Any:
    """A matplotlib figure: a panel a metric, a line a row over K (logarithmic), its interval shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    labels = row_labels(rows)
    for axes, (metric, title) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
        for row in rows:
            ks, mean, low, high = metric_curve(row, metric)
            (line,) = axes.plot(ks, mean, marker="o", markersize=3, label=labels[row.key])
            axes.fill_between(ks, low, high, alpha=0.12, color=line.get_color(), linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(cutoffs(rows), [str(k) for k in cutoffs(rows)])
        axes.minorticks_off()
        axes.set(xlabel="K", ylabel=f"{title}@K", ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def read_gamma_curves(run_dir: str | Path) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Folder (relative to the run) -> label -> (gammas, values), from every gamma_curve.parquet of the run.

    Raises BigrecError where a file lacks a column.
    """
    curves: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for file in sorted(Path(run_dir).glob(f"**/{GAMMA_FILE}")):
        table = pq.read_table(file).to_pandas()
        missing = {"gamma", "metric", "value"} - set(table.columns)
        if missing:
            raise BigrecError(f"{file} lacks the column {min(missing)!r}: expected gamma, metric, value")
        by = ["weights", "metric"] if "weights" in table.columns and table["weights"].nunique() > 1 else ["metric"]
        panel = curves.setdefault(str(file.parent.relative_to(run_dir)), {})
        for names, part in table.groupby(by, sort=False):
            part = part.sort_values("gamma")
            panel[": ".join(map(str, names))] = (part["gamma"].to_numpy(), part["value"].to_numpy())
    return curves


def gamma_figure(curves: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]) -> Any:
    """A matplotlib figure: a panel a folder, a line a metric, divided by its value at the smallest gamma.

    (Metrics at different K differ by an order of magnitude; what matters is where each one peaks.)
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.8 * len(curves)), layout="constrained")
    for axes, (name, panel) in zip(figure.subplots(len(curves), squeeze=False)[:, 0], curves.items(), strict=True):
        for label, (gamma, value) in panel.items():
            axes.plot(gamma, value / value[0] if value[0] else value, label=label, linewidth=1)
        axes.set(title=name, xlabel="gamma", ylabel="metric / its value at the least gamma")
        axes.set_xscale("symlog", linthresh=1)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, ncols=2, frameon=False)
    return figure


def plot_rows(run_dir: str | Path, rows: Sequence[Row]) -> list[str]:
    """Draw metrics.png, and gamma_curves.png where the run holds curves. Returns a line a file, or why none."""
    if importlib.util.find_spec("matplotlib") is None:
        return ["no plots: matplotlib is not installed (pip install 'bigrec_hf[bench]')"]
    figures = {METRICS_PLOT: metrics_figure(rows)}
    curves = read_gamma_curves(run_dir)
    if curves:
        figures[GAMMA_PLOT] = gamma_figure(curves)
    for name, figure in figures.items():
        write_atomically(
            Path(run_dir) / name, lambda temporary, figure=figure: figure.savefig(temporary, format="png", dpi=130)
        )
    return [f"plot: {Path(run_dir) / name}" for name in figures]
