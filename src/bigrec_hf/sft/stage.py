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
from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer

from bigrec_hf.common.environment import environment, measured
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, write_json
from bigrec_hf.common.fingerprints import fingerprint
from bigrec_hf.common.locks import locked_folder
from bigrec_hf.common.processes import process_state
from bigrec_hf.common.shards import share_of_rows
from bigrec_hf.data.examples import data_mark, load_examples, load_json_examples
from bigrec_hf.data.prompts import TITLE_LIST
from bigrec_hf.metrics.ndcg_hr.encoders import resolve_dtype
from bigrec_hf.models.identity import ADAPTER_FILES, TRAINING_FILE, model_revision
from bigrec_hf.models.loading import find_model, load_base, load_tokenizer, lora_config
from bigrec_hf.settings import DataSettings, ModelSettings, PromptSettings, RunSettings, SftSettings
from bigrec_hf.sft.dense_data import load_dense
from bigrec_hf.sft.tokenize import count_tokens, tokenize_examples
from bigrec_hf.sft.trainer import train_adapter, trainer_config

CHECKPOINTS = "checkpoints"  # in the adapter's folder, until the training is done
TOKENS_DIR = "_tokens"  # in the checkpoints' folder, while training; what begins with _ the Trainer never pushes


def tokenize_split(
    datasets: list[str],
    json_files: list[str],
    split: str,
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sample: int,
    seed: int,
    folder: Path,
    **limits: Any,
) -> Dataset:
    """`sample` examples from each prepared set or JSON file (multi-domain) as TOKENS, concatenated.

    Each process tokenizes its share to a file in `folder`, unless an interrupted training of the same settings has left
    it there, and maps the files of all into memory: a split larger than memory is trained on, in any order.
    """
    state, files = process_state(), []
    for number, name in enumerate([*datasets, *json_files]):
        if number < len(datasets):
            examples = load_examples(name, split, sample=sample, seed=seed, cache_dir=folder)
        else:
            examples = load_json_examples(name, sample=sample, seed=seed)
        for rank in range(state.num_processes):
            share = share_of_rows(len(examples), 1, rank, state.num_processes)
            file = folder / f"{split}-{number}-{rank}-of-{state.num_processes}.arrow"
            if share.start == share.stop:
                continue
            files.append(str(file))
            if rank == state.process_index and not file.is_file():
                rows = examples.select(range(share.start, share.stop))
                tokenize_examples(rows, template, tokenizer, file=file, **limits)
    state.wait_for_everyone()
    return concatenate_datasets([Dataset.from_file(file) for file in files])


def load_pairs(
    data: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptSettings,
    sft: SftSettings,
    *,
    seed: int,
    folder: Path,
) -> tuple[Dataset, Dataset | None, dict[str, int]]:
    """Training and validation examples as TOKENS in `folder`, one history and its next title per row; and counts."""
    shared: dict[str, Any] = {
        "seed": seed,
        "folder": folder,
        "max_history": prompt.max_history,
        "max_length": prompt.max_length,
        "completion_only": sft.completion_only,
    }
    template, validation = prompt.train_prompt, None
    if (data.dataset or data.validation_json) and sft.evals_per_epoch > 0:
        files = data.validation_json
        validation = tokenize_split(
            data.dataset, files, "validation", template, tokenizer, sample=sft.validation_sample, **shared
        )
    train = tokenize_split(data.dataset, data.train_json, "train", template, tokenizer, sample=sft.sample, **shared)
    n_tokens, n_dropped = count_tokens(train)
    return train, validation, {"n_train_tokens": n_tokens, "n_history_titles_dropped": n_dropped}


def main(
    run: RunSettings, data: DataSettings, model: ModelSettings, prompt: PromptSettings, sft: SftSettings
) -> dict[str, Any]:
    """The `sft` stage: writes the adapter, the tokenizer and training.json to `adapter_dir`, and returns the record.

    A finished adapter of the same settings is kept; an interrupted training goes on from its last checkpoint, in
    `adapter_dir`/checkpoints. Raises BigrecError where another command trains there.
    """
    if not data.dataset and not data.train_json:
        raise BigrecError("no training data: give --dataset (a prepared set) or --train_json (the reference's file)")
    if sft.adapter_dir is None:
        raise BigrecError("no place for the adapter: give --run_dir or --adapter_dir")
    check_objective(data, prompt, sft)
    find_model(model.base_model)
    with locked_folder(sft.adapter_dir):
        return _train(run, data, model, prompt, sft, Path(sft.adapter_dir))


