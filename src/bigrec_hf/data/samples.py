"""The samples that the reference draws: the rows to evaluate and the rows to train on."""

from __future__ import annotations

import numpy as np

SAMPLE_SIZE, SAMPLE_SEED = 5000, 42  # the reference's valid_5000 and test_5000


def evaluation_sample(n: int, size: int = SAMPLE_SIZE) -> np.ndarray:
    """Row numbers of `pandas.DataFrame.sample(n=size, random_state=42)`, in drawn order; all n, shuffled, if fewer."""
    return np.random.RandomState(SAMPLE_SEED).choice(n, size=min(n, size), replace=False) if n else np.empty(0, int)


def training_sample(n: int, size: int, seed: int = 0) -> np.ndarray:
    """Row numbers of `datasets.Dataset.shuffle(seed).select(range(size))`; size 0 or above n: all n, shuffled."""
    order = np.random.default_rng(seed).permutation(n)
    return order[:size] if size else order
