"""Which differences are real: paired permutation tests, Holm's correction, bootstrap intervals of a difference.

Everything works on per-example scores of the same examples (`per_example.parquet`, matched by example id): most of the
spread of NDCG@K and HR@K comes from the examples, so two methods must be compared on each example before any mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_table
from bigrec_hf.score.stage import PER_EXAMPLE_FILE
from bigrec_hf.score.users import bootstrap_users, user_codes, user_ids, user_sums

BITS_AT_ONCE = 1 << 22  # signs held at a time
MOST_ENUMERATED = 16  # non-zero differences whose sign patterns are all tried
ROUNDING = 1e-12  # sums that differ by less than this share of their terms' size are equal: only their order differs


@dataclass(frozen=True)
class Scores:
    """Per-example scores of one method (the mean over its seeds, if there are several)."""

    example_ids: list[str]
    metrics: list[str]  # "ndcg@10", "hr@10", ...
    values: np.ndarray  # (n_examples, n_metrics) float64


@dataclass(frozen=True)
class Comparison:
    """One method against the reference by one metric; `low` and `high` are not corrected for many comparisons."""

    name: str
    metric: str
    difference: float  # mean score of `name` minus that of the reference
    low: float
    high: float
    p: float  # two-sided; NaN if it was not tested
    p_corrected: float  # Holm, over all comparisons that were tested

    def mark(self, alpha: float) -> str:
        """▲ or ▼ if the corrected p is below alpha, else nothing."""
        return ("▲" if self.difference > 0 else "▼") if self.p_corrected < alpha else ""


def permutation_test(differences: np.ndarray, permutations: int = 10_000, seed: int = 0) -> np.ndarray:
    """(m,) float64, two-sided p-values of a zero mean, one a column of `differences`  # (n, m) float64.

    Under the hypothesis that the two methods are exchangeable on every example, each difference may as well have the
    other sign. p is the share of sign patterns whose sum is at least as far from zero as the observed one: all patterns
    where a column has so few non-zero differences (k, at most 16) that 2^k does not exceed `permutations`, else that
    many random ones, p = (1 + count) / (1 + permutations), which is never 0 (Phipson and Smyth 2010). The columns share
    the patterns. Raises BigrecError for NaN or infinity, or fewer than one permutation.
    """
    differences = np.asarray(differences, np.float64)
    if differences.ndim != 2 or not np.isfinite(differences).all():
        raise BigrecError("differences must be a finite table of examples by metrics: score both methods again")
    if permutations < 1:
        raise BigrecError(f"permutations={permutations} must be at least 1, such as 10000")
    p = np.ones(differences.shape[1])
    nonzero = np.count_nonzero(differences, axis=0)
    few = (nonzero > 0) & (nonzero <= min(int(np.log2(permutations)), MOST_ENUMERATED))
    for column in np.flatnonzero(few):
        terms = differences[differences[:, column] != 0, column]
        signs = 1.0 - 2.0 * ((np.arange(2 ** len(terms))[:, None] >> np.arange(len(terms))) & 1)
        p[column] = _as_extreme(signs @ terms[:, None], terms[:, None])[0] / len(signs)
    many = np.flatnonzero((nonzero > 0) & ~few)
    if len(many):
        terms = differences[:, many]
        terms = terms[terms.any(axis=1)]  # a difference of zero has no sign
        random = np.random.default_rng(seed)
        at_once = max(1, BITS_AT_ONCE // len(terms))
        count = np.zeros(len(many))
        for start in range(0, permutations, at_once):
            size = (min(at_once, permutations - start), -(-len(terms) // 8))
            bits = np.unpackbits(random.integers(0, 256, size, np.uint8), axis=1, count=len(terms))
            count += _as_extreme(terms.sum(axis=0) - 2.0 * (bits.astype(np.float64) @ terms), terms)
        p[many] = (1.0 + count) / (1.0 + permutations)
    return p


def _as_extreme(sums: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """(m,) how many of `sums` (patterns, m) lie at least as far from zero as the sum of `terms` (n, m)."""
    return (np.abs(sums) >= np.abs(terms.sum(axis=0)) - ROUNDING * np.abs(terms).sum(axis=0)).sum(axis=0)


def holm(p: Sequence[float] | np.ndarray) -> np.ndarray:
    """p-values corrected for their number (Holm 1979): the chance of any false mark stays below the level.

    The i-th smallest of m is multiplied by m - i + 1, made monotone, and cut at 1. Valid however the tests depend.
    """
    p = np.asarray(p, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return corrected


def read_method_scores(folders: Sequence[str | Path]) -> Scores:
    """Per-example NDCG@K and HR@K of a method; several folders (its seeds) are averaged example by example.

    Raises BigrecError for a missing file, an id that occurs twice, or seeds of other examples.
    """
    scores: Scores | None = None
    for folder in folders:
        path = Path(folder) / PER_EXAMPLE_FILE
        if not path.is_file():
            raise BigrecError(f"{path} does not exist: run `bigrec-hf score` first")
        table = read_table(path)
        ids = table[C.EXAMPLE_ID].to_pylist()
        if len(set(ids)) < len(ids):
            raise BigrecError(f"{path} holds an example id twice: examples cannot be matched by it")
        metrics = [name for name in table.column_names if name.startswith(("ndcg@", "hr@"))]
        values = np.column_stack([table[name].to_numpy() for name in metrics]).astype(np.float64)
        read = Scores(ids, metrics, values)
        if scores is None:
            scores = read
        else:
            shared, mine, other = matched(scores, read, str(folders[0]), str(folder))
            scores = Scores(scores.example_ids, shared, mine + other)
    if scores is None:
        raise BigrecError("no folder of scores given")
    return Scores(scores.example_ids, scores.metrics, scores.values / len(folders))


def matched(one: Scores, other: Scores, name: str, other_name: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The metrics both have, and both values, (n, m) each, in the order of `one`'s examples.

    Raises BigrecError if the examples differ, or no metric is shared.
    """
    position = {example: i for i, example in enumerate(other.example_ids)}
    apart = set(one.example_ids) ^ set(position)
    if apart:
        raise BigrecError(
            f"{name} and {other_name} are not over the same examples: {len(apart)} are in only one of them, such as "
            f"{min(apart)!r}; score both on one split and sample"
        )
    metrics = [metric for metric in one.metrics if metric in other.metrics]
    if not metrics:
        raise BigrecError(f"{name} and {other_name} share no cut-off K: score both with the same --ks")
    order = [position[example] for example in one.example_ids]
    return (
        metrics,
        one.values[:, [one.metrics.index(metric) for metric in metrics]],
        other.values[np.ix_(order, [other.metrics.index(metric) for metric in metrics])],
    )


