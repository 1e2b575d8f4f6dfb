"""What a stage costs: formulas fitted on small sizes of this machine, checked on sizes they were not fitted on.

    OMP_NUM_THREADS=1 python -m benchmarks.cost_model          # fit, check (25 %), extrapolate; minutes of one core

Seconds are processor time of one thread (time.process_time), which a busy machine disturbs least. Each formula is a sum
of at most two terms with measured constants, fitted by relative least squares:

- prepare   = a + b * ratings, from six million on            (processor time of a process of its own, all threads)
- sft       = a * FLOP + b * tokens * layers * hidden,         FLOP = 4 P T + 12 T length hidden layers + 4 S V hidden
- encode    = a * FLOP + b * tokens * layers * hidden,         FLOP = 2 P T + 4 T length hidden layers
- generate  = a * FLOP + b * steps * layers (a batch),          FLOP = 2 P T + 2 (P + V hidden) beams steps prompts
- rank      = a * n m d + b * n m

P: parameters of the layers' matrices; T: tokens, S: supervised ones; V: vocabulary; n queries, m items, d dimensions.
The second term of sft and encode is what passes over activations cost, which matrix products do not cover.
Memory in the same way: the peak of `prepare` over ratings, that of a training process over tokens of a batch.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bigrec_hf.metrics.ndcg_hr.encoders import LastTokenEncoder, resolve_dtype
from bigrec_hf.metrics.ndcg_hr.ranking import rank_catalog
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.gpu import N_WORDS, make_prompts, make_tokenizer
from benchmarks.prepare import write_ratings
from bigrec_hf.generate.decoder import Decoder, common_prefix_length
from bigrec_hf.generate.strategy import Decoding
from bigrec_hf.models.loading import lora_config

VOCABULARY, BEAMS, STEPS = 49_152, 4, 12
SMALL, MIDDLE, LARGE = (256, 8), (384, 14), (576, 30)  # hidden size and layers; LARGE is SmolLM2-135M
TOLERANCE = 0.25
Point = tuple[dict[str, Any], tuple[float, float], float]  # what was run, the two terms, seconds


def make_model(hidden: int, layers: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=max(1, hidden // 192),
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(resolve_dtype("auto", torch.device("cpu"))).eval()


def layer_parameters(model: torch.nn.Module) -> int:
    return sum(p.numel() for name, p in model.named_parameters() if ".layers." in name and p.dim() == 2)


def seconds(run: Callable[[], Any], repeats: int = 3) -> float:
    """Processor seconds of the calling process, the least of several."""
    run()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def sft_point(shape: tuple[int, int], batch: int, length: int, supervised: int = 12, repeats: int = 3) -> Point:
    """One forward and backward with LoRA on q and v, logits at supervised positions only, as the trainer's CPU loss."""
    hidden, layers = shape
    model = make_model(*shape)
    n_parameters = layer_parameters(model)
    lora = lora_config(r=8, alpha=16, dropout=0.0, target_modules=["q_proj", "v_proj"])
    model = get_peft_model(model, lora).train()
    ids = torch.randint(3, VOCABULARY, (batch, length))
    places = torch.arange(length - supervised - 1, length - 1)

    def step() -> None:
        logits = model(input_ids=ids, logits_to_keep=places, use_cache=False).logits.float()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, places + 1].flatten()).backward()

    tokens = batch * length
    flop = 4 * n_parameters * tokens + 12 * tokens * length * hidden * layers
    flop += 4 * batch * supervised * VOCABULARY * hidden
    return {"shape": shape, "tokens": tokens}, (flop, tokens * layers * hidden), seconds(step, repeats)


def encode_point(shape: tuple[int, int], titles: int) -> Point:
    hidden, layers = shape
    model = make_model(*shape)
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in rng.integers(0, N_WORDS - 3, rng.integers(4, 17))) for _ in range(titles)]
    encoder = LastTokenEncoder(model.model, make_tokenizer())
    lengths = [len(text.split()) for text in texts]
    tokens = sum(lengths)
    flop = 2 * layer_parameters(model) * tokens + 4 * sum(n * n for n in lengths) * hidden * layers
    sizes = {"shape": shape, "titles": titles, "tokens": tokens}
    return sizes, (flop, tokens * layers * hidden), seconds(lambda: encoder.encode(texts))


def generate_point(shape: tuple[int, int], prompts: int) -> Point:
    """4 beams of 12 tokens; the prompts' common beginning is computed once and not counted."""
    hidden, layers = shape
    model = make_model(*shape)
    ids = make_prompts(prompts)
    decoding = Decoding("beam", num_beams=BEAMS, max_new_tokens=STEPS)
    prefix = ids[0][: common_prefix_length(ids)]
    decoder = Decoder(model, make_tokenizer(), decoding, shared_prefix=prefix)
    parameters = layer_parameters(model)
    flop = 2 * parameters * sum(len(row) - len(prefix) for row in ids)
    flop += 2 * (parameters + VOCABULARY * hidden) * BEAMS * STEPS * prompts
    names = [str(i) for i in range(prompts)]
    taken = seconds(lambda: decoder.decode(ids, names), 2)
    return {"shape": shape, "prompts": prompts}, (flop, STEPS * layers), taken


def rank_point(n: int, m: int, d: int) -> Point:
    rng = np.random.default_rng(0)
    items = rng.standard_normal((m, d), np.float32)
    queries, targets = rng.standard_normal((n, d), np.float32), rng.integers(0, m, n)
    taken = seconds(lambda: rank_catalog(queries, items, targets), 2)
    return {"queries": n, "items": m, "d": d}, (n * m * d, n * m), taken


