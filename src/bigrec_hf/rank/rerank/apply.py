"""Reranking on values alone: a parameter is chosen on the examples of one split and applied to those of another.

A split is its generations and the cost of every item for them. The costs may be distances of texts (`text_split`) or
others, such as those of several fused beams. An example whose text is empty is a miss under every formula, as in plain
grounding.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import write_json, write_table
from bigrec_hf.common.fingerprints import fingerprint
from bigrec_hf.data.catalog import Catalog, catalog_sha256
from bigrec_hf.data.generations import Answers, answer_flags
from bigrec_hf.data.rankings import METADATA_KEY, RANKS_BY_METRIC_FILE, rankings_table, target_rows, write_rankings
from bigrec_hf.ground.distance import embed_texts
from bigrec_hf.ground.from_scores import rank_scores
from bigrec_hf.ground.index import CatalogIndex
from bigrec_hf.metrics.ndcg_hr.scores import check_ks
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.models.encoder import Encode
from bigrec_hf.rank.model_selection import (
    CHOICE_FILE,
    PRIMARY,
    Choice,
    check_disjoint,
    choose_value,
    save_curves,
)
from bigrec_hf.rank.rerank.costs import closest_costs, distance_costs
from bigrec_hf.rank.rerank.formulas import PARAMETERS, ItemValues, chunk_size, combine, min_max, parts, ranks_on_grid
from bigrec_hf.settings import RankOptions

WEIGHTINGS = ("popularity", "scores", "both")


@dataclass(frozen=True)
class Split:
    """The examples of one split and the cost of every item for them: `costs(start, stop)` -> (stop - start, n_items).

    The costs of an example whose text is empty are ignored but must be finite.
    """

    answers: Answers
    costs: ItemValues

    @property
    def empty(self) -> np.ndarray:
        """(n,) bool: the text is empty, so the example is a miss."""
        return np.array([not clean_title(text) for text in self.answers.texts], bool)


def text_split(answers: Answers, index: CatalogIndex, encode: Encode) -> Split:
    """Return a split whose costs are the distances of each text to all titles (float64, Euclidean)."""
    full = [i for i, text in enumerate(answers.texts) if clean_title(text)]
    vectors = np.zeros((len(answers.texts), index.embeddings.shape[1]), np.float32)
    vectors[full] = embed_texts([answers.texts[i] for i in full], index, encode)
    return Split(answers, distance_costs(vectors, index.embeddings))


def history_split(answers: Answers, index: CatalogIndex, n_items: int) -> Split:
    """Return a split whose costs are distances to the closest title among an example's latest `n_items` items.

    Its texts are the latest titles; `answers.texts` is not read. An example without a history is a miss.
    """
    latest = [[row for row in rows if row >= 0][-n_items:] for rows in answers.histories]
    texts = [index.catalog.titles[rows[-1]] if rows else "" for rows in latest]
    vectors = [index.embeddings[rows] for rows in latest]
    return Split(replace(answers, texts=texts), closest_costs(vectors, index.embeddings))


def weight_rows(
    weights: str, n: int, counts: Sequence[int] | None = None, scores: np.ndarray | None = None
) -> ItemValues:
    """Return `rows(start, stop)` -> (stop - start, n_items) float64: W of n examples, in [0, 1].

    Args:
        weights: popularity = min-max of `counts`, the same row for all; scores = row-wise min-max of `scores`; both =
            the mean of the two.
        counts: (n_items,) how often an item is a training target.
        scores: (n, n_items) finite, one row per example, in the order of the examples.

    Raises BigrecError if `counts` or `scores` is needed and missing, or has the wrong length.
    """
    popularity = np.zeros((1, 0))
    if weights in ("popularity", "both"):
        if counts is None:
            raise BigrecError("popularity weights need train counts: give a prepared data set with --dataset")
        popularity = min_max(np.asarray(counts, np.float64)[None], "train counts")
    if weights == "popularity":
        return lambda start, stop: np.broadcast_to(popularity, (stop - start, popularity.shape[1]))
    if scores is None or len(scores) != n:
        found = "none" if scores is None else len(scores)
        raise BigrecError(f"weights {weights!r} need one row of scores for each of {n} examples, but there are {found}")
    if weights == "scores":
        return lambda start, stop: min_max(scores[start:stop], "scores")
    return lambda start, stop: (min_max(scores[start:stop], "scores") + popularity) / 2.0


def search(
    formula: str,
    validation: Split,
    weights: ItemValues,
    catalog: Catalog,
    grid: Sequence[float],
    ks: Sequence[int],
    options: RankOptions,
    *,
    choose_by: str = "each",
) -> Choice:
    """Choose the parameter on validation examples, the only ones this function receives (see `choose_value`)."""
    return choose_value(_ranks(formula, validation, weights, catalog, grid, options), grid, ks, choose_by)


def _ranks(
    formula: str, split: Split, weights: ItemValues, catalog: Catalog, grid: Sequence[float], options: RankOptions
) -> np.ndarray:
    """Return the ranks of a split's targets at every grid value, (n, g) int64; empty texts are misses."""
    ranks = ranks_on_grid(
        formula,
        split.costs,
        weights,
        target_rows(split.answers.targets, catalog, options.duplicates),
        len(catalog),
        grid,
        exclude=options.excluded(split.answers),
        memory_mib=options.memory_mib,
    )
    ranks[split.empty] = len(catalog)
    return ranks


