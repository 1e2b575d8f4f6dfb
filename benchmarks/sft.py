"""SFT: the package's trainer against TRL's SFTTrainer with the same configuration, on the same batches.

LoRA r 8 on queries and values, loss on the completion, batches of eight MovieLens-100K prompts, SmolLM2-135M in the
fastest dtype. Tokens are real ones (no padding), and all tokens of the examples: what our trainer saves by computing
the prompts' common beginning once is a gain, not a smaller count. Times are those of the optimizer steps alone. The
bound: 4 FLOP x non-embedding parameters x tokens at the measured matmul speed. The loss curve is compared in float32.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from transformers import TrainerCallback, set_seed
from transformers.utils import logging
from trl import SFTTrainer

from benchmarks.common import (
    BASE_MODEL,
    Row,
    arguments,
    best_dtype,
    matmul_gflops,
    now,
    peak_mib_in_child,
    set_threads,
    write_result,
)
from benchmarks.lm_data import bench_config, bench_lora, training_tokens
from bigrec_hf.models.loading import load_base, load_tokenizer
from bigrec_hf.sft.shared_prefix import merge_batch
from bigrec_hf.sft.trainer import IGNORED, CompletionLossTrainer

TRAINERS = {"ours": CompletionLossTrainer, "stock": SFTTrainer}
MAX_LOSS_DIFFERENCE = 1e-3


class StepClock(TrainerCallback):
    """Seconds of each optimizer step, and the logged losses."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.losses: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        self.start = now()

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.steps.append(now() - self.start)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "loss" in (logs or {}):
            self.losses.append(logs["loss"])


def ready(
    trainer_class: Callable[..., SFTTrainer],
    rows: Dataset,
    dtype: str,
    batch: int,
    collator: Any = None,
    **trainer_args: Any,
) -> Callable[[], StepClock]:
    """One epoch over `rows`, ready to run; gives its step times and losses. Same seed: same batches and adapter."""
    set_seed(0)
    clock = StepClock()
    with tempfile.TemporaryDirectory() as folder:
        config = bench_config(folder, dtype, len(rows), batch, **trainer_args)
    trainer = trainer_class(
        model=load_base(str(BASE_MODEL), dtype=dtype),
        args=config,
        data_collator=collator,
        train_dataset=rows,
        processing_class=load_tokenizer(str(BASE_MODEL)),
        peft_config=bench_lora(),
        callbacks=[clock],
    )

    def run() -> StepClock:
        trainer.train()
        return clock

    return run


def training(which: str, tokens: Dataset, dtype: str, batch: int) -> Callable[[], StepClock]:
    """`ready` with one of TRAINERS."""
    return ready(TRAINERS[which], tokens, dtype, batch)


def prepared_training(which: str, history: int, n: int, dtype: str, batch: int) -> Callable[[], StepClock]:
    """For the child process that measures memory."""
    logging.set_verbosity_error()
    set_threads()
    return training(which, training_tokens(n, history), dtype, batch)


def non_embedding_parameters() -> int:
    model = load_base(str(BASE_MODEL))
    embeddings = {id(model.get_input_embeddings().weight), id(model.get_output_embeddings().weight)}
    return sum(p.numel() for p in model.parameters() if id(p) not in embeddings)


def computed_share(tokens: Dataset, batch: int) -> float:
    """Tokens our trainer runs through the model, over all real tokens (batches in file order: near enough)."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    merged = 0
    for start in range(0, len(tokens), batch):
        rows = [torch.tensor(ids) for ids in tokens[start : start + batch]["input_ids"]]
        ids = pad_sequence(rows, batch_first=True)
        mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        found = merge_batch(ids, mask, ids.masked_fill(mask == 0, IGNORED), IGNORED)
        merged += ids.numel() if found is None else found.input_ids.numel()
    return merged / sum(map(len, tokens["input_ids"]))


def measure(history: int, steps: int, batch: int, repeats: int, dtype: str, n_parameters: int) -> Row:
    tokens = training_tokens(steps * batch, history)
    n_tokens = sum(map(len, tokens["input_ids"]))
    taken: dict[str, list[float]] = {name: [] for name in TRAINERS}
    losses = {}
    for _ in range(repeats):
        for name in TRAINERS:
            clock = training(name, tokens, dtype, batch)()
            taken[name].append(sum(clock.steps))
            losses[name] = clock.losses
    ours, stock = (statistics.median(taken[name]) for name in TRAINERS)
    gflops = matmul_gflops(dtype)
    fraction = 4e-9 * n_parameters * n_tokens / ours / gflops
    row = Row(
        "sft",
        f"history {history}, {n_tokens / len(tokens):.0f} tokens an example, {dtype}",
        n_tokens / len(tokens),
        ours / len(tokens),
        stock / len(tokens),
        count=n_tokens / len(tokens),
        counted="tokens",
        fraction=fraction,
        ceiling=f"arithmetic bound at {gflops:.0f} GFLOP/s",
        note=f"{computed_share(tokens, batch):.0%} of the tokens computed",
    )
    row.aim("times stock", row.ratio, least=4)
    row.aim("fraction of the bound", fraction, least=0.45)
    return row


def loss_difference(history: int, steps: int, batch: int) -> float:
    """Largest difference of the two loss curves in float32."""
    tokens = training_tokens(steps * batch, history)
    ours, stock = (training(name, tokens, "float32", batch)().losses for name in TRAINERS)
    print(f"losses in float32, ours {ours}, stock {stock}", flush=True)
    return max(abs(a - b) for a, b in zip(ours, stock, strict=True))


def main() -> None:
    options: dict[str, Any] = {"histories": [1, 4, 10], "batch": 8, "steps": 2, "repeats": 2, "loss_steps": 4}
    chosen = arguments(__doc__, **options)
    if chosen.full:
        chosen.steps, chosen.loss_steps = 8, 12
    logging.set_verbosity_error()
    set_threads()
    dtype, n_parameters = best_dtype(), non_embedding_parameters()
    training("ours", training_tokens(chosen.batch, chosen.histories[0]), dtype, chosen.batch)()  # warm
    rows = [
        measure(history, chosen.steps, chosen.batch, chosen.repeats, dtype, n_parameters)
        for history in chosen.histories
    ]
    last = rows[-1]
    common = {"history": chosen.histories[-1], "n": chosen.batch, "dtype": dtype, "batch": chosen.batch}
    last.peak_mib = peak_mib_in_child(prepared_training, which="ours", **common)
    last.baseline_peak_mib = peak_mib_in_child(prepared_training, which="stock", **common)
    difference = loss_difference(chosen.histories[0], chosen.loss_steps, batch=4)
    rows[0].aim("loss difference in float32", difference, most=MAX_LOSS_DIFFERENCE)
    rows[0].same = difference <= MAX_LOSS_DIFFERENCE
    write_result("sft", rows, chosen.out, non_embedding_parameters=n_parameters, loss_difference_float32=difference)


if __name__ == "__main__":
    main()
