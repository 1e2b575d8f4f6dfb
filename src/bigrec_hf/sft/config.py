"""The settings of section `sft` as TRL's SFTConfig."""

from __future__ import annotations

import math
import os
from types import NoneType
from typing import Any, get_args, get_type_hints

import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import TrainingArguments
from trl import SFTConfig, pack_dataset

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.processes import own_precision, process_state
from bigrec_hf.models.loading import launched_with_fsdp
from bigrec_hf.settings import SftSettings


def check_launcher(state: PartialState) -> None:
    """Raise BigrecError if the processes were launched in a way that fails only after the model is loaded.

    TRL refuses several GPUs in one process; FSDP with sharded state dicts writes no adapter.
    """
    n_gpus = torch.cuda.device_count() if state.device.type == "cuda" else 1
    if n_gpus > 1 and state.num_processes == 1:
        raise BigrecError(
            f"one process sees {n_gpus} GPUs: start one process per GPU with `accelerate launch --config_file "
            "accelerate_configs/ddp.yaml -m bigrec_hf.sft ...`, or choose one by CUDA_VISIBLE_DEVICES=0"
        )
    saved_as = os.environ.get("FSDP_STATE_DICT_TYPE")
    if launched_with_fsdp() and saved_as != "FULL_STATE_DICT":
        raise BigrecError(
            f"fsdp_state_dict_type is {saved_as}, for which FSDP writes no adapter: set it to FULL_STATE_DICT in the "
            "accelerate configuration, as accelerate_configs/fsdp2.yaml does"
        )


def count_rows(train: Dataset, sft: SftSettings, max_length: int) -> int:
    """Return the number of rows that the trainer makes of the tokenized examples; packed rows hold several."""
    if not sft.packing:
        return len(train)
    strategy = sft.trainer_args.get("packing_strategy", "bfd")
    return len(pack_dataset(train.select_columns(["input_ids", "labels"]), max_length, strategy))


def batch_sizes(
    sft: SftSettings,
    examples_per_row: float,
    n_processes: int,
    names: tuple[str, str] = ("global_batch_size", "micro_batch_size"),
) -> tuple[int, int]:
    """Return (rows per forward pass and process, passes accumulated per optimizer step).

    Both settings count examples. Packed rows hold several, so the sizes are then approximate. Raises BigrecError, in
    which the settings have these `names`, if the global batch is not a multiple of the examples in one pass of all
    processes.
    """
    if examples_per_row > 1:
        rows = max(1, round(sft.micro_batch_size / examples_per_row))
        return rows, max(1, round(sft.global_batch_size / (rows * examples_per_row * n_processes)))
    per_pass = sft.micro_batch_size * n_processes
    if sft.global_batch_size % per_pass:
        nearest = max(1, round(sft.global_batch_size / per_pass)) * per_pass
        raise BigrecError(
            f"{names[0]} {sft.global_batch_size} is not a multiple of {names[1]} {sft.micro_batch_size} x "
            f"{n_processes} process(es): choose {nearest}"
        )
    return sft.micro_batch_size, sft.global_batch_size // per_pass


def checked_trainer_args(
    given: dict[str, Any], config: type[TrainingArguments] = SFTConfig, setting: str = "trainer_args"
) -> dict[str, Any]:
    """Return what `setting` gives, text converted to numbers (YAML reads 1e-4 as text); dataclasses check nothing.

    Raises BigrecError for a field that `config` does not have, and for a value of the wrong type.
    """
    types, checked = get_type_hints(config), {}
    for name, value in given.items():
        if name not in types:
            raise BigrecError(f"{setting} {name!r} is not a field of trl.{config.__name__}: see its documentation")
        expected = set(get_args(types[name]) or (types[name],)) - {NoneType}
        if expected == {bool} and not isinstance(value, bool | None):
            raise BigrecError(f"{setting} {name}: {value!r} is neither true nor false")
        if expected in ({int}, {float}) and not isinstance(value, int | float | None):
            try:
                value = float(value)
            except (TypeError, ValueError) as error:
                raise BigrecError(f"{setting} {name}: {value!r} is not a number: write one") from error
        if expected == {int} and isinstance(value, float):
            if not value.is_integer():
                raise BigrecError(f"{setting} {name}: {value!r} is not a whole number: write one")
            value = int(value)
        checked[name] = value
    return checked


