"""The facts recorded about a prepared set: counts, time spans, fingerprints, but no current times or local paths."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from bigrec_hf.data.catalog import Catalog
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.prepare.splits import ExampleRanges, Sequences, repeated_targets, users_with_example


def sha256_of(files: Iterable[Path]) -> dict[str, str]:
    """File name (never its folder) -> hex digest; a name that occurs twice gets `#2`, `#3`..."""
    digests: dict[str, str] = {}
    for file in files:
        with file.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        name, n = file.name, 1
        while name in digests:
            n += 1
            name = f"{file.name}#{n}"
        digests[name] = digest
    return digests


def duplicate_titles(titles: Iterable[str]) -> dict[str, int]:
    """How many titles occur in more than one row, and in how many rows these titles occur."""
    counts = [n for n in Counter(titles).values() if n > 1]
    return {"titles": len(counts), "rows": sum(counts)}


def time_span(times: np.ndarray | None, time_divisor: int) -> list[str] | None:
    """[first, last] as ISO UTC times; None without timestamps or entries."""
    if times is None or not len(times):
        return None
    return [_iso(int(times.min()) // time_divisor), _iso(int(times.max()) // time_divisor)]


def _iso(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return str(seconds)  # outside the calendar: these are not seconds


def describe_splits(
    sequences: Sequences, splits: dict[str, ExampleRanges], catalog: Catalog, time_divisor: int
) -> dict[str, object]:
    """The facts that follow from sequences, splits and catalog alone."""
    n_users = len(sequences.starts) - 1
    spans = {
        split: time_span(None if sequences.times is None else sequences.times[part.targets], time_divisor)
        for split, part in splits.items()
    }
    is_repeated = repeated_targets(sequences, splits.values())
    repeated = {split: int(is_repeated[part.targets].sum()) for split, part in splits.items()}
    n_examples = sum(map(len, splits.values()))
    return {
        "users": n_users,
        "users_without_example": n_users - users_with_example(sequences, splits.values()),
        "items": len(catalog),
        "items_with_interactions": int(np.count_nonzero(np.bincount(sequences.rows))),
        "examples": {split: len(part) for split, part in splits.items()},
        "empty_histories": sum(int((part.begins == part.targets).sum()) for part in splits.values()),
        "duplicate_titles": {
            "as_spelled": duplicate_titles(catalog.titles),
            "without_quotes_and_spaces": duplicate_titles(map(clean_title, catalog.titles)),
        },
        "repeated_targets": {
            **{split: repeated[split] / max(len(part), 1) for split, part in splits.items()},
            "all": sum(repeated.values()) / max(n_examples, 1),
        },
        "time_span": spans,
    }


def summary_table(facts: dict) -> str:
    """The facts as aligned text, for the terminal."""
    interactions, users = facts["interactions"], "unknown, the files name none"
    if facts["users"] is not None:
        users = f"{facts['users']:,} ({facts['users_without_example']:,} too short for an example)"
    source = f"{facts['source']}, {facts['preset']}" + (" splits" if facts["preset"] == "given" else "")
    lines = [
        (
            "data set",
            f"{facts['name']} ({source}, up to {facts['max_history']} history items)",
        ),
        *([("raw interactions", f"{interactions['raw']:,}")] if interactions["raw"] is not None else []),
        *((f"dropped: {reason}", f"{n:,}") for reason, n in interactions["dropped"].items()),
        ("kept interactions", f"{interactions['kept']:,}"),
        ("users", users),
        ("items", f"{facts['items']:,} ({facts['items_with_interactions']:,} with interactions)"),
        *(
            (f"examples: {split}", f"{n:,}" + (f"  {span[0]} .. {span[1]}" if span else ""))
            for (split, n), span in zip(facts["examples"].items(), facts["time_span"].values(), strict=True)
        ),
        ("empty histories", f"{facts['empty_histories']:,}"),
        *(
            (f"duplicate titles, {how.replace('_', ' ')}", f"{n['titles']:,} titles in {n['rows']:,} rows")
            for how, n in facts["duplicate_titles"].items()
        ),
        ("targets in their history", f"{facts['repeated_targets']['all']:.4%}"),
        *((f"note: {name}", str(n)) for name, n in facts.get("notes", {}).items()),
        *((f"sha256 {name}", digest) for name, digest in facts["sha256"].items()),
    ]
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)
