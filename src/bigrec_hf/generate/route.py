"""Which way prompts go through a model: chosen by measuring, so that no architecture is trusted by its name.

From fast to slow:

    shared prefix   the tokens that all prompts begin with are computed only once, every prompt once for its beams
    prompt cache    every prompt once for its beams
    stock           transformers' own `generate` on the padded batch: recurrent layers (Mamba, convolutions)
    one by one      transformers' own `generate` on one prompt at a time: models that padding changes
    no cache        the same, every token from the whole text again: beams of models whose states do not follow them

A route is taken where it gives the next-token probabilities of `one by one`, at the end of two prompts of very
different length and one token later. For beams, two of them also change places, and the next-token probabilities after
that must be those of the two texts: some recurrent models leave their states where they were, without an error. Two
cases are decided without measuring: rows of recurrent states cannot be repeated, and in a sliding window the padding
between the prefix and the rest would take the place of tokens.
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


SHARED_PREFIX, PROMPT_CACHE, STOCK, ONE_BY_ONE, NO_CACHE = ROUTES = (
    "shared prefix",
    "prompt cache",
    "stock",
    "one by one",
    "no cache",
)
PROBE_TOKENS = 64  # of the longer prompt that is measured
NEW_TOKENS = 2
# total variation between two next-token distributions; rounding to 16 bits moves it by a few hundredths
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
TOLERANCE_16_BITS = 0.2


@dataclass(frozen=True)
class Route:
    """The route taken, and why each faster one was not, such as "differs by 0.31", "TypeError: ..."."""

    name: str
    reasons: dict[str, str] = field(default_factory=dict)
    measured_tokens: int = 0  # length of the longer prompt measured


_measured: WeakKeyDictionary[torch.nn.Module, dict[bool, Route]] = WeakKeyDictionary()


def choose_route(model: PreTrainedModel, longest: Sequence[int], pad_id: int, *, beams: bool = False) -> Route:
    """The fastest route for prompts up to this one (token ids); measured once for each model, again for longer windows.

    `beams`: for several that compete. Raises what the model raises on the slowest one.
    """
    n = probe_length(model, len(longest))
    of_model = _measured.setdefault(model, {})
    known = of_model.get(beams)
    if known is None or known.measured_tokens < n:
        known = of_model[beams] = measure(model, longest, n, pad_id, beams=beams)
    return known


def probe_length(model: PreTrainedModel, n_longest: int) -> int:
    """Tokens of the longer prompt to measure: a few, or all where the configuration names a window shorter than it."""
    config = vars(model.config.get_text_config(decoder=True))
    windows = [value for name, value in config.items() if "window" in name and type(value) is int and value > 0]
    return max(4, n_longest if any(window < n_longest for window in windows) else min(n_longest, PROBE_TOKENS))


def measure(model: PreTrainedModel, longest: Sequence[int], n: int, pad_id: int, *, beams: bool = False) -> Route:
    """`choose_route`, on a prompt of `n` tokens and its first half."""
    prompt = (list(longest) * -(-n // len(longest)))[:n]
    n_prefix = n // 2
    prompts = [prompt, prompt[: n_prefix + 1]]
    expected = torch.cat([_next_tokens(model, [one], pad_id, STOCK) for one in prompts])
    tolerance = TOLERANCE.get(model.dtype, TOLERANCE_16_BITS)
    reasons: dict[str, str] = {}
    for name in ROUTES[: ROUTES.index(NO_CACHE if beams else ONE_BY_ONE)]:
        if reason := _excluded(model, name):
            reasons[name] = reason
            continue
        prefix = prompt[:n_prefix] if name == SHARED_PREFIX else []
        try:
            got = _next_tokens(model, prompts, pad_id, name, prefix) if name != ONE_BY_ONE else expected
            distance = _distance(got, expected)
            right = distance <= tolerance  # not true of NaN
            reason = f"the next-token distribution differs by {distance:.2g}"
            if right and beams:
                right, reason = _beams_move(model, prompts, pad_id, name, prefix, tolerance)
        except Exception as error:  # whatever the forward pass of a model raises if it does not support a route
            if is_out_of_memory(error):
                raise
            right, reason = False, f"{type(error).__name__}: {error}".splitlines()[0][:200]
        if right:
            return Route(name, reasons, n)
        reasons[name] = reason
    return Route(NO_CACHE if beams else ONE_BY_ONE, reasons, n)


def _distance(got: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest total variation between two arrays of distributions (..., vocabulary)."""
    return (got - expected).abs().sum(dim=-1).max().item() / 2


