"""How fast the base model trains and scores on this machine: a few timed steps, or a formula."""

from __future__ import annotations

import contextlib
import gc
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bigrec_hf.common.environment import peak_memory_mib
from bigrec_hf.common.processes import process_state
from bigrec_hf.generate.exact import catalog_tokens, score_batches
from bigrec_hf.generate.inputs import load_evaluation, render_prompts
from bigrec_hf.init.choices import memory_formula
from bigrec_hf.metrics.ndcg_hr.encoders import resolve_dtype
from bigrec_hf.models.loading import load_tokenizer
from bigrec_hf.sft.dense import ROWS, DenseCollator
from bigrec_hf.sft.stage import train_rows, training_rows

TRAIN_SECONDS, SCORE_SECONDS, MOST_STEPS = 20.0, 15.0, 200
SCORED = 64  # test examples that scoring is timed on, at most
WARM_UP = (
    1,
    4,
)  # examples in batches before whole ones: the first call is slow, the second tells how long a whole takes
FORWARD = 0.5  # of a training step's time: a validation row has no backward pass

EFFICIENCY = 0.4  # of the speed of a matrix product, which a whole model reaches (0.43 to 0.55 in docs/experiments.md)
CHARACTERS = 4.0  # per token of a title


@dataclass(frozen=True)
class Speed:
    """Seconds for a pass over the training data with its evaluations, and for a scored example; memory in GiB."""

    seconds_per_pass: float
    seconds_per_example: float
    memory: float
    how: str  # it was found, in words


class _Enough(Exception):
    """The time for scoring is up."""


def measured_speed(settings: dict[str, Any], folder: Path) -> Speed:
    """Train for TRAIN_SECONDS and score for SCORE_SECONDS as a run with these settings would; nothing is kept.

    `folder` is for temporary files. A step or a batch that has begun is finished. Raises BigrecError for whatever
    training raises.
    """
    data, model, prompt = settings["data"], settings["model"], settings["prompt"]
    started = time.perf_counter(), time.process_time()
    tokenizer = load_tokenizer(model.base_model)
    with contextlib.redirect_stdout(io.StringIO()):
        rows = training_rows(data, tokenizer, prompt, replace(settings["sft"], epochs=1.0), seed=0, folder=folder)
        collator = rows.options["collator"]
        short = replace(
            rows.sft,
            evals_per_epoch=0,
            max_minutes=TRAIN_SECONDS / 60,
            trainer_args={**rows.sft.trainer_args, "max_steps": MOST_STEPS, "disable_tqdm": True},
        )
        trainer, record, _ = train_rows(
            replace(rows, validation=None, sft=short), tokenizer, model, prompt, seed=0, checkpoints=folder
        )
    n_steps, seconds = record["optimizer_steps"], record["history"][-1]["train_runtime"]
    done = np.arange(n_steps * short.global_batch_size) % len(rows.train)  # a small set was passed several times
    per_token = seconds / n_tokens(rows.train[done.tolist()][ROWS], collator)
    in_pass = rows.counts["n_train_tokens"] + len(rows.train) * len(collator.header)
    evaluated = n_tokens(rows.validation[ROWS] if rows.validation is not None else [], collator)
    network: Any = trainer.model
    network = (network.merge_and_unload() if model.quantization == "none" else network).eval()
    del trainer
    n_scored, scoring, per_example = time_scoring(network, tokenizer, settings)
    memory, busy = peak_memory_mib() / 1024, ""
    if process_state().device.type == "cuda":
        memory = torch.cuda.max_memory_allocated() / 2**30
    else:
        passed, used = time.perf_counter() - started[0], time.process_time() - started[1]
        share = used / passed / torch.get_num_threads()
        busy = f"; {share:.0%} of the processor was free, without other programs it is faster" if share < 0.6 else ""
    del network
    gc.collect()
    return Speed(
        seconds_per_pass=per_token * (in_pass + FORWARD * evaluated * rows.sft.evals_per_epoch),
        seconds_per_example=per_example,
        memory=memory,
        how=f"measured here: {n_steps} training steps in {seconds:.0f} s, {n_scored} histories scored in "
        f"{scoring:.0f} s{busy}",
    )


def n_tokens(rows: Sequence[Sequence[int]], collator: DenseCollator) -> int:
    """Tokens of training rows (items of each), headers included."""
    return sum(len(collator.header) + sum(len(collator.titles[item]) for item in row) for row in rows)


