"""Constrained beams against free ones: time a step, trie build time and memory.

    python benchmarks/constrained.py --base_model .assets/SmolLM2-135M-Instruct --catalog game.id2name.txt
    python benchmarks/constrained.py ... --layers 2       # random weights, two layers: the least to hide behind

One process, in turns, best of `--repeats`. A step is one forward pass of all beams and the choice of their tokens: the
time inside `generate` over its forward passes. Free beams are timed as the decoder runs them, and once more without
keeping the scores of all tokens (`output_scores`), which constrained beams do not need.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import torch
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from transformers import AutoConfig, AutoModelForCausalLM

from bigrec_hf.catalog import load_catalog
from bigrec_hf.constrained import Assistant, Constraint
from bigrec_hf.decoder import Decoder, common_prefix_length
from bigrec_hf.decoding import Decoding
from bigrec_hf.modeling import load_tokenizer
from bigrec_hf.prompts import build_input_prefix, build_instruction, fit_prompt
from bigrec_hf.trie import build_title_trie

TEMPLATE = "alpaca-basic"


class Timed:
    """Stands for `model.generate`: seconds and forward passes of its last call."""

    def __init__(self, model: torch.nn.Module, lean: bool) -> None:
        self.model, self.lean, self.generate = model, lean, type(model).generate

    def __call__(self, **options: object) -> object:
        self.steps = 0
        hook = self.model.register_forward_pre_hook(self._count)
        if self.lean:
            options["generation_config"].output_scores = False
        start = time.perf_counter()
        output = self.generate(self.model, **options)
        self.seconds = time.perf_counter() - start
        hook.remove()
        if output.sequences_scores is None:
            output.sequences_scores = torch.zeros(len(output.sequences))
        return output

    def _count(self, *_: object) -> None:
        self.steps += 1


def measure(
    decoder: Decoder, prompts: list[list[int]], ids: list[str], *, lean: bool = False
) -> tuple[float, int, list[list[str]]]:
    """Seconds a step, steps, texts."""
    decoder.model.generate = timed = Timed(decoder.model, lean)
    texts, _ = decoder.decode(prompts, ids)
    return timed.seconds / timed.steps, timed.steps, texts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base_model", required=True)
    parser.add_argument(
        "--catalog", required=True, help="titles: any file or folder that `--catalog` of the suite takes"
    )
    parser.add_argument("--layers", type=int, default=0, help="random weights with that many layers; 0 = as trained")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--num_beams", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    rng = np.random.default_rng(0)
    titles = load_catalog(args.catalog).titles
    tokenizer = load_tokenizer(args.base_model, padding_side="left")
    tokenizer("warm")
    start = time.perf_counter()
    built = build_title_trie(titles, TEMPLATE, tokenizer)
    build_seconds = time.perf_counter() - start
    if args.layers:
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(args.base_model, num_hidden_layers=args.layers)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    else:
        model = AutoModelForCausalLM.from_pretrained(args.base_model, dtype=torch.float32)
    model.eval()
    prompts = []
    for _ in range(args.prompts):
        history = [titles[row] for row in rng.permutation(len(titles))[: rng.integers(1, 11)]]
        instruction, prefix = build_instruction("video games", "played"), build_input_prefix("video games", "played")
        prompts.append(fit_prompt(TEMPLATE, instruction, prefix, history, tokenizer, max_history=10, max_tokens=800)[1])
    ids = [str(row) for row in range(len(prompts))]
    scores = rng.normal(0, 3, (len(prompts), len(titles))).astype(np.float32)
    assistant = Assistant(scores, {name: row for row, name in enumerate(ids)})
    shared = prompts[0][: common_prefix_length(prompts)]

    def decoder(strategy: str, max_new_tokens: int = 64, constraint: Constraint | None = None) -> Decoder:
        decoding = Decoding(strategy, num_beams=args.num_beams, max_new_tokens=max_new_tokens, length_penalty=0.0)
        return Decoder(model, tokenizer, decoding, shared_prefix=shared, constraint=constraint)

    constrained = decoder("constrained", constraint=Constraint(built))
    debiased = decoder("debiased", constraint=Constraint(built, assistant, 0.5))
    n_steps = measure(constrained, prompts, ids)[1]
    free = decoder("beam", max_new_tokens=n_steps)
    runs = {
        "free": (free, {}),
        "free, scores not kept": (free, {"lean": True}),
        "constrained": (constrained, {}),
        "debiased": (debiased, {}),
    }
    best = dict.fromkeys(runs, np.inf)
    steps, texts = {}, {}
    for _ in range(args.repeats):
        for name, (one, options) in runs.items():
            seconds, steps[name], texts[name] = measure(one, prompts, ids, **options)
            best[name] = min(best[name], seconds)
    known = {clean_title(title) for title in titles}
    result = {
        "titles": len(titles),
        "leaves": built.trie.n_leaves,
        "nodes": built.trie.n_nodes,
        "trie_mib": round(built.trie.n_bytes / 2**20, 1),
        "trie_build_s": round(build_seconds, 2),
        "longest_title_tokens": built.trie.depth,
        "layers": model.config.num_hidden_layers,
        "vocabulary": model.config.vocab_size,
        "rows": len(prompts) * args.num_beams,
        "threads": torch.get_num_threads(),
        "steps": steps,
        "ms_a_step": {name: round(1000 * value, 1) for name, value in best.items()},
        "over_free": {name: round(value / best["free"], 3) for name, value in best.items()},
        "over_free_scores_not_kept": {n: round(v / best["free, scores not kept"], 3) for n, v in best.items()},
        "catalog_titles": {
            name: f"{sum(text in known for row in rows for text in row)} of {sum(map(len, rows))}"
            for name, rows in texts.items()
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
