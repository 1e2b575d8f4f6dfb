"""Matplotlib figures as SVG inside a page: text as text, ink in the page's own color, nothing that refers outside."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

from bigrec_hf.report.plots import figure_of

INK, GRID = "#010203", "#040506"  # drawn with these, then replaced by what the page's color scheme says
SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bigrec_hf",
    "text.parse_math": False,  # a run may be named $x$
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
}


def draw_svg(draw: Callable[[Any], None], description: str, number: int, size: tuple[float, float] = (4.8, 4.1)) -> str:
    """An <svg> element of the plot that `draw` puts into matplotlib axes.

    `description`: what a screen reader says, in HTML (escaped by the caller); `number`: of the figure in its page.
    """
    import matplotlib

    buffer = io.BytesIO()
    with matplotlib.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # characters that matplotlib's own font lacks: the page's has them
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure_of(draw, size).savefig(buffer, format="svg", transparent=True, metadata=metadata)
    text = buffer.getvalue().decode("utf-8")
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    head, _, body = text.partition(">")
    view = re.search(r'viewBox="[\d. -]+"', head)
    assert view is not None  # matplotlib always writes one
    body = re.sub(r'\bid="([^"]+)"', rf'id="figure{number}-\1"', body)  # unique in the page
    body = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#figure{number}-\1"', body)
    body = re.sub(r"url\(#([^)]+)\)", rf"url(#figure{number}-\1)", body)
    body = re.sub(r"font-family: [^;\"]*;? ?", "", body)  # the page's own
    body = re.sub(r"<style.*?</style>", "", body, flags=re.DOTALL)  # would hold for the whole page
    body = body.replace(INK, "currentColor").replace(GRID, "var(--line)")
    return f'<svg {view[0]} role="img" aria-label="{description}">{body}'
