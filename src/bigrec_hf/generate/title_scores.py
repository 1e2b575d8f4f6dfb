"""log p of every catalog title after a prompt: the language model as a scorer of items.

The token trie is walked level by level. The prompt's keys and values are computed once; a level's nodes are then one
call in which every node sees the prompt and its own ancestors (tree attention). Only nodes with several titles below
are visited: 490 of the 18,428 nodes of MovieLens-100K. Where a level has more of them than `width`, the likeliest are
visited; the probability of each of the others is shared among the titles below it in proportion to their popularity, so
that the result always is a distribution over the catalog, exact where it matters. The same holds for nodes less likely
than a title is at random: no title below can be anywhere near the top. Keys and values of nodes that nothing open
descends from are dropped on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedModel

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.trie import Trie
from bigrec_hf.generate.strategy import NOT_NUMBERS
from bigrec_hf.models.catalog_head import CatalogHead
from bigrec_hf.models.trie_loss import continuations, trie_losses

# nats that the tree's and a plain pass's log p of one title may differ by: 16 bits round keys, values and logits
TOLERANCE = {torch.float32: 0.01}
TOLERANCE_16_BITS = 0.3


@dataclass
class _Walk:
    """What is known of B prompts while their trie is walked. `slots` are the nodes in the cache behind the prompts."""

    cache: DynamicCache
    prompt_mask: torch.Tensor  # (B, P) bool, real prompt tokens
    slots: torch.Tensor  # (B, M) int64 nodes, -1 = empty
    log_p: torch.Tensor  # (B, n_leaves) float32
    shared: torch.Tensor  # (B, n_leaves) bool, whether log_p is a share of a node that was not visited


class TitleScorer:
    """A model with a CatalogHead in place and the catalog's trie on the model's device."""

    def __init__(
        self,
        model: PreTrainedModel,
        head: CatalogHead,
        trie: Trie,
        columns: torch.Tensor,
        *,
        width: int = 0,
        popularity: np.ndarray | None = None,
    ) -> None:
        """`columns`: each node's column among the head's tokens; `width`: nodes visited per level and prompt, 0 = all.

        `popularity` (n_leaves,), above 0: the shares of titles below a node that is not visited; None: equal shares.

        Raises BigrecError for a model whose layers do not all attend to every earlier token.
        """
        layers = set(getattr(model.config, "layer_types", None) or ["full_attention"])
        if layers != {"full_attention"}:
            raise BigrecError(
                f"decoding exact needs full attention in every layer, {type(model).__name__} has "
                f"{', '.join(sorted(layers))}: use decoding constrained"
            )
        self.model, self.head, self.trie, self.width = model, head, trie, width
        self.columns = columns.to(trie.tokens.device)
        self.n_below = trie.leaf_range[:, 1] - trie.leaf_range[:, 0]  # titles at or below each node
        self.n_children = trie.first_child.diff()
        if ((trie.leaf >= 0) & (self.n_children > 0)).any():
            raise BigrecError("a title continues after another one's end token: the tokenizer's end token is ambiguous")
        shares = np.ones(trie.n_leaves) if popularity is None else np.asarray(popularity, np.float64)
        self.shares = torch.from_numpy(shares).to(trie.tokens.device)
        self.cumulative = torch.nn.functional.pad(self.shares.cumsum(0), (1, 0))  # (n_leaves + 1,) float64
        self.checked = False

    @torch.inference_mode()
    def log_probs(self, prompts: Sequence[Sequence[int]]) -> np.ndarray:
        """log p of every title, (len(prompts), n_leaves) float32; each row's probabilities sum to 1."""
        device = self.trie.tokens.device
        width = max(map(len, prompts))
        ids = torch.zeros(len(prompts), width, dtype=torch.long)
        mask = torch.zeros(len(prompts), width, dtype=torch.bool)
        for row, prompt in enumerate(prompts):  # padded on the left: the last token of each prompt is the last column
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = True
        walk = _Walk(
            DynamicCache(config=self.model.config),
            mask.to(device),
            torch.empty(len(prompts), 0, dtype=torch.long, device=device),
            torch.full((len(prompts), self.trie.n_leaves), -torch.inf, device=device),
            torch.zeros(len(prompts), self.trie.n_leaves, dtype=torch.bool, device=device),
        )
        self.head.positions = torch.arange(1, len(prompts) + 1, device=device) * width - 1
        output = self.model(
            input_ids=ids.to(device),
            attention_mask=walk.prompt_mask.long(),
            position_ids=(walk.prompt_mask.long().cumsum(dim=1) - 1).clamp(min=0),
            past_key_values=walk.cache,
            use_cache=True,
        )
        owner = torch.arange(len(prompts), device=device)
        root = torch.zeros_like(owner)
        owner, nodes, log_p = self._expand(walk, output.logits, owner, root, torch.zeros(len(prompts), device=device))
        level = 1
        while len(nodes):
            owner, nodes, log_p = self._visit(walk, owner, nodes, log_p, level)
            level += 1
        if walk.log_p.isnan().any():
            raise BigrecError(NOT_NUMBERS)
        if not self.checked:
            self._check(prompts[0], walk.log_p[0].masked_fill(walk.shared[0], -torch.inf))
        return walk.log_p.float().cpu().numpy()

    def _expand(
        self, walk: _Walk, logits: torch.Tensor, owner: torch.Tensor, nodes: torch.Tensor, log_p: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Go on from P nodes with several children: note the titles that are decided, return what is still open.

        `logits` (P, V); `owner` (prompt), `nodes` and `log_p` (P,). Returns the same three for the open children.
        """
        row, child, step = continuations(logits, nodes, self.trie, self.columns)
        owner, total = owner[row], log_p[row] + step
        decided = self.n_below[child] == 1
        walk.log_p[owner[decided], self.trie.leaf_range[child[decided], 0]] = total[decided]
        return owner[~decided], child[~decided], total[~decided]

    def _visit(
        self, walk: _Walk, owner: torch.Tensor, nodes: torch.Tensor, log_p: torch.Tensor, level: int
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute one level of open nodes, all of one depth; return the open nodes of the next."""
        n_prompts, device = len(walk.log_p), nodes.device
        order = torch.argsort(log_p, descending=True, stable=True)
        order = order[torch.argsort(owner[order], stable=True)]  # prompt by prompt, the likeliest first
        owner, nodes, log_p = owner[order], nodes[order], log_p[order]
        counts = torch.bincount(owner, minlength=n_prompts)
        place = torch.arange(len(owner), device=device) - (counts.cumsum(0) - counts)[owner]
        if self.width:
            left = (place >= self.width) | (log_p < -np.log(self.trie.n_leaves))
            self._spread(walk, owner[left], nodes[left], log_p[left])
            owner, nodes, log_p, place = (x[~left] for x in (owner, nodes, log_p, place))
            if not len(nodes):
                return owner, nodes, log_p
        n = int(place.max()) + 1
        chosen = torch.full((n_prompts, n), -1, dtype=torch.long, device=device)
        chosen[owner, place] = nodes
        self._forget(walk, chosen)
        choice = self.n_children[nodes] > 1
        self.head.positions = (owner * n + place)[choice]
        output = self.model(
            input_ids=self.trie.tokens[chosen.clamp(min=0)].clamp(min=0),
            attention_mask=self._mask(walk, chosen),
            position_ids=(walk.prompt_mask.sum(dim=1, keepdim=True) + level - 1).expand(-1, n),
            past_key_values=walk.cache,
            use_cache=True,
        )
        walk.slots = torch.cat([walk.slots, chosen], dim=1)
        opened = self._expand(walk, output.logits, owner[choice], nodes[choice], log_p[choice])
        only = self.trie.first_child[nodes[~choice]]  # a node with one child hands its probability on
        passed = (owner[~choice], only, log_p[~choice])
        return tuple(torch.cat(parts) for parts in zip(opened, passed, strict=True))  # type: ignore[return-value]

    def _above(self, walk: _Walk, chosen: torch.Tensor) -> torch.Tensor:
        """Whether a slot's node is an ancestor of a chosen node.  # (B, n, M) bool"""
        span = self.trie.leaf_range
        first, last = span[chosen.clamp(min=0)].unbind(dim=-1)  # (B, n)
        above_first, above_last = span[walk.slots.clamp(min=0)].unbind(dim=-1)  # (B, M)
        above = (above_first[:, None] <= first[:, :, None]) & (last[:, :, None] <= above_last[:, None])
        return above & (walk.slots >= 0)[:, None] & (chosen >= 0)[:, :, None]

    def _forget(self, walk: _Walk, chosen: torch.Tensor) -> None:
        """Drop the slots that no chosen node descends from, once they are most of the cache."""
        needed = self._above(walk, chosen).any(dim=1)  # (B, M)
        n_kept = int(needed.sum(dim=1).max()) if needed.numel() else 0
        if 2 * n_kept >= needed.shape[1]:
            return
        order = torch.argsort((~needed).byte(), dim=1, stable=True)[:, :n_kept]
        walk.slots = torch.where(needed.gather(1, order), walk.slots.gather(1, order), -1)
        n_prompt = walk.prompt_mask.shape[1]
        for layer in walk.cache.layers:
            for name in ("keys", "values"):
                held = getattr(layer, name)  # (B, heads, P + M, d)
                index = order[:, None, :, None].expand(-1, held.shape[1], -1, held.shape[3])
                kept = torch.cat([held[:, :, :n_prompt], held[:, :, n_prompt:].gather(2, index)], dim=2)
                setattr(layer, name, kept)

    def _mask(self, walk: _Walk, chosen: torch.Tensor) -> torch.Tensor:
        """Every chosen node sees the prompt, its ancestors and itself.  # (B, 1, n, P + M + n), 0 or very negative"""
        above = self._above(walk, chosen)
        n_prompts, n = chosen.shape
        own = torch.eye(n, dtype=torch.bool, device=chosen.device).expand(n_prompts, -1, -1)
        seen = torch.cat([walk.prompt_mask[:, None].expand(-1, n, -1), above, own], dim=2)
        dtype = self.model.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, torch.finfo(dtype).min)[
            :, None
        ]

    def _spread(self, walk: _Walk, owner: torch.Tensor, nodes: torch.Tensor, log_p: torch.Tensor) -> None:
        """Share the probability of nodes that are not visited among their titles, in proportion to `shares`."""
        n, (first, stop) = self.n_below[nodes], self.trie.leaf_range[nodes].unbind(dim=1)
        row = torch.repeat_interleave(n)
        leaf = torch.arange(len(row), device=n.device) - (n.cumsum(0) - n)[row] + first[row]
        share = self.shares[leaf] / (self.cumulative[stop] - self.cumulative[first])[row]
        walk.log_p[owner[row], leaf] = log_p[row] + share.log().float()
        walk.shared[owner[row], leaf] = True

    def _check(self, prompt: Sequence[int], log_p: torch.Tensor) -> None:
        """Compare one title's log p with that of a plain forward pass, once: below the deepest node with a choice, or
        where not all nodes were visited, the likeliest title that was; `log_p` (n_leaves,), -inf for the others.

        Raises BigrecError if they differ: the model's attention does not follow the mask it is given.
        """
        span, first_child = self.trie.leaf_range.cpu(), self.trie.first_child.cpu()
        deepest = (self.n_children > 1).nonzero()[-1]
        leaf = int(log_p.argmax()) if self.width else int(self.trie.leaf_range[deepest, 0])
        if log_p[leaf] == -torch.inf:  # only where hardly a node is followed
            return
        node, nodes, children = 0, [], []
        while first_child[node + 1] > first_child[node]:
            below = span[first_child[node] : first_child[node + 1]]
            child = int(first_child[node]) + int(((below[:, 0] <= leaf) & (leaf < below[:, 1])).nonzero()[0])
            nodes.append(node)
            children.append(child)
            node = child
        device = log_p.device
        ids = torch.tensor([[*prompt, *self.trie.tokens[children[:-1]].tolist()]], device=device)
        self.head.positions = torch.arange(len(prompt) - 1, ids.shape[1], device=device)
        logits = self.model(input_ids=ids, use_cache=False).logits
        steps = trie_losses(
            logits, torch.tensor(nodes, device=device), torch.tensor(children, device=device), self.trie, self.columns
        )
        plain, walked = -float(steps.sum()), float(log_p[leaf])
        if not abs(plain - walked) <= TOLERANCE.get(self.model.dtype, TOLERANCE_16_BITS):
            raise BigrecError(
                f"decoding exact: {type(self.model).__name__} gives a title log p {walked:.4f} over the token tree "
                f"and {plain:.4f} read plainly, so its attention ignores masks: use decoding constrained"
            )
        self.checked = True
