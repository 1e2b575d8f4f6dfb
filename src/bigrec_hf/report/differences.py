"""A report's differences: each row against the reference row, which are significant, and how they are tested."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.report.rows import METRICS, Row, cutoffs, markdown_table, row_labels
from bigrec_hf.score.significance import Comparison, Scores, compare, matched, read_method_scores

NO_REFERENCE = "none"


@dataclass(frozen=True)
class Differences:
    """The comparisons of a table's rows with its reference row; empty without a reference."""

    alpha: float
    reference: Row | None = None
    comparisons: dict[tuple[str, str], Comparison] = field(default_factory=dict)  # (row key, metric) ->
    tested: Sequence[str] = ()  # metrics with a p-value
    permutations: int = 0
    n_examples: int = 0
    left_out: dict[str, str] = field(default_factory=dict)  # row key -> why

    def mark(self, row: Row, metric: str) -> str:
        """`▲` or `▼` if the row differs significantly from the reference in `metric` (such as hr@10), else empty."""
        comparison = self.comparisons.get((row.key, metric))
        return comparison.mark(self.alpha) if comparison else ""

    def interval(self, row: Row, metric: str) -> str:
        """The difference of a row to the reference with its interval, `-` if there is none."""
        found = self.comparisons.get((row.key, metric))
        return interval(found) if found else "-"


def find_reference(rows: Sequence[Row], compare_to: str | None) -> Row | None:
    """The row that `compare_to` names: METHOD (of the first run that has it), RUN/METHOD, or `none`.

    Without a name, the first fine-tuned row, if any. Raises BigrecError if no row has the name.
    """
    if compare_to == NO_REFERENCE:
        return None
    wanted = compare_to or "finetuned"
    found = next((row for row in rows if wanted in (row.key, row.method)), None)
    if found is None and compare_to is not None:
        raise BigrecError(
            f"compare_to is {compare_to!r}, which is not a row: choose from {', '.join(row.key for row in rows)}, "
            f"or {NO_REFERENCE}"
        )
    return found


def compare_rows(
    rows: Sequence[Row],
    compare_to: str | None = None,
    alpha: float = 0.05,
    permutations: int = 10_000,
    test_metrics: Sequence[str] = ("ndcg@10", "hr@10"),
) -> Differences:
    """Test every row against the reference on the same examples. Rows over other examples are left out.

    Raises BigrecError for an `alpha` out of range, and for unknown `test_metrics`.
    """
    if not 0.001 <= alpha <= 0.5:  # a smaller one would need millions of permutations to mark anything
        raise BigrecError(f"significance_level={alpha} must lie between 0.001 and 0.5, such as 0.05")
    reference = find_reference(rows, compare_to)
    if reference is None:
        return Differences(alpha)
    scores: dict[str, Scores] = {}
    left_out = {}
    for row in [reference, *(row for row in rows if row is not reference)]:
        try:
            scores[row.key] = read_method_scores(row.folders)
            matched(scores[row.key], scores[reference.key], row.key, reference.key)
        except BigrecError as error:
            scores.pop(row.key, None)
            left_out[row.key] = str(error)
            if row is reference:
                return Differences(alpha, reference, left_out=left_out)
    tested = tested_metrics(rows, test_metrics)
    comparisons, permutations = compare(scores, reference.key, tested=tested, alpha=alpha, permutations=permutations)
    found = {(comparison.name, comparison.metric): comparison for comparison in comparisons}
    n = len(scores[reference.key].example_ids)
    return Differences(alpha, reference, found, tested, permutations, n, left_out)


def tested_metrics(rows: Sequence[Row], wanted: Sequence[str]) -> list[str]:
    """The metrics among `wanted` that the rows have; if none, both at the largest cut-off of the rows.

    Raises BigrecError for anything but ndcg@K or hr@K.
    """
    for metric in wanted:
        name, _, k = metric.partition("@")
        if name not in METRICS or not k.isdigit():
            raise BigrecError(f"test_metrics: {metric!r} is not a metric: write ndcg@K or hr@K, such as ndcg@10")
    ks = cutoffs(rows)
    found = [metric for metric in wanted if int(metric.partition("@")[2]) in ks]
    return found or [f"{name}@{max(ks)}" for name in METRICS]


def legend(rows: Sequence[Row], differences: Differences) -> list[str]:
    """Sentences that explain the marks and name the rows that could not be compared, with the reason."""
    lines = []
    labels = row_labels(rows)
    if differences.comparisons and differences.reference is not None:
        several = any(len(row.folders) > 1 for row in rows)
        metrics = " and ".join(metric.upper() for metric in differences.tested)
        n_tests = sum(not math.isnan(comparison.p) for comparison in differences.comparisons.values())
        lines.append(
            f"▲ / ▼: better / worse than *{labels[differences.reference.key]}* (corrected p < {differences.alpha:g}); "
            f"tested: {metrics}. Two-sided paired permutation test (sign flips: all where few examples differ, else "
            f"{differences.permutations:,} random ones) over {differences.n_examples:,} examples, an empty answer "
            f"counting as a miss; Holm's correction over these {n_tests} tests. No mark there: not distinguishable on "
            "these examples. "
            + (
                "Each example's score is averaged over the row's seeds first."
                if several
                else "The test covers the sampling of examples, not training seeds."
            )
        )
    lines += [f"Not compared: {labels[key]} ({reason})." for key, reason in differences.left_out.items()]
    return lines


def differences_tables(rows: Sequence[Row], differences: Differences) -> list[str]:
    """One table per metric: the difference to the reference, its paired bootstrap interval, the corrected p-value."""
    labels = row_labels(rows)
    tables = []
    for metric, title in METRICS.items():
        keys = [f"{metric}@{k}" for k in cutoffs(rows) if any(m == f"{metric}@{k}" for _, m in differences.comparisons)]
        body = []
        for row in rows:
            found = [differences.comparisons.get((row.key, key)) for key in keys]
            if any(found):
                body.append(
                    [labels[row.key], *("-" if c is None else _difference(c, differences.alpha) for c in found)]
                )
        if body:
            header = ["", *(f"{title}@{key.partition('@')[2]}" for key in keys)]
            tables.append(markdown_table(header, body))
    return tables


def interval(comparison: Comparison) -> str:
    """A difference with its interval."""
    return f"{comparison.difference:+.4f} [{comparison.low:+.4f}, {comparison.high:+.4f}]"


def _difference(comparison: Comparison, alpha: float) -> str:
    text = interval(comparison)
    if math.isnan(comparison.p):
        return text
    p = "p < 0.0001" if comparison.p_corrected < 1e-4 else f"p = {comparison.p_corrected:.4f}"
    return f"{text}, {p} {comparison.mark(alpha)}".rstrip()
