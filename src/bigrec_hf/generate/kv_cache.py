"""The key-value cache of prompts that several beams or samples continue.

transformers' own cache grows by concatenation and is gathered as a whole at every beam step. Here the room for the
answer is there from the start, and a beam step moves the answer's part only: the beams of a prompt share the rest.
"""

from __future__ import annotations

import copy

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class AnswerLayer(DynamicLayer):
    """Keys and values of one layer, (rows, heads, slots, dim): prompts first, then `room` slots for the answers."""

    def __init__(self, prompt: DynamicLayer, copies: int, room: int) -> None:
        """Every row of `prompt` becomes `copies` neighbouring rows."""
        super().__init__()
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

    def _show(self, n: int) -> None:
        self.keys, self.values = self._keys[..., :n, :], self._values[..., :n, :]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append in place; raises RuntimeError beyond the room."""
        start = self.keys.shape[-2]
        end = start + key_states.shape[-2]
        self._keys[..., start:end, :] = key_states
        self._values[..., start:end, :] = value_states
        self._show(end)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Rows `beam_idx` take the places 0, 1, ...; each comes from its own prompt, so that prompts stay in place."""
        end = self.keys.shape[-2]
        if end > self.n_prompt:
            for buffer in (self._keys, self._values):
                answers = buffer[..., self.n_prompt : end, :]
                answers.copy_(answers.index_select(0, beam_idx.to(answers.device)))


def empty_cache(model: torch.nn.Module) -> DynamicCache:
    return DynamicCache(config=model.config)


def repeat_rows(cache: DynamicCache, n: int) -> DynamicCache:
    """A copy of a cache with one row, as `n` equal rows."""
    repeated = copy.deepcopy(cache)
    if repeated.get_seq_length() > 0:
        repeated.batch_repeat_interleave(n)
    return repeated


def open_for_answers(cache: DynamicCache, copies: int, room: int) -> DynamicCache:
    """The prompts' cache with `copies` neighbouring rows a prompt and room for answers; consumes `cache`.

    Layers of another kind than plain attention (sliding windows) keep transformers' own way.
    """
    if cache.get_seq_length() == 0:
        return cache
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[index] = AnswerLayer(layer, copies, room)
        else:
            layer.batch_repeat_interleave(copies)
    return cache
