"""Memory of a batch: what the cache and the logits of a model's answers take, and how many prompts fit.

A formula over the model's configuration, so that it can be read before anything is allocated. Recurrent states (Mamba,
linear attention) are not counted; what the formula misses, the Decoder notices when memory runs out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

GIB = 2**30
CPU_GIB = 4.0  # budget without a GPU
GPU_SHARE = 0.9  # of the free memory; the rest is for fragments and for buffers of one layer
FLOAT_COPIES = 6  # of the logits: float32, log-probabilities, sums of beams, those of the step before, sorting


@dataclass(frozen=True)
class Footprint:
    """Bytes that `n` prompts of up to `width` tokens need while their answers are decoded."""

    cache: int
    logits: int
    activations: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.cache + self.logits + self.activations


def footprint(
    config: PreTrainedConfig, itemsize: int, n: int, width: int, *, answer: int, copies: int, expanded: bool = False
) -> Footprint:
    """The memory of `n` prompts with `copies` beams or samples each and room for `answer` tokens.

    `itemsize`: bytes of a number in the model's arithmetic (4 = float32); `expanded`: every copy of a prompt is
    computed by itself, as transformers' own `generate` does it.
    """
    text = config.get_text_config(decoder=True)
    hidden = text.hidden_size
    per_token = 4 * hidden + 3 * (getattr(text, "intermediate_size", None) or 4 * hidden)
    return Footprint(
        cache=n * copies * cache_bytes(text, itemsize, width + answer),
        logits=n * copies * text.vocab_size * (itemsize + 4 * FLOAT_COPIES),
        activations=n * (copies if expanded else 1) * width * per_token * itemsize,
    )


def cache_bytes(config: PreTrainedConfig, itemsize: int, n_tokens: int) -> int:
    """Keys and values of one sequence, over all layers."""
    text = config.get_text_config(decoder=True)
    total = 0
    for layer, layer_config in zip(DynamicCache(config=text).layers, text.per_layer_config, strict=True):
        if isinstance(layer, DynamicSlidingWindowLayer):  # the newest token is not kept before it is needed
            total += min(n_tokens, layer.sliding_window - 1) * _numbers_per_token(layer_config)
        elif isinstance(layer, DynamicLayer):
            total += n_tokens * _numbers_per_token(layer_config)
    return total * itemsize


def _numbers_per_token(config: Any) -> int:
    """Numbers that an attention layer keeps of one token."""
    if latent := getattr(config, "kv_lora_rank", None):
        return latent + config.qk_rope_head_dim
    n_heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        n_key_heads = 1
    else:
        n_key_heads = getattr(config, "num_key_value_heads", None) or n_heads
    return 2 * n_key_heads * head_dim


def weight_bytes(model: PreTrainedModel) -> int:
    """Parameters and buffers as they are stored, quantized ones by their packed size."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def budget(device: torch.device, gib: float) -> int:
    """Bytes for what is decoded together: `gib`, or with 0 what is free on a GPU, CPU_GIB elsewhere."""
    if gib > 0:
        return int(gib * GIB)
    if device.type != "cuda":
        return int(CPU_GIB * GIB)
    free, _ = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(GPU_SHARE * (free + unused))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on a GPU or in the allocator of the CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
