"""NDCG@K and HR@K with one target per example, from 0-based ranks: per example, as means, and with intervals."""

from collections.abc import Sequence

import numpy as np

DEFAULT_KS = (1, 3, 5, 10, 20, 50)


def hr_per_example(rank: np.ndarray, k: int) -> np.ndarray:
    """(n,) float64: 1 if the target is among the first k, else 0. `rank`  # (n,) int64, 0-based."""
    return (np.asarray(rank) < k).astype(np.float64)


def ndcg_per_example(rank: np.ndarray, k: int) -> np.ndarray:
    """(n,) float64: 1 / log2(rank + 2) if the target is among the first k, else 0; one target's ideal DCG is 1."""
    rank = np.asarray(rank)
    return np.where(rank < k, 1.0 / np.log2(np.maximum(rank, 0) + 2.0), 0.0)


def check_ks(ks: Sequence[int], n_items: int | None = None) -> list[int]:
    """Return the cut-offs, ascending and distinct.

    Raises ValueError unless all are whole numbers from 1 to `n_items`.
    """
    try:
        checked = sorted({int(k) for k in ks if int(k) == k})
    except (TypeError, ValueError):
        checked = []
    if not checked or len(checked) < len(set(ks)) or checked[0] < 1:
        raise ValueError(f"ks={ks!r} must be a list of whole numbers of at least 1, such as [1, 5, 10]")
    if n_items is not None and checked[-1] > n_items:
        fitting = [k for k in checked if k <= n_items] or [n_items]
        raise ValueError(f"K={checked[-1]} is larger than the catalog ({n_items} items): pass ks={fitting}")
    return checked


def mean_scores(rank: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """{"ndcg@K": ..., "hr@K": ...} over the examples. `rank`  # (n,) int64, 0-based. ValueError if n is 0."""
    if len(rank) == 0:
        raise ValueError("there is no example to score: give at least one prediction")
    scores = {f"ndcg@{k}": float(ndcg_per_example(rank, k).mean()) for k in ks}
    scores.update({f"hr@{k}": float(hr_per_example(rank, k).mean()) for k in ks})
    return scores


def bootstrap_intervals(
    rank: np.ndarray, ks: Sequence[int], resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> dict[str, float]:
    """Percentile bootstrap intervals of the means over examples: {"hr@10_low": ..., "hr@10_high": ..., ...}.

    Resampling n examples with replacement means drawing how often each distinct outcome occurs, so one multinomial over
    the ranks below max(ks) and "miss" make up a resample, whatever n is. If no example is a hit, both ends are 0.
    """
    if resamples < 1:
        raise ValueError(f"bootstrap={resamples} must be at least 1 resample (0 in the settings means: no interval)")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence} must lie between 0 and 1, such as 0.95")
    if len(rank) == 0:
        raise ValueError("there is no example to resample: give at least one prediction")
    outcomes = np.arange(max(ks) + 1)  # the last one: a miss at every K
    counts = np.bincount(np.minimum(rank, outcomes[-1]), minlength=len(outcomes))
    draws = np.random.default_rng(seed).multinomial(len(rank), counts / counts.sum(), size=resamples)
    tails = [(1.0 - confidence) / 2.0, (1.0 + confidence) / 2.0]
    intervals = {}
    for name, per_example in (("ndcg", ndcg_per_example), ("hr", hr_per_example)):
        for k in ks:
            low, high = np.quantile(draws @ per_example(outcomes, k) / len(rank), tails)
            intervals[f"{name}@{k}_low"], intervals[f"{name}@{k}_high"] = float(low), float(high)
    return intervals
