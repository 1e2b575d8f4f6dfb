"""Rewards of catalog rows. The target of an example is looked up by its id, never by any text.

A reward is a function of `groups.Groups` that returns (B, G) numbers. A recipe gives each its weight, and may name
functions of its own: `rewards: {hit: 1, my_package.rewards.novelty: 0.2}`. Targets are those of training examples only.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.sequences import ItemSequences
from bigrec_hf.grpo.groups import Groups
from bigrec_hf.rank.baselines.ease import check_size, ease_weights, interaction_matrix
from bigrec_hf.rank.baselines.linear import history_matrix

Reward = Callable[[Groups], np.ndarray]
EASE_RIDGE = 500.0


def hit(groups: Groups) -> np.ndarray:
    """1 for the target, 0 for every other title."""
    return groups.is_target.astype(np.float64)


def ranked(groups: Groups) -> np.ndarray:
    """ReRe's ranking reward: in a group with the target, the i-th title (from 0) gets -d_i / (d_0 + d_1 + ...) with
    d_i = 1 / log2(i + 2), and the target 0. In a group without it all get 0."""
    discounts = 1 / np.log2(np.arange(groups.rows.shape[1]) + 2)
    wrong = groups.is_target.any(axis=1, keepdims=True) & ~groups.is_target
    return np.where(wrong, -discounts / discounts.sum(), 0.0)


def ndcg(groups: Groups) -> np.ndarray:
    """What the NDCG of the model's list of all titles would lose without the title.

    With the target at rank r (from 1), the target gets 1 / log2(r + 1), a title above it 1 / log2(r + 1) - 1 / log2(r),
    which is negative, and a title below it 0.
    """
    place = groups.target_ranks[:, None].astype(np.float64)
    now = 1 / np.log2(place + 1)
    above = groups.ranks < place
    without = 1 / np.log2(np.maximum(place, 2))
    return np.where(groups.is_target, now, np.where(above, now - without, 0.0))


@dataclass(frozen=True)
class Percentile:
    """The fraction of the other catalog rows that EASE, fitted to the training sequences, scores lower than the title.

    Ties count half. Every title has a reward, so no group is without any.
    """

    weights: np.ndarray  # (n_items, n_items)

    def __call__(self, groups: Groups) -> np.ndarray:
        """Return rewards from 0 to 1."""
        scores = history_matrix(groups.histories, len(self.weights)) @ self.weights
        return np.stack([percentiles(row, rows) for row, rows in zip(np.asarray(scores), groups.rows, strict=True)])


def percentiles(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the fraction of the other scores, (n,), that are lower than those of these rows; ties count half."""
    order = np.sort(scores)
    lower, upto = (np.searchsorted(order, scores[rows], side=side) for side in ("left", "right"))
    return (lower + (upto - lower - 1) / 2) / max(len(scores) - 1, 1)


REWARDS: dict[str, Reward] = {"hit": hit, "ranked": ranked, "ndcg": ndcg}
PERCENTILE = "percentile"


@dataclass(frozen=True)
class WeightedRewards:
    """The sum of several rewards."""

    parts: Mapping[str, tuple[float, Reward]]  # name -> weight, function

    def __call__(self, groups: Groups) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return the sum, (B, G) float64, and each reward by name before its weight.

        Raises BigrecError for a function that returns another shape, or numbers that are not finite.
        """
        values = {name: np.asarray(reward(groups), np.float64) for name, (_, reward) in self.parts.items()}
        for name, value in values.items():
            if value.shape != groups.rows.shape or not np.isfinite(value).all():
                raise BigrecError(
                    f"reward {name} returned {value.shape} numbers for {groups.rows.shape} titles, or some not "
                    "finite: return one finite number per title"
                )
        total = sum((weight * values[name] for name, (weight, _) in self.parts.items()), np.zeros(groups.rows.shape))
        return total, values


def load_rewards(weights: Mapping[str, Any], sequences: ItemSequences, n_items: int) -> WeightedRewards:
    """Return the rewards that a recipe names; `sequences`: those of the training split, for `percentile`.

    Raises BigrecError for an unknown name, a weight that is not a number, or a catalog too large for EASE.
    """
    parts: dict[str, tuple[float, Reward]] = {}
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise BigrecError(f"the weight of reward {name!r} is {weight!r}: give a number")
        if name == PERCENTILE:
            check_size(n_items)
            reward: Reward = Percentile(ease_weights(interaction_matrix(sequences, n_items), EASE_RIDGE))
        else:
            reward = REWARDS.get(name) or _own_function(name)
        parts[name] = (float(weight), reward)
    if not parts:
        raise BigrecError(f"no reward is named: give at least one of {', '.join([*REWARDS, PERCENTILE])}")
    return WeightedRewards(parts)


def _own_function(name: str) -> Reward:
    module, _, function = str(name).rpartition(".")
    known = ", ".join([*REWARDS, PERCENTILE])
    if not module:
        raise BigrecError(f"unknown reward {name!r}: choose among {known}, or give a function as package.module.name")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise BigrecError(
            f"reward {name!r} cannot be imported ({error}): choose among {known}, or correct it"
        ) from error
    if not callable(found):
        raise BigrecError(f"reward {name!r} is a {type(found).__name__}: name a function of groups")
    return found
