"""A token trie of all catalog titles in flat arrays: the tokens that can follow a prefix, and the titles below it.

Nodes are numbered level by level and, within a level, in lexicographic order of their prefixes. The children of a node
are therefore adjacent and sorted by token, and one sorted array of (parent, token) keys finds any child by binary
search. Leaves are numbered in lexicographic order too: those below a node are a range, and cumulative sums over the
leaves give the mass of any subtree with two look-ups.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.prompts import build_output, completions_token_ids, format_prompt, prompt_token_ids
from bigrec_hf.metrics.ndcg_hr.titles import clean_title

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase


TOKEN_BITS = 32  # of a key: parent node above, token below


@dataclass(frozen=True)
class Trie:
    """Node 0 is the root (the empty prefix); children of `v` are `first_child[v]` up to `first_child[v + 1]`.

    All int64, on one device; 48 bytes per node.
    """

    tokens: torch.Tensor  # (n_nodes,), the token that leads to the node; -1 at the root
    first_child: torch.Tensor  # (n_nodes + 1,)
    keys: torch.Tensor  # (n_nodes - 1,), parent and token of the nodes 1, 2, ..., ascending
    leaf: torch.Tensor  # (n_nodes,), the leaf whose sequence ends here, else -1; a leaf may have children
    leaf_range: torch.Tensor  # (n_nodes, 2), first leaf below the node (itself included), and one past the last
    depth: int  # number of tokens in the longest sequence

    @property
    def n_nodes(self) -> int:
        """Number of nodes, including the root."""
        return len(self.tokens)

    @property
    def n_leaves(self) -> int:
        """Number of different sequences."""
        return int(self.leaf_range[0, 1])

    @property
    def n_bytes(self) -> int:
        """Memory of the arrays, in bytes."""
        return sum(array.nbytes for array in vars(self).values() if isinstance(array, torch.Tensor))

    def to(self, device: torch.device | str) -> Trie:
        """Return the trie on another device."""
        moved = {field.name: getattr(self, field.name).to(device) for field in fields(self) if field.name != "depth"}
        return replace(self, **moved)

    def child(self, nodes: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return the child of each node by token, all (...,) int64; -1 if there is none or the node is -1."""
        keys = (nodes << TOKEN_BITS) | tokens  # negative for node -1, and so not among the keys
        at = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
        return torch.where(self.keys[at] == keys, at + 1, -1)

    def children(self, nodes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all children of `nodes` (rows,): the row and the node of each, both (n,) int64. Node -1 has none."""
        known = nodes.clamp(min=0)
        start = self.first_child[known]
        count = torch.where(nodes < 0, 0, self.first_child[known + 1] - start)
        row = torch.repeat_interleave(count)
        shift = start - (count.cumsum(0) - count)  # from the position among all children to the node
        return row, torch.arange(len(row), device=row.device) + shift[row]


def build_trie(sequences: Sequence[Sequence[int]]) -> tuple[Trie, np.ndarray]:
    """Return the trie of token sequences, and the leaf of each, (n,) int64; equal sequences share a leaf.

    Raises BigrecError if there is no sequence or one is empty.
    """
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    if not len(lengths) or lengths.min() < 1:
        raise BigrecError("a trie needs at least one sequence, and each sequence at least one token")
    depth = int(lengths.max())
    table = np.full((len(lengths), depth), -1, np.int32)  # a prefix sorts before its continuations
    table[np.arange(depth) < lengths[:, None]] = np.fromiter(chain.from_iterable(sequences), np.int32, lengths.sum())
    order = np.lexsort(table.T[::-1])
    table = table[order]
    is_first = np.ones(len(table), bool)
    is_first[1:] = (table[1:] != table[:-1]).any(axis=1)
    leaf_of_sequence = np.empty(len(table), np.int64)
    leaf_of_sequence[order] = np.cumsum(is_first) - 1
    table, lengths = table[is_first], lengths[order][is_first]
    n_leaves = len(table)
    common = np.full(n_leaves, -1)  # number of tokens that a sequence shares with the one before it
    common[1:] = (table[1:] != table[:-1]).argmax(axis=1)

    # level 0 is the root; `starts`: the leaves at which the ranges of a level's nodes start
    starts, first_node = np.zeros(1, np.int64), 0
    levels = [(np.array([-1]), np.array([-1]), np.array([-1]), np.array([[0, n_leaves]]))]
    for level in range(1, depth + 1):
        begin = np.flatnonzero(common < level)
        end = np.append(begin[1:], n_leaves)
        long_enough = lengths[begin] >= level
        begin, end = begin[long_enough], end[long_enough]
        parent = first_node + np.searchsorted(starts, begin, side="right") - 1
        leaf = np.where(lengths[begin] == level, begin, -1)
        levels.append((table[begin, level - 1], parent, leaf, np.stack([begin, end], axis=1)))
        first_node += len(starts)
        starts = begin
    tokens, parents, leaf, leaf_range = (
        np.concatenate(arrays).astype(np.int64) for arrays in zip(*levels, strict=True)
    )
    first_child = 1 + np.searchsorted(parents[1:], np.arange(len(parents) + 1))
    arrays = (tokens, first_child, (parents[1:] << TOKEN_BITS) | tokens[1:], leaf, leaf_range)
    tensors = [torch.from_numpy(array) for array in arrays]
    return Trie(tensors[0], tensors[1], tensors[2], tensors[3], tensors[4], depth), leaf_of_sequence


@dataclass(frozen=True)
class TitleTrie:
    """The trie of a catalog: every path is a completion as in training, including the end token."""

    trie: Trie
    row_leaf: np.ndarray  # (n_items,) int64, leaf of each catalog row; -1 if the title is empty
    texts: list[str]  # by leaf: its (clean) title
    lengths: list[int]  # by leaf: number of tokens
    n_ambiguous: int  # leaves of several titles, which the tokenizer cannot distinguish; the first title is used


def build_title_trie(titles: Sequence[str], template: str, tokenizer: PreTrainedTokenizerBase) -> TitleTrie:
    """Return the trie of the catalog's titles after a prompt of this template.

    The sequences are those of training (`prompts.build_output`, `prompts.completions_token_ids`): opening quote, title
    and closing quote as the tokenizer merges them after the end of the prompt, then EOS. A title that contains
    the EOS token is cut after it. Raises BigrecError if no title has any text.
    """
    known = [row for row, title in enumerate(titles) if clean_title(title)]
    if not known:
        raise BigrecError(f"none of the catalog's {len(titles)} titles has any text: nothing can be generated")
    prompt = format_prompt(template, "", "", tokenizer)  # its end depends only on the template
    prompt_ids = prompt_token_ids(template, prompt, tokenizer)
    outputs = [build_output(titles[row]) for row in known]
    sequences = completions_token_ids(prompt, prompt_ids, outputs, template, tokenizer)
    sequences = [ids[: ids.index(tokenizer.eos_token_id) + 1] for ids in sequences]
    trie, leaves = build_trie(sequences)
    row_leaf = np.full(len(titles), -1, np.int64)
    row_leaf[known] = leaves
    lengths = [0] * trie.n_leaves
    texts: list[str] = [""] * trie.n_leaves
    ambiguous = set()
    for row, leaf, ids in zip(known, leaves.tolist(), sequences, strict=True):
        lengths[leaf] = len(ids)
        title = clean_title(titles[row])
        texts[leaf] = texts[leaf] or title
        if texts[leaf] != title:
            ambiguous.add(leaf)
    return TitleTrie(trie, row_leaf, texts, lengths, len(ambiguous))
