"""generations.parquet, the texts a run has generated: columns, flags of each generation, writing and reading."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_table, write_atomically
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.data.examples import evaluation_rows, load_config
from bigrec_hf.metrics.ndcg_hr.titles import clean_title

if TYPE_CHECKING:
    from datasets import Dataset

GENERATIONS_FILE = "generations.parquet"
GENERATE_FILE = "generate.json"  # beside it: settings, fingerprints, counts
GENERATIONS_SCHEMA = pa.schema(
    [
        (C.EXAMPLE_ID, pa.string()),
        (C.TARGET, pa.int32()),
        (C.TARGET_TITLE, pa.string()),
        (C.HISTORY, pa.list_(pa.int32())),
        (C.TEXTS, pa.list_(pa.string())),
        (C.SCORES, pa.list_(pa.float32())),
        (C.EMPTY, pa.bool_()),
        (C.IN_CATALOG, pa.bool_()),
        (C.IN_HISTORY, pa.bool_()),
    ]
)


class Examples(NamedTuple):
    """What a ranking without texts needs, one entry per example; rows are catalog rows."""

    example_ids: Sequence[str]
    targets: Sequence[int]
    histories: Sequence[Sequence[int]]  # oldest first
    seen: Sequence[Sequence[int]] | None = None  # all earlier items of the user, where `earlier.with_seen` found them


def answer_flags(
    texts: Sequence[Sequence[str]], histories: Sequence[Sequence[str]], titles: Sequence[str]
) -> dict[str, list[bool]]:
    """Whether each example's best text is empty, in the catalog, in the full history (compared by `clean_title`)."""
    known = {clean_title(title) for title in titles} - {""}
    first = [clean_title(row[0]) for row in texts]
    return {
        C.EMPTY: [not text for text in first],
        C.IN_CATALOG: [text in known for text in first],
        C.IN_HISTORY: [
            bool(text) and text in {clean_title(title) for title in history}
            for text, history in zip(first, histories, strict=True)
        ],
    }


def write_generations(
    path: Path, examples: Dataset, titles: Sequence[str], texts: list[list[str]], scores: list[list[float]]
) -> dict[str, int]:
    """Write generations.parquet. Returns the counts n_examples, n_distinct, n_empty, n_in_catalog, n_in_history."""
    flags = answer_flags(texts, examples[C.HISTORY_TITLES], titles)
    kept = {name: examples[name] for name in (C.EXAMPLE_ID, C.TARGET, C.TARGET_TITLE, C.HISTORY)}
    columns = {name: list(column) for name, column in kept.items()} | {C.TEXTS: texts, C.SCORES: scores} | flags
    table = pa.table(columns, schema=GENERATIONS_SCHEMA)
    write_atomically(path, lambda temporary: pq.write_table(table, temporary))
    distinct = {clean_title(row[0]) for row in texts}
    counts = {"n_examples": len(table), "n_distinct": len(distinct)}
    return counts | {f"n_{name}": sum(values) for name, values in flags.items()}


@dataclass(frozen=True)
class Answers:
    """The generations to rank, one entry per example; rows are catalog rows."""

    example_ids: list[str]
    texts: list[str]  # the text to ground: the best of each example
    targets: list[int]
    histories: list[list[int]]  # [] if unknown
    seen: Sequence[Sequence[int]] | None = None  # as in Examples

    def part(self, rows: slice) -> Answers:
        """The entries in a slice of positions."""
        seen = self.seen[rows] if self.seen is not None else None
        return Answers(self.example_ids[rows], self.texts[rows], self.targets[rows], self.histories[rows], seen)


def read_generations(path: str | Path, catalog: Catalog) -> Answers:
    """The best generation of each example in a generations.parquet.

    Raises BigrecError for missing columns, an empty file, a repeated id, an unknown target, or history rows outside the
    catalog.
    """
    path = Path(path)
    if not path.is_file():
        raise BigrecError(f"{path} does not exist: run `bigrec-hf generate` first, or give the file with --generations")
    wanted = [C.EXAMPLE_ID, C.TARGET, C.TARGET_TITLE, C.HISTORY, C.TEXTS]
    table = read_table(path, columns=wanted)
    if table.num_rows == 0:
        raise BigrecError(f"{path} contains no examples: generate at least one")
    ids = table[C.EXAMPLE_ID].to_pylist()
    if len(set(ids)) < len(ids):
        twice = next(i for i, n in Counter(ids).items() if n > 1)
        raise BigrecError(f"{path}: the example {twice!r} occurs twice: keep one of its rows")
    if table[C.TARGET_TITLE].null_count:
        at = table[C.TARGET_TITLE].is_null().index(True).as_py()
        raise BigrecError(f"{path}: the example {ids[at]!r} has no target_title: generate it again, or remove it")
    texts = [(texts or [""])[0] or "" for texts in table[C.TEXTS].to_pylist()]
    targets = resolve_targets(table[C.TARGET_TITLE].to_pylist(), table[C.TARGET].to_pylist(), catalog, str(path))
    histories = [history or [] for history in table[C.HISTORY].to_pylist()]
    for example_id, history in zip(ids, histories, strict=True):
        if history and max(history) >= len(catalog):
            raise BigrecError(
                f"{path}: the history of {example_id!r} contains row {max(history)}, but the catalog ends at "
                f"row {len(catalog) - 1}: give the catalog these examples were made with (--catalog)"
            )
    return Answers(ids, texts, targets, histories)


