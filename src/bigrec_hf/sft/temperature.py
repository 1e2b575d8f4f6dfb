"""The temperature of the loss over the catalog in training (MSL, arXiv 2504.04178).

With few alternatives at each position the softmax saturates soon, and gradients vanish. MSL divides the logits by a
temperature above 1 while it trains, and decodes without one. Its adaptive temperature is chosen so that the first token
of a target has about the probability SHARE, if the logits of all first tokens are normally distributed. It stays
between LEAST and MOST and moves by the fraction PACE per batch (constants of the authors' code).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from bigrec_hf.common.errors import BigrecError

ADAPTIVE = "adaptive"
SHARE = 0.25
LEAST, MOST = 1.5, 5.0
PACE = 0.05


def read_temperature(value: str) -> float | None:
    """Return the setting `trie_temperature` as a number, None for adaptive. BigrecError for anything else."""
    try:
        number = None if value == ADAPTIVE else float(value)
    except ValueError:
        number = 0.0
    if number is not None and not 0 < number < math.inf:
        raise BigrecError(f"trie_temperature is {value!r}: give a number above 0, or {ADAPTIVE}")
    return number


def fitting_temperature(target_mean: float, mean: float, variance: float, n_tokens: int) -> float:
    """Return the temperature t, from LEAST to MOST, at which the target would have the probability SHARE.

    `target_mean`: mean logit of the targets' first tokens; `mean`, `variance`: of all `n_tokens` first tokens. For
    normally distributed logits -log p = log(n_tokens) + mean / t + variance / (2 t^2) - target_mean / t, which is
    -log(SHARE) at the larger solution of c t^2 - (target_mean - mean) t + variance / 2 = 0, c = log(SHARE n_tokens).
    Where there is none, the vertex is taken; with so few tokens that every t gives more than SHARE, MOST.
    """
    c, lead = math.log(SHARE * n_tokens), target_mean - mean
    if c <= 0:
        return MOST
    return min(max((lead + math.sqrt(max(lead**2 - 2 * c * variance, 0.0))) / (2 * c), LEAST), MOST)


class Temperature(TrainerCallback, ExportableState):
    """The temperature of a training: fixed, or adapted to the logits. A callback, so that checkpoints keep it."""

    def __init__(self, fixed: float | None) -> None:
        """`fixed`: None for adaptive, which starts at LEAST."""
        self.fixed = fixed
        self.value = LEAST if fixed is None else fixed

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this object."""
        return {"args": {"fixed": self.fixed}, "attributes": {"value": self.value}}

    def update(self, sums: torch.Tensor) -> None:
        """Move towards the logits of a batch (`trie_loss.first_token_sums`, of all processes together)."""
        n_targets, of_targets, n_logits, of_all, of_squares = sums.tolist()
        if n_targets == 0 or n_logits < 2:
            return
        mean = of_all / n_logits
        variance = max(of_squares - n_logits * mean**2, 0.0) / (n_logits - 1)
        fitting = fitting_temperature(of_targets / n_targets, mean, variance, round(n_logits / n_targets))
        self.value += PACE * (fitting - self.value)
