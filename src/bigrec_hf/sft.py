"""Step 1, training: LoRA fine-tuning of a causal LM on (history -> next title) with TRL's SFTTrainer.

Examples are tokenized here, not by TRL, so that training and inference prompts are the same tokens, over-long histories
lose their oldest titles (TRL would cut the completion), and the loss mask is ours to test.
"""

from __future__ import annotations

import math
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import SFTConfig, SFTTrainer

from bigrec_hf.columns import Columns as C
from bigrec_hf.data import load_examples, load_json_examples
from bigrec_hf.errors import BigrecError
from bigrec_hf.modeling import count_parameters, load_base, load_tokenizer, lora_config, resolve_dtype
from bigrec_hf.processes import process_state
from bigrec_hf.prompts import build_output, completion_token_ids, fit_prompt
from bigrec_hf.runs import environment, fingerprint, measured, read_json, write_json
from bigrec_hf.settings import DataSettings, ModelSettings, PromptSettings, RunSettings, SftSettings

IGNORED = -100  # label of a token without loss
TOKENS = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32")), "n_dropped": Value("int32")})
TRAINING_FILE = "training.json"
CHECKPOINTS = "checkpoints"


class CompletionLossTrainer(SFTTrainer):
    """SFTTrainer whose CPU loss computes logits at supervised positions only.

    On CUDA, TRL's fused head does so already. Elsewhere it projects every position onto the vocabulary and computes
    entropies; with ~12 completion tokens in ~150 that is most of a small model's time. Same loss, no entropy metrics.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.args.device.type != "cpu":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        targets = inputs["labels"][:, 1:]
        supervised = targets != IGNORED
        positions = supervised.any(dim=0).nonzero().flatten()
        others = {key: value for key, value in inputs.items() if key != "labels"}
        outputs = model(**others, use_cache=False, logits_to_keep=positions)
        kept = supervised[:, positions]
        logits = outputs.logits[kept].float()
        loss = torch.nn.functional.cross_entropy(logits, targets[:, positions][kept], reduction="sum")
        count = supervised.sum() if num_items_in_batch is None else num_items_in_batch
        loss = loss / torch.as_tensor(count).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients, the count is over all processes
        return (loss, outputs) if return_outputs else loss


def tokenize_examples(
    examples: Dataset,
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_history: int,
    max_length: int,
    completion_only: bool,
) -> tuple[Dataset, int]:
    """Examples (data.EXAMPLE_FEATURES) as `input_ids` and `labels`, each of at most `max_length` tokens, EOS last.

    Labels of the prompt are -100 where `completion_only`. Returns the data set and how many history titles were dropped
    to fit. Raises BigrecError where a completion leaves no room for a prompt.
    """

    def tokenize(example: dict[str, Any]) -> dict[str, Any]:
        completion = build_output(example[C.TARGET_TITLE])
        longest = len(tokenizer(completion, add_special_tokens=False)["input_ids"]) + 2  # EOS, a possible merge
        text, prompt, n_dropped = fit_prompt(
            template,
            example[C.INSTRUCTION],
            example[C.INPUT_PREFIX],
            example[C.HISTORY_TITLES],
            tokenizer,
            max_history=max_history,
            max_tokens=max_length - longest,
        )
        answer = completion_token_ids(text, prompt, completion, template, tokenizer)
        return {
            "input_ids": prompt + answer,
            "labels": ([IGNORED] * len(prompt) if completion_only else prompt) + answer,
            "n_dropped": n_dropped,
        }

    tokens = examples.map(
        tokenize, remove_columns=examples.column_names, features=TOKENS, load_from_cache_file=False, desc="tokenize"
    )
    n_dropped = sum(tokens["n_dropped"])
    return tokens.remove_columns("n_dropped"), n_dropped


def accumulation_steps(global_batch_size: int, micro_batch_size: int, n_processes: int) -> int:
    """Gradient accumulation steps; BigrecError where the global batch is no multiple of what one step computes."""
    per_pass = micro_batch_size * n_processes
    if global_batch_size % per_pass:
        raise BigrecError(
            f"global_batch_size {global_batch_size} is no multiple of micro_batch_size {micro_batch_size} x "
            f"{n_processes} process(es): choose {max(1, round(global_batch_size / per_pass)) * per_pass}"
        )
    return global_batch_size // per_pass


def trainer_config(
    checkpoints: str,
    *,
    dtype: torch.dtype,
    quantized: bool,
    seed: int,
    n_train: int,
    has_validation: bool,
    epochs: float,
    learning_rate: float,
    warmup_steps: float,
    global_batch_size: int,
    micro_batch_size: int,
    max_length: int,
    packing: bool,
    length_grouping: bool,
    activation_checkpointing: bool,
    evals_per_epoch: int,
    trainer_args: dict[str, Any],
) -> SFTConfig:
    """The SFTConfig of a run; `trainer_args` wins over everything. BigrecError on a field SFTConfig does not have."""
    state = process_state()
    on_cpu = state.device.type == "cpu"
    unknown = set(trainer_args) - set(SFTConfig.__dataclass_fields__)
    if unknown:
        raise BigrecError(f"trainer_args {sorted(unknown)[0]!r} is no field of trl.SFTConfig: see its documentation")
    accumulation = accumulation_steps(global_batch_size, micro_batch_size, state.num_processes)
    steps_per_epoch = math.ceil(n_train / global_batch_size)
    interval: dict[str, Any] = {"save_strategy": "epoch", "eval_strategy": "epoch"}
    if evals_per_epoch == 0:
        interval = {"save_strategy": "no", "eval_strategy": "no"}
    elif evals_per_epoch > 1:
        steps = max(1, steps_per_epoch // evals_per_epoch)
        interval = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": steps, "eval_steps": steps}
    if not has_validation:
        interval["eval_strategy"] = "no"
    options: dict[str, Any] = {
        "output_dir": checkpoints,
        "num_train_epochs": epochs,
        "learning_rate": learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": int(warmup_steps) if warmup_steps >= 1 else warmup_steps,
        "per_device_train_batch_size": micro_batch_size,
        "per_device_eval_batch_size": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "max_length": max_length,
        "packing": packing,
        "eval_packing": False,
        "activation_checkpointing": activation_checkpointing,
        "bf16": dtype == torch.bfloat16 and not (quantized and on_cpu),
        "fp16": dtype == torch.float16 and not on_cpu,
        "use_cpu": on_cpu,
        "seed": seed,
        "data_seed": seed,
        "logging_steps": 1,
        "logging_first_step": True,
        "report_to": "none",
        "save_total_limit": 2,
        "load_best_model_at_end": interval["eval_strategy"] != "no",
        "metric_for_best_model": "eval_loss" if interval["eval_strategy"] != "no" else None,
        "greater_is_better": False if interval["eval_strategy"] != "no" else None,
        "remove_unused_columns": True,
        "dataloader_pin_memory": not on_cpu,
        "ddp_find_unused_parameters": False,
        **interval,
    }
    if length_grouping:
        options["train_sampling_strategy"] = "group_by_length"
    return SFTConfig(**(options | trainer_args))


def train_adapter(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    validation: Dataset | None,
    config: SFTConfig,
    *,
    lora: Any,
    patience: int,
) -> tuple[CompletionLossTrainer, dict[str, Any]]:
    """Train (or go on from the last checkpoint in `config.output_dir`) and return the trainer and its record.

    With a validation set the adapter of the best evaluation loss is loaded at the end; `patience` evaluations without a
    better one stop the training (0 = never).
    """
    set_seed(config.seed)
    callbacks = [EarlyStoppingCallback(patience)] if patience > 0 and config.load_best_model_at_end else []
    trainer = CompletionLossTrainer(
        model=model,
        args=config,
        train_dataset=train,
        eval_dataset=validation if config.eval_strategy != "no" else None,
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=callbacks,
    )
    trainable, total = count_parameters(trainer.model)
    if trainer.is_world_process_zero():
        print(f"parameters: {trainable:,} trainable of {total:,} ({trainable / total:.4%})", flush=True)
    resumable = any(Path(config.output_dir).glob("checkpoint-*/trainer_state.json"))
    result = trainer.train(resume_from_checkpoint=True if resumable else None)
    record = {
        "trainable_parameters": trainable,
        "total_parameters": total,
        "optimizer_steps": trainer.state.global_step,
        "epochs_done": trainer.state.epoch,
        "train_loss": result.training_loss,
        "best_eval_loss": trainer.state.best_metric,
        "history": trainer.state.log_history,
    }
    return trainer, record


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
    adapter_dir = Path(sft.adapter_dir)
    checkpoints = adapter_dir.parent / CHECKPOINTS
    settings = training_settings(run, data, model, prompt, sft)
    mark = fingerprint(settings)
    state = process_state()
    if read_json(adapter_dir / TRAINING_FILE).get("fingerprint") == mark:
        state.print(f"adapter in {adapter_dir} is done and its settings are unchanged: kept")
        return read_json(adapter_dir / TRAINING_FILE)
    if state.is_main_process:
        if read_json(checkpoints / "settings.json").get("fingerprint") != mark and checkpoints.exists():
            shutil.rmtree(checkpoints)  # checkpoints of other settings must not be resumed
        write_json(checkpoints / "settings.json", {"fingerprint": mark, **settings})
    state.wait_for_everyone()

    tokenizer = load_tokenizer(model.base_model)
    limits = {"max_history": prompt.max_history, "max_length": prompt.max_length}
    train = load_training_data(data.dataset, data.train_json, "train", sample=sft.sample, seed=run.seed)
    has_validation = bool(data.dataset or data.validation_json)
    validation = (
        load_training_data(
            data.dataset, data.validation_json, "validation", sample=sft.validation_sample, seed=run.seed
        )
        if has_validation and sft.evals_per_epoch > 0
        else None
    )
    train_tokens, n_dropped = tokenize_examples(
        train, prompt.train_prompt, tokenizer, completion_only=sft.completion_only, **limits
    )
    validation_tokens = None
    if validation is not None:
        validation_tokens, _ = tokenize_examples(
            validation, prompt.train_prompt, tokenizer, completion_only=sft.completion_only, **limits
        )
    n_tokens = sum(map(len, train_tokens["input_ids"]))
    state.print(
        f"training on {len(train):,} examples ({n_tokens:,} tokens, {n_dropped} history titles dropped to fit), "
        f"validating on {len(validation) if validation is not None else 0:,}"
    )
    dtype = resolve_dtype(model.dtype, state.device)
    config = trainer_config(
        str(checkpoints),
        dtype=dtype,
        quantized=model.quantization != "none",
        seed=run.seed,
        n_train=len(train),
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
        "n_train": len(train),
        "n_validation": len(validation) if validation is not None else 0,
        "n_train_tokens": n_tokens,
        "n_history_titles_dropped": n_dropped,
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


def training_settings(
    run: RunSettings, data: DataSettings, model: ModelSettings, prompt: PromptSettings, sft: SftSettings
) -> dict[str, Any]:
    """The settings the adapter depends on, and nothing else: their fingerprint decides whether it must be retrained."""
    return {
        "seed": run.seed,
        "dataset": data.dataset,
        "train_json": data.train_json,
        "validation_json": data.validation_json,
        "base_model": model.base_model,
        "dtype": model.dtype,
        "quantization": model.quantization,
        "attn_implementation": model.attn_implementation,
        "train_prompt": prompt.train_prompt,
        "max_history": prompt.max_history,
        "max_length": prompt.max_length,
        **{key: value for key, value in vars(sft).items() if key != "adapter_dir"},
    }


if __name__ == "__main__":
    from bigrec_hf.cli import main as cli_main

    sys.exit(cli_main(["sft", *sys.argv[1:]]))
