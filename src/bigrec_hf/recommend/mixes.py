"""Rankers in which the language model takes part, as functions from histories to recommendations.

Where `engine` is a function, the model is loaded when it first ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from bigrec_hf.data.catalog import Catalog
from bigrec_hf.data.generations import Answers
from bigrec_hf.generate.exact import likeliest_titles
from bigrec_hf.hub.bundle import METHOD
from bigrec_hf.hub.by_distance import GroundedTexts
from bigrec_hf.hub.by_score import ScoredTitles, best_items
from bigrec_hf.hub.config import RecommenderConfig
from bigrec_hf.hub.histories import Found, ItemChoice
from bigrec_hf.hub.recommender import history_id
from bigrec_hf.rank.model_selection import PRIMARY
from bigrec_hf.rank.pool.fit import pooled
from bigrec_hf.rank.pool.stage import level_unwritten
from bigrec_hf.rank.rerank.apply import text_split, weight_rows
from bigrec_hf.rank.rerank.formulas import combine, parts
from bigrec_hf.recommend.models import POPULARITY, Score


class Histories(NamedTuple):
    """Histories of some users, oldest item first."""

    titles: Sequence[Sequence[str]]
    rows: Sequence[Sequence[int]]  # catalog rows of the same; -1 for a title that is not in the catalog

    def ids(self) -> list[str]:
        """What stands for the example ids of a run."""
        return [history_id(titles) for titles in self.titles]


Engine = GroundedTexts | ScoredTitles
Rank = Callable[[Histories, ItemChoice], list[Found]]


def by_texts(engine: Engine, config: RecommenderConfig, *, hybrid: bool) -> Rank:
    """Titles written with the decoding of `config`, nearest items after them; `hybrid`: the titles themselves first."""
    assert isinstance(engine, GroundedTexts)  # other decodings are offered for such engines alone
    texts = engine.with_config(config)

    def rank(histories: Histories, choice: ItemChoice) -> list[Found]:
        return texts.recommend(histories.titles, histories.ids(), choice, hybrid=hybrid)

    return rank


def reranked(
    choice: Mapping[str, Any],
    engine: Callable[[], Engine],
    catalog: Catalog,
    *,
    counts: np.ndarray | None,
    score: Score | None,
) -> Rank:
    """Distances combined with popularity (`counts`, (n_items,)), a model's `score` or both, as `rerank` chose."""
    weights, formula, value = choice["weighted_by"], choice["formula"], choice["parameters"][PRIMARY]

    def rank(histories: Histories, chosen: ItemChoice) -> list[Found]:
        grounded, n, ids = engine(), len(histories.titles), histories.ids()
        assert isinstance(grounded, GroundedTexts)  # mixes of distances are offered for such engines alone
        texts, text_scores = grounded.generate(histories.titles, ids)
        answers = Answers(ids, [row[0] for row in texts], [0] * n, [[] for _ in ids])
        split = text_split(answers, grounded.index, grounded.encode)
        other = None if score is None else score(histories.rows)
        popularity = None if counts is None else counts.tolist()
        costs, weight = split.costs(0, n), weight_rows(weights, n, popularity, other)(0, n)
        if chosen.candidates is not None:
            costs, weight = costs[:, chosen.candidates], weight[:, chosen.candidates]
        cost = combine(formula, *parts(formula, costs, weight, chosen.hidden), value)
        if chosen.candidates is not None:  # back to the catalog's columns; the others are never ranked
            full = np.zeros((n, len(catalog)))
            full[:, chosen.candidates] = cost
            cost = full
        items = best_items(-cost, catalog, chosen)
        return [
            Found(text, scores, [] if empty else own)
            for text, scores, own, empty in zip(texts, text_scores, items, split.empty, strict=True)
        ]

    return rank


def in_pool(
    weights: Mapping[str, float],
    engine: Callable[[], Engine],
    catalog: Catalog,
    *,
    counts: np.ndarray | None,
    scores: Mapping[str, Score],
) -> Rank:
    """The weighted sum of the language model's log-probabilities, popularity and other models' `scores`, as `pool`
    fitted it; `counts`, (n_items,), where popularity is among the `weights`."""

    def rank(histories: Histories, chosen: ItemChoice) -> list[Found]:
        n, columns, answers = len(histories.titles), [], None
        for name in weights:
            if name == METHOD:
                model = engine()
                assert isinstance(model, ScoredTitles)  # pools are offered for such engines alone
                own = model.scores(histories.titles)
                answers = likeliest_titles(own, catalog.titles, model.config.decoding["n_texts"])
                level_unwritten(own, catalog)
                columns.append(own)
            elif name == POPULARITY:
                assert counts is not None
                columns.append(np.log1p(counts.astype(np.float32)))
            else:
                columns.append(scores[name](histories.rows))
        whole = [np.broadcast_to(column, (n, len(catalog))) for column in columns]
        total = pooled(whole, np.array([*weights.values()]), 0, n)
        items = best_items(total.astype(np.float32), catalog, chosen)
        if answers is None:
            return [Found([], [], own) for own in items]
        return [Found(*one) for one in zip(*answers, items, strict=True)]

    return rank
