"""Which way prompts go through a model: chosen by measuring, so that no architecture is trusted by its name.

From fast to slow:

    shared prefix   the tokens that all prompts begin with are computed once for all, every prompt once for its beams
    prompt cache    every prompt once for its beams
    stock           transformers' own `generate` on the padded batch: recurrent layers (Mamba, convolutions)
    one by one      transformers' own `generate` on one prompt at a time: models that padding changes

A route is taken where it gives the next-token probabilities of `one by one`, at the end of two prompts of very
different length and one token later. Two cases are decided without measuring: rows of recurrent states cannot be
repeated, and in a sliding window the padding between the prefix and the rest would take the place of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from bigrec_hf.generate.kv_cache import empty_cache, is_repeatable, pad_prompts, prefix_cache, prompts_cache
from bigrec_hf.generate.memory import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel


SHARED_PREFIX, PROMPT_CACHE, STOCK, ONE_BY_ONE = ROUTES = ("shared prefix", "prompt cache", "stock", "one by one")
PROBE_TOKENS = 64  # of the longer prompt that is measured
NEW_TOKENS = 2
# total variation between two next-token distributions; rounding to 16 bits moves it by a few hundredths
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
TOLERANCE_16_BITS = 0.2


@dataclass(frozen=True)
class Route:
    """The route taken, and why each faster one was not: "differs by 0.31", "TypeError: ..."."""

    name: str
    reasons: dict[str, str] = field(default_factory=dict)
    measured_tokens: int = 0  # length of the longer prompt measured


_measured: WeakKeyDictionary[torch.nn.Module, Route] = WeakKeyDictionary()


def choose_route(model: PreTrainedModel, longest: Sequence[int], pad_id: int) -> Route:
    """The fastest route for prompts up to this one (token ids); measured once for each model, again for longer windows.

    Raises what the model raises on the slowest one.
    """
    n = probe_length(model, len(longest))
    known = _measured.get(model)
    if known is None or known.measured_tokens < n:
        known = _measured[model] = measure(model, longest, n, pad_id)
    return known


def probe_length(model: PreTrainedModel, n_longest: int) -> int:
    """Tokens of the longer prompt to measure: a few, or all where the configuration names a window shorter than it."""
    config = vars(model.config.get_text_config(decoder=True))
    windows = [value for name, value in config.items() if "window" in name and type(value) is int and value > 0]
    return max(4, n_longest if any(window < n_longest for window in windows) else min(n_longest, PROBE_TOKENS))


def measure(model: PreTrainedModel, longest: Sequence[int], n: int, pad_id: int) -> Route:
    """`choose_route`, on a prompt of `n` tokens and its first half."""
    prompt = (list(longest) * -(-n // len(longest)))[:n]
    n_prefix = n // 2
    prompts = [prompt, prompt[: n_prefix + 1]]
    expected = torch.cat([_next_tokens(model, [one], pad_id, STOCK) for one in prompts])
    tolerance = TOLERANCE.get(model.dtype, TOLERANCE_16_BITS)
    reasons: dict[str, str] = {}
    for name in (SHARED_PREFIX, PROMPT_CACHE, STOCK):
        if reason := _excluded(model, name):
            reasons[name] = reason
            continue
        try:
            got = _next_tokens(model, prompts, pad_id, name, prompt[:n_prefix] if name == SHARED_PREFIX else [])
        except Exception as error:  # whatever a foreign forward pass raises where it does not support a route
            if is_out_of_memory(error):
                raise
            reasons[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            continue
        distance = (got - expected).abs().sum(dim=-1).max().item() / 2
        if distance <= tolerance:  # not true of NaN
            return Route(name, reasons, n)
        reasons[name] = f"the next-token distribution differs by {distance:.2g}"
    return Route(ONE_BY_ONE, reasons, n)


def _excluded(model: PreTrainedModel, name: str) -> str:
    """Why a route cannot be taken at all, or ""."""
    if name == STOCK:
        return ""
    if not is_repeatable(model):
        return "it takes no cache whose rows can be repeated"
    if name == SHARED_PREFIX and any(empty_cache(model).is_sliding):
        return "its attention has a sliding window"
    return ""


class _Script(LogitsProcessor):
    """Writes one token again and again, and keeps the distributions, (rows, vocabulary) float32 for each step."""

    def __init__(self, token: int) -> None:
        self.token, self.seen = token, list[torch.Tensor]()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(scores.float().softmax(dim=-1))
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.token] = 0
        return forced


@torch.inference_mode()
def _next_tokens(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int, name: str, prefix: Sequence[int] = ()
) -> torch.Tensor:
    """Next-token probabilities after the prompts and one token later.  # (rows, NEW_TOKENS, vocabulary) float32"""
    ids, mask = pad_prompts(prompts, len(prefix), pad_id, model.device)
    options = {}
    if name in (SHARED_PREFIX, PROMPT_CACHE):
        cache = prefix_cache(model, prefix)
        options["past_key_values"] = prompts_cache(model, cache, ids, mask, copies=1, room=1 + NEW_TOKENS)
    script = _Script(prompts[0][0])
    config = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=pad_id, use_cache=True)
    model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        logits_processor=LogitsProcessorList([script]),
        **options,
    )
    return torch.stack(script.seen, dim=1)