PREPARE = """
import sys
from bigrec_hf.prepare.stage import prepare_dataset
from bigrec_hf.common.environment import peak_memory_mib
prepare_dataset("movielens", sys.argv[1], sys.argv[2])
print(peak_memory_mib())
"""
TRAIN_MEMORY = """
import sys
from benchmarks.cost_model import sft_point
from bigrec_hf.common.environment import peak_memory_mib
batch = int(sys.argv[1])
if batch:
    sft_point((576, 30), batch, 128, repeats=1)
print(peak_memory_mib())
"""


def child(program: str, *arguments: str) -> tuple[float, float]:
    """Processor seconds of a process of its own, and the peak resident MiB that it prints last."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    taken = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return taken, float(done.stdout.splitlines()[-1])


def prepare_points(sizes: list[int]) -> tuple[list[Point], list[Point]]:
    """Time and memory (MiB in the place of seconds) of `prepare`."""
    times, peaks = [], []
    with tempfile.TemporaryDirectory() as work:
        for n in sizes:
            write_ratings(Path(work, f"raw{n}"), n)
            taken, peak = child(PREPARE, f"{work}/raw{n}", f"{work}/out{n}")
            times.append(({"ratings": n}, (1.0, n), taken))
            peaks.append(({"ratings": n}, (1.0, n), peak))
    return times, peaks


def memory_points(batches: list[int]) -> list[Point]:
    hidden, layers = LARGE
    points = []
    for batch in batches:
        _, peak = child(TRAIN_MEMORY, str(batch))
        points.append(({"batch": batch, "tokens": batch * 128}, (1.0, batch * 128 * layers * hidden), peak))
    return points


def fit(points: list[Point]) -> np.ndarray:
    """Two constants, neither negative, by least squares of the relative error."""
    terms = np.array([terms for _, terms, _ in points])
    taken = np.array([taken for _, _, taken in points])
    weighted = terms / taken[:, None]
    candidates = [np.linalg.lstsq(weighted, np.ones(len(points)), rcond=None)[0]]
    for kept in (0, 1):  # one constant alone, for where the best second one is negative
        alone = np.zeros(2)
        alone[kept] = weighted[:, kept].sum() / (weighted[:, kept] ** 2).sum()
        candidates.append(alone)
    return min((c for c in candidates if (c >= 0).all()), key=lambda c: ((weighted @ c - 1) ** 2).sum())


def check(stage: str, fitted: list[Point], others: list[Point], unit: str = "s") -> np.ndarray:
    """Fit on some points, print what the formula says of all and how far it is off; returns the constants."""
    constants = fit(fitted)
    for used, points in (("fitted", fitted), ("checked", others)):
        for sizes, terms, taken in points:
            predicted = float(np.dot(constants, terms))
            off = predicted / taken - 1
            mark = "" if used == "fitted" or abs(off) <= TOLERANCE else " **over 25 %**"
            described = ", ".join(f"{name} {value}" for name, value in sizes.items())
            print(
                f"| {stage} | {described} | {used} | {taken:.3g} {unit} | {predicted:.3g} {unit} | {off:+.0%}{mark} |"
            )
    return constants


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", help="also write the constants to this file")
    parser.add_argument("--short", action="store_true", help="tiny sizes, to try the script")
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    large = (320, 10) if options.short else LARGE
    scale = 8 if options.short else 1
    print("| stage | sizes | used | measured | formula | off |\n|---|---|---|---:|---:|---:|")
    times, peaks = prepare_points([n // scale**2 for n in (6_000_000, 8_000_000, 10_000_000, 16_000_000)])
    found = {
        "prepare": check("prepare", times[:3], times[3:]),
        "prepare memory": check("prepare, memory", peaks[:3], peaks[3:], "MiB"),
        "sft": check(
            "sft",
            [sft_point(shape, 8 // min(scale, 4), length) for shape in (SMALL, MIDDLE) for length in (64, 160)],
            [sft_point(MIDDLE, 4, 112), sft_point(large, 4, 128)],
        ),
        "encode": check(
            "encode",
            [encode_point(shape, n // scale) for shape in (SMALL, MIDDLE) for n in (256, 512)],
            [encode_point(SMALL, 1500 // scale), encode_point(large, 512 // scale)],
        ),
        "generate": check(
            "generate",
            [generate_point(shape, n // min(scale, 4)) for shape in (SMALL, MIDDLE) for n in (8, 16)],
            [generate_point(SMALL, 32 // min(scale, 4)), generate_point(large, 16 // min(scale, 4))],
        ),
        "rank": check(
            "rank",
            [rank_point(512, m // scale, d) for m, d in ((16_384, 128), (16_384, 576), (32_768, 384))],
            [rank_point(1024, 17_408 // scale, 576), rank_point(256, 65_536 // scale, 384)],
        ),
    }
    if not options.short:
        points = memory_points([0, 2, 4, 8])
        found["sft memory"] = check("sft, memory", points[1:3], points[3:], "MiB")
    print(f"\nconstants: {json.dumps({stage: [float(f'{c:.3g}') for c in pair] for stage, pair in found.items()})}")
    if options.json:
        facts = {stage: constants.tolist() for stage, constants in found.items()}
        Path(options.json).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
