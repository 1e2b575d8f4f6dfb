"""Prompts of MovieLens-100K and a shortly trained adapter, for the benchmarks that run the language model."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset

from benchmarks.common import BASE_MODEL, ML_100K, ROOT
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.examples import load_examples
from bigrec_hf.models.loading import load_base, load_tokenizer, lora_config
from bigrec_hf.prepare.stage import prepare_dataset
from bigrec_hf.settings import SftSettings
from bigrec_hf.sft.config import trainer_config
from bigrec_hf.sft.tokenize import tokenize_examples
from bigrec_hf.sft.trainer import train_adapter

TEMPLATE = "alpaca-basic"
MAX_LENGTH = 512
ADAPTER = ROOT / "benchmarks" / ".cache" / "adapter"


def examples(split: str, n: int, seed: int = 0) -> Dataset:
    """`n` examples of MovieLens-100K in the movie protocol. BigrecError where the assets are missing."""
    if not ML_100K.is_dir() or not BASE_MODEL.is_dir():
        raise BigrecError(f"{ML_100K} or {BASE_MODEL} is missing: run `make quickstart` or scripts/fetch_assets.py")
    with tempfile.TemporaryDirectory() as folder:
        prepare_dataset("movielens", str(ML_100K), f"{folder}/data", preset="bigrec-movie", dataset_name="ml-100k")
        drawn = load_examples(f"{folder}/data", split, sample=n, seed=seed)
        return Dataset.from_list(drawn.to_list())  # in memory: the folder goes


def training_tokens(n: int, max_history: int) -> Dataset:
    """`n` tokenized examples, loss on the completion."""
    return tokenize_examples(
        examples("train", n),
        TEMPLATE,
        load_tokenizer(str(BASE_MODEL)),
        max_history=max_history,
        max_length=MAX_LENGTH,
        completion_only=True,
    )


def bench_config(folder: str, dtype: str, n: int, batch: int, **trainer_args: Any):
    """An SFTConfig of one epoch without evaluation or checkpoints, as the `sft` stage makes it."""
    import torch

    settings = SftSettings(
        epochs=1,
        learning_rate=1e-3,
        warmup_steps=0,
        global_batch_size=batch,
        micro_batch_size=batch,
        evals_per_epoch=0,
        trainer_args={"disable_tqdm": True, "save_strategy": "no", **trainer_args},
    )
    return trainer_config(
        folder, settings, dtype=getattr(torch, dtype), n_train=n, has_validation=False, max_length=MAX_LENGTH
    )


def bench_lora():
    """LoRA r 8 on queries and values, without dropout."""
    return lora_config(r=8, alpha=16, dropout=0.0, target_modules=["q_proj", "v_proj"])


def trained_adapter(n: int = 160, batch: int = 4, max_history: int = 3) -> Path:
    """An adapter whose answers end like a trained one's, so that they have real lengths. Kept in benchmarks/.cache."""
    if (ADAPTER / "adapter_config.json").is_file():
        return ADAPTER
    print(f"training an adapter on {n} examples, once; it is kept in {ADAPTER}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        trainer, _ = train_adapter(
            load_base(str(BASE_MODEL)),
            load_tokenizer(str(BASE_MODEL)),
            training_tokens(n, max_history),
            None,
            bench_config(folder, "bfloat16", n, batch, learning_rate=3e-3),
            lora=bench_lora(),
            patience=0,
            n_targets=n,
        )
        trainer.save_model(f"{folder}/adapter")
        shutil.copytree(f"{folder}/adapter", ADAPTER, dirs_exist_ok=True)
    return ADAPTER
