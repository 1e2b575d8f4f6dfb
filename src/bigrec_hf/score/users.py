"""Intervals and tests that treat users, not examples, as the units that were sampled.

The examples of one user resemble each other, and a protocol may take hundreds from one user (9,057 test examples of
MovieLens-100K come from 166 users). Treated as independent, they give intervals that are too narrow and tests that find
differences where there are none. Therefore whole users are resampled, and the differences of a user change sign
together.

If the users of the examples are unknown (predictions in the reference's JSON), every example counts as its own user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.earlier import user_and_position

RARE_HITS = 20  # fewer (effective) hits or misses: Wilson's interval instead of the bootstrap
DRAWS_AT_ONCE = 1 << 24  # counts of a multinomial held at a time


def user_ids(example_ids: Sequence[str]) -> list[str] | None:
    """Return the user of every example (`user:position`); None if some id names none, or there is only one user."""
    parts = [user_and_position(example_id) for example_id in example_ids]
    found = [part[0] for part in parts if part is not None]
    return found if len(found) == len(parts) and (len(set(found)) > 1 or len(found) < 2) else None


def user_codes(users: Sequence[str | None] | None, n: int) -> np.ndarray:
    """Return a code 0 .. number of users - 1 per example, (n,) int64; a distinct one each if the users are unknown."""
    if users is None or any(user is None for user in users):
        return np.arange(n)
    return np.unique(np.asarray(users, object).astype(str), return_inverse=True)[1].astype(np.int64)


def user_sums(values: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Return the sums of each user's rows of `values`, (n, m), as (n_users, m) float64; `users` are codes, (n,)."""
    values = np.asarray(values, np.float64)
    n_users = int(users.max(initial=-1)) + 1
    sums = [np.bincount(users, weights=column, minlength=n_users) for column in values.T]
    return np.stack(sums, axis=1) if sums else np.empty((n_users, 0))


def bootstrap_users(
    values: np.ndarray, users: np.ndarray, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return percentile bootstrap intervals, (low (m,), high (m,)), of the column means of `values`, (n, m) float64.

    Users are drawn with replacement, each with all of its rows, so the mean of a resample is a ratio of sums. Rows stay
    whole, so the difference of two methods on an example remains paired. Users with equal sums are drawn together, by a
    multinomial. Raises BigrecError if n is 0, resamples below 1, or confidence is not between 0 and 1.
    """
    if len(values) == 0:
        raise BigrecError("there is no example to resample: give at least one")
    if resamples < 1 or not 0.0 < confidence < 1.0:
        raise BigrecError(
            f"bootstrap={resamples} must be at least 1, confidence={confidence} between 0 and 1, such as 0.95"
        )
    sums = np.column_stack([np.bincount(users), user_sums(values, users)])  # the first: how many rows
    sums = sums[sums[:, 0] > 0]
    distinct, counts = np.unique(sums, axis=0, return_counts=True)
    random = np.random.default_rng(seed)
    at_once = max(1, DRAWS_AT_ONCE // len(distinct))
    parts = []
    for start in range(0, resamples, at_once):
        size = min(at_once, resamples - start)
        drawn = random.multinomial(counts.sum(), counts / counts.sum(), size=size) @ distinct
        parts.append(drawn[:, 1:] / drawn[:, :1])
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(np.concatenate(parts), [tail, 1.0 - tail], axis=0)
    return low, high


def design_effect(values: np.ndarray, users: np.ndarray) -> float:
    """Return the ratio of the variance of the mean of `values`, (n,), to that of independent rows; at least 1.

    This is Kish's design effect: the between-user (linearized ratio) variance over the plain one. It is 1 if nothing
    varies.
    """
    values = np.asarray(values, np.float64)
    n, n_users = len(values), int(users.max(initial=-1)) + 1
    plain = np.var(values) / n if n else 0.0
    if n_users < 2 or plain <= 0:
        return 1.0
    residuals = np.bincount(users, weights=values - np.mean(values))
    clustered = n_users / (n_users - 1) * float(residuals @ residuals) / n**2
    return max(1.0, clustered / plain)


def wilson(hits: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Return Wilson's score interval (1927), (low, high), of the proportion `hits` / `n`; both may be effective counts.

    Equal to `scipy.stats.binomtest(hits, n).proportion_ci(method="wilson")` for whole numbers.
    """
    z = NormalDist().inv_cdf(0.5 + confidence / 2.0)
    share = hits / n
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, float(center - half)), min(1.0, float(center + half))


@dataclass(frozen=True)
class Intervals:
    """Intervals of the means of several metrics, (m,) each, and how they were made."""

    low: np.ndarray
    high: np.ndarray
    wilson: np.ndarray  # bool: Wilson's, for rare hits or misses; else the bootstrap over users
    design_effect: np.ndarray  # of the hits, as used in Wilson's interval


def intervals(
    gains: np.ndarray, users: np.ndarray, resamples: int = 1000, confidence: float = 0.95, seed: int = 0
) -> Intervals:
    """Return intervals of the means of `gains`, (n, m): the gain of each example, 0 for a miss, at most 1 for a hit.

    A percentile bootstrap interval of rare hits is too short: at a true rate of 0.0033 and 300 examples, 65 % of the 95
    % intervals contain it. With fewer than RARE_HITS effective hits, or misses, the interval is therefore Wilson's, for
    n / design effect examples. Hits too rare to estimate their own design effect use that of the column with the most
    hits, assuming that users differ in the same proportion. If hits gain less than 1 (NDCG), Wilson's interval is that
    of (sum of gains)^2 / (sum of squares) hits, scaled to the same mean.
    """
    gains = np.asarray(gains, np.float64)
    low, high = bootstrap_users(gains, users, resamples, confidence, seed)
    hits, n = (gains > 0).sum(axis=0), len(gains)
    effects = np.ones(len(hits))
    if users.max() + 1 < n:
        most = int(np.argmax(hits))
        widest = design_effect(gains[:, most] > 0, users)
        for column, own in enumerate(hits):
            odds, most_odds = ((k + 1) / (n - k + 1) for k in (own, hits[most]))
            common = own >= RARE_HITS
            effects[column] = (
                design_effect(gains[:, column] > 0, users) if common else 1 + (widest - 1) * odds / most_odds
            )
    misses = np.where(
        (gains == (gains > 0)).all(axis=0), n - hits, n
    )  # a metric that is rarely missed has no gains below 1
    rare = np.minimum(hits, misses) / effects < RARE_HITS
    for column in np.flatnonzero(rare).tolist():
        gain, effect = gains[:, column], effects[column]
        squares = float(gain @ gain)
        effective, scale = (gain.sum() ** 2 / squares, squares / gain.sum()) if squares else (0.0, 1.0)
        ends = wilson(effective / effect, n / effect, confidence)
        low[column], high[column] = scale * ends[0], scale * ends[1]
    return Intervals(low, high, rare, effects)
