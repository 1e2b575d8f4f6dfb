"""Rewards of catalog rows. The target of an example is looked up by its id, never by any text.

A reward is a function of `groups.Groups` that returns (B, G) numbers. A recipe gives each its weight, and may name
functions of its own: `rewards: {hit: 1, my_package.rewards.novelty: 0.2}`. Targets are those of training examples only.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.grpo.groups import Groups
from bigrec_hf.grpo.percentile import ItemScores, Percentile
from bigrec_hf.grpo.similarity import EMBEDDED, unit_vectors

Reward = Callable[[Groups], np.ndarray]


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


REWARDS: dict[str, Reward] = {"hit": hit, "ranked": ranked, "ndcg": ndcg}
PERCENTILE = "percentile"
NAMES = (*REWARDS, PERCENTILE, *EMBEDDED)


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


def load_rewards(
    weights: Mapping[str, Any],
    item_scores: Callable[[], ItemScores],
    vectors: Callable[[], np.ndarray],
    *,
    ndcg: Reward = ndcg,
) -> WeightedRewards:
    """Return the rewards that a recipe names.

    `item_scores` gives those of `percentile`; `vectors` the embeddings of the titles, (n_items, d), of the rewards in
    EMBEDDED. Each is called only if needed. `ndcg`: the reward of that name. Raises BigrecError for an unknown name, or
    a weight that is not a number.
    """
    if not weights:
        raise BigrecError(f"no reward is named: give at least one of {', '.join(NAMES)}")
    for name, weight in weights.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
            raise BigrecError(f"the weight of reward {name!r} is {weight!r}: give a number")
    found: dict[str, Reward] = {name: _own_function(name) for name in weights if name not in NAMES}
    found |= REWARDS | {"ndcg": ndcg}
    if PERCENTILE in weights:
        found[PERCENTILE] = Percentile(item_scores())
    if needs_vectors(weights):
        unit = unit_vectors(vectors())
        found |= {name: partial(reward, unit=unit) for name, reward in EMBEDDED.items()}
    return WeightedRewards({name: (float(weight), found[name]) for name, weight in weights.items()})


def needs_vectors(weights: Mapping[str, Any]) -> bool:
    """Return whether a reward compares embeddings of titles."""
    return not EMBEDDED.keys().isdisjoint(weights)


def _own_function(name: str) -> Reward:
    module, _, function = str(name).rpartition(".")
    known = ", ".join(NAMES)
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
