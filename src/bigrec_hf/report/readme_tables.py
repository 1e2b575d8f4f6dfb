"""README tables filled from a run's own files: the text between two markers is replaced, the rest is left alone.

<!-- results:quickstart -->
... replaced ...
<!-- /results -->
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import write_atomically
from bigrec_hf.report.differences import Differences, legend
from bigrec_hf.report.notes import candidates_note, intervals_note
from bigrec_hf.report.rows import METRICS, Row, format_number, format_score, markdown_table

END = "<!-- /results -->"


def replace_block(text: str, name: str, content: str, place: str) -> str:
    """`text` with the lines between the markers of `name` replaced by `content`.

    Raises BigrecError unless the opening marker occurs exactly once and is closed before the next one.
    """
    start = f"<!-- results:{name} -->"
    count = text.count(start)
    if count != 1:
        raise BigrecError(f"{place} contains the marker {start!r} {count} times: use it once, with {END!r} below it")
    before, _, rest = text.partition(start)
    old, found, after = rest.partition(END)
    if not found or "<!-- results:" in old:
        raise BigrecError(f"{place}: the marker {start!r} is not closed: put {END!r} on a line below it")
    line = "\r\n" if "\r\n" in text else "\n"
    return line.join([before + start, *content.splitlines(), END + after])


def readme_table(rows: Sequence[Row], differences: Differences, columns: Sequence[str]) -> str:
    """One table of a run: the metrics in `columns` ("hr@10"), the rate of catalog titles, distinct generations, and
    if rows are compared, the difference to the reference in the first metric that is tested.

    Raises BigrecError for a column that no row has.
    """
    known = {key for row in rows for results in row.results for key in results}
    for column in columns:
        if column not in known or column.partition("@")[0] not in METRICS:
            have = sorted(key for key in known if key.partition("@")[0] in METRICS and key[-1].isdigit())
            raise BigrecError(f"readme_columns names {column!r}, which no row has: choose from {', '.join(have)}")
    header = ["", *(column.upper() for column in columns)]
    metric = differences.tested[0] if differences.comparisons else None
    if metric is not None and differences.reference is not None:
        header.append(f"{metric.upper()} less that of {differences.reference.label}")
    header += ["titles in the catalog", "distinct answers"]
    body = [
        [
            row.label,
            *(format_score(row, column, differences.mark(row, column)) for column in columns),
            *([] if metric is None else [differences.interval(row, metric)]),
            format_number(row, "in_catalog", "{:.1%}"),
            format_number(row, "n_distinct"),
        ]
        for row in rows
    ]
    return markdown_table(header, body)


def update_readme(
    path: str | Path, rows: Sequence[Row], differences: Differences, columns: Sequence[str], command: Sequence[str]
) -> None:
    """Replace the block of every run among `rows`, with the legend and the command below each table.

    All or nothing: the file is written after every block was found. Raises BigrecError if a marker is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise BigrecError(f"{path} does not exist: give a Markdown file with markers <!-- results:RUN --> and {END}")
    text = path.read_bytes().decode("utf-8")
    for run in dict.fromkeys(row.run for row in rows):
        own = [row for row in rows if row.run == run]
        cells = intervals_note(own)
        if any(len(row.folders) > 1 for row in own):
            cells = "Mean ± standard deviation (least..greatest) over the seeds."
        notes = [candidates_note(own), cells, *legend(rows, differences), f"Made by `{shlex.join(command)}`."]
        block = "\n".join([readme_table(own, differences, columns), "", " ".join(filter(None, notes))])
        text = replace_block(text, run, block, str(path))
    write_atomically(path, lambda temporary: temporary.write_bytes(text.encode("utf-8")))
