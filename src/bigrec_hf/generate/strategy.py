"""How an answer is chosen: the strategy and its limits, what ends an answer, and the choice of one token."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import StoppingCriteria, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from bigrec_hf.common.errors import BigrecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from bigrec_hf.settings import GenerateSettings


CONSTRAINED = ("constrained", "debiased")  # beams that write catalog titles only
STRATEGIES = ("beam", "greedy", "sample", *CONSTRAINED)


@dataclass(frozen=True)
class Decoding:
    """How answers are chosen, as in `settings.GenerateSettings`. Raises BigrecError on impossible values."""

    strategy: str = "beam"  # one of STRATEGIES
    num_beams: int = 4
    length_penalty: float = 1.0  # beam scores are divided by length ** this; debiased: always 0
    num_return_sequences: int = 0  # 0 = all beams, or one text
    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise BigrecError on values that are impossible alone or together."""
        if self.strategy not in STRATEGIES:
            raise BigrecError(f"decoding is {self.strategy!r}: choose one of {', '.join(STRATEGIES)}")
        if self.max_new_tokens < 1:
            raise BigrecError(f"max_new_tokens is {self.max_new_tokens}: an answer needs at least 1 token")
        if self.has_beams and self.num_beams < 1:
            raise BigrecError(f"num_beams is {self.num_beams}: it must be at least 1")
        if self.strategy == "beam" and self.num_beams == 1:
            raise BigrecError("num_beams is 1: one beam is greedy decoding, set decoding greedy")
        if self.has_beams and self.num_return_sequences > self.num_beams:
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

    @classmethod
    def from_settings(cls, generate: GenerateSettings, seed: int) -> Decoding:
        """What the section `generate` asks for; debiased beams are never normalized by their length."""
        return cls(
            strategy=generate.decoding,
            num_beams=generate.num_beams,
            length_penalty=0.0 if generate.decoding == "debiased" else generate.length_penalty,
            num_return_sequences=generate.num_return_sequences,
            max_new_tokens=generate.max_new_tokens,
            temperature=generate.temperature,
            top_p=generate.top_p,
            top_k=generate.sample_top_k,
            seed=seed,
        )

    @property
    def has_beams(self) -> bool:
        """Whether several sequences of a prompt compete, constrained or not."""
        return self.strategy == "beam" or self.is_constrained

    @property
    def is_constrained(self) -> bool:
        """Whether only catalog titles are written."""
        return self.strategy in CONSTRAINED

    @property
    def n_texts(self) -> int:
        """Texts an example gets (fewer where a constraint leaves fewer titles)."""
        if self.has_beams:
            return self.num_return_sequences or self.num_beams
        return max(1, self.num_return_sequences)

    @property
    def rows_per_prompt(self) -> int:
        """Sequences decoded side by side for one prompt."""
        return self.num_beams if self.has_beams else self.n_texts


def end_token_ids(*owners: object) -> list[int]:
    """Every id that ends an answer: `eos_token_id` (int or list) of the tokenizer and the model's two configurations.

    Raises BigrecError where none of them has any.
    """
    found: set[int] = set()
    for owner in owners:
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
    """Greedy choice, or sampling by inverting the distribution function at given numbers; keeps log-probabilities.

    It returns 0 at the chosen token and -inf elsewhere, so that `generate(do_sample=False)` takes it. Temperature,
    top-k and top-p are transformers' own warpers, in the order in which `generate` applies them.
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

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores`: (rows, vocabulary) logits. Gives 0 at the chosen token and -inf elsewhere, in the same shape."""
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

    def mean_log_probs(self, lengths: Sequence[int]) -> list[float]:
        """The mean over each row's first tokens, as many as its answer has."""
        table = torch.stack(self.log_probs, dim=1).tolist()  # (rows, steps)
        return [float(np.mean(row[:length])) for row, length in zip(table, lengths, strict=True)]


class StopAtLineBreak(StoppingCriteria):
    """Ends a row after a token with a line break: the answer is cut there anyway."""

    def __init__(self, token_ids: torch.Tensor) -> None:
        self.token_ids = token_ids

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        """(rows,) bool: rows whose newest token is one of these."""
        return torch.isin(input_ids[:, -1], self.token_ids.to(input_ids.device))