def time_scoring(network: Any, tokenizer: Any, settings: dict[str, Any]) -> tuple[int, float, float]:
    """Score titles for up to SCORED test examples: (examples, seconds, seconds per example of the last batch)."""
    prompt, generate = settings["prompt"], settings["generate"]
    examples, titles = load_evaluation(replace(settings["data"], eval_sample=SCORED))
    catalog = catalog_tokens(tokenizer, titles, short=prompt.short_titles)
    prompts, _ = render_prompts(examples, tokenizer, prompt, 0, catalog.lists)
    batches = catalog.plan(
        prompts,
        width=generate.exact_width,
        batch_size=generate.generate_batch_size,
        batch_tokens=generate.generate_batch_tokens,
    )
    batches = [*(batches[0][:n] for n in WARM_UP), *batches]
    start, done = time.perf_counter(), [(0, 0.0)]  # examples and seconds so far

    def write(number: int, positions: list[int], scores: np.ndarray) -> None:
        done.append((done[-1][0] + len(positions), time.perf_counter() - start))
        per_example = (done[-1][1] - done[-2][1]) / len(positions)
        ahead = per_example * len(batches[number + 1]) if 0 < number < len(batches) - 1 else 0.0
        if done[-1][1] + ahead > SCORE_SECONDS:
            raise _Enough

    with contextlib.suppress(_Enough):
        score_batches(
            network, catalog, prompts, batches, range(len(batches)), write, width=generate.exact_width, quiet=True
        )
    (before, since), (n, seconds) = done[-2:]
    return n, seconds, (seconds - since) / (n - before)


def formula_speed(
    parameters: int,
    weights: str,
    titles: Sequence[str],
    counts: np.ndarray,
    n_rows: int,
    *,
    dtype: str,
    exact_width: int,
) -> Speed:
    """The same from the number of parameters, for a model that is not on this machine.

    A training token takes 4 x parameters operations (the base has no gradients), a scored one 2 x parameters; both at
    EFFICIENCY of the speed of a matrix product, which is timed for a second. A title has a token per CHARACTERS
    characters of what distinguishes it from all others, and one more. A history is scored on up to 2 x exact_width
    tokens. `weights`: the type that they are kept in; `counts`: (n_items,), how often an item is a training target;
    `n_rows`: validation rows per pass; `dtype`: of the arithmetic.
    """
    operations = EFFICIENCY * matrix_speed(dtype)
    lengths = distinguishing(titles) / CHARACTERS + 1
    mean = float((lengths * counts).sum() / max(counts.sum(), 1))
    tokens = mean * counts.sum() + FORWARD * n_rows * 10 * mean
    scored = 10 * mean + min(0.3 * len(titles), 2 * (exact_width or len(titles)))
    return Speed(
        seconds_per_pass=4 * parameters * tokens / operations,
        seconds_per_example=2 * parameters * scored / operations,
        memory=memory_formula(parameters, weights),
        how=f"by a formula, roughly, as the base model is not measured: {parameters / 1e6:,.0f} million parameters, 4 "
        f"operations per parameter and token of training, 2 of scoring, at {operations / 1e9:,.0f} billion per second",
    )


def distinguishing(titles: Sequence[str]) -> np.ndarray:
    """(n,) int64: how many characters at the start of each title distinguish it from all others; all if none do."""
    order = sorted(range(len(titles)), key=lambda row: titles[row])
    shared = [0, *(_common(titles[a], titles[b]) for a, b in pairwise(order)), 0]
    found = np.zeros(len(titles), np.int64)
    for place, row in enumerate(order):
        found[row] = min(len(titles[row]), max(shared[place], shared[place + 1]) + 1)
    return found


def _common(a: str, b: str) -> int:
    """Number of characters that two texts share at their start."""
    return next((place for place, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def matrix_speed(dtype: str, seconds: float = 1.0) -> float:
    """Operations per second of products of (256, 1024) and (1024, 1024) matrices on the device of this process."""
    device = process_state().device
    kind = resolve_dtype(dtype, device)
    a, b = torch.ones(256, 1024, dtype=kind, device=device), torch.ones(1024, 1024, dtype=kind, device=device)

    def multiply(times: int) -> float:
        start = time.perf_counter()
        for _ in range(times):
            c = a @ b
        float(c[0, 0])  # waits for a GPU
        return time.perf_counter() - start

    once = multiply(3) / 3
    times = max(1, min(100_000, round(seconds / max(once, 1e-6))))
    return 2 * 256 * 1024 * 1024 * times / multiply(times)
