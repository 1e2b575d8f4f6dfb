"""Prediction files of other systems: TREC runs, tables of texts or of ranked items, JSON; read without judging them.

- TREC run (`query Q0 item rank score tag`): queries are users or example ids.
- `{query: {item: score}}` as JSON (ranx).
- Tables (CSV, TSV, JSON lines, parquet), columns found by their usual names or named: one row per user and item with a
  score or rank (RecTools, RecBole exports), or one row per user with a list (a list, JSON, a literal, or in
  CSV and TSV `a|b|c`).
- JSON arrays with `output` and `predict` (BIGRec, D3, ReRe, MiniOneRec), as ranked lists.
"""

from __future__ import annotations

import ast
import contextlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import read_text
from bigrec_hf.data.user_tables import ITEMS, TABLES, TITLES, USERS, as_text, plain, read_user_table

RUNS = (".run", ".trec", ".txt")
IDS = ("exampleid", "qid", "queryid", "query", "sessionid")
TEXTS = ("predict", "prediction", "predictions", "predicted", "generated", "generation", "text", "texts", "response")
SCORES, RANKS = ("score", "scores", "similarity", "logit"), ("rank", "position")
TARGETS = ("target", "targets", "output", "label", "truth", "groundtruth", "targettitle", "targetid")


@dataclass(frozen=True)
class PredictionColumns:
    """Columns as the caller names them; None = found by their names."""

    user: str | None = None
    item: str | None = None
    text: str | None = None
    score: str | None = None
    rank: str | None = None
    target: str | None = None


@dataclass(frozen=True)
class Predictions:
    """What a file says, one entry per example, in the file's order."""

    queries: list[str]  # an example id or a user, as the file names it
    entries: list[list[str]]  # titles, ids or texts, best first
    targets: list[str] | None  # None: not in the file
    texts: bool = False  # the entries come from a column of generated texts


def read_run(path: Path) -> Predictions:
    """A TREC run. Raises BigrecError naming the line that has no six fields or a score that is NaN."""
    rows: dict[str, list[tuple[float, int, str]]] = {}
    for number, line in enumerate(read_text(path, "utf-8").split("\n"), start=1):
        fields = line.split()
        if not fields:
            continue
        try:
            query, _, item, rank, score, _ = fields
            value = float(score)
            rows.setdefault(query, []).append((-value, int(rank), item))
        except ValueError as error:
            raise BigrecError(
                f"{path}:{number}: expected `query Q0 item rank score tag`, found {line[:80]!r}"
            ) from error
        if math.isnan(value):
            raise BigrecError(f"{path}:{number}: the score of {item!r} for {query!r} is NaN: remove the line or fix it")
    return Predictions(list(rows), [[item for *_, item in sorted(own)] for own in rows.values()], None)


def read_scored_json(path: Path, content: dict[str, Any]) -> Predictions:
    """`{query: {item: score}}`; equal scores in the file's order. Raises BigrecError for anything else."""
    entries = []
    for query, scores in content.items():
        if not isinstance(scores, dict) or not all(isinstance(score, int | float) for score in scores.values()):
            raise BigrecError(f"{path}: {query!r} is not a mapping of items to scores: give {{query: {{item: score}}}}")
        wrong = next((item for item, score in scores.items() if math.isnan(score)), None)
        if wrong is not None:
            raise BigrecError(f"{path}: the score of {wrong!r} for {query!r} is NaN: remove the item or fix it")
        entries.append(sorted(scores, key=lambda item, own=scores: -own[item]))  # type: ignore[misc]
    return Predictions(list(content), entries, None)


def read_records(path: Path, records: Sequence[Any]) -> Predictions:
    """Records with `output` and `predict`: ids are `{file stem}#{number}`; of a list of outputs the first counts."""
    entries, targets = [], []
    for number, record in enumerate(records):
        output = record.get(C.OUTPUT) if isinstance(record, dict) else None
        output = output[0] if isinstance(output, list) and output else output
        predict = record.get(C.PREDICT) if isinstance(record, dict) else None
        if not isinstance(output, str) or not isinstance(predict, str | list):
            raise BigrecError(f"{path}, record {number}: expected the fields output (a text) and predict (a list)")
        targets.append(output)
        entries.append([predict] if isinstance(predict, str) else [str(text) for text in predict])
    return Predictions([f"{path.stem}#{number}" for number in range(len(records))], entries, targets)


def read_prediction_table(path: Path, named: PredictionColumns) -> Predictions:
    """A table of ranked items or texts. Raises BigrecError naming columns or rows that do not fit."""
    cut = path.suffix in (".csv", ".tsv")  # the others have lists
    return predictions_of(_read_table(path), named, str(path), path.stem, cut=cut)


