"""Linear item-to-item models: an item's score is the sum of its weights from the items of a history, newer ones more.

What EASE and ItemKNN share: the input vector of a history, the scores, and the choice of a model's parameters and of
the input's recency decay, by validation examples alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.sparse import csr_array

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.ground.from_scores import rank_scores
from bigrec_hf.rank.model_selection import mean_metrics

CHUNK = 512  # examples scored together
TIE_BREAK = 1e-6  # the most that popularity adds to a score, see `linear_scores`

Weights = np.ndarray | csr_array  # (n_items, n_items): row = item of the history, column = item that is scored
Parameters = dict[str, float | int]


@dataclass(frozen=True)
class Fitted:
    """One setting of a model, and how to get its weights; they may be large, so that two need not be held at once."""

    parameters: Parameters
    weights: Callable[[], Weights]


@dataclass(frozen=True)
class Chosen:
    """The setting with the best metric on validation, and all that were tried, in the order tried."""

    fitted: Fitted
    decay: float
    value: float
    table: list[dict[str, Any]] = field(default_factory=list)

    @property
    def parameters(self) -> Parameters:
        """The model's and the input's, as they are written and shown."""
        return {**self.fitted.parameters, "decay": self.decay}


def history_matrix(histories: Sequence[Sequence[int]], n_items: int, decay: float = 1.0, last: int = 0) -> csr_array:
    """(n, n_items) float32 input vectors: decay ** age of each item of a history, 0 where it is not in it.

    The newest item has age 0, the one before it 1, and so on; of an item that occurs twice the newest counts. `last`:
    only so many of the newest items are taken; 0 = all. Rows below 0 (items unknown to the catalog) are left out first.
    """
    lengths, columns, values = [], [], []
    for history in histories:
        rows = np.asarray(history, np.int64)
        rows = rows[rows >= 0][-last:][::-1]  # newest first
        distinct, age = np.unique(rows, return_index=True)
        lengths.append(len(distinct))
        columns.append(distinct)
        values.append(float(decay) ** age)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    flat = np.concatenate([np.empty(0, np.int64), *columns])
    data = np.concatenate([np.empty(0), *values]).astype(np.float32)
    return csr_array((data, flat, starts), shape=(len(lengths), n_items))


def linear_scores(inputs: csr_array, weights: Weights, train_counts: np.ndarray) -> np.ndarray:
    """(n, n_items) float32: `inputs` (n, n_items) times `weights`.

    Every score gets `TIE_BREAK` times the item's share of the largest train count, so that items without any weight
    from the history (most items of ItemKNN) stand in the order of popularity, as in the co-occurrence baseline. An
    empty history is scored by log(1 + train count), as SASRec's.
    """
    counts = np.asarray(train_counts, np.float64)
    tie_break = (TIE_BREAK * counts / (counts.max(initial=0) + 1)).astype(np.float32)
    scores = np.empty(inputs.shape, np.float32)
    for start in range(0, len(scores), CHUNK):
        product = inputs[start : start + CHUNK] @ weights
        dense = product if isinstance(product, np.ndarray) else product.toarray()
        np.add(dense, tie_break, out=scores[start : start + CHUNK], casting="same_kind")
    scores[np.diff(inputs.indptr) == 0] = np.log1p(counts)
    return scores


def choose(
    models: Iterable[Fitted],
    decays: Sequence[float],
    histories: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    train_counts: np.ndarray,
    *,
    metric: str = "ndcg@10",
    last: int = 0,
    exclude: Sequence[Sequence[int]] | None = None,
) -> Chosen:
    """The model and decay with the best `metric` on these *validation* examples; of equals the first tried.

    `histories`, `targets`, `exclude`: as `rank_scores` takes them, one entry an example. `models` are asked for their
    weights one after the other. Raises BigrecError where there is no example, no model or no decay.
    """
    if not len(targets):
        raise BigrecError("there is no validation example to choose parameters on: prepare more data")
    n_items = len(train_counts)
    inputs = {decay: history_matrix(histories, n_items, decay, last) for decay in decays}
    best: Chosen | None = None
    table = []
    for fitted in models:
        weights = fitted.weights()
        for decay, vectors in inputs.items():
            scores = linear_scores(vectors, weights, train_counts)
            ranks = rank_scores(lambda a, b, s=scores: s[a:b], targets, n_items, 0, exclude).rank  # type: ignore[misc]
            value = float(mean_metrics(ranks[:, None], metric)[0])
            table.append({**fitted.parameters, "decay": decay, metric: value})
            if best is None or value > best.value:
                best = Chosen(fitted, decay, value)
    if best is None:
        raise BigrecError("no parameters to choose among: give at least one value of each")
    return Chosen(best.fitted, best.decay, best.value, table)
