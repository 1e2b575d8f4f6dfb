"""Plots of a run (extra: bench): metric against K for all methods, curves of parameters chosen on validation."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import write_atomically
from bigrec_hf.data.run_folder import seed_folders
from bigrec_hf.report.rows import METRICS, Row, cutoffs, row_labels, spread

METRICS_PLOT = "metrics.png"
CURVES_PLOT = "curves.png"
COLORS = 10  # of matplotlib's own cycle
STYLES = ("o-", "s--", "^:")
CURVE_FILE = "curve.parquet"  # of `rerank`: a parameter's values, and each metric on validation at each


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
    """A matplotlib figure: a panel a metric, a line a row over K (logarithmic); few rows: intervals shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    labels = row_labels(rows)
    for axes, (metric, title) in zip(figure.subplots(1, len(METRICS)), METRICS.items(), strict=True):
        for number, row in enumerate(rows):
            ks, mean, low, high = metric_curve(row, metric)
            style = STYLES[number // COLORS % len(STYLES)]  # the colors come round again, the line is another one then
            (line,) = axes.plot(ks, mean, style, markersize=3, label=labels[row.key])
            if len(rows) <= COLORS:  # more intervals than that hide each other; the report's tables have them
                axes.fill_between(ks, low, high, alpha=0.12, color=line.get_color(), linewidth=0)
        axes.set_xscale("log")
        axes.set_xticks(cutoffs(rows), [str(k) for k in cutoffs(rows)])
        axes.minorticks_off()
        axes.set(xlabel="K", ylabel=f"{title}@K", ylim=(0, None))
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def read_curves(run_dir: str | Path) -> dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Method -> metric -> (values of its parameter, ascending, and the metric on validation), from each curve.parquet.

    Its first column is the parameter, the others are metrics. The method's key ends in the parameter: `name: gamma`.
    Raises BigrecError for a file that is no such table.
    """
    curves: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]] = {}
    for folder in seed_folders(run_dir):
        for file in sorted(folder.glob(f"*/{CURVE_FILE}")):
            table = pq.read_table(file)
            parameter, *metrics = table.column_names or [""]
            if not metrics or table.num_rows == 0 or not all("@" in metric for metric in metrics):
                raise BigrecError(f"{file}: expected a parameter and metrics such as ndcg@10: run `rerank` again")
            values = table[parameter].to_numpy()
            order = np.argsort(values)
            name = f"{file.parent.relative_to(run_dir).as_posix()}: {parameter}"
            curves[name] = {metric: (values[order], table[metric].to_numpy()[order]) for metric in metrics}
    return curves


def curves_figure(curves: dict[str, dict[str, tuple[np.ndarray, np.ndarray]]]) -> Any:
    """A matplotlib figure: a panel a method, a line a metric, divided by its value at the least parameter.

    (Metrics at different K differ by an order of magnitude; what matters is where each one peaks, and by how much.)
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.8 * len(curves)), layout="constrained")
    for axes, (name, panel) in zip(figure.subplots(len(curves), squeeze=False)[:, 0], curves.items(), strict=True):
        for metric, (parameter, value) in panel.items():
            line = "-" if metric.startswith("ndcg") else "--"
            axes.plot(parameter, value / value[0] if value[0] else value, line, label=metric, linewidth=1)
        axes.set(title=name, ylabel="validation metric / its value at the least")
        axes.set_xscale("symlog", linthresh=1)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, ncols=2, frameon=False)
    return figure


def plot_rows(run_dir: str | Path, rows: Sequence[Row]) -> list[str]:
    """Draw metrics.png, and curves.png where the run holds curves. Returns a line a file, or why none."""
    if importlib.util.find_spec("matplotlib") is None:
        return ["no plots: matplotlib is not installed (pip install 'bigrec_hf[bench]')"]
    figures = {METRICS_PLOT: metrics_figure(rows)}
    curves = read_curves(run_dir)
    if curves:
        figures[CURVES_PLOT] = curves_figure(curves)
    for name, figure in figures.items():
        write_atomically(Path(run_dir) / name, partial(figure.savefig, format="png", dpi=130))
    return [f"plot: {Path(run_dir) / name}" for name in figures]
