"""The trainer of the `sft` stage: TRL's SFTTrainer with a lean CPU loss, its configuration, and one training run."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.compute as pc
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    set_seed,
)
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import GRPOConfig, SFTConfig, SFTTrainer

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.processes import process_state
from bigrec_hf.models.checkpoints import ExactResume, last_checkpoint
from bigrec_hf.models.loading import keep_trainable_precise, mend_names
from bigrec_hf.sft.callbacks import OneLine, TimeLimit
from bigrec_hf.sft.nats import NatsPerTarget, best_nats
from bigrec_hf.sft.sample import Sample, ShowSample
from bigrec_hf.sft.shared_prefix import MergedBatch, draws_at_random, merge_batch, use_shared_attention

IGNORED = -100  # label of a token without loss
BATCH_KEYS = {"input_ids", "attention_mask", "labels"}  # of a padded batch
MEASURED_ROWS = 4
TOLERANCE = 1e-4  # relative, in float32
ROUNDED_TOLERANCE = 2e-2  # where weights or arithmetic are rounded: the order of sums matters


class CompletionLossTrainer(NatsPerTarget, ExactResume, SFTTrainer):
    """SFTTrainer whose CPU loss computes logits at supervised positions only, and the batch's common prefix once.

    On CUDA, TRL's fused head already skips unsupervised positions. Elsewhere it projects every position onto the
    vocabulary and computes entropies; with ~12 completion tokens in ~150 that is most of a small model's time. The
    common prefix is shared if dropout would not make the rows differ. Same loss, no entropy metrics: both ways are
    measured against TRL's loss first, and not taken if they differ. TRL's loss is measured as well, on any device: its
    fused head ignores what some models do between their last layer and the logits. Trainable weights are
    in float32.
    """

    args: SFTConfig
    model: PreTrainedModel | PeftModel
    train_dataset: Dataset
    eval_dataset: Dataset | None

    def __init__(self, model: PreTrainedModel, *args: Any, **options: Any):
        mend_names(model)
        super().__init__(model, *args, **options)
        keep_trainable_precise(self.model)
        self.draws = draws_at_random(self.base())
        self.lean, self.shares = False, False
        sharded = self.is_fsdp_enabled or is_deepspeed_zero3_enabled()  # no process has the weights to measure with
        own_loss = self.label_smoother is not None or self.compute_loss_func is not None  # of the model's own logits
        if not sharded and not own_loss:
            with resting(self):
                self.lean, self.shares = self.measure()

    def base(self) -> PreTrainedModel:
        """Return the model without its adapter."""
        return cast(PreTrainedModel, self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model)

    def has_plain_loss(self) -> bool:
        """Return whether the loss is the mean cross-entropy of the labels and nothing else."""
        changed = self.args.loss_type != "nll" or self.args.label_smoothing_factor > 0 or self.aux_loss_enabled
        return not changed and self.compute_loss_func is None

    def trl_loss(self, batch: dict[str, torch.Tensor]) -> float:
        """The mean cross-entropy of the labels as TRL computes it, without what the settings add to it."""
        loss_type, aux_loss_enabled = self.args.loss_type, self.aux_loss_enabled
        self.args.loss_type, self.aux_loss_enabled = "nll", False
        try:
            return super().compute_loss(self.model, dict(batch)).item()
        finally:
            self.args.loss_type, self.aux_loss_enabled = loss_type, aux_loss_enabled

    def measure(self) -> tuple[bool, bool]:
        """Return whether to use the lean loss, and whether with a shared prefix; print unusual decisions.

        On a CPU wherever it is TRL's on the longest examples (long ones, because windows and other limits of attention
        show only beyond them). On any device where TRL's is not that of the model's own logits. Raises BigrecError
        where TRL's is wrong and the settings need it.
        """
        batch = self._prepare_inputs(longest_batch(self))
        wanted = self.trl_loss(batch)
        exact = all(parameter.dtype == torch.float32 for parameter in self.model.parameters())
        tolerance = abs(wanted) * (TOLERANCE if exact else ROUNDED_TOLERANCE)

        def difference(merged: MergedBatch | None) -> str | None:
            try:
                loss, count, _ = lean_loss(self.model, batch, merged)
            except Exception as error:  # whatever a model's own code raises on arguments that it does not know
                return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            mean = loss.item() / max(int(count), 1)
            return None if abs(mean - wanted) <= tolerance else f"a loss of {mean:.6g} instead of {wanted:.6g}"

        lean = self.args.device.type == "cpu" and self.has_plain_loss()
        reason = difference(None)
        if reason is not None:
            own = logits_loss(self.model, batch)
            if abs(own - wanted) <= tolerance:
                if lean:
                    self.accelerator.print(f"loss: as TRL computes it, for this model knows no shorter way ({reason})")
                return False, False
            told = f"TRL's loss of this model is {wanted:.6g}, that of its logits {own:.6g}"
            wanted, lean = own, True
            reason = difference(None)
            if reason is not None or not self.has_plain_loss():
                raise BigrecError(
                    f"{told}: it cannot be trained with these settings; remove loss_type and "
                    "router_aux_loss_coef from trainer_args, set router_aux_loss_coef to 0, or take another base model"
                )
            self.accelerator.print(f"loss: from the model's own logits ({told})")
        if not lean:
            return False, False
        if set(batch) != BATCH_KEYS or batch["input_ids"].shape[0] < 2:
            return True, False
        reason = use_shared_attention(self.base(), self.args.max_length or batch["input_ids"].shape[1])
        if reason is None:
            merged = merge_batch(**batch, ignored=IGNORED, worthwhile=1.0)
            assert merged is not None  # right-padded, two rows or more
            reason = difference(merged)
            if reason is None and len(merged.attended) != self.base().config.get_text_config().num_hidden_layers:
                reason = "not all of its layers attend as transformers' common attention does"
            if reason is not None:
                self.base().set_attn_implementation("sdpa")
        if reason is not None:
            self.accelerator.print(f"batches: plain, no prompt prefix is shared with this model ({reason})")
        return True, reason is None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a batch, as of SFTTrainer, with the outputs if `return_outputs`."""
        if not self.lean:
            found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if self._sums is not None and self.has_plain_loss():
                mean = found[0] if return_outputs else found
                self.add_nats(mean * (inputs["labels"][:, 1:] != IGNORED).sum(), n_examples(inputs))
            return found
        merged = None
        if self.shares and set(inputs) == BATCH_KEYS and not (self.model.training and self.draws):
            merged = merge_batch(**inputs, ignored=IGNORED)
        loss, count, outputs = lean_loss(model, inputs, merged)
        self.add_nats(loss, n_examples(inputs))
        loss = loss / torch.as_tensor(count if num_items_in_batch is None else num_items_in_batch).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients, the count is over all processes
        return (loss, outputs) if return_outputs else loss


