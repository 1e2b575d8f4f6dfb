"""log p of a group of titles after each prompt, with gradients, in one forward pass per batch.

A row is the prompt followed by the prefixes of the group's titles as a tree: a prefix that several titles share is
there once, and what follows the last token with alternatives is left out. Every node sees the prompt and its own
ancestors. Sixteen short titles of MovieLens-100K add about as many tokens to a prompt as five titles of its history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bigrec_hf.data.trie import TOKEN_BITS, Trie
from bigrec_hf.models.catalog_head import CatalogHead
from bigrec_hf.models.trie_loss import Choices, continuations


@dataclass(frozen=True)
class TreeBatch:
    """B rows of T tokens, right-padded, and the P positions with alternatives of all G titles per row."""

    input_ids: torch.Tensor  # (B, T) int64
    position_ids: torch.Tensor  # (B, T) int64
    seen: torch.Tensor  # (B, T, T) bool, whether a position sees another one
    positions: torch.Tensor  # (P,) int64, indices into B * T
    nodes: torch.Tensor  # (P,) int64, the trie node of the prefix at each of them
    pair_position: torch.Tensor  # (Q,) int64, index into `positions`
    pair_child: torch.Tensor  # (Q,) int64, the next node of a title
    pair_title: torch.Tensor  # (Q,) int64, index into B * G

    def to(self, device: torch.device) -> TreeBatch:
        """Return the batch on a device."""
        return TreeBatch(**{name: value.to(device) for name, value in vars(self).items()})


class TreeBuilder:
    """Builds TreeBatches for one catalog; titles are catalog rows."""

    def __init__(self, trie: Trie, choices: Choices) -> None:
        """`trie` on the CPU; `choices` (`models.trie_loss.title_choices`) by catalog row."""
        self.choices = choices
        self.tokens = trie.tokens.numpy()
        self.parents = np.concatenate([[-1], trie.keys.numpy() >> TOKEN_BITS])
        self.span = trie.leaf_range.numpy()

    def build(self, prompts: Sequence[Sequence[int]], titles: np.ndarray) -> TreeBatch:
        """Return the batch for token ids of B prompts and (B, G) titles."""
        trees = [self._tree(rows) for rows in titles]  # nodes of each row, parents first
        lengths = [len(prompt) for prompt in prompts]
        width = max(n + len(tree) for n, tree in zip(lengths, trees, strict=True))
        shape = (len(prompts), width)
        ids, places = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        seen = np.zeros((*shape, width), bool)
        seen[:] = np.eye(width, dtype=bool)
        positions: list[int] = []
        nodes: list[int] = []
        pairs: list[tuple[int, int, int]] = []
        for number, (prompt, tree, rows) in enumerate(zip(prompts, trees, titles, strict=True)):
            n, m = len(prompt), len(tree)
            ids[number, :n], ids[number, n : n + m] = prompt, self.tokens[tree]
            places[number, :n] = np.arange(n)
            seen[number, :n, :n] = np.tri(n, dtype=bool)
            seen[number, n : n + m, :n] = True
            span = self.span[tree]
            above = (span[:, 0] <= span[:, :1]) & (span[:, 1:] <= span[:, 1])  # (m, m): column is ancestor of row
            above &= np.tri(m, dtype=bool)  # of a node and its only child, which have the same span, the upper one
            seen[number, n : n + m, n : n + m] = above
            places[number, n : n + m] = n - 1 + above.sum(axis=1)
            at = {0: number * width + n - 1} | {int(node): number * width + n + i for i, node in enumerate(tree)}
            index: dict[int, int] = {}
            for place, row in enumerate(rows):
                own = self.choices.of(int(row))
                for node, child in zip(self.choices.node[own].tolist(), self.choices.child[own].tolist(), strict=True):
                    if node not in index:
                        index[node] = len(positions)
                        positions.append(at[node])
                        nodes.append(node)
                    pairs.append((index[node], child, number * len(rows) + place))
        found = np.array(pairs, np.int64).reshape(-1, 3)
        columns = (np.array(positions, np.int64), np.array(nodes, np.int64), *found.T)
        rest = [torch.from_numpy(np.ascontiguousarray(column)) for column in columns]
        return TreeBatch(torch.from_numpy(ids), torch.from_numpy(places), torch.from_numpy(seen), *rest)

    def _tree(self, rows: np.ndarray) -> np.ndarray:
        """Return the nodes, ascending, whose tokens must be read to know the log p of these titles; not the root."""
        nodes = set()
        for row in rows:
            own = self.choices.of(int(row))
            node = int(self.choices.node[own][-1]) if own.stop > own.start else 0
            while node > 0 and node not in nodes:
                nodes.add(node)
                node = int(self.parents[node])
        return np.array(sorted(nodes), np.int64)


def tree_log_probs(
    model: torch.nn.Module,
    head: CatalogHead,
    batch: TreeBatch,
    trie: Trie,
    columns: torch.Tensor,
    *,
    group_size: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return log p of every title, (B, group_size) float32.

    `head` is in place of the model's LM head; `columns`: each node's column among its tokens; `dtype`: that of the
    model's attention mask.
    """
    mask = torch.zeros(batch.seen.shape, dtype=dtype, device=batch.seen.device)
    mask.masked_fill_(~batch.seen, torch.finfo(dtype).min)
    head.positions = batch.positions
    logits = model(
        input_ids=batch.input_ids, attention_mask=mask[:, None], position_ids=batch.position_ids, use_cache=False
    ).logits
    _, _, steps = continuations(logits, batch.nodes, trie, columns)
    n_children = trie.first_child[batch.nodes + 1] - trie.first_child[batch.nodes]
    first = n_children.cumsum(0) - n_children
    chosen = steps[(first - trie.first_child[batch.nodes])[batch.pair_position] + batch.pair_child]
    total = chosen.new_zeros(len(batch.input_ids) * group_size).index_add(0, batch.pair_title, chosen)
    return total.view(-1, group_size)
