"""Checkpoints of a trainer, and how a training resumes from one as if it had never stopped.

transformers writes a checkpoint file by file, the state of the trainer last, and takes the folder with the highest step
to be the newest checkpoint. A kill or a full disk in between leaves a folder from which training cannot resume.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import EarlyStoppingCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

STATE_FILE = "trainer_state.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin", "model.safetensors")
OPTIMIZERS = ("optimizer.pt", "optimizer.bin", "optimizer_*", "global_step*")  # the last two are folders: FSDP, ZeRO


def last_checkpoint(folder: str | Path) -> str | None:
    """Return the newest complete checkpoint in `folder`, or None, and remove incomplete ones.

    Of several processes the main one must call this first.
    """
    for checkpoint in checkpoints(folder):
        if not is_complete(checkpoint):
            print(f"{checkpoint} was not written completely: removed", flush=True)
            shutil.rmtree(checkpoint)
    return next(map(str, checkpoints(folder)), None)


def checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoint folders in `folder`, newest step first."""
    steps = {}
    for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        step = path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-")
        if step.isdigit() and path.is_dir():
            steps[int(step)] = path
    return [steps[step] for step in sorted(steps, reverse=True)]


def is_complete(checkpoint: Path, *, with_best: bool = True) -> bool:
    """Return whether weights, optimizer, schedule, random states and trainer state exist and can be read.

    `with_best`: also those of the best checkpoint so far, in the same folder, which is loaded at the end.
    """
    if not any((checkpoint / name).is_file() for name in WEIGHT_FILES):
        return False
    if not any(any(checkpoint.glob(pattern)) for pattern in OPTIMIZERS) or not any(checkpoint.glob("rng_state*.pth")):
        return False
    if not (checkpoint / "scheduler.pt").is_file() and not any(checkpoint.glob("global_step*")):
        return False
    if not all(map(is_readable, (file for file in checkpoint.rglob("*") if file.is_file()))):
        return False
    try:
        best = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8")).get("best_global_step")
    except (OSError, ValueError, AttributeError):
        return False
    beside = checkpoint.with_name(f"{PREFIX_CHECKPOINT_DIR}-{best}")
    return not with_best or not best or beside == checkpoint or is_complete(beside, with_best=False)


def is_readable(file: Path) -> bool:
    """Return whether a file of PyTorch (a zip archive with checksums), safetensors or JSON is complete; others are."""
    try:
        if file.suffix in (".pt", ".pth", ".bin"):
            with zipfile.ZipFile(file) as archive:
                return archive.testzip() is None
        if file.suffix == ".safetensors":
            with safe_open(file, "pt"):  # refuses a file that is not as long as its header says
                return True
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, zipfile.BadZipFile, SafetensorError):
        return False
    return True


class ExactResume:
    """Mixed into a `Trainer`; with `restore_callback_states_from_checkpoint` in its arguments patience continues too.

    A checkpoint is complete once it has the trainer state; a training that ran out of patience takes no further step.
    """

    accelerator: Any
    callback_handler: Any
    control: Any

    def _save_rng_state(self, output_dir: str) -> None:
        """Wait until the random states of all processes are written, because the trainer state is written next."""
        super()._save_rng_state(output_dir)  # type: ignore[misc]  # of Trainer, with which this class is mixed
        self.accelerator.wait_for_everyone()

    def _run_epoch(self, *args: Any, **options: Any) -> None:
        """Do nothing if the evaluation that ended the training wrote the checkpoint."""
        stoppers = [each for each in self.callback_handler.callbacks if isinstance(each, EarlyStoppingCallback)]
        if any(each.early_stopping_patience_counter >= each.early_stopping_patience for each in stoppers):
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **options)  # type: ignore[misc]