def _excluded(model: PreTrainedModel, name: str) -> str:
    """Why a route cannot be taken at all, or ""."""
    if name in (STOCK, ONE_BY_ONE):
        return ""
    if not is_repeatable(model):
        return "it takes no cache whose rows can be repeated"
    if name == SHARED_PREFIX and any(empty_cache(model).is_sliding):
        return "its attention has a sliding window"
    return ""


class _Script(LogitsProcessor):
    """Writes one token again and again, and keeps the distributions, (rows, vocabulary) float32 for each step."""

    n_steps = NEW_TOKENS

    def __init__(self, token: int) -> None:
        self.token, self.seen = token, list[torch.Tensor]()

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.seen.append(scores.float().softmax(dim=-1))
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.token] = 0
        return forced


class _Swap(_Script):
    """Two beams of each prompt: the first writes `tokens[0]`, the second `tokens[1]`, and in the next step, where both
    write `tokens[0]`, the second takes the lead."""

    n_steps = 3

    def __init__(self, tokens: tuple[int, int]) -> None:
        super().__init__(tokens[0])
        self.other = tokens[1]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = super().__call__(input_ids, scores)
        if len(self.seen) == 1:
            forced[:, self.other] = -1.0
        elif len(self.seen) == 2:
            forced[input_ids[:, -1] != self.other, self.token] = -5.0
        return forced


@torch.inference_mode()
def _beams_move(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    name: str,
    prefix: Sequence[int],
    tolerance: float,
) -> tuple[bool, str]:
    """Return whether two beams that change places keep their own states, and the reason if not."""
    token = prompts[0][0]
    other = next(one for one in (*prompts[0], token + 1, token - 1) if one not in (token, pad_id))
    groups = [prompts] if name != ONE_BY_ONE else [[one] for one in prompts]
    got = []
    for group in groups:
        swap = _Swap((token, other))
        _generate(model, group, pad_id, name, prefix, swap, num_beams=2)
        got.append(swap.seen[-1])
    texts = [[*prompt, first, token] for prompt in prompts for first in (other, token)]
    rows = [model(input_ids=torch.tensor([text], device=model.device), use_cache=False) for text in texts]
    expected = torch.stack([row.logits[0, -1].float().softmax(dim=-1) for row in rows])
    apart = (expected[::2] - expected[1::2]).abs().sum(dim=-1).min().item() / 2
    distance = _distance(torch.cat(got), expected)
    # nearer to the own text than to the other beam's, however similar the two are, but for rounding
    limit = min(tolerance, max(apart / 2, tolerance / 4))
    return distance <= limit, f"beams that change places leave states behind: probabilities differ by {distance:.2g}"


def _next_tokens(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], pad_id: int, name: str, prefix: Sequence[int] = ()
) -> torch.Tensor:
    """Next-token probabilities after the prompts and one token later.  # (rows, NEW_TOKENS, vocabulary) float32"""
    script = _Script(prompts[0][0])
    _generate(model, prompts, pad_id, name, prefix, script)
    return torch.stack(script.seen, dim=1)


@torch.inference_mode()
def _generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    pad_id: int,
    name: str,
    prefix: Sequence[int],
    script: _Script,
    num_beams: int = 1,
) -> None:
    """Write what the script says after the prompts, all at once."""
    ids, mask = pad_prompts(prompts, len(prefix), pad_id, model.device)
    options = {}
    if name in (SHARED_PREFIX, PROMPT_CACHE):
        cache = prefix_cache(model, prefix)
        options["past_key_values"] = prompts_cache(model, cache, ids, mask, copies=num_beams, room=1 + script.n_steps)
    config = GenerationConfig(
        max_new_tokens=script.n_steps, do_sample=False, num_beams=num_beams, pad_token_id=pad_id, use_cache=True
    )
    model.generate(  # type: ignore[operator]
        input_ids=ids,
        attention_mask=mask,
        generation_config=config,
        logits_processor=LogitsProcessorList([script]),
        **options,
    )
