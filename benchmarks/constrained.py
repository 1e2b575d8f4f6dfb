"""Constrained beams against free ones: time of a step, by the number of titles; building the token trie.

    python -m benchmarks.constrained --layers 2       # random weights, two layers: the least to hide behind

A step is one forward pass of all beams and the choice of their tokens: the time inside `generate` over its forward
passes. Ours are constrained beams (and `debiased` ones), the plain way is free beams as the decoder runs them, for as
many steps. Titles: see `benchmarks.encode`.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.common import BASE_MODEL, Row, arguments, now, seconds, set_threads, write_result
from benchmarks.encode import load_titles
from bigrec_hf.data.prompts import build_input_prefix, build_instruction, fit_prompt
from bigrec_hf.data.trie import build_title_trie
from bigrec_hf.generate.constrained import Assistant, Constraint
from bigrec_hf.generate.decoder import Decoder, common_prefix_length
from bigrec_hf.generate.strategy import Decoding
from bigrec_hf.models.loading import load_tokenizer

TEMPLATE = "alpaca-basic"


class Timed:
    """Stands for `model.generate`: seconds and forward passes of its last call."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model, self.generate = model, type(model).generate

    def __call__(self, **options: object) -> object:
        self.steps = 0
        hook = self.model.register_forward_pre_hook(self._count)
        start = now()
        output = self.generate(self.model, **options)
        self.seconds = now() - start
        hook.remove()
        return output

    def _count(self, *_: object) -> None:
        self.steps += 1


def run_timed(decoder: Decoder, prompts: list[list[int]]) -> tuple[float, int, list[list[str]]]:
    """Seconds a step, steps, texts."""
    decoder.model.generate = timed = Timed(decoder.model)
    texts, _ = decoder.decode(prompts, [str(row) for row in range(len(prompts))])
    return timed.seconds / timed.steps, timed.steps, texts


def load_model(layers: int) -> torch.nn.Module:
    """SmolLM2 as trained, or with random weights and that many layers, float32."""
    if not layers:
        return AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=torch.float32).eval()
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(BASE_MODEL, num_hidden_layers=layers)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def make_prompts(titles: list[str], n: int, tokenizer: Any) -> list[list[int]]:
    """Token ids of `n` prompts with 1 to 10 titles each."""
    rng = np.random.default_rng(0)
    instruction, prefix = build_instruction("video games", "played"), build_input_prefix("video games", "played")
    prompts = []
    for _ in range(n):
        history = [titles[row] for row in rng.permutation(len(titles))[: rng.integers(1, 11)]]
        prompts.append(fit_prompt(TEMPLATE, instruction, prefix, history, tokenizer, max_history=10, max_tokens=800)[1])
    return prompts


def measure(
    model: torch.nn.Module, tokenizer: Any, titles: list[str], prompts: list[list[int]], n_beams: int, repeats: int
) -> list[Row]:
    """A row for constrained and one for debiased beams over `titles`."""
    build_s, built = seconds(build_title_trie, titles, TEMPLATE, tokenizer)
    scores = np.random.default_rng(0).normal(0, 3, (len(prompts), len(titles))).astype(np.float32)
    assistant = Assistant(scores, {str(row): row for row in range(len(prompts))})
    shared = prompts[0][: common_prefix_length(prompts)]

    def decoder(strategy: str, max_new_tokens: int = 64, constraint: Constraint | None = None) -> Decoder:
        decoding = Decoding(strategy, num_beams=n_beams, max_new_tokens=max_new_tokens, length_penalty=0.0)
        return Decoder(model, tokenizer, decoding, shared_prefix=shared, constraint=constraint)

    ours = {
        "constrained": decoder("constrained", constraint=Constraint(built)),
        "debiased": decoder("debiased", constraint=Constraint(built, assistant, 0.5)),
    }
    free = decoder("beam", max_new_tokens=run_timed(ours["constrained"], prompts)[1])
    taken: dict[str, list[float]] = {name: [] for name in [*ours, "free"]}
    texts: dict[str, list[list[str]]] = {}
    ways: dict[str, Callable[[], tuple]] = {
        name: (lambda one=one: run_timed(one, prompts)) for name, one in {**ours, "free": free}.items()
    }
    for _ in range(repeats):
        for name, way in ways.items():
            one, _, texts[name] = way()
            taken[name].append(one)
    step = {name: statistics.median(times) for name, times in taken.items()}
    known = {clean_title(title) for title in titles}
    n_known = sum(text in known for row in texts["free"] for text in row)
    rows = []
    for name in ours:
        note = f"trie of {built.trie.n_bytes / 2**20:.1f} MiB built in {build_s:.1f} s; free beams: {n_known} titles"
        size = f"{len(titles):,} titles, {len(prompts)} x {n_beams} beams"
        row = Row(f"{name} beams, a step", size, len(titles), step[name], step["free"], note=note)
        row.same = all(text in known for beams in texts[name] for text in beams)
        rows.append(row)
    return rows


def main() -> None:
    chosen = arguments(__doc__, titles=[1000, 4000, 17_408], layers=0, prompts=2, num_beams=10, repeats=1)
    set_threads()
    titles = load_titles()[0]
    tokenizer = load_tokenizer(str(BASE_MODEL), padding_side="left")
    model = load_model(chosen.layers)
    prompts = make_prompts(titles, chosen.prompts, tokenizer)
    rows = []
    for n in chosen.titles:
        rows += measure(model, tokenizer, titles[:n], prompts, chosen.num_beams, chosen.repeats)
    write_result("constrained", rows, chosen.out, layers=model.config.num_hidden_layers)


if __name__ == "__main__":
    main()