def predictions_of(
    frame: pl.DataFrame, named: PredictionColumns, place: str, stem: str, *, cut: bool = False
) -> Predictions:
    """The same of a frame. `place`: where it comes from, for errors; `stem`: begins the ids of rows without a user;
    `cut`: a text such as `a|b|c` is a list."""
    user = _column(frame, named.user, (*IDS, *USERS), "user", place)
    target = _column(frame, named.target, TARGETS, "target", place)
    text = None if named.item is not None else _column(frame, named.text, TEXTS, "text", place)
    item = _column(frame, named.item, (*ITEMS, *TITLES), "item", place)
    ranked = {"rank", "score"} <= {plain(name) for name in frame.columns}  # as `recommend` writes; its text is a remark
    if text is not None and named.text is None and item is not None and ranked:
        text = None
    item = text or item
    if item is None:
        raise BigrecError(
            f"{place}: which of the columns {', '.join(frame.columns)} holds the predictions is not clear: name it "
            "with --item_column (ranked ids or titles) or --text_column (generated texts)"
        )
    if user is None and target is None:
        raise BigrecError(
            f"{place}: no column of users or example ids among {', '.join(frame.columns)}: name it with --user_column"
        )
    score = _column(frame, named.score, SCORES, "score", place)
    rank = _column(frame, named.rank, RANKS, "rank", place)
    queries = as_text(frame[user]) if user else pl.Series([f"{stem}#{i}" for i in range(frame.height)])
    holes = [name for name in (user, target) if name is not None and frame[name].null_count()]
    if holes:
        raise BigrecError(
            f"{place}: row {int(frame[holes[0]].is_null().arg_max() or 0)}: {holes[0]} is missing: fill it"
        )
    truth = None if target is None else as_text(frame[target])
    one_row_each = not queries.is_duplicated().any()
    if one_row_each:
        cells = as_text(frame[item]) if frame[item].dtype.is_float() else frame[item]
        entries = [_listed(value, cut=cut) for value in cells.to_list()]
        return Predictions(queries.to_list(), entries, None if truth is None else truth.to_list(), text is not None)
    if score is None and rank is None:
        raise BigrecError(
            f"{place}: {queries.filter(queries.is_duplicated())[0]!r} has several rows but no score or rank orders "
            "them: name it with --score_column or --rank_column"
        )
    order = frame[str(rank or score)].cast(pl.Float64, strict=False)
    order = order.fill_nan(None)
    if order.null_count():
        at = int(order.is_null().arg_max() or 0)
        raise BigrecError(f"{place}: row {at}: {order.name} is not a number: fix the row")
    order = order if rank else -order
    table = pl.DataFrame({"query": queries, "order": order, "item": as_text(frame[item]).fill_null("")})
    table = table if truth is None else table.with_columns(target=truth)
    grouped = table.sort("order", maintain_order=True).group_by("query").agg(pl.col("*"))
    grouped = pl.DataFrame({"query": queries.unique(maintain_order=True)}).join(
        grouped, on="query", maintain_order="left"
    )
    targets = None
    if truth is not None:
        mixed = grouped.filter(pl.col("target").list.n_unique() > 1)
        if mixed.height:
            raise BigrecError(f"{place}: {mixed['query'][0]!r} has several targets: keep one per user")
        targets = grouped["target"].list.first().to_list()
    return Predictions(grouped["query"].to_list(), grouped["item"].to_list(), targets, text is not None)


def read_targets(path: Path) -> dict[str, str]:
    """Query -> target, from TREC qrels (`query 0 item relevance`) or a table with a column of users and one of targets.

    Raises BigrecError for a query with two targets.
    """
    if path.suffix in TABLES:
        return targets_of(_read_table(path), str(path))
    pairs = []
    for number, line in enumerate(read_text(path, "utf-8").split("\n"), start=1):
        fields = line.split()
        if fields and len(fields) != 4:
            raise BigrecError(f"{path}:{number}: expected `query 0 item relevance`, found {line[:80]!r}")
        if fields and fields[3] not in ("0", "0.0"):
            pairs.append((fields[0], fields[2]))
    return _one_each(pairs, str(path))


def targets_of(frame: pl.DataFrame, place: str) -> dict[str, str]:
    """The same of a frame with a column of users and one of targets."""
    user = _column(frame, None, (*IDS, *USERS), "user", place)
    target = _column(frame, None, (*TARGETS, *ITEMS, *TITLES), "target", place)
    if user is None or target is None:
        raise BigrecError(f"{place}: expected a column of users and one of targets, found {', '.join(frame.columns)}")
    return _one_each(list(zip(as_text(frame[user]), as_text(frame[target]), strict=True)), place)


def _one_each(pairs: Sequence[tuple[str, str]], place: str) -> dict[str, str]:
    """Query -> target. Raises BigrecError for a query with two."""
    targets: dict[str, str] = {}
    for query, item in pairs:
        if targets.setdefault(query, item) != item:
            raise BigrecError(
                f"{place}: {query!r} has the targets {targets[query]!r} and {item!r}: keep one per example"
            )
    return targets


def _read_table(path: Path) -> pl.DataFrame:
    frame = read_user_table(path, "predictions")
    if frame.height == 0:
        raise BigrecError(f"{path} has no rows: write it again")
    return frame


def _column(frame: pl.DataFrame, given: str | None, usual: Sequence[str], role: str, place: str) -> str | None:
    if given is not None and given not in frame.columns:
        raise BigrecError(f"{place}: no column {given!r} among {', '.join(frame.columns)}: check --{role}_column")
    return given or next((name for wanted in usual for name in frame.columns if plain(name) == wanted), None)


def _listed(value: Any, *, cut: bool) -> list[str]:
    """The entries of a cell: of a list, of its JSON or literal, of `a|b|c` if it is to be cut, or the one text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
        if isinstance(value, str):
            with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                value = ast.literal_eval(value.strip())
    elif cut and isinstance(value, str) and "|" in value:
        value = value.split("|")
    if value is None:
        return []
    return [str(entry) for entry in value] if isinstance(value, list) else [str(value)]
