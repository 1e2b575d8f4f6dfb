"""Decoding of batches: beams, greedy and sampling on a shared prompt cache, with nothing taken from the model's own file.

Three properties hold for all strategies and are tested. The model's `generation_config.json` has no say (Instruct models
ship sampling and penalty values there). A text depends on its own prompt only, not on the batch it stands in (equal up
to floating-point ties). The keys and values of a prompt are computed once, however many beams or samples it gets, and
those of the tokens that all prompts share (template and instruction) once for all.
"""

from __future__ import annotations

import copy
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import (
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bigrec_hf.errors import BigrecError
from bigrec_hf.prompts import parse_answer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Decoding:
    """How answers are chosen; the fields are those of `settings.GenerateSettings`. Raises BigrecError on impossible ones."""

    strategy: str = "beam"  # beam, greedy or sample
    num_beams: int = 4
    num_return_sequences: int = 0  # 0 = all beams, or one text
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in ("beam", "greedy", "sample"):
            raise BigrecError(f"decoding is {self.strategy!r}: choose beam, greedy or sample")
        if self.max_new_tokens < 1:
            raise BigrecError(f"max_new_tokens is {self.max_new_tokens}: an answer needs at least 1 token")
        if self.strategy == "beam" and self.num_beams < 1:
            raise BigrecError(f"num_beams is {self.num_beams}: it must be at least 1")
        if self.strategy == "beam" and self.num_return_sequences > self.num_beams:
            raise BigrecError(
                f"num_return_sequences is {self.num_return_sequences}, but {self.num_beams} beams give no more than "
                f"{self.num_beams} texts: raise num_beams"
            )
        if self.strategy == "greedy" and self.num_return_sequences > 1:
            raise BigrecError(
                f"num_return_sequences is {self.num_return_sequences}, but greedy decoding has one answer: "
                "use decoding beam or sample"
            )
        if self.strategy == "sample":
            if not self.temperature > 0:
                raise BigrecError(
                    f"temperature is {self.temperature}: it must be above 0 (decoding greedy takes the top)"
                )
            if not 0 < self.top_p <= 1:
                raise BigrecError(f"top_p is {self.top_p}: it must be above 0 and at most 1")
            if self.top_k < 0:
                raise BigrecError(f"sample_top_k is {self.top_k}: it must be at least 0 (0 = all tokens)")

    @property
    def n_texts(self) -> int:
        """Texts an example gets."""
        if self.strategy == "beam":
            return self.num_return_sequences or self.num_beams
        return max(1, self.num_return_sequences)

    @property
    def rows_per_prompt(self) -> int:
        """Sequences decoded side by side for one prompt."""
        return self.num_beams if self.strategy == "beam" else self.n_texts


def end_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Every id that ends an answer: the tokenizer's EOS and those of the model's two configurations (int or list)."""
    found: set[int] = set()
    for owner in (tokenizer, model.config, getattr(model, "generation_config", None)):
        value = getattr(owner, "eos_token_id", None)
        found |= {value} if isinstance(value, int) else set(value or ())
    if not found:
        raise BigrecError("neither the tokenizer nor the model names an EOS token: set eos_token in the tokenizer")
    return sorted(found)


def line_break_ids(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Ids of all tokens whose text holds a line break.  # (n,) int64"""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return torch.tensor([i for i, text in enumerate(texts) if "\n" in text or "\r" in text], dtype=torch.long)


def uniforms(seed: int, example_id: str, number: int, n: int) -> np.ndarray:
    """The `n` random numbers of one sampled answer.  # (n,) float32 in [0, 1)

    They depend on the seed, the example's id and the answer's number alone: neither on the batch, nor on the number of
    processes, nor on what was decoded before a restart.
    """
    digest = hashlib.sha256(f"{seed}\0{number}\0{example_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little")).random(n, dtype=np.float32)


