"""The trainer of the `sft` stage: TRL's SFTTrainer with a lean CPU loss, its configuration, and one training run."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import EarlyStoppingCallback, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from trl import SFTConfig, SFTTrainer

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.processes import process_state
from bigrec_hf.models.checkpoints import last_checkpoint
from bigrec_hf.sft.shared_prefix import merge_batch, use_shared_attention

IGNORED = -100  # label of a token without loss


class CompletionLossTrainer(SFTTrainer):
    """SFTTrainer whose CPU loss computes logits at supervised positions only, and the batch's common prefix once.

    On CUDA, TRL's fused head leaves out the unsupervised positions already. Elsewhere it projects every position onto
    the vocabulary and computes entropies; with ~12 completion tokens in ~150 that is most of a small model's time. The
    common prefix is shared where the model allows it (`shared_prompt`) and dropout would not tell the rows apart. Same
    loss, no entropy metrics.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a batch, as of SFTTrainer, with the outputs if `return_outputs`."""
        if self.args.device.type != "cpu":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        merged = None
        if set(inputs) == {"input_ids", "attention_mask", "labels"} and self.shares_prompts():
            merged = merge_batch(**inputs, ignored=IGNORED)
        if merged is not None:
            outputs = model(**merged.model_inputs())
            loss, count = merged.loss(outputs.logits), merged.counts.sum()
        else:
            targets = inputs["labels"][:, 1:]
            supervised = targets != IGNORED
            positions = supervised.any(dim=0).nonzero().flatten()
            others = {key: value for key, value in inputs.items() if key != "labels"}
            outputs = model(**others, use_cache=False, logits_to_keep=positions)
            kept = supervised[:, positions]
            logits = outputs.logits[kept].float()
            loss = torch.nn.functional.cross_entropy(logits, targets[:, positions][kept], reduction="sum")
            count = supervised.sum()
        loss = loss / torch.as_tensor(count if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients, the count is over all processes
        return (loss, outputs) if return_outputs else loss

    def _save_rng_state(self, output_dir):
        """Wait until the random states of all processes are written: the trainer's state, which comes next, says that
        the checkpoint is complete."""
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()

    def shares_prompts(self) -> bool:
        """Whether a common prefix may be computed once: full attention, no dropout that draws anew for every row."""
        model = self.accelerator.unwrap_model(self.model)
        dropout = any(module.p > 0 for module in model.modules() if isinstance(module, torch.nn.Dropout))
        dropout |= (getattr(model.get_base_model().config, "attention_dropout", 0.0) or 0.0) > 0
        return not (model.training and dropout) and use_shared_attention(model.get_base_model())


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
    for name, value in trainer_args.items():
        default = SFTConfig.__dataclass_fields__[name].default
        number = isinstance(default, int | float) and not isinstance(default, bool)
        if number and not isinstance(value, int | float | None):  # dataclasses check nothing
            raise BigrecError(
                f"trainer_args {name}: {value!r} is no number (the default is {default!r}); write a number"
            )
    accumulation = accumulation_steps(global_batch_size, micro_batch_size, state.num_processes)
    interval: dict[str, Any] = {"save_strategy": "epoch", "eval_strategy": "epoch"}
    if evals_per_epoch == 0:
        interval = {"save_strategy": "no", "eval_strategy": "no"}
    elif evals_per_epoch > 1:
        steps = max(1, math.ceil(n_train / global_batch_size) // evals_per_epoch)
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
    lora: LoraConfig,
    patience: int,
    trainer_class: Callable[..., SFTTrainer] = CompletionLossTrainer,
    collator: Callable[[Any], dict[str, torch.Tensor]] | None = None,
) -> tuple[SFTTrainer, dict[str, Any]]:
    """Train (or go on from the last checkpoint in `config.output_dir`) and return the trainer and its record.

    With a validation set the adapter of the best evaluation loss is loaded at the end; `patience` evaluations without a
    better one stop the training (0 = never).
    """
    set_seed(config.seed)
    callbacks = [EarlyStoppingCallback(patience)] if patience > 0 and config.load_best_model_at_end else []
    trainer = trainer_class(
        model=model,
        data_collator=collator,
        args=config,
        train_dataset=train,
        eval_dataset=validation if config.eval_strategy != "no" else None,
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=callbacks,
    )
    trainable, total = cast(PeftModel, trainer.model).get_nb_trainable_parameters()
    if trainer.is_world_process_zero():
        print(f"parameters: {trainable:,} trainable of {total:,} ({trainable / total:.4%})", flush=True)
    with process_state().main_process_first():
        checkpoint = last_checkpoint(str(config.output_dir))  # the configuration always sets a folder
    result = trainer.train(resume_from_checkpoint=checkpoint)
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
