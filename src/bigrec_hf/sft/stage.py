"""Step 1, training: LoRA fine-tuning of a causal LM on (history -> next title) with TRL's SFTTrainer.

Examples are tokenized here, not by TRL, so that training and inference prompts are the same tokens, over-long histories
lose their oldest titles (TRL would cut the completion), and the loss mask is ours to test.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from bigrec_hf.common.environment import environment, measured
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, write_json
from bigrec_hf.common.fingerprints import fingerprint
from bigrec_hf.common.processes import process_state
from bigrec_hf.data.examples import data_mark, load_examples, load_json_examples
from bigrec_hf.metrics.ndcg_hr.encoders import resolve_dtype
from bigrec_hf.models.identity import TRAINING_FILE, model_revision
from bigrec_hf.models.loading import find_model, load_base, load_tokenizer, lora_config
from bigrec_hf.settings import DataSettings, ModelSettings, PromptSettings, RunSettings, SftSettings
from bigrec_hf.sft.streaming import draw_examples, stream_examples
from bigrec_hf.sft.tokenize import tokenize_examples, tokenize_stream
from bigrec_hf.sft.trainer import train_adapter, trainer_config

CHECKPOINTS = "checkpoints"


def load_training_data(
    datasets: list[str], json_files: list[str], split: str, *, sample: int, seed: int
) -> Dataset | None:
    """`sample` examples from each prepared set or JSON file, concatenated (multi-domain); None where none are given."""
    parts = [load_examples(name, split, sample=sample, seed=seed) for name in datasets]
    parts += [load_json_examples(path, sample=sample, seed=seed) for path in json_files]
    return concatenate_datasets(parts) if parts else None


def main(
    run: RunSettings, data: DataSettings, model: ModelSettings, prompt: PromptSettings, sft: SftSettings
) -> dict[str, Any]:
    """The `sft` stage: writes the adapter, the tokenizer and training.json to `adapter_dir`, and returns the record.

    A finished adapter of the same settings is kept; an interrupted training goes on from its last checkpoint.
    """
    if not data.dataset and not data.train_json:
        raise BigrecError("no training data: give --dataset (a prepared set) or --train_json (the reference's file)")
    if sft.adapter_dir is None:
        raise BigrecError("no place for the adapter: give --run_dir or --adapter_dir")
    if sft.streaming:
        check_streaming(data, sft)
    find_model(model.base_model)
    adapter_dir = Path(sft.adapter_dir)
    checkpoints = adapter_dir.parent / CHECKPOINTS
    settings = training_settings(run, data, model, prompt, sft)
    mark = fingerprint(settings)
    state = process_state()
    if read_json(adapter_dir / TRAINING_FILE).get("fingerprint") == mark:
        state.print(f"adapter in {adapter_dir} is done and its settings are unchanged: kept")
        return read_json(adapter_dir / TRAINING_FILE)
    if state.is_main_process:
        # a stream's order depends on the processes: only as many can go on in it
        resumable = fingerprint(mark, state.num_processes) if sft.streaming else mark
        if read_json(checkpoints / "settings.json").get("fingerprint") != resumable and checkpoints.exists():
            shutil.rmtree(checkpoints)  # checkpoints of other settings must not be resumed
        write_json(checkpoints / "settings.json", {"fingerprint": resumable, **settings})
    state.wait_for_everyone()

    tokenizer = load_tokenizer(model.base_model)
    limits = {
        "max_history": prompt.max_history,
        "max_length": prompt.max_length,
        "completion_only": sft.completion_only,
    }
    validation = None
    if (data.dataset or data.validation_json) and sft.evals_per_epoch > 0:
        drawn = {"sample": sft.validation_sample, "seed": run.seed}
        if sft.streaming and not data.validation_json:
            validation = draw_examples(data.dataset, "validation", **drawn)
        else:
            validation = load_training_data(data.dataset, data.validation_json, "validation", **drawn)
    validation_tokens, n_validation = None, 0
    if validation is not None:
        validation_tokens, _ = tokenize_examples(validation, prompt.train_prompt, tokenizer, **limits)
        n_validation = len(validation)
    counts: dict[str, Any]
    if sft.streaming:
        examples, sources = stream_examples(
            data.dataset,
            "train",
            sample=sft.sample,
            seed=run.seed,
            shuffle_buffer=sft.shuffle_buffer,
            n_processes=state.num_processes,
        )
        train_tokens = tokenize_stream(examples, prompt.train_prompt, tokenizer, **limits)
        n_train = sum(len(source.rows) for source in sources)
        streamed = [{"dataset": s.dataset, "rows": sum(s.group_rows), "examples": len(s.rows)} for s in sources]
        counts = {"streamed": streamed}  # tokens are not counted: nobody has seen them all before the end
        told = f"streamed, {sft.shuffle_buffer:,} to draw from"
    else:
        train = load_training_data(data.dataset, data.train_json, "train", sample=sft.sample, seed=run.seed)
        train_tokens, n_dropped = tokenize_examples(train, prompt.train_prompt, tokenizer, **limits)
        n_train = len(train)
        n_tokens = sum(map(len, train_tokens["input_ids"]))
        counts = {"n_train_tokens": n_tokens, "n_history_titles_dropped": n_dropped}
        told = f"{n_tokens:,} tokens, {n_dropped} history titles dropped to fit"
    state.print(f"training on {n_train:,} examples ({told}), validating on {n_validation:,}")
    dtype = resolve_dtype(model.dtype, state.device)
    config = trainer_config(
        str(checkpoints),
        dtype=dtype,
        quantized=model.quantization != "none",
        seed=run.seed,
        n_train=n_train,
        has_validation=validation is not None,
        epochs=sft.epochs,
        learning_rate=sft.learning_rate,
        warmup_steps=sft.warmup_steps,
        global_batch_size=sft.global_batch_size,
        micro_batch_size=sft.micro_batch_size,
        max_length=prompt.max_length,
        packing=sft.packing,
        length_grouping=sft.length_grouping,
        activation_checkpointing=sft.activation_checkpointing,
        evals_per_epoch=sft.evals_per_epoch,
        trainer_args=sft.trainer_args,
        streaming=sft.streaming,
    )
    lora = lora_config(
        r=sft.lora_r, alpha=sft.lora_alpha, dropout=sft.lora_dropout, target_modules=sft.lora_target_modules
    )
    base = load_base(
        model.base_model,
        dtype=model.dtype,
        quantization=model.quantization,
        attn_implementation=model.attn_implementation,
    )
    timing: dict[str, Any] = {}
    with measured(timing):
        trainer, record = train_adapter(
            base, tokenizer, train_tokens, validation_tokens, config, lora=lora, patience=sft.patience
        )
    record = {
        "fingerprint": mark,
        "settings": settings,
        "dtype": str(dtype).removeprefix("torch."),
        "n_train": n_train,
        "n_validation": n_validation,
        **counts,
        "n_processes": state.num_processes,
        **timing,
        **record,
        "environment": environment(),
    }
    trainer.save_model(str(adapter_dir))
    if state.is_main_process:
        tokenizer.save_pretrained(adapter_dir)
        for leftover in ("README.md", "training_args.bin"):  # PEFT's placeholder card; a pickle nobody needs
            (adapter_dir / leftover).unlink(missing_ok=True)
        write_json(adapter_dir / TRAINING_FILE, record)
    state.wait_for_everyone()
    state.print(f"adapter written to {adapter_dir} in {timing['seconds']:.0f} s")
    return record


def check_streaming(data: DataSettings, sft: SftSettings) -> None:
    """Raise BigrecError where the settings ask for what a stream cannot do."""
    if data.train_json:
        raise BigrecError("streaming reads prepared sets: a JSON file is read whole, set streaming to false for it")
    for name, reason in (
        ("packing", "how many packed sequences there are is known only after reading all"),
        ("length_grouping", "examples cannot be ordered by length before they are read"),
    ):
        if getattr(sft, name):
            raise BigrecError(f"{name} does not go with streaming ({reason}): set one of both to false")
    for name in ("max_steps", "num_train_epochs"):
        if name in sft.trainer_args:
            raise BigrecError(
                f"trainer_args {name!r} does not go with streaming, whose steps follow from epochs: set that"
            )


def training_settings(
    run: RunSettings, data: DataSettings, model: ModelSettings, prompt: PromptSettings, sft: SftSettings
) -> dict[str, Any]:
    """The settings the adapter depends on, and nothing else: their fingerprint decides whether it must be retrained."""
    without_say = {"adapter_dir"} if sft.streaming else {"adapter_dir", "streaming", "shuffle_buffer"}
    return {
        "seed": run.seed,
        "dataset": data.dataset,
        "train_json": data.train_json,
        "validation_json": data.validation_json,
        "data": data_mark(replace(data, test_json=[], catalog=None)),
        "base_model": model.base_model,
        "base_revision": model_revision(str(model.base_model)),
        "dtype": model.dtype,
        "quantization": model.quantization,
        "attn_implementation": model.attn_implementation,
        "train_prompt": prompt.train_prompt,
        "max_history": prompt.max_history,
        "max_length": prompt.max_length,
        **{key: value for key, value in vars(sft).items() if key not in without_say},
    }