def shared_arguments(checkpoints: str, *, dtype: torch.dtype, quantized: bool, seed: int) -> dict[str, Any]:
    """Return the arguments that every trainer gets: folder, precision, device, seeds, logging and checkpoints."""
    on_cpu = process_state().device.type == "cpu"
    return {
        "output_dir": checkpoints,
        "bf16": dtype == torch.bfloat16 and not (quantized and on_cpu),
        "fp16": dtype == torch.float16 and not on_cpu,
        "use_cpu": on_cpu,
        "seed": seed,
        "data_seed": seed,
        "logging_steps": 1,
        "logging_first_step": True,
        "report_to": "none",
        "save_total_limit": 2,
        "restore_callback_states_from_checkpoint": True,
        "dataloader_pin_memory": not on_cpu,
        "ddp_find_unused_parameters": False,
    }


def trainer_config(
    checkpoints: str,
    sft: SftSettings,
    *,
    n_train: int,
    has_validation: bool,
    dtype: torch.dtype,
    quantized: bool = False,
    max_length: int = 1024,
    seed: int = 0,
    n_rows: int | None = None,
) -> SFTConfig:
    """Return the SFTConfig for `n_train` examples, packed into `n_rows`; `sft.trainer_args` overrides everything.

    Weights and arithmetic are `dtype`, whatever the accelerate configuration says. Raises BigrecError for settings that
    SFTConfig refuses.
    """
    state = process_state()
    trainer_args = checked_trainer_args(sft.trainer_args)
    n_rows = n_train if n_rows is None else n_rows
    rows, accumulation = batch_sizes(sft, n_train / max(n_rows, 1), state.num_processes)
    interval: dict[str, Any] = {"save_strategy": "epoch", "eval_strategy": "epoch"}
    if sft.evals_per_epoch == 0:
        interval = {"save_strategy": "no", "eval_strategy": "no"}
    elif sft.evals_per_epoch > 1:
        steps_per_epoch = math.ceil(n_rows / (rows * accumulation * state.num_processes))
        steps = max(1, steps_per_epoch // sft.evals_per_epoch)
        interval = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": steps, "eval_steps": steps}
    if not has_validation:
        interval["eval_strategy"] = "no"
    evaluates = interval["eval_strategy"] != "no"
    options: dict[str, Any] = {
        **shared_arguments(checkpoints, dtype=dtype, quantized=quantized, seed=seed),
        "num_train_epochs": sft.epochs,
        "learning_rate": sft.learning_rate,
        "lr_scheduler_type": "linear",
        "warmup_steps": int(sft.warmup_steps) if sft.warmup_steps >= 1 else sft.warmup_steps,
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": sft.micro_batch_size,
        "gradient_accumulation_steps": accumulation,
        "max_length": max_length,
        "packing": sft.packing,
        "eval_packing": False,
        "activation_checkpointing": sft.activation_checkpointing,
        "load_best_model_at_end": evaluates,
        "metric_for_best_model": "eval_loss" if evaluates else None,
        "greater_is_better": False if evaluates else None,
        "remove_unused_columns": True,
        **interval,
    }
    if sft.length_grouping:
        options["train_sampling_strategy"] = "group_by_length"
    try:
        with own_precision():
            return SFTConfig(**(options | trainer_args))
    except (TypeError, ValueError) as error:
        raise BigrecError(
            f"trl.SFTConfig refuses these settings ({' '.join(str(error).split())}): correct trainer_args "
            f"{sorted(trainer_args)}"
        ) from error
