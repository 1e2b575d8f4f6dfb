"""The validation measure of both objectives: -log p(title), in nats per target."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from transformers.trainer_utils import EvalLoopOutput

NATS = "nats_per_target"  # in the metrics of an evaluation, after `eval_`


class NatsPerTarget:
    """A Trainer whose evaluations report `eval_nats_per_target`, the mean of -log p(title) over the targets.

    -log p(title) is the sum over the tokens of the target title, given everything before it: with the objective dense
    the title's tokens and its line break; with pairs the whole completion, that is quote, title, quote and EOS. Tokens
    of the prompt never count. `eval_loss` of pairs is a mean over tokens, and so depends on the lengths of titles. On
    several processes the few rows that fill up the last batch count twice.
    """

    accelerator: Accelerator
    _sums: list[float] | None = None  # nats and targets of the evaluation under way

    def add_nats(self, nats: torch.Tensor, n_targets: torch.Tensor | int) -> None:
        """Count a batch: the sum of -log p(title) over its `n_targets`. Outside an evaluation nothing is counted."""
        if self._sums is not None:
            self._sums = [self._sums[0] + float(nats.detach()), self._sums[1] + int(n_targets)]

    def evaluation_loop(self, *args: Any, **options: Any) -> EvalLoopOutput:
        """`Trainer.evaluation_loop` with the measure among its metrics, if batches were counted."""
        self._sums = [0.0, 0.0]
        try:
            output: EvalLoopOutput = super().evaluation_loop(*args, **options)  # type: ignore[misc]  # of the Trainer
            sums = torch.tensor(self._sums, dtype=torch.float32, device=self.accelerator.device)
        finally:
            self._sums = None
        nats, n_targets = self.accelerator.reduce(sums, "sum").tolist()
        if n_targets and output.metrics is not None:
            output.metrics[f"{options.get('metric_key_prefix', 'eval')}_{NATS}"] = nats / n_targets
        return output


def best_nats(history: list[dict[str, Any]]) -> float | None:
    """The nats per target of the evaluation with the lowest loss; `history`: the Trainer's log."""
    evaluations = [entry for entry in history if "eval_loss" in entry]
    return min(evaluations, key=lambda entry: entry["eval_loss"]).get(f"eval_{NATS}") if evaluations else None
