"""The LM head of a catalog: logits of the tokens of the catalog only, at the positions that need them.

A title of MovieLens has some twelve tokens, two of which have alternatives in the catalog, and the catalog uses 3,000
of the 49,000 tokens of the model: this head is three hundred times cheaper than the whole one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from bigrec_hf.common.errors import BigrecError


class CatalogHead(torch.nn.Module):
    """A slice of a frozen LM head.

    The model still applies whatever it does to its logits after the head (a cap, a scale), and is still called through
    its own `forward`, so that wrappers for several devices see every call.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, head: torch.nn.Module, token_ids: torch.Tensor | None) -> None:
        """`head`: a linear layer, (vocabulary, d); `token_ids`: (V,) int64, None = the whole vocabulary, not copied.

        Raises BigrecError for another kind of layer, or one whose weights are on other devices (ZeRO-3).
        """
        super().__init__()
        weight = getattr(head, "weight", None)
        if (
            not isinstance(weight, torch.Tensor)
            or weight.ndim != 2
            or not weight.is_floating_point()
            or not weight.numel()
        ):
            raise BigrecError(
                f"the LM head is a {type(head).__name__}; only a linear layer in 16 or 32 bits, whole on "
                "this device, can be restricted to the catalog's tokens: use the objective pairs"
            )
        rows = slice(None) if token_ids is None else token_ids.to(weight.device)
        self.register_buffer("weight", weight.detach()[rows], persistent=False)  # (V, d)
        bias = getattr(head, "bias", None)
        self.register_buffer("bias", None if bias is None else bias.detach()[rows], persistent=False)
        self.positions: torch.Tensor | None = None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits at `self.positions`, indices into the flattened (B * T), or at all positions if that is None.

        `hidden`: (B, T, d). Returns (P, V), or (B, T, V).
        """
        if self.positions is not None:
            hidden = hidden.reshape(-1, hidden.shape[-1])[self.positions]
        return torch.nn.functional.linear(hidden, self.weight.to(hidden.dtype), self.bias)


@contextmanager
def catalog_head(model: PreTrainedModel | PeftModel, token_ids: torch.Tensor | None) -> Iterator[CatalogHead]:
    """Replace the LM head of the model by a CatalogHead within the context."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    original = base.get_output_embeddings()
    if original is None:
        raise BigrecError(f"{type(base).__name__} has no LM head to take the catalog's tokens from")
    head = CatalogHead(original, token_ids)
    base.set_output_embeddings(head)
    try:
        yield head
    finally:
        base.set_output_embeddings(original)
