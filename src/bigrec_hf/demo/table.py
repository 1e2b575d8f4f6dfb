"""An answer of the page as HTML: the generated title, and the items in a table that fits a phone."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

CSS = """
footer {margin-top: 1rem}
.answer {font-size: .95rem}
.answer p {margin: .2rem 0 .5rem}
.answer table {width: 100%; border-collapse: collapse; border: 0; font-variant-numeric: tabular-nums}
.answer tr {border: 0}
.answer th, .answer td {padding: .35rem .4rem; border: 0; border-bottom: 1px solid var(--border-color-primary)}
.answer th, .answer td {text-align: right; vertical-align: top; white-space: nowrap}
.answer th {color: var(--body-text-color-subdued); font-weight: 600; font-size: .85rem}
.answer th:nth-child(2), .answer td:nth-child(2) {text-align: left; overflow-wrap: break-word; width: 99%}
.answer td:nth-child(2) {white-space: normal}
@media (max-width: 30rem) {.answer th:nth-child(4), .answer td:nth-child(4) {display: none}}
"""


def table(text: str, records: Sequence[dict[str, Any]], unknown: Sequence[str] = ()) -> str:
    """Return the HTML of one answer. `records`: as `app.records` gives them; `unknown`: titles of the history that are
    not in the catalog. All titles are escaped."""
    generated = f"<p>generated: <b>{html.escape(text)}</b></p>" if text else ""
    if unknown:
        generated = f"<p>not in the catalog: <i>{html.escape('; '.join(unknown))}</i></p>{generated}"
    if not records:
        return f'<div class="answer">{generated}<p>no item is left to recommend</p></div>'
    columns = {"rank": "#", "title": "title", **value_column(records[0])}
    if "train_count" in records[0]:
        columns["train_count"] = "in training"
    head = "".join(f'<th scope="col"{tooltip(key)}>{name}</th>' for key, name in columns.items())
    body = "".join(
        "<tr>" + "".join(f"<td>{cell(key, record[key])}</td>" for key in columns) + "</tr>" for record in records
    )
    return f'<div class="answer">{generated}<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def value_column(record: dict[str, Any]) -> dict[str, str]:
    """Return the key and heading of what the items are ranked by."""
    return next(({key: key} for key in ("probability", "distance") if key in record), {"score": "score"})


def tooltip(key: str) -> str:
    """Return the attribute that explains a column, if it needs one."""
    return ' title="how often the item is a target in the training data"' if key == "train_count" else ""


def cell(key: str, value: Any) -> str:
    """Return the text of a cell."""
    if key == "probability":
        return f"{100 * value:.2g} %" if value < 0.1 else f"{100 * value:.0f} %"
    if key in ("score", "distance"):
        return f"{value:.4g}"
    return html.escape(f"{value:,}" if isinstance(value, int) else str(value))
