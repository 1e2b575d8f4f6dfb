"""Decoding of batches: beams, free or constrained to the catalog, greedy and sampling.

Three properties hold for all strategies and are tested. The `generation_config.json` of the model is ignored (Instruct
models ship sampling and penalty values in it). A text depends only on its own prompt, not on the rest of the batch (up
to floating-point ties). If the cache of the model allows it (route.py), the keys and values of a prompt are computed
once for all its beams or samples, and those of the tokens that all prompts share (template and instruction) only once.
"""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import StoppingCriteriaList

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.prompts import parse_answer
from bigrec_hf.generate.beams import BeamScores
from bigrec_hf.generate.kv_cache import pad_prompts, prefix_cache, prompts_cache
from bigrec_hf.generate.memory import GIB, Footprint, budget, footprint, is_out_of_memory, weight_bytes
from bigrec_hf.generate.route import NO_CACHE, ONE_BY_ONE, PROMPT_CACHE, SHARED_PREFIX, STOCK, Route, choose_route
from bigrec_hf.generate.strategy import (
    NOT_NUMBERS,
    ChooseToken,
    Decoding,
    StopAtLineBreak,
    end_token_ids,
    line_break_ids,
    uniforms,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bigrec_hf.data.trie import TitleTrie
    from bigrec_hf.generate.constrained import Constraint

Decoded = tuple[list[list[str]], list[list[float]]]  # texts and scores of each prompt, best first


def common_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """Return the number of first tokens that all prompts share, leaving at least one token of each."""
    if not prompts:
        return 0
    low, high = min(map(list, prompts)), max(map(list, prompts))  # in lexicographic order, all others lie between
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if low[i] != high[i]), max(limit, 0))


def cut_answer(ids: list[int], cut_ids: set[int]) -> list[int]:
    """Return the tokens of one answer up to its end token; the padding after it is dropped."""
    return next((ids[: i + 1] for i, token in enumerate(ids) if token in cut_ids), ids)


def answer_text(
    tokenizer: PreTrainedTokenizerBase, answer: list[int], end_ids: Sequence[int], *, single_line: bool = True
) -> str:
    """Return the text of one answer (`cut_answer`); `single_line`: up to a line break, without quotes, like a title."""
    ended = bool(answer) and answer[-1] in end_ids
    text = str(tokenizer.decode(answer[:-1] if ended else answer, skip_special_tokens=True))
    return parse_answer(text) if single_line else text


