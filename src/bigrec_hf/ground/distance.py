"""Rankings of the whole catalog by the distance between its titles and a generated text."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.generations import Answers
from bigrec_hf.data.rankings import place_among, rankings_table, target_rows
from bigrec_hf.ground.index import CatalogIndex
from bigrec_hf.metrics.ndcg_hr.ranking import Ranking, rank_catalog
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.models.encoder import Encode
from bigrec_hf.settings import RankOptions

PART_EXAMPLES = 512  # examples encoded together: the smallest unit of work of a process


def embed_texts(texts: Sequence[str], index: CatalogIndex, encode: Encode) -> np.ndarray:
    """Return the vectors of `texts`, (len(texts), d) float32; a catalog title gets its own vector (distance 0).

    Raises BigrecError if the encoder has another dimension than the index.
    """
    known = index.catalog.rows_by_title
    cleaned = [clean_title(text) for text in texts]
    vectors = np.empty((len(texts), index.embeddings.shape[1]), np.float32)
    new = [i for i, text in enumerate(cleaned) if text not in known]
    found = [i for i, text in enumerate(cleaned) if text in known]
    vectors[found] = index.embeddings[[known[cleaned[i]][0] for i in found]]
    if new:
        encoded = encode([cleaned[i] for i in new])
        if encoded.shape != (len(new), vectors.shape[1]):
            raise BigrecError(
                f"the encoder has {encoded.shape[1]} dimensions, the index {vectors.shape[1]}: use the same encoder"
            )
        vectors[new] = encoded
    return vectors


def embed_answers(answers: Answers, index: CatalogIndex, encode: Encode) -> tuple[list[int], np.ndarray]:
    """Return the positions of the texts that are not empty, and their vectors, (len(positions), d) float32.

    PART_EXAMPLES examples are encoded at a time, so that a vector does not depend on how many processes share the work
    (`share_rows`): the composition of a batch changes a vector by float32 rounding.
    """
    full = [i for i, text in enumerate(answers.texts) if clean_title(text)]
    vectors = [np.empty((0, index.embeddings.shape[1]), np.float32)]
    for start in range(0, len(answers.texts), PART_EXAMPLES):
        part = [answers.texts[i] for i in full[bisect_left(full, start) : bisect_left(full, start + PART_EXAMPLES)]]
        vectors.append(embed_texts(part, index, encode))
    return full, np.concatenate(vectors)


def ground_answers(answers: Answers, index: CatalogIndex, encode: Encode, options: RankOptions) -> pa.Table:
    """Rank the catalog for every example (RANKINGS_SCHEMA). Empty texts are not grounded: rank n_items, no top rows."""
    facts: dict[str, Any] = {"duplicates": options.duplicates, "exclude": options.exclude}
    full, queries = embed_answers(answers, index, encode)
    rows = target_rows(answers.targets, index.catalog, options.duplicates)
    targets = [rows[i] for i in full]
    hidden = options.excluded(answers)
    excluded = [hidden[i] for i in full] if hidden is not None else None
    try:
        ranking = rank_catalog(queries, index.embeddings, targets, options.top_k, options.memory_mib, exclude=excluded)
    except ValueError as error:
        raise BigrecError(f"grounding: {error}") from error
    return answers_table(answers, index, place_among(ranking, full, len(answers.texts), len(index)), facts)


def answers_table(answers: Answers, index: CatalogIndex, ranking: Ranking, facts: dict[str, Any]) -> pa.Table:
    """Return a rankings table, one row of `ranking` per example, with the flags of the texts.

    `facts` and the settings of the index become its metadata.
    """
    catalog = index.catalog
    texts = [clean_title(text) for text in answers.texts]
    history_titles = [{clean_title(catalog.titles[row]) for row in h if row >= 0} for h in answers.histories]
    settings = {
        "n_items": len(index),
        **facts,
        **{name: index.fingerprint[name] for name in ("encoder", "revision", "kind", "dtype", "template")},
        "catalog_sha256": index.fingerprint["catalog_sha256"],
    }
    return rankings_table(
        answers.example_ids,
        answers.targets,
        ranking,
        settings,
        empty=[not text for text in texts],
        in_catalog=[text in catalog.rows_by_title for text in texts],
        in_history=[text in titles for text, titles in zip(texts, history_titles, strict=True)],
    )
