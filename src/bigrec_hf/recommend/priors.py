"""The weight of what a ranker mixes with the language model: the one that the run chose, or any other.

`choice` is what `rerank` or `pool` wrote (choice.json). The language model alone is the mix with popularity in which
popularity has no weight: `plain_choice`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.hub.bundle import METHOD
from bigrec_hf.rank.model_selection import PRIMARY
from bigrec_hf.rank.rerank.formulas import GAMMA_LIMIT
from bigrec_hf.recommend.models import POPULARITY


class Prior(NamedTuple):
    """What is mixed with the language model, and how much of it."""

    of: str  # such as "popularity", "ease + popularity"
    chosen: float
    usual: float  # the largest weight that a page offers
    limit: float  # the largest possible one


def plain_choice(*, by_score: bool) -> dict[str, Any]:
    """The language model with a popularity of weight 0: log p + w log(1 + count), or Eq. 3 of BIGRec."""
    if by_score:
        return {"weights": {METHOD: 1.0, POPULARITY: 0.0}}
    return {"base_method": METHOD, "weighted_by": POPULARITY, "formula": "reweight", "parameters": {PRIMARY: 0.0}}


def prior_of(choice: dict[str, Any]) -> Prior | None:
    """The prior of a choice; None for a pool without the language model."""
    weights = choice.get("weights")
    if weights is not None:
        if METHOD not in weights:
            return None
        others = {name: weight for name, weight in weights.items() if name != METHOD}
        chosen = sum(others.values())
        return Prior(" + ".join(others), chosen, max(2 * chosen, 2.0), float("inf"))
    chosen, model = choice["parameters"][PRIMARY], choice.get("validation_scores", {}).get("model")
    of = {POPULARITY: POPULARITY, "scores": str(model)}.get(choice["weighted_by"], f"{model} + {POPULARITY}")
    if choice["formula"] == "reweight":
        return Prior(of, chosen, max(2 * chosen, 10.0), GAMMA_LIMIT)
    return Prior(of, chosen, 1.0, 1.0)


def with_weight(choice: dict[str, Any], weight: float) -> dict[str, Any]:
    """The choice with this weight of its prior; several models keep their proportions.

    Raises BigrecError if there is no prior, or for a weight below 0 or above its limit.
    """
    prior = prior_of(choice)
    if prior is None:
        raise BigrecError("prior_weight: this ranker mixes nothing with the language model")
    if not 0.0 <= weight <= prior.limit or weight == float("inf"):
        most = f" to {prior.limit:g}" if prior.limit < float("inf") else ""
        raise BigrecError(f"prior_weight is {weight:g}: give a number from 0{most} (the run's own: {prior.chosen:.4g})")
    if "weights" not in choice:
        return choice | {"parameters": {PRIMARY: weight}}
    others = {name: w for name, w in choice["weights"].items() if name != METHOD}
    shares = {name: w / prior.chosen if prior.chosen else 1 / len(others) for name, w in others.items()}
    own = choice["weights"][METHOD] or (1.0 if weight == 0 else 0.0)  # all alone it needs a weight, whatever the pool's
    scaled = {name: weight * shares[name] if name in shares else own for name in choice["weights"]}
    return choice | {"weights": scaled}
