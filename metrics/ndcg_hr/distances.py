"""Euclidean distances between queries and catalog items: a fast float32 score with a proven error bound, and float64.

The score of item x for query q is ``S = |x - c|^2 - 2 (q - c).(x - c)``, where c is the catalog mean: the squared
distance minus ``|q - c|^2``, which is the same for all items of a query. Subtracting c changes no distance, and saves
digits that cancellation would destroy if vectors share a large common component (as hidden states do).

Error bound. Let u = 2^-24 (float32 unit roundoff), v = 2^-53, d the dimension, Q = |q - c|, X = |x - c|. A float32 dot
product of length d, summed in *any* order, is off by at most d u / (1 - d u) * sum |a_k b_k| (Higham, Accuracy and
Stability of Numerical Algorithms, 2nd ed., section 3.1), and sum |a_k b_k| <= |a| |b|. With the roundings of the
centered vectors (a relative u in every component), of |x|^2 and of the last addition:

    |S - exact| <= (d + 8) u (2 Q X + X^2) * 1.01  +  8 (d + 8) v (Q + X)^2  +  4 (d + 8) * 2^-126

The second term makes a decision based on S agree with the *float64* distance below, whose own rounding it covers; the
third covers underflow (gradual or flushed). Differences within the bound are decided in float64 (`squared_distances`).
The bound holds for d < 100,000.
"""

import numpy as np

FLOAT32_ROUNDOFF = 2.0**-24
FLOAT64_ROUNDOFF = 2.0**-53
FLOAT32_TINY = 2.0**-126
PAIR_CHUNK = 128  # pairs compared in float64 at a time: 128 x 576 float64 fit into a second-level cache


def score_error(query_norms: np.ndarray, item_norm: float | np.ndarray, dim: int) -> np.ndarray:
    """Return a bound on |S - exact| (see the module docstring), float64, broadcast.

    For queries of norm `query_norms` and items of norm <= `item_norm`, both after subtraction of the mean.
    """
    terms = dim + 8
    relative = 1.01 * terms * FLOAT32_ROUNDOFF * (2.0 * query_norms + item_norm) * item_norm
    return relative + 8.0 * terms * FLOAT64_ROUNDOFF * (query_norms + item_norm) ** 2 + 4.0 * terms * FLOAT32_TINY


def check_vectors(name: str, vectors: np.ndarray) -> np.ndarray:
    """The values as a finite, two-dimensional, C-contiguous float32 array, copied only if needed.

    Raises ValueError for other shapes and, naming the row, for NaN or infinity.
    """
    array = np.ascontiguousarray(vectors, dtype=np.float32)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} must be a two-dimensional array (rows, dimensions); its shape is {array.shape}")
    for start in range(0, len(array), 4096):
        chunk = array[start : start + 4096]
        # one pass at memory speed; a sum is finite unless a value is not, or it overflows: then look closer
        with np.errstate(over="ignore", invalid="ignore"):
            total = np.ones(len(chunk), np.float32) @ chunk
        if not np.isfinite(total).all():
            finite = np.isfinite(chunk).all(axis=1)
            if not finite.all():
                row = start + int(np.flatnonzero(~finite)[0])
                raise ValueError(f"{name} holds NaN or infinity in row {row}: encode that text again or drop it")
    return array


def catalog_mean(items: np.ndarray) -> np.ndarray:
    """(d,) float32, the mean item vector. `items`  # (m, d) float32. Its own rounding is harmless, as any c will do."""
    total = np.zeros(items.shape[1], np.float64)
    for start in range(0, len(items), 4096):
        chunk = items[start : start + 4096]
        total += np.full(len(chunk), 1.0 / len(items), np.float32) @ chunk
    return total.astype(np.float32)


def centered_norms(vectors: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """(n,) float64, |vector - mean| computed in float64, in chunks."""
    norms = np.empty(len(vectors), np.float64)
    for start in range(0, len(vectors), 1024):
        chunk = vectors[start : start + 1024].astype(np.float64)
        chunk -= mean
        norms[start : start + 1024] = np.sqrt(np.einsum("ij,ij->i", chunk, chunk))
    return norms


def squared_distances(
    queries: np.ndarray, items: np.ndarray, query_index: np.ndarray, item_index: np.ndarray
) -> np.ndarray:
    """(p,) float64, |queries[query_index] - items[item_index]|^2 of each pair, from the given (uncentered) float32.

    Differences are taken in float64. Equal vectors get bit-equal results, because every pair is summed in the same
    order. This is the distance that defines a rank.
    """
    out = np.empty(len(query_index), np.float64)
    for start in range(0, len(out), PAIR_CHUNK):
        part = slice(start, start + PAIR_CHUNK)
        difference = items[item_index[part]].astype(np.float64)
        difference -= queries[query_index[part]]
        np.vecdot(difference, difference, out=out[part])
    return out