@contextlib.contextmanager
def resting(trainer: CompletionLossTrainer) -> Iterator[None]:
    """Evaluation mode without gradients; random states and metrics are restored afterwards."""
    metrics, training = trainer._metrics["eval"], trainer.model.training
    trainer._metrics["eval"] = defaultdict(list)
    trainer.model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        trainer.model.train(training)
        trainer._metrics["eval"] = metrics


def longest_batch(trainer: CompletionLossTrainer) -> dict[str, torch.Tensor]:
    """Return a batch of the longest training and validation examples."""
    rows: list[tuple[int, Dataset, int]] = []
    for data in (trainer.train_dataset, trainer.eval_dataset):
        if data is not None:
            tables = data.select_columns("input_ids").with_format("arrow").iter(batch_size=10_000)
            lengths = np.concatenate([pc.list_value_length(table["input_ids"]).to_numpy() for table in tables])
            rows += [(int(lengths[row]), data, int(row)) for row in np.argsort(-lengths, kind="stable")[:MEASURED_ROWS]]
    rows.sort(key=lambda found: -found[0])
    trainer._set_signature_columns_if_needed()
    examples = [data[row] for _, data, row in rows[: 1 if trainer.padding_free else MEASURED_ROWS]]
    wanted: list[str] = trainer._signature_columns or []
    return trainer.data_collator([{name: e[name] for name in wanted if name in e} for e in examples])


