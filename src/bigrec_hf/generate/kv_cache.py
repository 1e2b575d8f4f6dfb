"""The key-value cache of prompts that several beams or samples continue.

The cache of transformers grows by concatenation and is gathered as a whole at every beam step. Here the slots for the
answer are allocated once, and a beam step moves only these: the beams of a prompt share the rest.
"""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DummyLayer, DynamicIndexedLayer, DynamicLayer, DynamicSlidingWindowLayer

from bigrec_hf.models.loading import backbone

if TYPE_CHECKING:
    from collections.abc import Sequence

# layers whose rows can be repeated: not the recurrent states of Mamba, linear attention and convolutions
REPEATABLE = (DynamicLayer, DynamicSlidingWindowLayer, DynamicIndexedLayer, DummyLayer)


class AnswerLayer(DynamicLayer):
    """Keys and values of one layer, (rows, heads, slots, dim): prompts first, then `room` slots for the answers."""

    def __init__(self, prompt: DynamicLayer, copies: int, room: int) -> None:
        """Repeat every row of `prompt` as `copies` adjacent rows."""
        super().__init__()
        assert prompt.keys is not None and prompt.values is not None  # a filled layer has both
        self.n_prompt = prompt.get_seq_length()
        self.dtype, self.device = prompt.keys.dtype, prompt.keys.device
        self._keys = self._with_room(prompt.keys, copies, room)
        self._values = self._with_room(prompt.values, copies, room)
        self._show(self.n_prompt)
        self.is_initialized = True

    @staticmethod
    def _with_room(states: torch.Tensor, copies: int, room: int) -> torch.Tensor:
        rows, heads, slots, dim = states.shape
        buffer = states.new_empty(rows * copies, heads, slots + room, dim)
        # one write, no repeated copy in between
        buffer.view(rows, copies, heads, slots + room, dim)[..., :slots, :] = states[:, None]
        return buffer

    def _show(self, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.n_slots = n
        keys, values = self._keys[..., :n, :], self._values[..., :n, :]
        self.keys, self.values = keys, values
        return keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append in place; raises RuntimeError if no slot is left."""
        start, end = self.n_slots, self.n_slots + key_states.shape[-2]
        self._keys[..., start:end, :] = key_states
        self._values[..., start:end, :] = value_states
        return self._show(end)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Rows `beam_idx` take the places 0, 1, ...; each comes from its own prompt, so that prompts stay in place."""
        if self.n_slots > self.n_prompt:
            for buffer in (self._keys, self._values):
                answers = buffer[..., self.n_prompt : self.n_slots, :]
                answers.copy_(answers.index_select(0, beam_idx.to(answers.device)))


def pad_prompts(
    prompts: Sequence[Sequence[int]], n_prefix: int, pad_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and mask of a batch, (rows, width) int64: rows of prefix, padding, rest of the prompt."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        padding = range(n_prefix, n_prefix + width - len(prompt))
        places = [place for place in range(width) if place not in padding]
        ids[row, places], mask[row, places] = torch.tensor(list(prompt)), 1
    return ids.to(device), mask.to(device)


def empty_cache(model: PreTrainedModel) -> DynamicCache:
    """Return an empty cache with the layers that the configuration of the model defines."""
    return DynamicCache(config=model.config)


def is_repeatable(model: PreTrainedModel) -> bool:
    """Return whether the model uses a DynamicCache whose layers are all REPEATABLE."""
    if "past_key_values" not in inspect.signature(backbone(model).forward).parameters:
        return False
    supported = model._supports_default_dynamic_cache()  # type: ignore[operator]
    return supported and all(type(layer) in REPEATABLE for layer in empty_cache(model).layers)


@torch.inference_mode()
def fill(model: PreTrainedModel, cache: DynamicCache, ids: torch.Tensor, mask: torch.Tensor) -> None:
    """Append keys and values of `ids` (rows, new) int64 to the cache; `mask` (rows, cached + new) marks real tokens."""
    positions = (mask.cumsum(dim=-1) - 1).clamp_(min=0)[:, -ids.shape[1] :]
    # without the LM head: on the last position of several rows it copies its whole weight for every row (CPU)
    backbone(model)(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)


def prefix_cache(model: PreTrainedModel, prefix: Sequence[int]) -> DynamicCache:
    """Return the cache of one row of token ids; () = an empty one."""
    cache = empty_cache(model)
    if prefix:
        ids = torch.tensor([list(prefix)], device=model.device)
        fill(model, cache, ids, torch.ones_like(ids))
    return cache


def prompts_cache(
    model: PreTrainedModel,
    prefix: DynamicCache,
    ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    copies: int,
    room: int,
) -> DynamicCache:
    """The cache of prompts `ids` (rows, n) int64, all but their last token, each as `copies` neighboring rows.

    `prefix`: the cache of the tokens that all rows begin with (`prefix_cache`), unchanged by this; `room`: tokens that
    will be appended. The last token is left to `generate`, which expects one that is not in the cache.
    """
    cache = copy.deepcopy(prefix)
    n_prefix = cache.get_seq_length()
    if n_prefix > 0:
        cache.batch_repeat_interleave(len(ids))
    if ids.shape[1] > n_prefix + 1:
        fill(model, cache, ids[:, n_prefix:-1], mask[:, :-1])
    return open_for_answers(cache, copies, room)


def open_for_answers(cache: DynamicCache, copies: int, room: int) -> DynamicCache:
    """The prompts' cache with `copies` neighboring rows for each prompt and room for answers; consumes `cache`.

    Layers other than plain attention (sliding windows) grow as transformers' own do.
    """
    if cache.get_seq_length() == 0:
        return cache
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = AnswerLayer(layer, copies, room)
        elif isinstance(layer, DynamicLayer | DummyLayer):
            layer.batch_repeat_interleave(copies)
    return cache
