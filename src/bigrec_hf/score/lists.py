"""Score ranked lists as they are: the target's rank is its place in the list, and a list without it is a miss.

That is how D3, ReRe, MiniOneRec, RecBole, RecTools and trec_eval score; no text is embedded. Entries that are not in
the catalog keep their place. Of a target that occurs twice in a list the first place counts
(D3's script takes the last).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog, catalog_sha256
from bigrec_hf.data.examples import load_config
from bigrec_hf.data.rankings import rankings_table, target_rows
from bigrec_hf.metrics.ndcg_hr.ranking import Ranking
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.score.prediction_files import Predictions

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings, RankOptions


def item_rows(
    values: Sequence[str], catalog: Catalog, semantic_ids: Sequence[str] | None = None
) -> tuple[str, Mapping[str, int]]:
    """What most of the `values` are, "title", "id" or "semantic id", and the map from these to rows.

    Of a title or semantic id of several rows, the first.
    """
    kinds: dict[str, dict[str, int]] = {
        "title": {title: rows[0] for title, rows in catalog.rows_by_title.items()},
        "id": {item_id: row for row, item_id in enumerate(catalog.item_ids)},
    }
    if semantic_ids is not None:
        kinds["semantic id"] = {item_id: row for row, item_id in reversed(list(enumerate(semantic_ids)))}
    distinct = {clean_title(value) for value in values}
    kind = max(kinds, key=lambda name: len(distinct & kinds[name].keys()))
    return kind, kinds[kind]


def dataset_targets(queries: Sequence[str], data: DataSettings) -> tuple[list[str], list[int]]:
    """Example ids and target rows of queries that are example ids, or users with one example, of the set's split.

    Raises BigrecError for a query that is neither.
    """
    examples = load_config(data.dataset[0], "default", data.split)
    by_id = dict(zip(examples[C.EXAMPLE_ID], examples[C.TARGET], strict=True))
    n_of = Counter(examples[C.USER_ID])
    id_of = {user: example for user, example in zip(examples[C.USER_ID], by_id, strict=True) if n_of[user] == 1}
    ids = []
    unknown = [query for query in queries if query not in by_id and query not in id_of]
    for query in queries:
        example = query if query in by_id else id_of.get(query)
        if example is None:
            several = f", it has {n_of[query]} examples: name them by example id" if n_of[query] > 1 else ""
            raise BigrecError(
                f"{query!r} is neither an example nor a user with one example of the {data.split} split of "
                f"{data.dataset[0]!r}{several} ({len(unknown)} of {len(queries)}): give the truth with --targets, or "
                "another --split"
            )
        ids.append(example)
    if len(ids) < len(by_id):
        left = f"{len(by_id) - len(ids):,} of {len(by_id):,} examples of the {data.split} split"
        print(f"evaluate: {left} are not in the file and do not count", file=sys.stderr)
    return ids, [by_id[example] for example in ids]


def list_rankings(
    found: Predictions,
    catalog: Catalog,
    options: RankOptions,
    data: DataSettings,
    *,
    targets: Mapping[str, str] | None = None,
    semantic_ids: Sequence[str] | None = None,
    place: str | Path = "",
) -> pa.Table:
    """The rankings table (RANKINGS_SCHEMA) of ranked lists.

    The truth comes from `targets` (query -> title or id), else from the file itself, else from the prepared set's
    split. Titles in several rows count as `options.duplicates` says, ids only for their own row.
    Raises BigrecError if there is none, and for a target that is not in the catalog.
    """
    n = len(found.queries)
    ids = found.queries
    truth = found.targets
    if targets is not None:
        missing = [query for query in ids if query not in targets]
        if missing:
            raise BigrecError(f"{place}: {missing[0]!r} has no target in the file of --targets ({len(missing)} of {n})")
        truth = [targets[query] for query in ids]
        if len(set(ids)) < len(targets):
            left = f"{len(targets) - len(set(ids)):,} of {len(targets):,} users with a target"
            print(f"evaluate: {left} have no list in {place} and do not count", file=sys.stderr)
    if truth is not None:
        _, known = item_rows(truth, catalog, semantic_ids)
        unknown = [text for text in truth if clean_title(text) not in known]
        if unknown:
            raise BigrecError(
                f"{place}: the target {unknown[0]!r} is neither title nor id of the catalog ({len(unknown)} of {n}): "
                "give the catalog these examples were made with (--catalog)"
            )
        rows = [known[clean_title(text)] for text in truth]
    elif data.dataset:
        ids, rows = dataset_targets(ids, data)
    else:
        raise BigrecError(
            f"{place}: the file does not say what came next: give the truth with --targets, or the prepared set with "
            "--dataset"
        )
    kind, known = item_rows([entry for own in found.entries for entry in own], catalog, semantic_ids)
    lists = [[known.get(clean_title(entry), -1) for entry in own] for own in found.entries]
    duplicates = options.duplicates if kind == "title" else "exact"
    hits = target_rows(rows, catalog, duplicates)
    m = len(catalog)
    rank = [
        next((at for at, row in enumerate(own) if row in hit), m)
        for own, hit in zip(lists, map(set, hits), strict=True)
    ]
    k = max(1, min(options.top_k, max(map(len, lists), default=1)))
    top = np.full((n, k), -1, np.int32)
    for i, own in enumerate(lists):
        top[i, : min(k, len(own))] = own[:k]
    distances = np.broadcast_to(np.arange(k, dtype=np.float32), (n, k))
    facts = {
        "ranking": "lists",
        "n_items": m,
        "duplicates": duplicates,
        "exclude": "none",
        "catalog_sha256": catalog_sha256(catalog),
    }
    return rankings_table(
        ids,
        rows,
        Ranking(np.asarray(rank, np.int64), top, distances),
        facts,
        empty=[not own for own in lists],
        in_catalog=[bool(own) and own[0] >= 0 for own in lists],
        in_history=[None] * n,
    )