def compare(
    scores: Mapping[str, Scores],
    reference: str,
    *,
    tested: Sequence[str] | None = None,
    alpha: float = 0.05,
    permutations: int = 10_000,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[list[Comparison], int]:
    """Every other method against `reference`, by every shared metric; `tested` metrics (None: all) also get a p.

    The p-values are corrected over all tests made here, so that few metrics, named before the results are seen, leave
    more power than all of them. Returns the comparisons and the number of permutations used: at least `permutations`,
    and enough for the smallest possible p to survive the correction at `alpha`. The intervals have level 1 - alpha.
    Raises BigrecError if the examples differ.
    """
    pairs = {
        name: matched(method, scores[reference], name, reference)
        for name, method in scores.items()
        if name != reference
    }
    n_tests = sum(tested is None or metric in tested for metrics, _, _ in pairs.values() for metric in metrics)
    permutations = max(permutations, int(np.ceil(2 * n_tests / alpha)))
    found: list[tuple[str, str, float, float, float, float]] = []
    for name, (metrics, values, base) in pairs.items():
        differences = values - base
        ids = scores[name].example_ids
        users = user_codes(user_ids(ids), len(ids))  # whole users are resampled, whole users' differences change sign
        low, high = bootstrap_users(differences, users, resamples, 1.0 - alpha, seed)
        p = np.full(len(metrics), np.nan)
        columns = [place for place, metric in enumerate(metrics) if tested is None or metric in tested]
        p[columns] = permutation_test(user_sums(differences[:, columns], users), permutations, seed)
        found += zip([name] * len(metrics), metrics, differences.mean(axis=0), low, high, p, strict=True)
    corrected = np.array([row[-1] for row in found])
    corrected[~np.isnan(corrected)] = holm(corrected[~np.isnan(corrected)])
    comparisons = [
        Comparison(name, metric, float(difference), float(low), float(high), float(p), float(q))
        for (name, metric, difference, low, high, p), q in zip(found, corrected, strict=True)
    ]
    return comparisons, permutations
