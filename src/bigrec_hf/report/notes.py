"""What a reader must know of a table's cells: which items were candidates, and what the intervals are over."""

from __future__ import annotations

from collections.abc import Sequence

from bigrec_hf.data.rankings import exclusion
from bigrec_hf.report.rows import Row, row_labels

CANDIDATES = {
    "none": "all items",
    "history": "all items except those of the example's history",
    "seen": "all items except those that the user had before the target",
}


def candidates_note(rows: Sequence[Row]) -> str:
    """Which items the rows rank (`ground.exclude`); where they differ, which rows do."""
    labels = row_labels(rows)
    by_exclusion: dict[str, list[str]] = {}
    for row in rows:
        for results in row.results[:1]:
            by_exclusion.setdefault(exclusion(results), []).append(labels[row.key])
    if len(by_exclusion) == 1:
        return f"Candidates: {CANDIDATES[next(iter(by_exclusion))]}."
    named = "; ".join(f"{CANDIDATES[what]} in {', '.join(those)}" for what, those in by_exclusion.items())
    return f"Candidates differ, and so does the task: {named}."


def intervals_note(rows: Sequence[Row]) -> str:
    """What the brackets hold; "" if no row has intervals."""
    single = [row.results[0] for row in rows if len(row.folders) == 1 and row.results[0].get("bootstrap")]
    if not single:
        return ""
    level = max(results["confidence"] for results in single)
    if not any("n_users" in results for results in single):
        return f"In brackets: {level:.0%} bootstrap intervals over the examples (users were not told apart)."
    users = {results.get("n_users") for results in single}
    over = "users" if len(users) > 1 else f"{users.pop():,} users" if None not in users else "examples (users unknown)"
    rare = " (Wilson's if hits are rare)" if any(results.get("wilson") for results in single) else ""
    return f"In brackets: {level:.0%} bootstrap intervals over {over}{rare}."
