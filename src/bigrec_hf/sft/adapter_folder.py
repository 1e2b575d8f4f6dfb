"""The folder of an adapter: checkpoints during training, then weights, tokenizer and record."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from transformers import PreTrainedTokenizerBase, Trainer

from bigrec_hf.common.environment import environment
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_record, remove_leftovers, write_json
from bigrec_hf.common.fingerprints import fingerprint
from bigrec_hf.common.locks import locked_folder
from bigrec_hf.common.processes import process_state
from bigrec_hf.data.prepared import data_mark
from bigrec_hf.models.identity import ADAPTER_FILES, TRAINING_FILE, model_revision
from bigrec_hf.models.stacked import Factors, write_sum
from bigrec_hf.settings import DataSettings, ModelSettings, PromptSettings

CHECKPOINTS = "checkpoints"  # in the adapter's folder, until the training is done


@dataclass(frozen=True)
class Trained:
    """What a training leaves: the trainer that saves the adapter, the tokenizer, and what to record."""

    trainer: Trainer
    tokenizer: PreTrainedTokenizerBase
    facts: dict[str, Any]
    start: Factors | None = None  # of the adapter that is merged into the base


def input_settings(seed: int, data: DataSettings, model: ModelSettings, prompt: PromptSettings) -> dict[str, Any]:
    """Return what every adapter depends on besides the settings of its own section."""
    return {
        "seed": seed,
        "dataset": data.dataset,
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
    }


def train_once(adapter_dir: Path, settings: dict[str, Any], train: Callable[[Path], Trained]) -> dict[str, Any]:
    """Train an adapter unless `adapter_dir` has that of these settings; return its record, training.json.

    `train` gets the folder of checkpoints. Every process must call this. Raises BigrecError if another command is
    training there.
    """
    state, mark = process_state(), fingerprint(settings)
    with locked_folder(adapter_dir):
        remove_leftovers(adapter_dir)
        if (done := finished(adapter_dir, mark)) is not None:
            state.print(f"adapter in {adapter_dir} is done and its settings are unchanged: kept")
            return done
        trained = train(open_checkpoints(adapter_dir, mark, settings))
        record = {
            "fingerprint": mark,
            "settings": settings,
            **trained.facts,
            "n_processes": state.num_processes,
            "environment": environment(),
        }
        write_adapter(trained, adapter_dir, record)
    state.print(f"adapter written to {adapter_dir} in {record['seconds']:.0f} s")
    return record


def finished(adapter_dir: Path, mark: str) -> dict[str, Any] | None:
    """Return the record of the adapter in `adapter_dir` if it is complete and its fingerprint is `mark`."""
    record = read_record(adapter_dir / TRAINING_FILE)
    return record if record.get("fingerprint") == mark and has_adapter(adapter_dir) else None


def open_checkpoints(adapter_dir: Path, mark: str, settings: dict[str, Any]) -> Path:
    """Return the folder of checkpoints; those of other settings are removed. Every process must call this."""
    folder, state = adapter_dir / CHECKPOINTS, process_state()
    if state.is_main_process:
        if folder.exists() and read_record(folder / "settings.json").get("fingerprint") != mark:
            shutil.rmtree(folder)
        write_json(folder / "settings.json", {"fingerprint": mark, **settings})
    state.wait_for_everyone()
    return folder


def has_adapter(adapter_dir: Path) -> bool:
    """Return whether the folder has weights of an adapter."""
    return any((adapter_dir / name).is_file() for name in ADAPTER_FILES)


def write_adapter(trained: Trained, adapter_dir: Path, record: dict[str, Any]) -> None:
    """Write adapter, tokenizer and `record` to `adapter_dir`, in this order, and remove the checkpoints in it.

    If an adapter is merged into the trainer's base (`trained.start`), the written adapter is the sum of both.

    An earlier adapter is removed first, its record before its weights: if the process is killed, no weights remain
    under the record of others. Raises BigrecError if the trainer writes no adapter. Every process must call this.
    """
    state = process_state()
    if state.is_main_process:
        for name in (TRAINING_FILE, *ADAPTER_FILES):
            (adapter_dir / name).unlink(missing_ok=True)
    state.wait_for_everyone()
    trained.trainer.save_model(str(adapter_dir))
    if state.is_main_process:
        if not has_adapter(adapter_dir):
            raise BigrecError(
                f"the trainer wrote no adapter to {adapter_dir}; its checkpoints are kept: correct the accelerate "
                "configuration (with ZeRO-3, zero3_save_16bit_model: true) and run the command again"
            )
        if trained.start is not None:
            write_sum(adapter_dir, cast(PeftModel, trained.trainer.model), trained.start)
        trained.tokenizer.save_pretrained(adapter_dir)
        for leftover in (
            "README.md",
            "training_args.bin",
        ):  # the placeholder card of PEFT, and a pickle that is not needed
            (adapter_dir / leftover).unlink(missing_ok=True)
        write_json(adapter_dir / TRAINING_FILE, record)
        shutil.rmtree(adapter_dir / CHECKPOINTS)
    state.wait_for_everyone()
