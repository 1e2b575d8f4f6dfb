"""A logarithmic opinion pool of item scores: p(item) proportional to exp(sum of weight x score), over the candidates.

Scores may be log-probabilities (a language model's) or any numbers of which more is better (EASE, SASRec, the log of a
train count): the weights turn them into one scale. They are fitted by maximum likelihood of the targets of validation
examples, a concave problem with one solution, which uses every example rather than the few whose target is near the
top. Weights are not negative: a model that does not help gets 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import Bounds, minimize

from bigrec_hf.common.errors import BigrecError

CHUNK = 256  # examples whose probabilities are held at a time
FOLDS = 5  # of the users, to estimate the likelihood of examples that the weights were not fitted to


def pooled(scores: Sequence[np.ndarray], weights: np.ndarray, start: int, stop: int) -> np.ndarray:
    """The weighted sum of the scores of examples start..stop.  # (stop - start, n_items) float64

    `scores`: for each model (n, n_items), or (n_items,) if the same for every example.
    """
    total = np.zeros((stop - start, scores[0].shape[-1]))
    for values, weight in zip(scores, weights, strict=True):
        total += weight * (values if values.ndim == 1 else values[start:stop])
    return total


def pool_scores(scores: Sequence[np.ndarray], weights: np.ndarray, n: int) -> np.ndarray:
    """The weighted sums of the scores of all `n` examples.  # (n, n_items) float32; `scores` as in `pooled`"""
    total = np.empty((n, scores[0].shape[-1]), np.float32)
    for start in range(0, len(total), CHUNK):
        total[start : start + CHUNK] = pooled(scores, weights, start, min(start + CHUNK, len(total)))
    return total


def rows_of(scores: np.ndarray) -> Callable[[int, int], np.ndarray]:
    """Return a function that gives a range of the rows."""
    return lambda start, stop: scores[start:stop]


def nats_per_example(
    scores: Sequence[np.ndarray],
    weights: np.ndarray,
    targets: np.ndarray,
    hidden: Sequence[Sequence[int]] | None = None,
) -> np.ndarray:
    """-log p(target) of each example in nats.  # (n,) float64; arguments as in `fit_weights`"""
    return _likelihood(scores, weights, targets, hidden)[0]


def _likelihood(
    scores: Sequence[np.ndarray], weights: np.ndarray, targets: np.ndarray, hidden: Sequence[Sequence[int]] | None
) -> tuple[np.ndarray, np.ndarray]:
    """-log p(target), (n,), and its derivatives by the weights, (n, m)."""
    nats, slopes = np.empty(len(targets)), np.empty((len(targets), len(scores)))
    for start in range(0, len(targets), CHUNK):
        stop = min(start + CHUNK, len(targets))
        logits = pooled(scores, weights, start, stop)
        for row, items in enumerate(hidden[start:stop] if hidden is not None else ()):
            logits[row, items] = -np.inf
        rows, own = np.arange(stop - start), targets[start:stop]
        logits -= logits.max(axis=1, keepdims=True)
        at_target = logits[rows, own]
        p = np.exp(logits)
        mass = p.sum(axis=1)
        p /= mass[:, None]
        nats[start:stop] = np.log(mass) - at_target
        for column, values in enumerate(scores):
            values = np.broadcast_to(values, (len(targets), logits.shape[1]))[start:stop]
            slopes[start:stop, column] = np.einsum("ij,ij->i", p, values) - values[rows, own]
    return nats, slopes


def fit_weights(
    scores: Sequence[np.ndarray], targets: np.ndarray, hidden: Sequence[Sequence[int]] | None = None
) -> np.ndarray:
    """Weights >= 0 under which the targets are most likely.  # (m,) float64

    Args:
        scores: m arrays of finite scores, (n, n_items) or (n_items,).
        targets: (n,) int, catalog rows.
        hidden: catalog rows of each example that are not candidates, never its target.

    A model with the same score for every item gets 0. Raises BigrecError if there is no example.
    """
    if not len(targets):
        raise BigrecError("there is no validation example to fit weights to: prepare more data")
    scale = np.array([_spread(values) for values in scores])  # so that all weights are of one size for the optimizer

    def loss(scaled: np.ndarray) -> tuple[float, np.ndarray]:
        nats, slopes = _likelihood(scores, scaled / scale, targets, hidden)
        return float(nats.mean()), slopes.mean(axis=0) / scale

    start = np.full(len(scores), 1.0 / len(scores))
    bounds = Bounds(np.zeros(len(scores)), np.full(len(scores), np.inf))
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"ftol": 1e-14, "gtol": 1e-8})
    useless = np.array([not np.ptp(values) for values in scores])
    return np.where(useless, 0.0, found.x / scale)


def _spread(values: np.ndarray) -> float:
    """A typical difference of two items' scores, float; 1 where all are equal."""
    deviation = float(np.mean(np.std(values[:CHUNK], axis=-1, dtype=np.float64)))
    return deviation if deviation > 0 else 1.0


def cross_fitted_nats(
    scores: Sequence[np.ndarray],
    targets: np.ndarray,
    users: np.ndarray,
    hidden: Sequence[Sequence[int]] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """-log p(target) of each example, by weights fitted to the examples of other users.  # (n,) float64, nats

    `users`: (n,) codes. Users are dealt into FOLDS parts; with a single user, the weights are fitted to all examples.
    """
    names, codes = np.unique(users, return_inverse=True)
    fold = (np.random.default_rng(seed).permutation(len(names)) % FOLDS)[codes]
    nats = np.empty(len(targets))
    for part in np.unique(fold):
        inside = np.flatnonzero(fold == part)
        outside = np.flatnonzero(fold != part) if len(names) > 1 else inside
        fitted, held = _take(scores, targets, hidden, outside), _take(scores, targets, hidden, inside)
        nats[inside] = nats_per_example(held[0], fit_weights(*fitted), *held[1:])
    return nats


def _take(
    scores: Sequence[np.ndarray], targets: np.ndarray, hidden: Sequence[Sequence[int]] | None, rows: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray, list[Sequence[int]] | None]:
    """The arguments of `fit_weights` for some of the examples."""
    return (
        [values if values.ndim == 1 else values[rows] for values in scores],
        targets[rows],
        [hidden[row] for row in rows.tolist()] if hidden is not None else None,
    )