class ChooseToken(LogitsProcessor):
    """Greedy choice, or sampling by inverting the distribution function at given uniform numbers; keeps log-probabilities.

    It returns 0 at the chosen token and -inf elsewhere, so that `generate(do_sample=False)` takes it. Temperature, top-k and
    top-p are transformers' own warpers, in the order in which `generate` applies them.
    """

    def __init__(self, decoding: Decoding, draws: torch.Tensor | None) -> None:
        """`draws`: (rows, max_new_tokens) in [0, 1), or None for the greedy choice."""
        self.draws = draws
        self.log_probs: list[torch.Tensor] = []  # one (rows,) float32 a step, under the unchanged distribution
        self.warpers = LogitsProcessorList()
        if draws is not None:
            self.warpers.append(TemperatureLogitsWarper(decoding.temperature))
            if decoding.top_k > 0:
                self.warpers.append(TopKLogitsWarper(decoding.top_k))
            if decoding.top_p < 1:
                self.warpers.append(TopPLogitsWarper(decoding.top_p))

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.draws is None:
            chosen = scores.argmax(dim=-1, keepdim=True)
        else:
            mass = self.warpers(input_ids, scores).softmax(dim=-1).cumsum(dim=-1)  # (rows, vocabulary)
            # the first token whose cumulated mass exceeds the draw: one without mass never is
            total = mass[:, -1:].contiguous()
            point = self.draws[:, len(self.log_probs), None] * total
            last = torch.searchsorted(mass, total)  # last token with mass: the product may round up to the total
            chosen = torch.minimum(torch.searchsorted(mass, point, right=True), last)
        self.log_probs.append(scores.log_softmax(dim=-1).gather(-1, chosen)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)


class StopAtLineBreak(StoppingCriteria):
    """Ends a row after a token with a line break: the answer is cut there anyway."""

    def __init__(self, token_ids: torch.Tensor) -> None:
        self.token_ids = token_ids

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        return torch.isin(input_ids[:, -1], self.token_ids.to(input_ids.device))


