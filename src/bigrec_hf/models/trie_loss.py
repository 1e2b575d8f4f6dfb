"""-log p(title), every token among those that can continue a catalog title (masked softmax, arXiv 2504.04178).

After a prefix only its continuations in the trie compete. If there is only one, nothing can be learned and the position
is skipped. The product over a title's positions is then a probability distribution over the catalog.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.trie import Trie


@dataclass(frozen=True)
class Choices:
    """Positions with alternatives in each of n titles, int64; title i has entries `starts[i]` up to `starts[i + 1]`."""

    starts: np.ndarray  # (n + 1,)
    position: np.ndarray  # the token's place in the title, from 0
    node: np.ndarray  # the prefix's node in the trie
    child: np.ndarray  # the next node of the title

    def of(self, title: int) -> slice:
        """Return the entries of a title."""
        return slice(int(self.starts[title]), int(self.starts[title + 1]))


def title_choices(titles: Sequence[Sequence[int]], trie: Trie) -> Choices:
    """Return the positions at which a title has several continuations. Raises BigrecError for an unknown title."""
    longest = max(map(len, titles), default=0)
    table = torch.full((len(titles), longest), -1)
    for number, ids in enumerate(titles):
        table[number, : len(ids)] = torch.tensor(ids, dtype=torch.long)
    n_children = trie.first_child.diff()
    node = torch.zeros(len(titles), dtype=torch.long)
    found: list[tuple[torch.Tensor, ...]] = []
    for place, tokens in enumerate(table.unbind(dim=1)):
        there = tokens >= 0
        child = torch.where(there, trie.child(node, tokens), node)
        if (child < 0).any():
            raise BigrecError(
                f"title {int((child < 0).nonzero()[0])} is not in the token trie: build both from one catalog"
            )
        rows = (there & (n_children[node] > 1)).nonzero().flatten()
        found.append((rows, torch.full_like(rows, place), node[rows], child[rows]))
        node = child
    empty = (torch.empty(0, dtype=torch.long),) * 4
    row, where, before, after = (torch.cat(parts).numpy() for parts in zip(empty, *found, strict=True))
    order = np.lexsort((where, row))
    starts = np.zeros(len(titles) + 1, np.int64)
    np.cumsum(np.bincount(row, minlength=len(titles)), out=starts[1:])
    return Choices(starts, where[order], before[order], after[order])


def token_columns(trie: Trie) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tokens of the catalog, (V,) ascending, and each node's column among them, (n_nodes,); root: 0."""
    token_ids, columns = torch.unique(trie.tokens[1:], return_inverse=True)
    return token_ids, torch.cat([columns.new_zeros(1), columns])


def continuations(
    logits: torch.Tensor, nodes: torch.Tensor, trie: Trie, columns: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log p of every continuation of every node, normalized over the continuations of that node.

    `logits` (P, V) of the catalog's tokens, `nodes` (P,). Returns row, child node and log-probability, each (n,): the
    continuations of the first row, then those of the second, and so on. Computed in float32.
    """
    row, child = trie.children(nodes)
    values = logits[row, columns[child]].float()
    most = values.new_full((len(nodes),), -torch.inf).scatter_reduce(0, row, values.detach(), "amax")
    total = values.new_zeros(len(nodes)).index_add(0, row, (values - most[row]).exp())
    return row, child, values - (total.log() + most)[row]


def trie_losses(
    logits: torch.Tensor,
    nodes: torch.Tensor,
    targets: torch.Tensor,
    trie: Trie,
    columns: torch.Tensor,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Return -log p of the continuation at each of P positions, in nats, (P,) float32.

    `logits` (P, V), `nodes` and `targets` (P,): the node of the prefix and the next node of the title. The logits are
    divided by `temperature`; whatever it is, the probabilities of all titles add up to 1.
    """
    _, _, log_p = continuations(logits if temperature == 1 else logits.float() / temperature, nodes, trie, columns)
    starts = (trie.first_child[nodes + 1] - trie.first_child[nodes]).cumsum(0)
    first = torch.cat([starts.new_zeros(1), starts[:-1]])
    return -log_p[first + targets - trie.first_child[nodes]]


def first_token_sums(
    logits: torch.Tensor, nodes: torch.Tensor, targets: torch.Tensor, trie: Trie, columns: torch.Tensor
) -> torch.Tensor:
    """Return five sums over the first tokens of titles, (5,) float32, no gradient; arguments as of `trie_losses`.

    The number of targets and the sum of their logits; the number of logits of all possible first tokens there, their
    sum, and the sum of their squares.
    """
    first = nodes == 0
    every = logits.detach()[first][:, columns[int(trie.first_child[0]) : int(trie.first_child[1])]].float()
    of_targets = logits.detach()[first, columns[targets[first]]].float()
    counts = [float(of_targets.numel()), float(every.numel())]
    return torch.stack(
        [
            every.new_tensor(counts[0]),
            of_targets.sum(),
            every.new_tensor(counts[1]),
            every.sum(),
            every.square().sum(),
        ]
    )