def _train(
    run: RunSettings,
    data: DataSettings,
    model: ModelSettings,
    prompt: PromptSettings,
    sft: SftSettings,
    adapter_dir: Path,
) -> dict[str, Any]:
    checkpoints = adapter_dir / CHECKPOINTS
    settings = training_settings(run, data, model, prompt, sft)
    mark = fingerprint(settings)
    state = process_state()
    done = read_json(adapter_dir / TRAINING_FILE)
    if done.get("fingerprint") == mark and has_adapter(adapter_dir):
        state.print(f"adapter in {adapter_dir} is done and its settings are unchanged: kept")
        return done
    if state.is_main_process:
        if read_json(checkpoints / "settings.json").get("fingerprint") != mark and checkpoints.exists():
            shutil.rmtree(checkpoints)  # checkpoints of other settings must not be resumed
        write_json(checkpoints / "settings.json", {"fingerprint": mark, **settings})
    state.wait_for_everyone()

    tokenizer = load_tokenizer(model.base_model)
    dense = load_dense(data.dataset[0], tokenizer, prompt, sft, seed=run.seed) if sft.objective == "dense" else None
    if dense is not None:
        train_tokens, validation_tokens, counts = dense.train, dense.validation, dense.counts
    else:
        folder = checkpoints / TOKENS_DIR
        train_tokens, validation_tokens, counts = load_pairs(data, tokenizer, prompt, sft, seed=run.seed, folder=folder)
    n_train, n_validation = len(train_tokens), 0 if validation_tokens is None else len(validation_tokens)
    told = ", ".join(f"{count:,} {name.removeprefix('n_').replace('_', ' ')}" for name, count in counts.items())
    state.print(f"training on {n_train:,} rows ({told}), validating on {n_validation:,}")
    dtype = resolve_dtype(model.dtype, state.device)
    whole = dense.all_epochs(sft) if dense is not None else sft
    config = trainer_config(
        str(checkpoints),
        dtype=dtype,
        quantized=model.quantization != "none",
        seed=run.seed,
        n_train=n_train,
        has_validation=validation_tokens is not None,
        epochs=whole.epochs,
        learning_rate=sft.learning_rate,
        warmup_steps=sft.warmup_steps,
        global_batch_size=sft.global_batch_size,
        micro_batch_size=sft.micro_batch_size,
        max_length=prompt.max_length,
        packing=sft.packing,
        length_grouping=sft.length_grouping,
        activation_checkpointing=sft.activation_checkpointing,
        evals_per_epoch=whole.evals_per_epoch,
        trainer_args=whole.trainer_args,
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
            base,
            tokenizer,
            train_tokens,
            validation_tokens,
            config,
            lora=lora,
            patience=sft.patience,
            **(dense.trainer_options() if dense is not None else {}),
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
    write_adapter(trainer, tokenizer, adapter_dir, record)
    state.print(f"adapter written to {adapter_dir} in {timing['seconds']:.0f} s")
    return record


def has_adapter(adapter_dir: Path) -> bool:
    return any((adapter_dir / name).is_file() for name in ADAPTER_FILES)


def write_adapter(
    trainer: SFTTrainer, tokenizer: PreTrainedTokenizerBase, adapter_dir: Path, record: dict[str, Any]
) -> None:
    """Write adapter, tokenizer and `record` to `adapter_dir`, in this order, and remove the checkpoints in it.

    What lay there before goes first, its record before its weights: a kill leaves no weights under another's record.
    Raises BigrecError where the trainer writes no adapter. Every process has to call this.
    """
    state = process_state()
    if state.is_main_process:
        for name in (TRAINING_FILE, *ADAPTER_FILES):
            (adapter_dir / name).unlink(missing_ok=True)
    state.wait_for_everyone()
    trainer.save_model(str(adapter_dir))
    if state.is_main_process:
        if not has_adapter(adapter_dir):
            raise BigrecError(
                f"the trainer wrote no adapter to {adapter_dir}: with FSDP, set fsdp_state_dict_type: FULL_STATE_DICT "
                "in the accelerate configuration; the checkpoints are kept"
            )
        tokenizer.save_pretrained(adapter_dir)
        for leftover in ("README.md", "training_args.bin"):  # PEFT's placeholder card; a pickle nobody needs
            (adapter_dir / leftover).unlink(missing_ok=True)
        write_json(adapter_dir / TRAINING_FILE, record)
        shutil.rmtree(adapter_dir / CHECKPOINTS)
    state.wait_for_everyone()


def check_objective(data: DataSettings, prompt: PromptSettings, sft: SftSettings) -> None:
    """Raise BigrecError where the settings of section `sft` do not go together with the objective."""
    listed = prompt.train_prompt == TITLE_LIST
    if sft.objective == "pairs":
        if listed:
            raise BigrecError(
                "the prompt template titles is for the objective dense: set objective dense (section sft)"
            )
        if sft.loss == "trie":
            raise BigrecError("loss trie needs the objective dense: set objective dense (section sft), or loss full")
        return
    if not listed:
        raise BigrecError(
            f"the objective dense trains on bare lists of titles, not on the prompt {prompt.train_prompt!r}: set "
            "train_prompt titles (section prompt)"
        )
    if data.train_json or len(data.dataset) != 1:
        raise BigrecError("the objective dense needs one prepared set (dataset): prepare JSON files and tables first")
    for name in ("packing", "length_grouping"):
        if getattr(sft, name):
            raise BigrecError(f"{name} does not go with the objective dense, whose segments are full: set it to false")


def training_settings(
    run: RunSettings, data: DataSettings, model: ModelSettings, prompt: PromptSettings, sft: SftSettings
) -> dict[str, Any]:
    """The settings the adapter depends on, and nothing else: their fingerprint decides whether it must be retrained."""
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
        "short_titles": prompt.short_titles,
        **{key: value for key, value in vars(sft).items() if key != "adapter_dir"},
    }
