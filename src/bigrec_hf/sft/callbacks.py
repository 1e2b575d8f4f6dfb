"""What a training shows while it runs, and training by the clock."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from accelerate.utils import broadcast
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import ProgressCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import SchedulerType

from bigrec_hf.common.processes import process_state
from bigrec_hf.common.progress import say


class OneLine(ProgressCallback):
    """One moving line per training with loss, learning rate, pace and time left; one that stays per evaluation."""

    def __init__(self, n_targets: int, n_tokens: int = 0):
        """`n_targets`, `n_tokens`: of the whole training, all epochs together; 0 tokens: not known, and not shown."""
        super().__init__()
        self.amounts = {"targets/s": n_targets, "tokens/s": n_tokens}
        self.began = (0.0, 0)  # time and step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        super().on_train_begin(args, state, control, **kwargs)
        self.began = (time.monotonic(), state.global_step)
        if self.training_bar is not None:
            self.training_bar.set_description("train", refresh=False)
            self.training_bar.unit = " steps"
            self.training_bar.leave = True  # its last state tells the pace of the training

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the latest figures in the bar; write those of an evaluation above it."""
        if self.training_bar is None or not logs:
            return
        if "eval_loss" in logs:
            # the trainer compares with its best after it has logged
            best = args.load_best_model_at_end and logs["eval_loss"] <= (state.best_metric or math.inf)
            step = f"step {state.global_step} of {state.max_steps}"
            ranks = [f", {k.removeprefix('eval_')} {v:.4f}" for k, v in logs.items() if "@" in k]
            line = f"{step}: validation loss {logs['eval_loss']:.4f}{' (best)' if best else ''}"
            say("".join([line, *ranks]))
        elif "loss" in logs:
            since, step = self.began
            share = (state.global_step - step) / max(state.max_steps, 1) / max(time.monotonic() - since, 1e-9)
            pace = [f"{n * share:,.1f} {unit}" for unit, n in self.amounts.items() if n]
            self.training_bar.set_postfix_str(
                ", ".join([f"loss {float(logs['loss']):.3f}", f"lr {float(logs['learning_rate']):.2g}", *pace]),
                refresh=False,
            )


class TimeLimit(TrainerCallback, ExportableState):
    """Ends a training after some minutes, with a learning rate that falls to zero at that moment: along a cosine if
    that is the schedule of the arguments, else linearly.

    Evaluations and saving count as training time, and so do the minutes before a resumption. The first process's clock
    counts for all. Replaces the schedule of the optimizer's step count except for a warm-up of a number of steps, and
    where the last step comes before the limit: the learning rate is then zero after that step. A warm-up of a fraction
    of the training is that fraction of the time or of the steps, whichever comes first.
    """

    def __init__(self, minutes: float):
        """`minutes`: the limit, above 0."""
        self.minutes = minutes
        self.seconds_before = 0.0  # spent before the last resumption
        self.began = time.monotonic()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of this object."""
        return {"args": {"minutes": self.minutes}, "attributes": {"seconds_before": self.seconds()}}

    def seconds(self) -> float:
        """The time spent so far, in seconds."""
        return self.seconds_before + time.monotonic() - self.began

    def spent(self) -> float:
        """The share of the time that is spent, the same on all processes: 0 at the start, 1 at the limit or after."""
        elapsed = torch.tensor(self.seconds(), dtype=torch.float32, device=process_state().device)
        return min(1.0, float(broadcast(elapsed)) / (60 * self.minutes))

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock."""
        self.began = time.monotonic()

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Optimizer | None = None,
        lr_scheduler: LRScheduler | None = None,
        **kwargs: Any,
    ) -> None:
        """Set the learning rate of the step."""
        assert optimizer is not None and lr_scheduler is not None
        warmup, spent = args.get_warmup_steps(state.max_steps), self.spent()
        by_steps = (state.max_steps - state.global_step) / max(1, state.max_steps - warmup)
        left = min(1.0 - spent, by_steps)
        if args.lr_scheduler_type == SchedulerType.COSINE:
            left = (1 - math.cos(math.pi * left)) / 2
        warm = (state.global_step + 1) / warmup if warmup else 1.0
        if 0 < args.warmup_steps < 1:  # a fraction: of the time, where the clock is ahead of the steps
            warm = max(warm, spent / args.warmup_steps)
        share = min(left, warm, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = share * group["initial_lr"]
        lr_scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]  # what is logged

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop at the limit, after an evaluation and a checkpoint."""
        if self.spent() >= 1.0:
            control.should_training_stop = True
            control.should_evaluate = args.eval_strategy != "no"
            control.should_save = args.save_strategy != "no"