def apply_choice(
    formula: str,
    chosen: dict[str, float],
    test: Split,
    weights: ItemValues,
    catalog: Catalog,
    options: RankOptions,
    **facts: Any,
) -> tuple[pa.Table, pa.Table]:
    """Rank the catalog with the chosen parameters (`metric@K` -> value).

    Returns the rankings (RANKINGS_SCHEMA) at the value chosen for NDCG@10, with combined costs as `top_distances`, and
    the ranks by metric: example_id and one int64 column per key. `facts` join the settings in both.
    """
    values = sorted(set(chosen.values()))
    ranks = _ranks(formula, test, weights, catalog, values, options)

    hidden = options.excluded(test.answers)

    def combined(start: int, stop: int) -> np.ndarray:
        own = hidden[start:stop] if hidden is not None else None
        return combine(formula, *parts(formula, test.costs(start, stop), weights(start, stop), own), chosen[PRIMARY])

    facts |= {"formula": formula, "parameter": PARAMETERS[formula], "parameters": chosen}
    table = rank_costs(replace(test, costs=combined), catalog, options, **facts)
    columns = {key: pa.array(ranks[:, values.index(value)], pa.int64()) for key, value in chosen.items()}
    by_metric = pa.table({C.EXAMPLE_ID: pa.array(test.answers.example_ids, pa.string()), **columns})
    return table, by_metric.replace_schema_metadata({METADATA_KEY: table.schema.metadata[METADATA_KEY]})


def rank_costs(split: Split, catalog: Catalog, options: RankOptions, **facts: Any) -> pa.Table:
    """Rank the catalog by the costs of a split alone (RANKINGS_SCHEMA); `facts` join the settings in the metadata."""
    answers = split.answers
    ranking = rank_scores(
        lambda start, stop: -split.costs(start, stop),
        target_rows(answers.targets, catalog, options.duplicates),
        len(catalog),
        options.top_k,
        exclude=options.excluded(answers),
        chunk=chunk_size(options.memory_mib, len(catalog)),
    )
    ranking.rank[split.empty], ranking.top_rows[split.empty] = len(catalog), -1
    history_titles = [[catalog.titles[row] for row in rows if row >= 0] for rows in answers.histories]
    flags = answer_flags([[text] for text in answers.texts], history_titles, catalog.titles)
    settings = {
        "n_items": len(catalog),
        "exclude": options.exclude,
        "duplicates": options.duplicates,
        "catalog_sha256": catalog_sha256(catalog),
        **facts,
    }
    return rankings_table(
        answers.example_ids,
        answers.targets,
        ranking,
        settings,
        empty=flags[C.EMPTY],
        in_catalog=flags[C.IN_CATALOG],
        in_history=flags[C.IN_HISTORY],
    )


def rerank_method(
    folder: str | Path,
    formula: str,
    validation: tuple[Split, ItemValues],
    test: tuple[Split, ItemValues],
    catalog: Catalog,
    grid: Sequence[float],
    ks: Sequence[int],
    options: RankOptions,
    *,
    choose_by: str = "each",
    **facts: Any,
) -> Choice:
    """Choose on validation, apply to test, write everything but the scores into `folder`, and return the choice.

    `validation`, `test`: a split and its weights (`weight_rows`); its costs may be of any kind, such as fused ones.
    `facts` (JSON-able) describe the costs and weights. Raises BigrecError if the two share an example.
    """
    check_disjoint(validation[0].answers.example_ids, test[0].answers.example_ids)
    folder = Path(folder)
    check_ks(ks, len(catalog))
    choice = search(formula, *validation, catalog, grid, ks, options, choose_by=choose_by)
    facts |= {
        "choose_by": choose_by,
        "grid": fingerprint(choice.grid),
        "validation_examples": len(validation[0].answers.example_ids),
        "validation_ids": fingerprint(validation[0].answers.example_ids),
    }
    table, by_metric = apply_choice(formula, choice.chosen, *test, catalog, options, **facts)
    write_rankings(table, folder)
    write_table(by_metric, folder / RANKS_BY_METRIC_FILE)
    write_json(folder / CHOICE_FILE, {**json.loads(table.schema.metadata[METADATA_KEY]), "grid": choice.grid})
    save_curves(choice, folder, PARAMETERS[formula])
    return choice
