"""SASRec (Kang and McAuley, arXiv 1808.09781) as a `PreTrainedModel`, with softmax losses instead of one negative.

This file imports nothing of the package, so that `save_pretrained` and `push_to_hub` can store it with the weights
and `AutoModel.from_pretrained(..., trust_remote_code=True)` works without the package.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

IGNORED = -100  # label of a position without loss


class SasRecConfig(PreTrainedConfig):
    """Shape of a SASRec model. Item ids are catalog rows 0..n_items-1; `n_items` itself is the padding id."""

    model_type = "bigrec_sasrec"

    n_items: int = 1
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    max_length: int = 10  # maximum number of items that the model reads
    dropout: float = 0.2
    initializer_range: float = 0.02
    catalog_sha256: str | None = None  # index.catalog_sha256 of the catalog whose rows the ids are

    @property
    def padding_id(self) -> int:
        """The id after the last row, which is not an item."""
        return self.n_items


@dataclass
class SasRecOutput(ModelOutput):
    """`loss` if labels were given, else `logits`, (B, n_items), of the item after the last one of each row."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None  # (B, L, hidden_size)


class Block(nn.Module):
    """Causal self-attention and a feed-forward network, each with a residual connection and a layer norm in front."""

    def __init__(self, config: SasRecConfig):
        super().__init__()
        size = config.hidden_size
        self.heads, self.dropout = config.num_attention_heads, config.dropout
        self.attention_norm, self.feed_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.qkv, self.out = nn.Linear(size, 3 * size), nn.Linear(size, size)
        self.up, self.down = nn.Linear(size, 4 * size), nn.Linear(4 * size, size)

    def forward(self, states: torch.Tensor, allowed: torch.Tensor) -> torch.Tensor:
        """Return the new states, (B, L, hidden_size); `allowed`, (B, 1, L, L) bool: what each position attends to."""
        dropout = self.dropout if self.training else 0.0
        batch, length, size = states.shape
        qkv = self.qkv(self.attention_norm(states)).view(batch, length, 3, self.heads, size // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, dropout_p=dropout)
        states = states + F.dropout(self.out(mixed.transpose(1, 2).reshape(batch, length, size)), dropout)
        return states + F.dropout(self.down(F.gelu(self.up(self.feed_norm(states)))), dropout)


class SasRecModel(PreTrainedModel):
    """Scores of the next item from a sequence of items; input and output share one table of item embeddings.

    Positions count from the first real item of a row, and padding is never attended to, so neither its side nor its
    amount matters.
    """

    config_class = SasRecConfig
    base_model_prefix = "sasrec"
    main_input_name = "input_ids"

    def __init__(self, config: SasRecConfig):
        super().__init__(config)
        if config.hidden_size % config.num_attention_heads:
            raise ValueError(
                f"hidden_size {config.hidden_size} is not a multiple of {config.num_attention_heads} heads"
            )
        self.items = nn.Embedding(config.n_items + 1, config.hidden_size)  # the last row is padding
        self.positions = nn.Embedding(config.max_length, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor | None = None,
        sampled: torch.Tensor | None = None,
        log_expected: torch.Tensor | None = None,
    ) -> SasRecOutput:
        """Return the loss if `labels` are given, else the logits of the next item.

        `input_ids` (B, L) int64, oldest first, L <= max_length, padded with `padding_id`; `labels` (B, L) the next item
        of every position, -100 = no loss. The loss is `softmax_loss`, or `sampled_softmax_loss` if `sampled` and
        `log_expected` are given.
        """
        if input_ids.shape[1] > self.config.max_length:
            raise ValueError(
                f"{input_ids.shape[1]} items were given, but the model reads {self.config.max_length} at most"
            )
        real = input_ids != self.config.padding_id  # (B, L)
        place = (real.cumsum(dim=1) - 1).clamp(min=0)
        states = F.dropout(self.items(input_ids) + self.positions(place), self.config.dropout if self.training else 0.0)
        length = input_ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=input_ids.device).tril()
        own = torch.eye(length, dtype=torch.bool, device=input_ids.device)  # so that padding has a key
        allowed = ((causal & real[:, None, :]) | own)[:, None]  # (B, 1, L, L)
        for block in self.blocks:
            states = block(states, allowed)
        states = self.norm(states)
        if labels is not None:
            kept = labels != IGNORED
            inputs = (states[kept], labels[kept], self.item_table)
            if sampled is None or log_expected is None:
                loss = softmax_loss(*inputs)
            else:
                loss = sampled_softmax_loss(*inputs, sampled, log_expected)
            return SasRecOutput(loss=loss, last_hidden_state=states)
        steps = torch.arange(length, device=input_ids.device)
        last = (real * steps).argmax(dim=1)
        final = states[torch.arange(len(states), device=states.device), last]
        return SasRecOutput(logits=final @ self.item_table.T, last_hidden_state=states)

    @property
    def item_table(self) -> torch.Tensor:
        """The embeddings of the real items, (n_items, hidden_size)."""
        return self.items.weight[: self.config.n_items]


def softmax_loss(states: torch.Tensor, targets: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the mean cross-entropy over all items: `states` (n, d), `targets` (n,) rows of `table` (n_items, d)."""
    return F.cross_entropy(states @ table.T, targets, reduction="sum") / max(len(targets), 1)


def sampled_softmax_loss(
    states: torch.Tensor,
    targets: torch.Tensor,
    table: torch.Tensor,
    sampled: torch.Tensor,
    log_expected: torch.Tensor,
) -> torch.Tensor:
    """Return the mean cross-entropy over the target and shared negatives, with logQ correction of the negatives.

    `sampled` (m,) rows, `log_expected` (m,) the logarithm of how often each is expected in a draw. The expectation of
    the normalizer exp(s_target) + sum over j in sampled, j != target, of exp(s_j) / expected_j is that of the full
    softmax. The target is always present and therefore not corrected (Khrylchenko et al., arXiv 2507.09331; the usual
    form of Yi et al., RecSys 2019, corrects it too). If every item is drawn once, this is the full softmax.
    """
    positive = (states * table[targets]).sum(dim=1, keepdim=True)
    negative = states @ table[sampled].T - log_expected
    negative = negative.masked_fill(targets[:, None] == sampled[None, :], -torch.inf)
    logits = torch.cat([positive, negative], dim=1)
    return (logits.logsumexp(dim=1) - positive[:, 0]).sum() / max(len(targets), 1)


def inclusion_probabilities(counts: torch.Tensor, size: int, power: float = 0.75) -> torch.Tensor:
    """Return the probability of each item to be drawn, (n_items,) float32 in (0, 1].

    It is proportional to (count + 1) ** power, capped at 1, such that `size` items are drawn on average; all are 1 if
    `size` >= n_items.
    """
    if size >= len(counts):
        return torch.ones(len(counts))
    weight = (counts.double() + 1) ** power
    chance = torch.zeros_like(weight)
    capped = torch.zeros(len(counts), dtype=torch.bool)
    while True:  # the excess of capped items is distributed over the others
        chance = torch.where(capped, 1.0, weight * (size - capped.sum()) / weight[~capped].sum())
        over = (chance > 1) & ~capped
        if not over.any():
            return chance.float()
        capped |= over


SasRecModel.register_for_auto_class("AutoModel")
SasRecConfig.register_for_auto_class()