class Decoder:
    """A model, a tokenizer and a decoding strategy; the cache of the prompts' common prefix is computed once."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        decoding: Decoding,
        *,
        shared_prefix: Sequence[int] = (),
        constraint: Constraint | None = None,
        single_line: bool = True,
        memory_gib: float = 0.0,
    ) -> None:
        """`shared_prefix`: token ids that every prompt given later begins with; () = share nothing. `constraint`: what
        constrained strategies may write; answers then end with the titles, whatever `max_new_tokens` says.
        `single_line`: an answer ends at a line break and its quotes are taken off, as a title's; false = the text as it
        was written. `memory_gib`: what cache and logits of the prompts decoded together may take (`memory.budget`)."""
        self.model, self.tokenizer, self.constraint, self.single_line = model, tokenizer, constraint, single_line
        if decoding.is_constrained != (constraint is not None):
            raise ValueError(f"decoding {decoding.strategy} does not fit its constraint")
        if constraint is not None:
            self.trie = constraint.titles.trie.to(model.device)
            decoding = replace(decoding, max_new_tokens=self.trie.depth)
            self.end_ids = [tokenizer.eos_token_id]  # the one end that the trie's paths have
        else:
            self.end_ids = end_token_ids(tokenizer, model.config, model.generation_config)
        self.decoding = decoding
        self.break_ids = line_break_ids(tokenizer) if single_line else torch.empty(0, dtype=torch.long)
        self.cut_ids = set(self.end_ids) | (set() if decoding.has_beams else set(self.break_ids.tolist()))
        # `generate` fills unset fields from the model's own file: leave it nothing to fill them with
        model.generation_config = GenerationConfig()
        self.memory_gib = memory_gib
        self.token_limit = sys.maxsize  # prompts x longest of a batch, lowered when memory runs out
        self.given_prefix = list(shared_prefix)
        self.prefix: list[int] = []  # the given one if the route allows sharing it
        self.route: Route | None = None  # measured with the first batch

    def config(self) -> GenerationConfig:
        """Return the complete configuration; early stopping and length penalty are those of transformers."""
        decoding = self.decoding
        beam = decoding.has_beams
        n_returned = decoding.num_beams if decoding.is_constrained else decoding.n_texts
        return GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            do_sample=False,
            num_beams=decoding.num_beams if beam else 1,
            num_return_sequences=n_returned if beam else 1,
            early_stopping=False,
            length_penalty=decoding.length_penalty if beam else 1.0,
            repetition_penalty=1.0,
            eos_token_id=self.end_ids,
            pad_token_id=self.tokenizer.pad_token_id,
            bos_token_id=self.tokenizer.bos_token_id,
            use_cache=True,
            return_dict_in_generate=True,
        )

    @torch.inference_mode()
    def decode(self, prompts: Sequence[Sequence[int]], example_ids: Sequence[str]) -> Decoded:
        """Answers to a batch of prompts (token ids): texts and scores, `n_texts` each, best first.

        A score is the sum of the answer's log-probabilities, its end token included, over its number of tokens (for
        free beams, `sequences_scores`; for all beams, over that number to the power `length_penalty`). Sampled answers
        are scored under the model's own distribution, before temperature, top-k and top-p. Constrained beams give
        catalog titles only, and fewer than `n_texts` if the catalog has no more; `debiased` adds up mixed scores.

        Beams continue after a line break as in the reference, and the text is cut there afterwards: ending a beam at
        the break would normalize its score by another length, which could change the ranking. Greedy and sampled
        answers stop there, which cannot change what precedes it.

        Raises BigrecError if the model's probabilities are NaN.
        """
        n = len(self.given_prefix)
        if any(len(prompt) <= n or list(prompt[:n]) != self.given_prefix for prompt in prompts):
            raise ValueError("every prompt must begin with the shared prefix and have more tokens")
        texts: list[list[str]] = []
        scores: list[list[float]] = []
        while len(texts) < len(prompts):
            rest = slice(len(texts), None)
            found = self._decode_some(prompts[rest], example_ids[rest])
            if any(math.isnan(score) for row in found[1] for score in row):
                raise BigrecError(NOT_NUMBERS)
            texts += found[0]
            scores += found[1]
        return texts, scores

    def _decode_some(self, prompts: Sequence[Sequence[int]], example_ids: Sequence[str]) -> Decoded:
        """Answers to as many of the first prompts as fit into memory; none if it ran out, and fewer are tried next.

        Raises BigrecError if not even one fits.
        """
        longest, n = max(map(len, prompts)), 1
        try:
            route = self._choose_route(prompts)
            n = min(len(prompts), self._n_fitting(longest, route))
            return self._decode(prompts[:n], example_ids[:n], route)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if n == 1:
                raise BigrecError(self._too_large(longest)) from error
        # only here, without the error and the tensors that its traceback holds
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.token_limit = n // 2 * longest
        warnings.warn(f"out of memory with {n} prompts of {longest} tokens: continuing with {n // 2}", stacklevel=3)
        return [], []

    def _footprint(self, n: int, longest: int, expanded: bool = False) -> Footprint:
        return footprint(
            self.model.config,
            self.model.dtype.itemsize,
            n,
            longest,
            answer=self.decoding.max_new_tokens,
            copies=self.decoding.rows_per_prompt,
            expanded=expanded,
        )

    def _n_fitting(self, longest: int, route: str) -> int:
        """Return how many prompts of this length may be decoded together, at least 1."""
        if route in (ONE_BY_ONE, NO_CACHE):
            return 1
        of_one = self._footprint(1, longest, expanded=route == STOCK).total
        fitting = budget(self.model.device, self.memory_gib) // of_one
        return max(1, min(fitting, self.token_limit // longest))

    def _too_large(self, longest: int) -> str:
        need = self._footprint(1, longest)
        parts = {"weights": weight_bytes(self.model), "cache": need.cache, "logits": need.logits}
        shown = ", ".join(f"{name} {size / GIB:.2f} GiB" for name, size in parts.items())
        return (
            f"out of memory with one prompt of {longest} tokens and {self.decoding.rows_per_prompt} beams or samples "
            f"({shown}): lower num_beams or max_length, quantize the base, or use a larger device"
        )

    def _choose_route(self, prompts: Sequence[Sequence[int]]) -> str:
        beams = self.decoding.has_beams and self.decoding.num_beams > 1
        route = choose_route(self.model, max(prompts, key=len), self.tokenizer.pad_token_id, beams=beams)
        if route != self.route:
            self.route = route
            self.prefix = self.given_prefix if route.name == SHARED_PREFIX else []
            if route.name in (SHARED_PREFIX, PROMPT_CACHE):
                self.prefix_cache = prefix_cache(self.model, self.prefix)
        return route.name

    def _decode(self, prompts: Sequence[Sequence[int]], example_ids: Sequence[str], route: str) -> Decoded:
        copies = self.decoding.rows_per_prompt
        ids, mask = pad_prompts(prompts, len(self.prefix), self.tokenizer.pad_token_id, self.model.device)
        width = ids.shape[1]
        config = self.config()
        config.use_cache = route != NO_CACHE
        options: dict[str, Any] = {"generation_config": config}
        if route in (SHARED_PREFIX, PROMPT_CACHE):
            room = 1 + self.decoding.max_new_tokens
            options["past_key_values"] = prompts_cache(
                self.model, self.prefix_cache, ids, mask, copies=copies, room=room
            )
        if not self.decoding.has_beams:
            ids, mask = ids.repeat_interleave(copies, dim=0), mask.repeat_interleave(copies, dim=0)
            options["stopping_criteria"] = StoppingCriteriaList([StopAtLineBreak(self.break_ids)])

        def run(processor: LogitsProcessor) -> torch.Tensor:
            options["logits_processor"] = LogitsProcessorList([processor])
            return self.model.generate(input_ids=ids, attention_mask=mask, **options).sequences  # type: ignore[operator]

        if self.constraint is not None:
            constrained = self.constraint.processor(self.trie, copies, width, example_ids)
            return self._titles(self.constraint.titles, *constrained.titles(run(constrained)))
        n = self.decoding.n_texts
        if self.decoding.has_beams:
            beams = BeamScores(copies, width, self.end_ids)
            answers = [self._cut(row) for row in run(beams)[:, width:].tolist()]
            divisors = torch.tensor([float(len(answer) ** self.decoding.length_penalty) for answer in answers])
            scores = (beams.sums(answers, n) / divisors).tolist()
        else:
            chooser = ChooseToken(self.decoding, self._draws(example_ids))
            answers = [self._cut(row) for row in run(chooser)[:, width:].tolist()]
            scores = chooser.mean_log_probs(list(map(len, answers)))
        texts = [self._text(answer) for answer in answers]
        grouped_texts, grouped_scores = [], []
        for start in range(0, len(texts), n):
            order = sorted(range(start, start + n), key=lambda row: -scores[row])  # stable: ties keep their number
            grouped_texts.append([texts[row] for row in order])
            grouped_scores.append([scores[row] for row in order])
        return grouped_texts, grouped_scores

    def _titles(self, titles: TitleTrie, leaves: list[list[int]], totals: list[list[float]]) -> Decoded:
        """Texts and scores of constrained beams, best first, from their leaves and summed log-probabilities."""
        n = self.decoding.n_texts
        texts, scores = [], []
        for row, sums in zip(leaves, totals, strict=True):
            normalized = [
                total / titles.lengths[leaf] ** self.decoding.length_penalty
                for leaf, total in zip(row, sums, strict=True)
            ]
            order = sorted(range(len(row)), key=lambda at: -normalized[at])[:n]
            texts.append([titles.texts[row[at]] for at in order])
            scores.append([normalized[at] for at in order])
        return texts, scores

    def _draws(self, example_ids: Sequence[str]) -> torch.Tensor | None:
        if not self.decoding.is_sampled:
            return None
        decoding = self.decoding
        rows = [
            uniforms(decoding.seed, example_id, number, decoding.max_new_tokens)
            for example_id in example_ids
            for number in range(decoding.n_texts)
        ]
        return torch.tensor(np.stack(rows), device=self.model.device)  # (prompts * n_texts, max_new_tokens)

    def _cut(self, ids: list[int]) -> list[int]:
        return cut_answer(ids, self.cut_ids)

    def _text(self, answer: list[int]) -> str:
        return answer_text(self.tokenizer, answer, self.end_ids, single_line=self.single_line)
