"""The objectives: policy gradient over groups, divergence from the reference, S-DPO. All per example.

Groups are drawn anew from the current policy for every step, so there is no ratio of policies and nothing to clip.
"""

from __future__ import annotations

import numpy as np
import torch

LEAST_SPREAD = 1e-6  # standard deviation of the rewards of a group below which it has nothing to teach


def advantages(rewards: np.ndarray, weights: np.ndarray, *, scale: bool) -> np.ndarray:
    """Return rewards minus their weighted mean in the group, (B, G); `scale`: divided by their standard deviation.

    `rewards`, `weights` (B, G), weights sum to 1. All zero in a group of equal rewards.
    """
    centred = rewards - (weights * rewards).sum(axis=1, keepdims=True)
    spread = np.sqrt((weights * centred**2).sum(axis=1, keepdims=True))
    same = spread < LEAST_SPREAD
    return np.where(same, 0.0, centred / np.where(same | (not scale), 1.0, spread))


def policy_loss(log_p: torch.Tensor, coefficients: torch.Tensor) -> torch.Tensor:
    """Return -sum_i c_i log p_i, (B,); both (B, G), c a title's weight times its advantage."""
    return -(coefficients * log_p).sum(dim=1)


def expected_loss(log_p: torch.Tensor, rewards: torch.Tensor) -> torch.Tensor:
    """Return -sum_i p_i r_i, (B,): the expected reward of one title drawn from the catalog, negative, if titles outside
    the group have none. Its gradient is exact. Both (B, G)."""
    return -(rewards * log_p.exp()).sum(dim=1)


def group_divergence(log_p: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return KL(p || reference), in nats, over the titles of the group and everything else as one outcome, (B,).

    At most the divergence over the whole catalog, and 0 only if the two agree on the group. `log_p`, `reference`
    (B, G).
    """
    rest, reference_rest = (
        (1 - values.exp().sum(dim=1)).clamp(min=torch.finfo(values.dtype).eps).log() for values in (log_p, reference)
    )
    inside = (log_p.exp() * (log_p - reference)).sum(dim=1)
    return inside + rest.exp() * (rest - reference_rest)


def sdpo_loss(
    log_p: torch.Tensor, reference: torch.Tensor, is_target: torch.Tensor, *, beta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return S-DPO's loss (arXiv 2406.09215), (B,), and whether the target's ratio is the largest, (B,) bool.

    -log sigmoid(-log sum_d exp(beta (r_d - r_t))) over the other titles d of the group, where r is a title's log p less
    that of the reference, and t the target, which occurs once. `log_p`, `reference`, `is_target` (B, G).
    """
    ratios = beta * (log_p - reference)
    target = ratios[is_target]
    others = ratios.masked_fill(is_target, -torch.inf)
    margin = torch.logsumexp(others, dim=1) - target
    return torch.nn.functional.softplus(margin), target > others.amax(dim=1)