def common_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, at least one token of every prompt left over."""
    if not prompts:
        return 0
    low, high = min(prompts), max(prompts)  # in lexicographic order, all others lie between these two
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if low[i] != high[i]), max(limit, 0))


class Decoder:
    """A model, a tokenizer and a decoding strategy; the cache of the prompts' common beginning is computed once."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        decoding: Decoding,
        *,
        shared_prefix: Sequence[int] = (),
    ) -> None:
        """`shared_prefix`: token ids that every prompt given later begins with; () = share nothing."""
        self.model, self.tokenizer, self.decoding = model, tokenizer, decoding
        self.end_ids = end_token_ids(model, tokenizer)
        self.break_ids = line_break_ids(tokenizer)
        self.cut_ids = set(self.end_ids) | (set() if decoding.strategy == "beam" else set(self.break_ids.tolist()))
        # `generate` fills unset fields from the model's own file: leave it nothing to fill them with
        model.generation_config = GenerationConfig()
        self.prefix: list[int] = []
        self.prefix_cache = self._empty_cache()
        # a sliding window counts cache slots, and padding would stand inside it between the prefix and the rest
        if shared_prefix and not any(self.prefix_cache.is_sliding):
            self.prefix = list(shared_prefix)
            ids = torch.tensor([self.prefix], device=model.device)
            self._fill(self.prefix_cache, ids, torch.ones_like(ids))

    def _empty_cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config)

    @torch.inference_mode()
    def _fill(self, cache: DynamicCache, ids: torch.Tensor, mask: torch.Tensor) -> None:
        """Append the keys and values of `ids` (rows, new) to the cache; `mask` (rows, cached + new) marks real tokens."""
        positions = (mask.cumsum(dim=-1) - 1).clamp_(min=0)[:, -ids.shape[1] :]
        self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )

    def config(self) -> GenerationConfig:
        """Everything set here: beams with transformers' (and the reference's) early stopping and length penalty."""
        decoding = self.decoding
        beam = decoding.strategy == "beam"
        return GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            do_sample=False,
            num_beams=decoding.num_beams if beam else 1,
            num_return_sequences=decoding.n_texts if beam else 1,
            early_stopping=False,
            length_penalty=1.0,
            repetition_penalty=1.0,
            eos_token_id=self.end_ids,
            pad_token_id=self.tokenizer.pad_token_id,
            bos_token_id=self.tokenizer.bos_token_id,
            use_cache=True,
            return_dict_in_generate=True,
            output_scores=beam,
        )

    @torch.inference_mode()
    def decode(
        self, prompts: Sequence[Sequence[int]], example_ids: Sequence[str]
    ) -> tuple[list[list[str]], list[list[float]]]:
        """Answers to a batch of prompts (token ids): texts and scores, `n_texts` each, best first.

        A score is the sum of the answer's log-probabilities, its end token included, over its number of tokens (for beams,
        `sequences_scores`). Sampled answers are scored under the distribution before temperature, top-k and top-p.

        Beams run on past a line break as in the reference, and the text is cut there afterwards: ending a beam at the
        break would normalize its score over another length and so could change the ranking. Greedy and sampled answers
        stop there, which cannot change what precedes it.
        """
        n_prefix, copies = len(self.prefix), self.decoding.rows_per_prompt
        tails = [list(prompt[n_prefix:]) for prompt in prompts]
        if any(not tail or list(prompt[:n_prefix]) != self.prefix for prompt, tail in zip(prompts, tails, strict=True)):
            raise ValueError("every prompt must begin with the shared prefix and go on after it")
        # layout of a row: shared prefix, padding, the rest of the prompt
        width = max(map(len, tails))
        ids = torch.full((len(prompts), n_prefix + width), self.tokenizer.pad_token_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, tail in enumerate(tails):
            ids[row, :n_prefix], mask[row, :n_prefix] = torch.tensor(self.prefix, dtype=torch.long), 1
            ids[row, -len(tail) :], mask[row, -len(tail) :] = torch.tensor(tail), 1
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        cache = self._empty_cache()
        if n_prefix:
            cache = copy.deepcopy(self.prefix_cache)
            cache.batch_repeat_interleave(len(prompts))
        if width > 1:  # the last token is left to `generate`, which expects one that is not in the cache
            self._fill(cache, ids[:, n_prefix:-1], mask[:, :-1])
        if cache.get_seq_length() > 0:
            cache.batch_repeat_interleave(copies)
        options: dict[str, object] = {}
        chooser = None
        if self.decoding.strategy != "beam":
            ids, mask = ids.repeat_interleave(copies, dim=0), mask.repeat_interleave(copies, dim=0)
            chooser = ChooseToken(self.decoding, self._draws(example_ids))
            options = {
                "logits_processor": LogitsProcessorList([chooser]),
                "stopping_criteria": StoppingCriteriaList([StopAtLineBreak(self.break_ids)]),
            }
        output = self.model.generate(
            input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=self.config(), **options
        )
        answers = [self._cut(row) for row in output.sequences[:, ids.shape[1] :].tolist()]
        texts = [self._text(answer) for answer in answers]
        if chooser is None:
            scores = output.sequences_scores.tolist()
        else:
            table = torch.stack(chooser.log_probs, dim=1).tolist()  # (rows, steps)
            scores = [float(np.mean(row[: len(answer)])) for row, answer in zip(table, answers, strict=True)]
        n = self.decoding.n_texts
        grouped_texts, grouped_scores = [], []
        for start in range(0, len(texts), n):
            order = sorted(range(start, start + n), key=lambda row: -scores[row])  # stable: ties keep their number
            grouped_texts.append([texts[row] for row in order])
            grouped_scores.append([scores[row] for row in order])
        return grouped_texts, grouped_scores

    def _draws(self, example_ids: Sequence[str]) -> torch.Tensor | None:
        if self.decoding.strategy != "sample":
            return None
        decoding = self.decoding
        rows = [
            uniforms(decoding.seed, example_id, number, decoding.max_new_tokens)
            for example_id in example_ids
            for number in range(decoding.n_texts)
        ]
        return torch.tensor(np.stack(rows), device=self.model.device)  # (prompts * n_texts, max_new_tokens)

    def _cut(self, ids: list[int]) -> list[int]:
        """The tokens of one answer, its end token included; what `generate` fills up with after it is dropped."""
        return next((ids[: i + 1] for i, token in enumerate(ids) if token in self.cut_ids), ids)

    def _text(self, answer: list[int]) -> str:
        ended = bool(answer) and answer[-1] in self.end_ids
        return parse_answer(self.tokenizer.decode(answer[:-1] if ended else answer, skip_special_tokens=True))
