"""Hybrid ranking: first the catalog titles among an example's texts, in the order of the texts, then all other items by
the distance between their titles and the first text.

Beams, constrained ones above all, rank a few titles by the probability that the language model gives them; distances
fill the rest of the list.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.generations import Answers
from bigrec_hf.data.rankings import place_among, target_rows
from bigrec_hf.ground.distance import answers_table, embed_answers
from bigrec_hf.ground.index import CatalogIndex
from bigrec_hf.metrics.ndcg_hr.ranking import rank_catalog
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.models.encoder import Encode
from bigrec_hf.settings import RankOptions


def hybrid_rankings(
    texts: Sequence[Sequence[str]],
    answers: Answers,
    index: CatalogIndex,
    encode: Encode,
    options: RankOptions,
) -> pa.Table:
    """Rank the whole catalog for every example (RANKINGS_SCHEMA); the rank of the target is exact.

    `texts`: all texts of each of the `answers`. If a title occurs in several catalog rows, these take its places in
    catalog order. Texts that are not catalog titles, repeated titles and excluded items take no place. An example
    without a first text is a miss, as in `ground_answers`. `top_distances` are always the distances to the first text.
    Raises BigrecError if texts and answers are not equally many.
    """
    if len(texts) != len(answers.texts):
        raise BigrecError(
            f"hybrid: texts of {len(texts)} examples, but generations of {len(answers.texts)}: read both from one file"
        )
    n_items = len(index)
    full, queries = embed_answers(answers, index, encode)
    targets = target_rows(answers.targets, index.catalog, options.duplicates)
    hidden = options.excluded(answers)
    excluded = [hidden[i] if hidden is not None else [] for i in full]
    heads = [first_rows(texts[i], index, hidden) for i, hidden in zip(full, excluded, strict=True)]
    try:
        rest = rank_catalog(
            queries,
            index.embeddings,
            [targets[i] for i in full],
            options.top_k,
            options.memory_mib,
            exclude=[[*head, *hidden] for head, hidden in zip(heads, excluded, strict=True)],
        )
    except ValueError as error:
        raise BigrecError(f"grounding: {error}") from error
    k = rest.top_rows.shape[1]
    for at, (i, head) in enumerate(zip(full, heads, strict=True)):
        found = [head.index(row) for row in targets[i] if row in head]
        if found:
            rest.rank[at] = min(found)
        elif rest.rank[at] < n_items:  # n_items: the target itself was excluded
            rest.rank[at] += len(head)
        differences = index.embeddings[head].astype(np.float64) - queries[at]
        distances = np.sqrt((differences**2).sum(axis=1)).astype(np.float32)
        rest.top_rows[at] = np.concatenate([np.array(head, np.int32), rest.top_rows[at]])[:k]
        rest.top_distances[at] = np.concatenate([distances, rest.top_distances[at]])[:k]
    ranking = place_among(rest, full, len(answers.texts), n_items)
    facts = {"duplicates": options.duplicates, "exclude": options.exclude, "ranking": "hybrid"}
    return answers_table(answers, index, ranking, facts)


def first_rows(texts: Sequence[str], index: CatalogIndex, excluded: Sequence[int] = ()) -> list[int]:
    """Return the catalog rows of the texts that are titles, in the order of the texts, without repetition."""
    known, hidden = index.catalog.rows_by_title, set(excluded)
    rows = dict.fromkeys(row for text in texts for row in known.get(clean_title(text), ()))
    return [row for row in rows if row not in hidden]
