"""Dense: targets per second of the dense objective against TRL's SFTTrainer on one history and one title per row.

Same model (SmolLM2-135M, fastest dtype), same LoRA (r 8 on queries and values), same data: MovieLens-100K, and Amazon
Video Games where BIGREC_HF_DATA names the folder that holds `amazon-games-2018`. The plain side reads up to ten titles
per target; the dense side reads segments of 256 tokens in which every title but the first is a target, with the loss
over the catalog's trie: titles whole, and shortened to what tells them apart. Times are those of the optimizer steps
alone. The bound: 4 FLOP x non-embedding parameters x tokens at the measured matmul speed.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from datasets import Dataset
from transformers.utils import logging

from benchmarks.common import (
    BASE_MODEL,
    ML_100K,
    Row,
    arguments,
    best_dtype,
    matmul_gflops,
    peak_mib_in_child,
    set_threads,
    write_result,
)
from benchmarks.lm_data import MAX_LENGTH, TEMPLATE
from benchmarks.sft import StepClock, non_embedding_parameters, ready, training
from bigrec_hf.data.examples import load_examples
from bigrec_hf.models.loading import load_tokenizer
from bigrec_hf.prepare.stage import prepare_dataset
from bigrec_hf.settings import PromptSettings, SftSettings
from bigrec_hf.sft.dense import ROWS
from bigrec_hf.sft.dense_data import DenseData, load_dense
from bigrec_hf.sft.dense_trainer import DenseTrainer
from bigrec_hf.sft.tokenize import tokenize_examples

SEGMENT = 256  # tokens
LEAST_RATIO = {"movies": 10, "games": 5}


def prepared_sets(folder: str) -> dict[str, str]:
    """Name -> prepared set, made in `folder`."""
    prepare_dataset("movielens", str(ML_100K), f"{folder}/movies", preset="bigrec-movie", dataset_name="ml-100k")
    found = {"movies": f"{folder}/movies"}
    raw = Path(os.environ.get("BIGREC_HF_DATA", "")) / "amazon-games-2018"
    if raw.is_dir():
        names = {"noun": "video games", "verb": "played"}
        prepare_dataset("sequences", str(raw), f"{folder}/games", preset="leave-one-out", **names)
        found["games"] = f"{folder}/games"
    return found


def pairs(dataset: str, n: int) -> Dataset:
    """`n` training rows of one history and its next title, loss on the title."""
    limits = {"max_history": 10, "max_length": MAX_LENGTH, "completion_only": True}
    drawn = Dataset.from_list(load_examples(dataset, "train", sample=n, seed=0).to_list())
    return tokenize_examples(drawn, TEMPLATE, load_tokenizer(str(BASE_MODEL)), **limits)


def dense_data(dataset: str, n: int, short: bool) -> DenseData:
    """The first `n` segments of an epoch."""
    prompt = PromptSettings(train_prompt="titles", short_titles=short, max_length=SEGMENT)
    settings = SftSettings(objective="dense", loss="trie", sample=0, epochs=1, evals_per_epoch=0)
    data = load_dense(dataset, load_tokenizer(str(BASE_MODEL)), prompt, settings, seed=0)
    return replace(data, train=data.train.select(range(min(n, len(data.train)))), validation=None)


def dense_training(data: DenseData, dtype: str, batch: int) -> Callable[[], StepClock]:
    """One pass over the segments, ready to run."""
    more = data.all_epochs(SftSettings(evals_per_epoch=0)).trainer_args
    return ready(partial(DenseTrainer, trie=data.trie), data.train, dtype, batch, data.collator, **more)


def own_training(dataset: str, n: int, short: bool, dtype: str, batch: int) -> Callable[[], StepClock]:
    """For `peak_mib_in_child`."""
    logging.set_verbosity_error()
    return dense_training(dense_data(dataset, n, short), dtype, batch)


def stock_training(dataset: str, n: int, dtype: str, batch: int) -> Callable[[], StepClock]:
    """For `peak_mib_in_child`."""
    logging.set_verbosity_error()
    return training("stock", pairs(dataset, n), dtype, batch)


def measure(name: str, dataset: str, steps: int, batch: int, repeats: int, dtype: str, n_parameters: int) -> list[Row]:
    """One row for whole titles, one for short ones; the plain side is the same."""
    plain = pairs(dataset, steps * batch)
    sides = {short: dense_data(dataset, steps * batch, short) for short in (False, True)}
    stock, ours = [], {short: [] for short in sides}
    for _ in range(repeats):
        stock.append(sum(training("stock", plain, dtype, batch)().steps) / len(plain))
        for short, data in sides.items():
            ours[short].append(sum(dense_training(data, dtype, batch)().steps))
    gflops = matmul_gflops(dtype)
    options = {"dataset": dataset, "n": steps * batch, "dtype": dtype, "batch": batch}
    stock_mib = peak_mib_in_child(stock_training, **options)
    rows = []
    for short, data in sides.items():
        n_targets = sum(len(row) - 1 for row in data.train[ROWS])
        n_tokens = sum(len(data.collator.titles[row]) for rows_ in data.train[ROWS] for row in rows_)
        seconds = statistics.median(ours[short])
        fraction = 4e-9 * n_parameters * n_tokens / seconds / gflops
        row = Row(
            "dense",
            f"{name}, {'short' if short else 'whole'} titles, {n_tokens / n_targets:.1f} tokens a target, {dtype}",
            n_tokens / n_targets,
            seconds / n_targets,
            statistics.median(stock),
            count=1,
            counted="targets",
            fraction=fraction,
            ceiling=f"arithmetic bound at {gflops:.0f} GFLOP/s",
            note=f"{n_tokens / seconds:.0f} tokens/s",
            peak_mib=peak_mib_in_child(own_training, short=short, **options),
            baseline_peak_mib=stock_mib,
        )
        row.aim("times stock", row.ratio, least=LEAST_RATIO[name])
        row.aim("fraction of the bound", fraction, least=0.5)
        rows.append(row)
    return rows


def main() -> None:
    chosen = arguments(__doc__, batch=8, steps=2, repeats=2)
    if chosen.full:
        chosen.steps, chosen.repeats = 4, 3
    logging.set_verbosity_error()
    set_threads()
    dtype, n_parameters = best_dtype(), non_embedding_parameters()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, dataset in prepared_sets(folder).items():
            rows += measure(name, dataset, chosen.steps, chosen.batch, chosen.repeats, dtype, n_parameters)
    write_result("dense", rows, chosen.out, non_embedding_parameters=n_parameters)


if __name__ == "__main__":
    main()