def n_examples(inputs: dict[str, torch.Tensor]) -> int:
    """The number of examples in a batch: of its rows, or of the examples in one long row, which begin at position 0."""
    places = inputs.get("position_ids")
    return inputs["labels"].shape[0] if places is None else int((places == 0).sum())


def lean_loss(
    model: torch.nn.Module, inputs: dict[str, torch.Tensor], merged: MergedBatch | None
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Return the summed cross-entropy of the labels, their number, and the output, for `merged` or else `inputs`."""
    if merged is not None:
        outputs = model(**merged.model_inputs())
        return merged.loss(outputs.logits), merged.counts.sum(), outputs
    targets = inputs["labels"][:, 1:]
    supervised = targets != IGNORED
    positions = supervised.any(dim=0).nonzero().flatten()
    others = {key: value for key, value in inputs.items() if key != "labels"}
    outputs = model(**others, use_cache=False, logits_to_keep=positions)
    kept = supervised[:, positions]
    logits = outputs.logits[kept].float()
    loss = torch.nn.functional.cross_entropy(logits, targets[:, positions][kept], reduction="sum")
    return loss, supervised.sum(), outputs


def logits_loss(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> float:
    """The mean cross-entropy of the labels under all the logits that the model gives: the definition."""
    others = {key: value for key, value in inputs.items() if key != "labels"}
    logits = model(**others, use_cache=False).logits[:, :-1].flatten(0, 1).float()
    return torch.nn.functional.cross_entropy(logits, inputs["labels"][:, 1:].flatten()).item()


def train_adapter(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    train: Dataset,
    validation: Dataset | None,
    config: SFTConfig | GRPOConfig,
    *,
    lora: LoraConfig | None,
    patience: int,
    n_targets: int,
    n_tokens: int = 0,
    max_minutes: float = 0.0,
    trainer_class: Callable[..., Trainer] = CompletionLossTrainer,
    collator: Callable[[Any], dict[str, torch.Tensor]] | None = None,
    sample: Sample | None = None,
) -> tuple[Trainer, dict[str, Any]]:
    """Train (or resume from the last checkpoint in `config.output_dir`) and return the trainer and its record.

    `lora`: the adapter to add to the model; None if it has one.

    With a validation set the adapter of the best evaluation loss is loaded at the end; `patience` evaluations without
    improvement stop the training (0 = never), and so do `max_minutes` (0 = no limit). `n_targets`, `n_tokens`: those of
    all epochs, 0 = not known. `sample`: an example whose prediction is shown at each evaluation.
    """
    set_seed(config.seed)
    callbacks: list[TrainerCallback] = []
    if patience > 0 and config.load_best_model_at_end:
        callbacks.append(EarlyStoppingCallback(patience))
    if max_minutes > 0:
        callbacks.append(TimeLimit(max_minutes))
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
    if not config.disable_tqdm:
        trainer.remove_callback(ProgressCallback)
        trainer.add_callback(OneLine(n_targets, n_tokens))
    if sample is not None:
        trainer.add_callback(ShowSample(cast(SFTTrainer, trainer), sample))
    trainable, total = cast(PeftModel, trainer.model).get_nb_trainable_parameters()
    if trainer.is_world_process_zero():
        print(f"parameters: {trainable:,} trainable of {total:,} ({trainable / total:.4%})", flush=True)
    with process_state().main_process_first():
        checkpoint = last_checkpoint(str(config.output_dir))  # the configuration always sets a folder
    if checkpoint and trainer.is_world_process_zero():
        print(f"resuming from {Path(checkpoint).name}", flush=True)
    result = trainer.train(resume_from_checkpoint=checkpoint)
    record = {
        "trainable_parameters": trainable,
        "total_parameters": total,
        "optimizer_steps": trainer.state.global_step,
        "epochs_done": trainer.state.epoch,
        "train_loss": result.training_loss,
        "best_eval_loss": trainer.state.best_metric,
        "best_nats_per_target": best_nats(trainer.state.log_history),
        "history": trainer.state.log_history,
    }
    return trainer, record
