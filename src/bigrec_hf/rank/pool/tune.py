"""The weights with which a pool ranks: those of maximum likelihood, tuned to the top of the list.

A likelihood over a catalog is dominated by the many targets far down the list, and scores that are no probabilities
(EASE's) have no scale under which both the top and the rest are right. So each weight is multiplied by one of FACTORS,
one model after the other, as long as NDCG@10 on the validation examples grows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from bigrec_hf.ground.from_scores import rank_scores
from bigrec_hf.metrics.ndcg_hr.scores import ndcg_per_example
from bigrec_hf.rank.pool.fit import fit_weights, pool_scores, rows_of

FACTORS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the likeliest weight
K = 10


def ranking_weights(
    scores: dict[str, np.ndarray],
    targets: np.ndarray,
    hidden: Sequence[Sequence[int]] | None,
    likeliest: dict[str, float],
    method: str,
    hits: Sequence[Sequence[int]],
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the weights, by model, and NDCG@10 on the validation examples: `likeliest`, `chosen` and, if `method` is
    one of several models, `without` it.

    The search starts at `likeliest` and, with `method`, also at the weights chosen for the others alone: on validation
    it never ends below either. Of equals, the weights found first are kept. `hits`: the rows that count as the target
    of each example (`data.rankings.target_rows`); other arguments as in `fit.fit_weights`.
    """
    arrays, names = list(scores.values()), list(scores)
    known: dict[tuple[float, ...], float] = {}

    def value(weights: tuple[float, ...]) -> float:
        if not any(weights):
            return 0.0  # all scores equal: whatever order comes out of that is no ranking
        if weights not in known:
            total = pool_scores(arrays, np.array(weights), len(targets))
            ranks = rank_scores(rows_of(total), hits, total.shape[1], top_k=0, exclude=hidden)
            known[weights] = float(ndcg_per_example(ranks.rank, K).mean())
        return known[weights]

    start = tuple(likeliest[name] for name in names)
    found = climb(start, start, value)
    figures = {"likeliest": value(start)}
    if method in scores and len(scores) > 1:
        others = {name: one for name, one in scores.items() if name != method}
        fitted = fit_weights(list(others.values()), targets, hidden)
        usual = dict(zip(others, fitted.tolist(), strict=True))
        chosen, rest = ranking_weights(others, targets, hidden, usual, method, hits)
        figures["without"] = rest["chosen"]
        found = max(found, climb(tuple(chosen.get(name, 0.0) for name in names), start, value), key=value)
    return dict(zip(names, found, strict=True)), figures | {"chosen": value(found)}


def climb(weights: tuple[float, ...], likeliest: tuple[float, ...], value: Callable[..., float]) -> tuple[float, ...]:
    """Replace one weight after the other by FACTORS x its likeliest one, wherever `value` grows, until none does."""
    before = None
    while before != weights:
        before = weights
        for place, usual in enumerate(likeliest):
            options = [(*weights[:place], usual * factor, *weights[place + 1 :]) for factor in FACTORS]
            weights = max([weights, *options], key=value)  # of equals the first
    return weights
