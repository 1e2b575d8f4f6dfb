"""The folder of an adapter: checkpoints during training, then weights, tokenizer and record."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from trl import SFTTrainer

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_record, write_json
from bigrec_hf.common.processes import process_state
from bigrec_hf.models.identity import ADAPTER_FILES, TRAINING_FILE
from bigrec_hf.models.stacked import Factors, write_sum

CHECKPOINTS = "checkpoints"  # in the adapter's folder, until the training is done


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


def write_adapter(
    trainer: SFTTrainer,
    tokenizer: PreTrainedTokenizerBase,
    adapter_dir: Path,
    record: dict[str, Any],
    start: Factors | None = None,
) -> None:
    """Write adapter, tokenizer and `record` to `adapter_dir`, in this order, and remove the checkpoints in it.

    `start`: factors of the adapter that is merged into the trainer's base; the written adapter is the sum of both.

    An earlier adapter is removed first, its record before its weights: if the process is killed, no weights remain
    under the record of others. Raises BigrecError if the trainer writes no adapter. Every process must call this.
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
                f"the trainer wrote no adapter to {adapter_dir}; its checkpoints are kept: correct the accelerate "
                "configuration (with ZeRO-3, zero3_save_16bit_model: true) and run the command again"
            )
        if start is not None:
            write_sum(adapter_dir, cast(PeftModel, trainer.model), start)
        tokenizer.save_pretrained(adapter_dir)
        for leftover in (
            "README.md",
            "training_args.bin",
        ):  # the placeholder card of PEFT, and a pickle that is not needed
            (adapter_dir / leftover).unlink(missing_ok=True)
        write_json(adapter_dir / TRAINING_FILE, record)
        shutil.rmtree(adapter_dir / CHECKPOINTS)
    state.wait_for_everyone()
