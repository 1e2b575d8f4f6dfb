"""How an answer is chosen: the strategy with its limits, the end of an answer, and the choice of a token."""

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


BEAMS = ("num_beams", "length_penalty")
STRATEGIES = {  # strategy -> the fields of `Decoding` that it reads besides `max_new_tokens`
    "beam": BEAMS,
    "greedy": (),
    "sample": ("temperature", "top_p", "top_k", "seed"),
    "constrained": BEAMS,
    "debiased": BEAMS,
}
CONSTRAINED = ("constrained", "debiased")  # beams that can only be catalog titles

NOT_NUMBERS = (
    "the model gives NaN instead of probabilities: its weights or its adapter are damaged, or the numbers are too "
    "large for float16 (--dtype bfloat16 or float32)"
)


@dataclass(frozen=True)
class Decoding:
    """How answers are chosen, as in `settings.GenerateSettings`. Raises BigrecError for impossible values."""

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
        """Raise BigrecError for values that are impossible alone or together."""
        if self.strategy not in STRATEGIES:
            raise BigrecError(f"decoding is {self.strategy!r}: choose one of {', '.join(STRATEGIES)}")
        if self.max_new_tokens < 1:
            raise BigrecError(f"max_new_tokens is {self.max_new_tokens}: an answer needs at least 1 token")
        if self.num_return_sequences < 0:
            raise BigrecError(f"num_return_sequences is {self.num_return_sequences}: it must be at least 0 (0 = all)")
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
                raise BigrecError(f"temperature is {self.temperature}: it must be above 0 (else use decoding greedy)")
            if not 0 < self.top_p <= 1:
                raise BigrecError(f"top_p is {self.top_p}: it must be above 0 and at most 1")
            if self.top_k < 0:
                raise BigrecError(f"sample_top_k is {self.top_k}: it must be at least 0 (0 = all tokens)")

    @classmethod
    def from_settings(cls, generate: GenerateSettings, seed: int) -> Decoding:
        """Return the decoding of the section `generate`; debiased beams are never normalized by their length."""
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
        """Whether only catalog titles can be written."""
        return self.strategy in CONSTRAINED

    @property
    def is_sampled(self) -> bool:
        """Whether answers are drawn at random."""
        return "seed" in STRATEGIES[self.strategy]

    @property
    def n_texts(self) -> int:
        """Number of texts per example (fewer if a constraint leaves fewer titles)."""
        if self.has_beams:
            return self.num_return_sequences or self.num_beams
        return max(1, self.num_return_sequences)

    @property
    def rows_per_prompt(self) -> int:
        """Number of sequences decoded in parallel for one prompt."""
        return self.num_beams if self.has_beams else self.n_texts


def end_token_ids(*owners: object) -> list[int]:
    """Return all ids that end an answer: `eos_token_id` (int or list) of the tokenizer and the configurations.

    Raises BigrecError if none of them has one.
    """
    found: set[int] = set()
    for owner in owners:
        value = getattr(owner, "eos_token_id", None)
        found |= {value} if isinstance(value, int) else set(value or ())
    if not found:
        raise BigrecError("neither the tokenizer nor the model names an EOS token: set eos_token in the tokenizer")
    return sorted(found)


def line_break_ids(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """Return the ids of all tokens whose text contains a line break, (n,) int64."""
    texts = tokenizer.batch_decode([[token] for token in range(len(tokenizer))])
    return torch.tensor([i for i, text in enumerate(texts) if "\n" in text or "\r" in text], dtype=torch.long)


def uniforms(seed: int, example_id: str, number: int, n: int) -> np.ndarray:
    """Return the random numbers of one sampled answer, (n,) float32 in [0, 1).

    They depend only on the seed, the id of the example and the number of the answer, not on the batch, the number of
    processes, or what was decoded before a restart.
    """
    digest = hashlib.sha256(f"{seed}\0{number}\0{example_id}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little")).random(n, dtype=np.float32)


class ChooseToken(LogitsProcessor):
    """Greedy choice, or sampling by inverting the distribution function at given numbers; keeps log-probabilities.

    It returns 0 at the chosen token and -inf elsewhere, so that `generate(do_sample=False)` takes that token.
    Temperature, top-k and top-p are the warpers of transformers, in the order in which `generate` applies them.
    """

    def __init__(self, decoding: Decoding, draws: torch.Tensor | None) -> None:
        """`draws`: (rows, max_new_tokens) in [0, 1), or None for the greedy choice."""
        self.draws = draws
        self.log_probs: list[torch.Tensor] = []  # one (rows,) float32 per step, under the original distribution
        self.warpers = LogitsProcessorList()
        if draws is not None:
            self.warpers.append(TemperatureLogitsWarper(decoding.temperature))
            if decoding.top_k > 0:
                self.warpers.append(TopKLogitsWarper(decoding.top_k))
            if decoding.top_p < 1:
                self.warpers.append(TopPLogitsWarper(decoding.top_p))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.Tensor) -> torch.Tensor:
        """Return 0 at the chosen token and -inf elsewhere; `scores`: logits, (rows, vocabulary)."""
        if self.draws is None:
            chosen = scores.argmax(dim=-1, keepdim=True)
        else:
            mass = self.warpers(input_ids, scores).softmax(dim=-1).cumsum(dim=-1)  # (rows, vocabulary)
            # the first token whose cumulative mass exceeds the draw: never one without mass
            total = mass[:, -1:].contiguous()
            point = self.draws[:, len(self.log_probs), None] * total
            last = torch.searchsorted(mass, total)  # last token with mass: the product may round up to the total
            chosen = torch.minimum(torch.searchsorted(mass, point, right=True), last)
            chosen = chosen.clamp(max=scores.shape[-1] - 1)  # NaN is found nowhere; its score tells
        self.log_probs.append(scores.log_softmax(dim=-1).gather(-1, chosen)[:, 0])
        return torch.full_like(scores, -torch.inf).scatter_(-1, chosen, 0.0)

    def mean_log_probs(self, lengths: Sequence[int]) -> list[float]:
        """Return the mean log-probability of each row over the tokens of its answer."""
        table = torch.stack(self.log_probs, dim=1).tolist()  # (rows, steps)
        return [float(np.mean(row[:length])) for row, length in zip(table, lengths, strict=True)]


class StopAtLineBreak(StoppingCriteria):
    """End a row after a token with a line break, where the answer is cut anyway."""

    def __init__(self, token_ids: torch.Tensor) -> None:
        self.token_ids = token_ids

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        """Return the rows whose last token is one of these, (rows,) bool."""
        return torch.isin(input_ids[:, -1], self.token_ids.to(input_ids.device))