def resolve_targets(
    titles: Sequence[str], rows: Sequence[int | None] | None, catalog: Catalog, place: str
) -> list[int]:
    """Each target's catalog row: the one in `rows` if given (its title must match), else the first row with the title.

    Raises BigrecError naming the first title that is not in the catalog, or not at its row, and how many there are.
    """
    known = catalog.rows_by_title
    rows = [None] * len(titles) if rows is None else rows
    resolved, unknown = [], []
    for title, row in zip(titles, rows, strict=True):
        candidates = known.get(clean_title(title), [])
        if not candidates or (row is not None and row >= 0 and row not in candidates):
            unknown.append(title)
        else:
            resolved.append(row if row is not None and row >= 0 else candidates[0])
    if unknown:
        remedy = _encoding_remedy(unknown, known) or "give the catalog these examples were made with (--catalog)"
        raise BigrecError(
            f"{place}: the target {unknown[0]!r} is not in the catalog, or not at the row that the file gives "
            f"({len(unknown)} of {len(titles)} targets): {remedy}"
        )
    return resolved


def _encoding_remedy(unknown: Sequence[str], known: Mapping[str, Any]) -> str | None:
    """What to do if a title is in the catalog once it is decoded otherwise, as the reference reads UTF-8 as latin-1."""
    for title in unknown:
        for written, read, remedy in (
            (
                "latin-1",
                "utf-8",
                "its titles were read as latin-1: give --encoding latin-1 to read the catalog like them",
            ),
            ("utf-8", "latin-1", "the catalog was read as latin-1: give its own encoding, e.g. --encoding utf-8"),
        ):
            try:
                decoded = title.encode(written).decode(read)
            except UnicodeError:
                continue
            if decoded != title and clean_title(decoded) in known:
                return remedy
    return None


def read_texts(path: str | Path) -> list[list[str]]:
    """All texts of a generations.parquet, best first, one list per example, in the file's order."""
    return [list(texts or []) for texts in read_table(path, columns=[C.TEXTS])[C.TEXTS].to_pylist()]


def read_ids(generations: Path) -> list[str]:
    """The example ids of a generations.parquet; no other column is read."""
    return read_table(generations, columns=[C.EXAMPLE_ID])[C.EXAMPLE_ID].to_pylist()


def sample_examples(dataset: str, split: str, sample: int) -> Examples:
    """Ids, targets and histories of a split's evaluation sample (`examples.evaluation_rows`; 0 = all)."""
    rows = load_config(dataset, "default", split)
    rows = rows.select(evaluation_rows(len(rows), sample))
    return Examples(rows[C.EXAMPLE_ID][:], rows[C.TARGET][:], rows[C.HISTORY][:])


def generated_examples(generations: str | Path, catalog: Catalog) -> Examples:
    """The examples of a generations.parquet, in its order. Raises BigrecError as `read_generations`."""
    answers = read_generations(generations, catalog)
    return Examples(answers.example_ids, answers.targets, answers.histories)


def evaluated_examples(folder: str | Path, catalog: Catalog, dataset: str, split: str, sample: int) -> Examples:
    """The examples in `folder`/finetuned/generations.parquet; without that file, the split's evaluation sample."""
    generations = Path(folder) / "finetuned" / GENERATIONS_FILE
    return (
        generated_examples(generations, catalog) if generations.is_file() else sample_examples(dataset, split, sample)
    )


def print_summary(facts: dict[str, Any]) -> None:
    """Print one line about a finished `generate` stage from its generate.json, and one about shortened histories."""
    n = facts["n_examples"]
    shares = ", ".join(
        f"{facts[f'n_{name}'] / n:.1%} {name.replace('_', ' ')}" for name in ("empty", "in_catalog", "in_history")
    )
    speed = facts["titles_per_second"]
    print(f"generate ({facts['method']}): {n} examples, {shares}" + (f"; {speed:.2f} titles/s" if speed else ""))
    if facts["dropped_history_titles"]:
        print(f"generate: {facts['dropped_history_titles']} old history titles left out to fit max_length")
