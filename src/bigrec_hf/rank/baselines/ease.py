"""EASE^R (Steck, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW 2019): a linear model in closed form.

Its weights B minimize |X - X B|^2 + lambda |B|^2 subject to diag(B) = 0, where X is the binary users-by-items matrix of
the training sequences: B = I - P / diag(P) (column by column) with P = (X'X + lambda I)^-1.

Cost for n items: one n x n matrix, in place: 8 n^2 bytes in float64, 4 n^2 in float32 (20,000 items: 3.0 or 1.5 GiB),
and n^3 floating-point operations for each lambda (20,000 items at 50 GFLOP/s: 160 s). Catalogs of more than
`DOUBLE_ITEMS` items use float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from scipy.linalg import lapack
from scipy.sparse import csr_array

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.sequences import ItemSequences
from bigrec_hf.rank.baselines.linear import Fitted

LAMBDAS = (50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0)
MOST_ITEMS = 20_000  # largest catalog, unless a setting says otherwise
DOUBLE_ITEMS = 10_000  # float64 up to this many items (763 MiB), float32 beyond
PAIRS_AT_ONCE = 1 << 25  # pairs of items counted at a time
BLOCK = 1024  # columns mirrored at a time


def interaction_matrix(sequences: ItemSequences, n_items: int) -> csr_array:
    """Return the binary matrix (n_sequences, n_items), float32: 1 if an item occurs in a training sequence."""
    owner = np.repeat(np.arange(len(sequences)), np.diff(sequences.starts))
    pairs = np.unique(owner * np.int64(n_items) + sequences.items)
    shape = (len(sequences), n_items)
    return csr_array((np.ones(len(pairs), np.float32), (pairs // n_items, pairs % n_items)), shape=shape)


def check_size(n_items: int, most: int = MOST_ITEMS) -> None:
    """Raise BigrecError if the catalog is too large for a dense inverse."""
    if n_items > most:
        gib = n_items**2 * np.dtype(_dtype(n_items)).itemsize / 2**30
        raise BigrecError(
            f"EASE inverts a dense matrix of {n_items:,} x {n_items:,} items ({gib:.1f} GiB), more than the {most:,} "
            "items allowed: use itemknn, prepare with --k_core, or raise --ease_max_items if memory and time allow"
        )


def ease_weights(matrix: csr_array, ridge: float) -> np.ndarray:
    """Return B, (n_items, n_items), of a binary users-by-items `matrix`; `ridge` is lambda. float64 or float32 by size.

    An item without any training interaction has zero weights. Raises BigrecError for a ridge that is not above 0, and
    if the matrix cannot be factored (a ridge far too small for float32).
    """
    if not ridge > 0 or not np.isfinite(ridge):
        raise BigrecError(f"EASE: lambda is {ridge}: give a positive number, such as 500")
    n_items = matrix.shape[1]
    gram = _gram(matrix, _dtype(n_items))
    gram[np.diag_indices(n_items)] += ridge
    inverse = _inverse(gram, ridge)
    scale = -1.0 / np.diag(inverse)
    inverse *= scale  # column j by its own diagonal
    np.fill_diagonal(inverse, 0.0)
    return inverse


def ease_models(
    sequences: ItemSequences, n_items: int, lambdas: Sequence[float], most: int = MOST_ITEMS
) -> list[Fitted]:
    """Return one model for each lambda, for `linear.choose_model`; matrices are inverted only when needed."""
    check_size(n_items, most)
    matrix = interaction_matrix(sequences, n_items)
    return [Fitted({"lambda": ridge}, partial(ease_weights, matrix, ridge)) for ridge in lambdas]


def _dtype(n_items: int) -> type[np.floating]:
    return np.float64 if n_items <= DOUBLE_ITEMS else np.float32


def _gram(matrix: csr_array, dtype: type[np.floating]) -> np.ndarray:
    """Return X'X, (n_items, n_items), from sparse products of as many users at a time as PAIRS_AT_ONCE allows."""
    gram = np.zeros((matrix.shape[1],) * 2, dtype)
    pairs = np.cumsum(np.diff(matrix.indptr).astype(np.int64) ** 2)
    start = 0
    while start < matrix.shape[0]:
        done = pairs[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(pairs, done + PAIRS_AT_ONCE, side="right")))
        part = matrix[start:stop]
        counts = (part.T @ part).tocoo()  # whole numbers, exact in float32 up to 2^24 users
        gram[counts.coords] += counts.data
        start = stop
    return gram


def _inverse(gram: np.ndarray, ridge: float) -> np.ndarray:
    """Invert a symmetric positive definite matrix in place."""
    factor, invert = (lapack.dpotrf, lapack.dpotri) if gram.dtype == np.float64 else (lapack.spotrf, lapack.spotri)
    lower = gram.T  # symmetric, so the transposed view is Fortran-ordered without a copy
    lower, failed = factor(lower, lower=1, clean=0, overwrite_a=1)
    if not failed:
        lower, failed = invert(lower, lower=1, overwrite_c=1)
    if failed:
        raise BigrecError(f"EASE: no inverse in {gram.dtype} with lambda {ridge:g}: choose a larger one")
    full = lower.T  # its upper triangle is filled
    for start in range(0, len(full), BLOCK):
        rows = slice(start, start + BLOCK)
        corner = full[rows, rows]
        corner[:] = np.triu(corner) + np.triu(corner, 1).T
        full[start + BLOCK :, rows] = full[rows, start + BLOCK :].T
    return full
