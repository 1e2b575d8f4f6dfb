"""Groups of catalog titles that a policy is trained on: its likeliest titles, or a sample without replacement.

The policy is a distribution over the catalog, so a group needs no generation: it is drawn from the probabilities of all
titles. A title's weight is what it counts in the sums of the policy gradient; the weights of a group sum to 1.

- Beams: the G likeliest titles, each 1/G, as ReRe does. This is not the gradient of the expected reward.
- Sample: Gumbel-top-k (Kool et al. 2019, arXiv 1903.06059). Title i has the weight p_i / q_i, normalized, where q_i is
  the probability that its Gumbel-perturbed log p exceeds the largest one that was not drawn (Kool et al. 2020, arXiv
  2002.06043): the expected reward's gradient, up to the bias of that normalization.
- A target that is added to a group would be drawn with probability p, not with certainty. Its weight is therefore p. In
  a sample it is a stratum of its own and the other titles, drawn among the rest, share 1 - p: exact. Among beams it
  replaces the least likely one and p, which is then below 1/G, is normalized together with their weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Groups:
    """B groups of G titles, the likeliest first. Rewards read this and nothing else; rows are catalog rows."""

    example_ids: Sequence[str]  # (B,)
    histories: Sequence[Sequence[int]]  # (B,), oldest first
    targets: np.ndarray  # (B,) int64
    target_ranks: np.ndarray  # (B,) int64, among all titles by probability, from 1
    rows: np.ndarray  # (B, G) int64
    ranks: np.ndarray  # (B, G) int64, among all titles
    log_p: np.ndarray  # (B, G) float64
    weights: np.ndarray  # (B, G) float64, sum 1

    @property
    def is_target(self) -> np.ndarray:
        """Whether a title is the target, (B, G) bool."""
        return self.rows == self.targets[:, None]


def draw_groups(
    log_p: np.ndarray,
    example_ids: Sequence[str],
    histories: Sequence[Sequence[int]],
    targets: np.ndarray,
    row_of_leaf: np.ndarray,
    leaf_of_row: np.ndarray,
    *,
    size: int,
    noise: np.ndarray | None = None,
    add_target: bool = False,
    always: bool = False,
) -> Groups:
    """Return a group for each of B examples; `log_p` (B, n_leaves) of all titles, `targets` (B,) catalog rows.

    `row_of_leaf`, `leaf_of_row`: as in `data.CatalogTitles`; `noise` (B, n_leaves), `add_target`, `always`: as in
    `draw_titles`.
    """
    leaves, weights, ranks, target_ranks = [], [], [], []
    for number, values in enumerate(log_p):
        target = int(leaf_of_row[targets[number]])
        own_noise = None if noise is None else noise[number]
        titles, own = draw_titles(values, target, size, noise=own_noise, add_target=add_target, always=always)
        leaves.append(titles)
        weights.append(own)
        places = ranks_of(values, np.append(titles, target))
        ranks.append(places[:-1])
        target_ranks.append(places[-1])
    chosen = np.stack(leaves)
    return Groups(
        example_ids,
        histories,
        targets,
        np.array(target_ranks),
        row_of_leaf[chosen],
        np.stack(ranks),
        np.take_along_axis(log_p, chosen, axis=1).astype(np.float64),
        np.stack(weights),
    )


def draw_titles(
    log_p: np.ndarray,
    target: int,
    size: int,
    *,
    noise: np.ndarray | None = None,
    add_target: bool = False,
    always: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the titles of one group, likeliest first, and their weights, both (size,).

    `log_p` (n,) of all titles, of which there are at least `size`; `noise` (n,) uniform in (0, 1) draws a sample, None
    takes the likeliest. `add_target`: the target replaces the last title if it is not among them. `always`: the target
    and `size` - 1 others.
    """
    values = log_p.astype(np.float64)
    p_target = float(np.exp(values[target]))
    if always or (add_target and noise is not None):
        others = values.copy()
        others[target] = -np.inf
        others -= np.logaddexp.reduce(others)
        titles, weights = _draw(others, size - 1, noise)
        titles, weights = np.append(titles, target), np.append((1 - p_target) * weights, p_target)
    else:
        titles, weights = _draw(values, size, noise)
        if add_target and target not in titles:
            titles[-1], weights[-1] = target, p_target
            weights /= weights.sum()
    order = np.argsort(-values[titles], kind="stable")
    return titles[order], weights[order]


def _draw(log_p: np.ndarray, size: int, noise: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the `size` likeliest titles with equal weights; with `noise` a sample with weights of `sample_titles`,
    normalized."""
    if noise is None:
        return np.argsort(-log_p, kind="stable")[:size], np.full(size, 1 / size)
    titles, weights = sample_titles(log_p, size, noise)
    return titles, weights / weights.sum()


def sample_titles(log_p: np.ndarray, size: int, noise: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return `size` different titles drawn without replacement and p / q of each, both (size,).

    `log_p` (n,), `noise` (n,) uniform in (0, 1). The sum of (p / q) f over the titles is an unbiased estimate of the
    sum of p f over all titles, whatever f is.
    """
    perturbed = log_p - np.log(-np.log(noise))
    order = np.argsort(-perturbed, kind="stable")
    titles = order[:size]
    threshold = perturbed[order[size]] if size < len(order) else -np.inf
    included = -np.expm1(-np.exp(np.minimum(log_p[titles] - threshold, 700)))  # 700: no overflow
    return titles, np.exp(log_p[titles]) / included


def ranks_of(log_p: np.ndarray, titles: np.ndarray) -> np.ndarray:
    """Return the ranks of titles, from 1, by descending `log_p` (n,); equal ones share the best rank."""
    return np.searchsorted(np.sort(-log_p), -log_p[titles], side="left") + 1
