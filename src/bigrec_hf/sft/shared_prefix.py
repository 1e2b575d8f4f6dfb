"""One sequence for a whole batch: the common beginning of its prompts is computed once, and nothing is padded.

Every prompt of a data set begins with the same words (template, instruction). In a causal model the states of that
common prefix do not depend on what follows, so a batch of B rows of lengths n_b with a common prefix of p tokens can be
run as one row of p + sum(n_b - p) tokens in which the rest of every row sees the prefix and itself. Loss and gradients
are those of the padded batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import cross_entropy, scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "shared_prompt"  # name of `attend` among transformers' attention functions
WORTHWHILE = 0.9  # merge only if at most this fraction of the padded batch's tokens is left


@dataclass(frozen=True)
class MergedBatch:
    """A batch as one row of L tokens. `positions` (P,) int64 are where logits are needed; the loss is the sum over the
    Q pairs of `counts` * cross-entropy(logits at `positions[pair_position]`, `pair_target`)."""

    input_ids: torch.Tensor  # (1, L) int64
    position_ids: torch.Tensor  # (1, L) int64
    prefix: int  # length p of the common prefix, in tokens
    own: torch.Tensor  # (B, n) int64, positions of every row's own tokens in the merged row; -1 = padding
    positions: torch.Tensor
    pair_position: torch.Tensor  # (Q,) int64
    pair_target: torch.Tensor  # (Q,) int64
    counts: torch.Tensor  # (Q,) int64, rows that share the pair
    attended: list[str] = field(default_factory=list, compare=False)  # one entry for each layer that ran `attend`

    def model_inputs(self) -> dict[str, Any]:
        """What the model is called with. The mask is a placeholder: four axes stop transformers from making its own,
        which would take repeated positions for packed sequences."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.input_ids.device),
            "shared": self,
            "logits_to_keep": self.positions,
            "use_cache": False,
        }

    def loss(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the summed cross-entropy of `logits` (1, P, vocabulary), in float32."""
        rows = logits[0]
        if len(self.pair_position) > len(self.positions):  # rows that part at a supervised token
            rows = rows[self.pair_position]
        rows = rows.float()
        return (cross_entropy(rows, self.pair_target, reduction="none") * self.counts).sum()


def use_shared_attention(model: PreTrainedModel, longest: int) -> str | None:
    """Switch a model to `attend`, which is SDPA unless a merged batch comes. No change if that cannot be right for
    rows of up to `longest` tokens; the reason is then returned.

    What the configuration tells is not enough: whether a model's layers call `attend` at all, and hand on what it
    needs, shows in a merged batch alone (`MergedBatch.attended`, and the loss).
    """
    config = model.config.get_text_config()
    if model.config._attn_implementation not in ("sdpa", ATTENTION):
        return f"its attention runs on {model.config._attn_implementation}, not sdpa"
    layers = set(getattr(config, "layer_types", None) or ["full_attention"])
    if other := layers - {"full_attention", "sliding_attention"}:
        return f"it has layers of type {sorted(other)[0]}"
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    unknown = 0 if "sliding_attention" in layers else longest
    window = min((limit for limit in limits if limit is not None), default=unknown)
    if window < longest:
        return f"its attention sees {window} tokens, examples may have {longest}"
    if model.config._attn_implementation != ATTENTION:
        model.set_attn_implementation(ATTENTION)
    return None


def draws_at_random(model: PreTrainedModel) -> bool:
    """Return whether training uses dropout or noise, which would be the same for rows that share a prefix."""
    if any(module.p > 0 for module in model.modules() if isinstance(module, torch.nn.Dropout)):
        return True
    settings = model.config.get_text_config().to_dict().items()
    named = (value for name, value in settings if "drop" in name or "jitter" in name)
    return any(isinstance(value, float) and value > 0 for value in named)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    shared: MergedBatch | None = None,
    scaling: float | None = None,
    **options,
) -> tuple[torch.Tensor, None]:
    """Attention in a merged batch: of the prefix to itself, of the rest of each row to the prefix and itself.

    `query` (1, heads, L, d), `key` (1, key heads, L, d), `value` (1, key heads, L, e); gives (1, L, heads, e). p x p
    and B x n x (p + n) scores, n the longest own part, instead of L x L; the latter by plain products: with a mask the
    CPU's fused kernel takes 2.5 times as long in bfloat16. Rows are padded by indices: slices would copy everything
    once per row in the backward pass.
    """
    if shared is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    p, own = shared.prefix, shared.own
    window = options.get("sliding_window")
    if window is not None and window < p + own.shape[1]:
        raise ValueError(f"attention over {window} tokens, the batch has rows of {p + own.shape[1]}")
    shared.attended.append(type(module).__name__)
    (n_rows, n), heads, key_heads, d = own.shape, query.shape[1], key.shape[1], query.shape[3]
    scale = d**-0.5 if scaling is None else scaling
    own_index = own.clamp(min=p)  # padded positions are cut off below, or come after every query
    seen_index = torch.cat([torch.arange(p, device=own.device).expand(n_rows, -1), own_index], dim=1).flatten()
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # (L, heads, d)
    # heads that share a key are stacked, so that keys need not be repeated: (B, key heads, group * n, d)
    q = (q.index_select(0, own_index.flatten()) * scale).view(n_rows, n, key_heads, -1, d)
    q = q.permute(0, 2, 3, 1, 4).reshape(n_rows, key_heads, -1, d)
    k, v = (x.index_select(0, seen_index).view(n_rows, p + n, key_heads, -1).transpose(1, 2) for x in (k, v))
    scores = q @ k.transpose(2, 3)
    unseen = torch.ones(n, p + n, dtype=torch.bool, device=q.device).triu(p + 1)
    scores.view(n_rows, heads, n, p + n).add_(torch.zeros_like(unseen, dtype=q.dtype).masked_fill(unseen, -torch.inf))
    answers = (torch.softmax(scores, dim=-1) @ v).view(n_rows, key_heads, -1, n, v.shape[-1])
    answers = answers.permute(0, 3, 1, 2, 4).reshape(n_rows * n, heads, -1)
    answers = answers.index_select(0, (own.flatten() >= 0).nonzero().flatten())
    if p:
        prefix = scaled_dot_product_attention(
            query[:, :, :p],
            key[:, :, :p],
            value[:, :, :p],
            is_causal=True,
            scale=scale,
            enable_gqa=heads > key_heads,
        )
        answers = torch.cat([prefix[0].transpose(0, 1), answers])
    return answers[None], None


AttentionInterface.register(ATTENTION, attend)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def common_prefix(input_ids: torch.Tensor, lengths: torch.Tensor) -> int:
    """Return the number of tokens with which all rows of (B, T) begin; the last token of a row never counts."""
    same = (input_ids == input_ids[:1]).all(dim=0)[: int(lengths.min()) - 1]
    return int(same.long().cumprod(dim=0).sum())


def merge_batch(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    labels: torch.Tensor,
    ignored: int,
    worthwhile: float = WORTHWHILE,
) -> MergedBatch | None:
    """The right-padded batch (B, T) as one row; None if more than `worthwhile` of its B * T tokens would be left,
    padding included, and for a single row.

    `labels` as for the padded batch: the label at t is what position t - 1 has to predict, `ignored` = no loss.
    """
    n_rows, width = input_ids.shape
    lengths = attention_mask.sum(dim=1)
    real = torch.arange(width, device=input_ids.device) < lengths[:, None]
    if n_rows < 2 or not torch.equal(real, attention_mask.bool()):
        return None
    prefix = common_prefix(input_ids, lengths)
    total = prefix + int((lengths - prefix).sum())
    if total > worthwhile * n_rows * width:
        return None
    rest = real.clone()
    rest[:, :prefix] = False
    row, column = rest.nonzero(as_tuple=True)  # row by row, left to right
    head = torch.arange(prefix, device=input_ids.device)
    place = torch.full_like(input_ids, -1)  # position of each token of the batch in the merged row
    place[:, :prefix] = head
    place[row, column] = prefix + torch.arange(len(row), device=input_ids.device)
    where = (labels[:, 1:] != ignored) & real[:, 1:]
    pairs = torch.stack([place[:, :-1][where], labels[:, 1:][where]], dim=1)
    pairs, counts = torch.unique(pairs, dim=0, return_counts=True)
    positions, pair_position = torch.unique(pairs[:, 0], return_inverse=True)
    return MergedBatch(
        input_ids=torch.cat([input_ids[0, :prefix], input_ids[row, column]])[None],
        position_ids=torch.cat([head, column])[None],
        prefix=prefix,
        own=place[:, prefix:],
        positions=positions,
        pair_position=pair_position,
        pair_target=pairs[:, 1],
        counts=counts,
    )
