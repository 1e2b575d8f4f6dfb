"""Rewards of titles' embeddings: those of Bi-Step-Rec's GRPO scripts, on catalog rows instead of generated text.

Source: github.com/Shengxiang-Lin/Bi-Step-Rec, commit 312e591: `train-grpo-1.py` and `train-grpo-3.py` (likeness to the
target, by the last token of Qwen2.5 and of llama-7b), and `train-grpo-2.py` (relevance, diversity and novelty, by
all-mpnet-base-v2). The likeness of two titles is (1 + cosine) / 2.

Left out of the third is what depends on the order of the examples: its weights drift with the spreads of the last
hundred rewards, the sum is divided by their interquartile range, and the penalty of a repetition grows with each one.
Advantages are scaled within each group anyway.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bigrec_hf.grpo.groups import Groups

RELEVANCE, DIVERSITY, NOVELTY = 2.0, 1.0, 0.8  # weights of the three
DECAY = 0.9  # of the weight in `relevance`, per place from the newest title
IRRELEVANT, TOO_SIMILAR = (0.3, 0.5), (0.2, 0.25)  # relevance, novelty below which a title loses so much
REPEATED = -2.0 * (1 + np.log(2))  # of a title of the history, in place of everything else


def unit_vectors(vectors: np.ndarray) -> np.ndarray:
    """Return vectors, (n, d), of length 1, float32; one of zeros stays so."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)


def similarity(groups: Groups, unit: np.ndarray) -> np.ndarray:
    """The likeness of each title to the target, (B, G); `unit`: `unit_vectors` by catalog row."""
    return (1 + np.einsum("bgd,bd->bg", unit[groups.rows], unit[groups.targets]).astype(np.float64)) / 2


def relevance_diversity_novelty(groups: Groups, unit: np.ndarray) -> np.ndarray:
    """2 x relevance + diversity + 0.8 x novelty of each title for its history, (B, G); `unit`: as in `similarity`.

    A title of relevance below 0.3 loses 0.5, another of novelty below 0.2 loses 0.25; a title of the history gets
    REPEATED. The target is not used.
    """
    return np.stack([_rewards(rows, own, unit) for rows, own in zip(groups.rows, groups.histories, strict=True)])


def _rewards(rows: np.ndarray, history: Sequence[int], unit: np.ndarray) -> np.ndarray:
    titles, past = unit[rows].astype(np.float64), unit[np.asarray(history, np.int64)].astype(np.float64)
    to_history = (1 + titles @ past.T) / 2  # (G, n)
    relevant, novel = relevance(to_history), novelty(to_history)
    total = RELEVANCE * relevant + DIVERSITY * diversity(to_history, (1 + past @ past.T) / 2) + NOVELTY * novel
    total -= np.where(relevant < IRRELEVANT[0], IRRELEVANT[1], np.where(novel < TOO_SIMILAR[0], TOO_SIMILAR[1], 0.0))
    return np.where(np.isin(rows, history), REPEATED, total)


def relevance(likeness: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-10 (m - 0.5))) of the mean likeness m to the history, in which the title before another counts 0.9
    times as much; 0.7 without a history. `likeness` (G, n) to the history, oldest first."""
    n = likeness.shape[1]
    if n == 0:
        return np.full(len(likeness), 0.7)
    weights = DECAY ** np.arange(n)[::-1]
    return 1 / (1 + np.exp(-10 * (likeness @ weights / weights.sum() - 0.5)))


def diversity(likeness: np.ndarray, among: np.ndarray) -> np.ndarray:
    """log(1 + 10 g) / 2, where g is how much the mean unlikeness of pairs of the history grows by the title, at least
    0; 0.5 with fewer than two titles. `likeness` (G, n), `among` (n, n) of the history's own titles."""
    n = likeness.shape[1]
    if n < 2:
        return np.full(len(likeness), 0.5)
    pairs = among[np.triu_indices(n, 1)].sum()
    before, after = pairs / (n * (n - 1) / 2), (pairs + likeness.sum(axis=1)) / (n * (n + 1) / 2)
    return np.log1p(10 * np.maximum(before - after, 0.0)) / 2


def novelty(likeness: np.ndarray) -> np.ndarray:
    """1 - the least likeness to a title of the history: half of it below 0.3, 1.2 times it, at most 1, above 0.7; 1
    without a history. (The least, not the greatest: as in the script.) `likeness` (G, n)."""
    if likeness.shape[1] == 0:
        return np.ones(len(likeness))
    found = 1 - likeness.min(axis=1)
    return np.where(found < 0.3, found / 2, np.where(found > 0.7, np.minimum(1.0, 1.2 * found), found))


EMBEDDED = {"similarity": similarity, "relevance_diversity_novelty": relevance_diversity_novelty}
