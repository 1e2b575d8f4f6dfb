"""The plots that `report --plots` writes into a run, as PNG files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bigrec_hf.common.files import write_atomically
from bigrec_hf.data.run_folder import run_name
from bigrec_hf.report.differences import Differences
from bigrec_hf.report.plots import (
    MISSING,
    difference_drawings,
    draw_curves,
    draw_learning,
    figure_of,
    has_matplotlib,
    leading_rows,
    looks,
    reward_drawings,
)
from bigrec_hf.report.rows import METRICS, Row, cutoffs, row_labels

METRICS_PLOT, LEARNING_PLOT, DIFFERENCES_PLOT = "metrics.png", "learning.png", "differences.png"


def metrics_figure(rows: Sequence[Row], reference: Row | None = None) -> Any:
    """A matplotlib figure: one panel per metric, one line per row over log K, at most LINES."""
    from matplotlib.figure import Figure

    drawn = leading_rows(rows, reference, f"ndcg@{max(cutoffs(rows))}")
    shown = looks(drawn, row_labels(rows))
    figure = Figure(figsize=(11, 4.5), layout="constrained")
    for axes, metric in zip(figure.subplots(1, len(METRICS)), METRICS, strict=True):
        draw_curves(axes, drawn, shown, metric)
        axes.grid(alpha=0.3)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False)
    return figure


def plot_learning(
    run_dir: str | Path, history: Sequence[Mapping[str, float]], rewarded: Sequence[Mapping[str, float]] = ()
) -> list[str]:
    """Draw learning.png into the run folder and, of the log `rewarded` of the stage grpo, `reward_drawings`.

    Returns lines with their paths; none without matplotlib.
    """
    if not has_matplotlib():
        return []
    name = run_name(run_dir)
    drawings: list[tuple[str, Callable[[Any], None]]] = []
    if history:
        drawings.append((LEARNING_PLOT, partial(draw_learning, histories={name: history})))
    drawings += [(file, draw) for file, _, draw in reward_drawings({name: rewarded})]
    for file, draw in drawings:
        save = partial(figure_of(draw).savefig, format="png", dpi=130)
        write_atomically(Path(run_dir) / file, save)
    return [f"plot: {Path(run_dir) / file}" for file, _ in drawings]


def differences_figure(rows: Sequence[Row], compared: Differences) -> Any:
    """A matplotlib figure: one panel per tested metric, one line per row that is compared; None if none is."""
    from matplotlib.figure import Figure

    if compared.reference is None or not compared.tested:
        return None
    drawn = leading_rows(rows, compared.reference, compared.tested[0])
    labels = row_labels([compared.reference, *rows])
    drawings = difference_drawings(compared, looks(drawn, labels), labels[compared.reference.key])
    if not drawings:
        return None
    figure = Figure(figsize=(6.2 * len(drawings), 1.5 + 0.42 * len(drawn)), layout="constrained")
    panels = figure.subplots(1, len(drawings), squeeze=False)[0]
    for axes, (_, draw) in zip(panels, drawings, strict=True):
        draw(axes)
        axes.grid(alpha=0.3)
    return figure


def plot_rows(run_dir: str | Path, rows: Sequence[Row], compared: Differences) -> list[str]:
    """Draw metrics.png and, where rows are compared, differences.png into the run folder.

    Returns lines with their paths, or one that says why there is none.
    """
    if not has_matplotlib():
        return [MISSING]
    if not rows:
        return [f"no plots in {run_dir}: it has none of the rows of readme_rows"]
    figures = {
        METRICS_PLOT: metrics_figure(rows, compared.reference),
        DIFFERENCES_PLOT: differences_figure(rows, compared),
    }
    written = []
    for name, figure in figures.items():
        file = Path(run_dir) / name
        if figure is None:
            file.unlink(missing_ok=True)  # of other rows
        else:
            write_atomically(file, partial(figure.savefig, format="png", dpi=130))
            written.append(f"plot: {file}")
    return written
