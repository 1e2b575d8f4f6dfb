"""Decoding of batches: beams, free or constrained to the catalog, greedy and sampling, with clean settings.

Three properties hold for all strategies and are tested. The model's `generation_config.json` has no say (Instruct
models ship sampling and penalty values there). A text depends on its own prompt only, not on the batch it stands in
(equal up to floating-point ties). The keys and values of a prompt are computed once, however many beams or samples it
gets, and those of the tokens that all prompts share (template and instruction) once for all.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import DynamicCache, GenerationConfig, LogitsProcessorList
from transformers.generation import StoppingCriteriaList

from bigrec_hf.data.prompts import parse_answer
from bigrec_hf.generate.kv_cache import empty_cache, open_for_answers, repeat_rows
from bigrec_hf.generate.strategy import ChooseToken, Decoding, StopAtLineBreak, end_token_ids, line_break_ids, uniforms
from bigrec_hf.models.loading import backbone

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bigrec_hf.generate.constrained import Constraint


def common_prefix_length(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, at least one token of every prompt left over."""
    if not prompts:
        return 0
    low, high = min(prompts), max(prompts)  # in lexicographic order, all others lie between these two
    limit = min(map(len, prompts)) - 1
    return next((i for i in range(limit) if low[i] != high[i]), max(limit, 0))


def cut_answer(ids: list[int], cut_ids: set[int]) -> list[int]:
    """The tokens of one answer, its end token included; what `generate` fills up with after it is dropped."""
    return next((ids[: i + 1] for i, token in enumerate(ids) if token in cut_ids), ids)


def answer_text(
    tokenizer: PreTrainedTokenizerBase, answer: list[int], end_ids: Sequence[int], *, single_line: bool = True
) -> str:
    """The text of one answer (`cut_answer`); `single_line`: up to a line break and without quotes, as a title's."""
    ended = bool(answer) and answer[-1] in end_ids
    text = tokenizer.decode(answer[:-1] if ended else answer, skip_special_tokens=True)
    return parse_answer(text) if single_line else text


class Decoder:
    """A model, a tokenizer and a decoding strategy; the cache of the prompts' common beginning is computed once."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        decoding: Decoding,
        *,
        shared_prefix: Sequence[int] = (),
        constraint: Constraint | None = None,
        single_line: bool = True,
    ) -> None:
        """`shared_prefix`: token ids that every prompt given later begins with; () = share nothing. `constraint`: what
        constrained strategies may write; with it, answers end where the titles do, whatever `max_new_tokens` says.
        `single_line`: an answer ends at a line break and its quotes are taken off, as a title's; false = the text as it
        was written."""
        self.model, self.tokenizer, self.constraint, self.single_line = model, tokenizer, constraint, single_line
        if decoding.is_constrained != (constraint is not None):
            raise ValueError(f"decoding {decoding.strategy} and the constraint do not fit together")
        if constraint is not None:
            self.trie = constraint.titles.trie.to(model.device)
            decoding = replace(decoding, max_new_tokens=self.trie.depth)
            self.end_ids = [tokenizer.eos_token_id]  # the one end that the trie's paths have
        else:
            self.end_ids = end_token_ids(model, tokenizer)
        self.decoding = decoding
        self.break_ids = line_break_ids(tokenizer) if single_line else torch.empty(0, dtype=torch.long)
        self.cut_ids = set(self.end_ids) | (set() if decoding.has_beams else set(self.break_ids.tolist()))
        # `generate` fills unset fields from the model's own file: leave it nothing to fill them with
        model.generation_config = GenerationConfig()
        self.prefix: list[int] = []
        self.prefix_cache = empty_cache(model)
        # a sliding window counts cache slots, and padding would stand inside it between the prefix and the rest
        if shared_prefix and not any(self.prefix_cache.is_sliding):
            self.prefix = list(shared_prefix)
            ids = torch.tensor([self.prefix], device=model.device)
            self._fill(self.prefix_cache, ids, torch.ones_like(ids))

    @torch.inference_mode()
    def _fill(self, cache: DynamicCache, ids: torch.Tensor, mask: torch.Tensor) -> None:
        """Append keys and values of `ids` (rows, new) to the cache; `mask` (rows, cached + new) marks real tokens."""
        positions = (mask.cumsum(dim=-1) - 1).clamp_(min=0)[:, -ids.shape[1] :]
        # without the LM head: on the last position of several rows it copies its whole weight for every row (CPU)
        backbone(self.model)(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )

    def config(self) -> GenerationConfig:
        """Everything set here: beams with transformers' (and the reference's) early stopping and length penalty."""
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
            output_scores=decoding.strategy == "beam",  # keeps the scores of all tokens at all steps in memory
        )

    @torch.inference_mode()
    def decode(
        self, prompts: Sequence[Sequence[int]], example_ids: Sequence[str]
    ) -> tuple[list[list[str]], list[list[float]]]:
        """Answers to a batch of prompts (token ids): texts and scores, `n_texts` each, best first.

        A score is the sum of the answer's log-probabilities, its end token included, over its number of tokens (for
        free beams, `sequences_scores`; for all beams, over that number to the power `length_penalty`). Sampled answers
        are scored under the model's own distribution, before temperature, top-k and top-p. Constrained beams give
        catalog titles only, and fewer than `n_texts` where the catalog has no more; `debiased` adds up mixed scores.

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
        cache = repeat_rows(self.prefix_cache, len(prompts))
        if width > 1:  # the last token is left to `generate`, which expects one that is not in the cache
            self._fill(cache, ids[:, n_prefix:-1], mask[:, :-1])
        cache = open_for_answers(cache, copies, room=1 + self.decoding.max_new_tokens)
        options: dict[str, object] = {}
        chooser = constrained = None
        if self.constraint is not None:
            constrained = self.constraint.processor(self.trie, copies, ids.shape[1], example_ids)
            options = {"logits_processor": LogitsProcessorList([constrained])}
        elif self.decoding.strategy != "beam":
            ids, mask = ids.repeat_interleave(copies, dim=0), mask.repeat_interleave(copies, dim=0)
            chooser = ChooseToken(self.decoding, self._draws(example_ids))
            options = {
                "logits_processor": LogitsProcessorList([chooser]),
                "stopping_criteria": StoppingCriteriaList([StopAtLineBreak(self.break_ids)]),
            }
        output = self.model.generate(
            input_ids=ids, attention_mask=mask, past_key_values=cache, generation_config=self.config(), **options
        )
        if constrained is not None:
            return self._titles(*constrained.titles(output.sequences))
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

    def _titles(self, leaves: list[list[int]], totals: list[list[float]]) -> tuple[list[list[str]], list[list[float]]]:
        """Texts and scores of constrained beams, best first, from their leaves and summed log-probabilities."""
        titles, n = self.constraint.titles, self.decoding.n_texts
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
        return cut_answer(ids, self.cut_ids)

    def _text(self, answer: list[int]) -> str:
        return answer_text(self.tokenizer, answer, self.end_ids, single_line=self.single_line)
