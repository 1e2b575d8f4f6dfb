"""Linear item-to-item models: the score of an item is the weighted sum of its weights from the items of a history.

Later items of the history count more. EASE and ItemKNN share the input vector of a history, the scores, and the choice
of parameters and of the recency decay on validation examples alone.
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

CHUNK = 512  # examples scored at a time
TIE_BREAK = 1e-6  # largest contribution of popularity to a score, see `linear_scores`

Weights = np.ndarray | csr_array  # (n_items, n_items): row = item of the history, column = item that is scored
Parameters = dict[str, float | int]


@dataclass(frozen=True)
class Fitted:
    """One setting of a model and a function that returns its weights, which may be large: hold one at a time."""

    parameters: Parameters
    weights: Callable[[], Weights]


@dataclass(frozen=True)
class Chosen:
    """The setting with the best validation metric, and all settings that were tried, in order."""

    fitted: Fitted
    decay: float
    value: float
    table: list[dict[str, Any]] = field(default_factory=list)

    @property
    def parameters(self) -> Parameters:
        """The parameters of the model and of the input, as they are written and shown."""
        return {**self.fitted.parameters, "decay": self.decay}


def history_matrix(histories: Sequence[Sequence[int]], n_items: int, decay: float = 1.0, last: int = 0) -> csr_array:
    """Return input vectors, (n, n_items) float32: decay ** age of each item of a history, 0 for all others.

    The latest item has age 0, the one before it 1, and so on; of a repeated item the latest occurrence counts. `last`:
    use only this many of the latest items; 0 = all. Rows below 0 (items that are not in the catalog) are dropped first.
    """
    lengths, columns, values = [], [], []
    for history in histories:
        rows = np.asarray(history, np.int64)
        rows = rows[rows >= 0][-last:][::-1]  # latest first
        distinct, age = np.unique(rows, return_index=True)
        lengths.append(len(distinct))
        columns.append(distinct)
        values.append(float(decay) ** age)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    flat = np.concatenate([np.empty(0, np.int64), *columns])
    data = np.concatenate([np.empty(0), *values]).astype(np.float32)
    return csr_array((data, flat, starts), shape=(len(lengths), n_items))


def linear_scores(inputs: csr_array, weights: Weights, train_counts: np.ndarray) -> np.ndarray:
    """Return scores, (n, n_items) float32: `inputs` (n, n_items) times `weights`.

    `TIE_BREAK` times the train count, relative to the largest, is added to every score, so that items without any
    weight from the history (most items in ItemKNN) are in order of popularity, as in the co-occurrence baseline. An
    empty history is scored by log(1 + train count), as in SASRec.
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


def choose_model(
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
    """Choose the model and decay with the best `metric` on these *validation* examples; of equals the first tried.

    `histories`, `targets`, `exclude`: as in `rank_scores`, one entry per example. The weights of `models` are computed
    one after the other. Raises BigrecError if there is no example, no model or no decay.
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
        raise BigrecError("there are no parameters to choose from: give at least one value of each")
    return Chosen(best.fitted, best.decay, best.value, table)
