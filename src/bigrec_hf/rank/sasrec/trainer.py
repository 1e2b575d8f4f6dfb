"""Training of SASRec with `transformers.Trainer`, and scores of all items for given histories."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments, set_seed

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.processes import own_precision
from bigrec_hf.data.generations import Examples
from bigrec_hf.data.sequences import ItemSequences
from bigrec_hf.ground.from_scores import rank_scores
from bigrec_hf.metrics.ndcg_hr.scores import mean_scores
from bigrec_hf.models.checkpoints import ExactResume, last_checkpoint
from bigrec_hf.rank.sasrec.model import SasRecConfig, SasRecModel, inclusion_probabilities
from bigrec_hf.rank.sasrec.windows import WindowDataset, collate, pad_histories, windows

if TYPE_CHECKING:
    from bigrec_hf.settings import SasrecSettings

SCORE_BATCH = 512  # histories scored together
EVAL_K = 10  # NDCG@10 on validation examples decides which epoch is kept


def score_histories(
    model: SasRecModel, histories: Sequence[Sequence[int]], *, counts: np.ndarray, progress: bool = False
) -> np.ndarray:
    """Return the logit of every item as the next one, (n, n_items) float32; their softmax gives probabilities.

    An empty history is scored by popularity: log(1 + `counts`).
    """
    padded = pad_histories(histories, model.config.max_length, model.config.padding_id)
    scores = np.empty((len(padded), model.config.n_items), np.float32)
    model.eval()
    starts = range(0, len(padded), SCORE_BATCH)
    with torch.inference_mode():
        for start in tqdm(starts, desc="SASRec scores", disable=not progress):
            batch = torch.from_numpy(padded[start : start + SCORE_BATCH]).to(model.device)
            scores[start : start + len(batch)] = model(batch).logits.float().cpu().numpy()
    scores[(padded == model.config.padding_id).all(axis=1)] = np.log1p(np.asarray(counts, np.float32))
    return scores


class SasRecTrainer(ExactResume, Trainer):
    """Trainer with an optionally sampled loss, and an evaluation that ranks the whole catalog at the last position.

    `chances` (n_items,): the probability of each item to be a negative in a batch (`inclusion_probabilities`), or None
    for the full softmax. `histories`, `targets`: the validation examples; `excluded`: rows of each that are
    not candidates, or None.
    """

    def __init__(
        self,
        *args: Any,
        chances: torch.Tensor | None,
        counts: np.ndarray,
        histories: Sequence[Sequence[int]],
        targets: Sequence[int],
        excluded: Sequence[Sequence[int]] | None = None,
        **options: Any,
    ):
        super().__init__(*args, **options)
        self.chances, self.counts = chances, counts
        self.histories, self.targets, self.excluded = histories, targets, excluded

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Return the loss of a batch; a sampled softmax draws its negatives for this batch."""
        if self.chances is not None:
            sampled = (torch.rand(len(self.chances)) < self.chances).nonzero().flatten()
            log_expected = self.chances[sampled].log()
            inputs = {**inputs, "sampled": sampled, "log_expected": log_expected}
            inputs = self._prepare_inputs(inputs)
        outputs = model(**inputs)
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval"):
        """Return NDCG@10 and HR@10 of the validation examples over the whole catalog."""
        scores = score_histories(self.model, self.histories, counts=self.counts)
        n_items = scores.shape[1]
        targets = [[target] for target in self.targets]
        rank = rank_scores(lambda a, b: scores[a:b], targets, n_items, top_k=0, exclude=self.excluded).rank
        found = mean_scores(rank, [min(EVAL_K, n_items)])
        metrics = {f"{metric_key_prefix}_{name.split('@')[0]}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def train_sasrec(
    sequences: ItemSequences,
    counts: np.ndarray,
    validation: Examples,
    checkpoints: str | Path,
    sasrec: SasrecSettings,
    *,
    seed: int,
    excluded: Sequence[Sequence[int]] | None = None,
    catalog_sha256: str | None = None,
    callbacks: Sequence[Any] = (),
) -> tuple[SasRecModel, dict[str, Any]]:
    """Train, from the last checkpoint if there is one, and return the model of the best epoch and the record.

    The best epoch is the one with the highest NDCG@10 on `validation`; training stops after `sasrec_patience` epochs
    without a better one. `counts`, (n_items,): how often each item is a training target; `excluded`: rows of each
    validation example that are not candidates. Raises BigrecError for settings that do not fit together, and if no
    sequence has two items.
    """
    model = new_model(sasrec, len(counts), seed, catalog_sha256)
    inputs, labels = windows(sequences, sasrec.sasrec_max_length, sasrec.sasrec_stride, model.config.padding_id)
    if not len(inputs):
        raise BigrecError("no training sequence has two items, so there is no next item to learn: prepare more data")
    has_validation = len(validation.targets) > 0
    negatives = sasrec.sasrec_negatives
    sampled = 0 < negatives < len(counts)  # else the full softmax
    stopping = sasrec.sasrec_patience > 0 and has_validation
    trainer = SasRecTrainer(
        model=model,
        args=training_arguments(sasrec, Path(checkpoints), seed, has_validation),
        train_dataset=WindowDataset(inputs, labels),
        eval_dataset=WindowDataset(inputs[:1], labels[:1]) if has_validation else None,  # a placeholder for Trainer
        data_collator=collate,
        callbacks=[*([EarlyStoppingCallback(sasrec.sasrec_patience)] if stopping else []), *callbacks],
        chances=inclusion_probabilities(torch.as_tensor(counts), negatives) if sampled else None,
        counts=counts,
        histories=validation.histories,
        targets=validation.targets,
        excluded=excluded,
    )
    result = trainer.train(resume_from_checkpoint=last_checkpoint(Path(checkpoints)))
    return model.eval(), {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "windows": len(inputs),
        "optimizer_steps": trainer.state.global_step,
        "epochs_done": trainer.state.epoch,
        "train_loss": result.training_loss,
        f"best_validation_ndcg@{EVAL_K}": trainer.state.best_metric,
        "history": trainer.state.log_history,
    }


def new_model(sasrec: SasrecSettings, n_items: int, seed: int, catalog_sha256: str | None) -> SasRecModel:
    """Return an untrained model, initialized from the seed. Raises BigrecError for contradictory settings."""
    if not 1 <= sasrec.sasrec_stride <= sasrec.sasrec_max_length:
        raise BigrecError(
            f"stride {sasrec.sasrec_stride} is outside 1 to max_length, {sasrec.sasrec_max_length}: some items "
            "would never be targets"
        )
    if sasrec.sasrec_dim % sasrec.sasrec_heads:
        raise BigrecError(
            f"hidden size {sasrec.sasrec_dim} is not a multiple of {sasrec.sasrec_heads} attention heads: change one"
        )
    set_seed(seed)
    config = SasRecConfig(
        n_items=n_items,
        hidden_size=sasrec.sasrec_dim,
        num_hidden_layers=sasrec.sasrec_layers,
        num_attention_heads=sasrec.sasrec_heads,
        max_length=sasrec.sasrec_max_length,
        dropout=sasrec.sasrec_dropout,
        catalog_sha256=catalog_sha256,
    )
    return SasRecModel(config)


def training_arguments(sasrec: SasrecSettings, checkpoints: Path, seed: int, has_validation: bool) -> TrainingArguments:
    """Return the arguments of the Trainer: a checkpoint per epoch and, with validation, the best one at the end.

    In float32, whatever the accelerate configuration says.
    """
    interval = "epoch" if has_validation else "no"
    with own_precision():
        return TrainingArguments(
            output_dir=str(checkpoints),
            num_train_epochs=sasrec.sasrec_epochs,
            per_device_train_batch_size=sasrec.sasrec_batch_size,
            learning_rate=sasrec.sasrec_lr,
            lr_scheduler_type="constant",
            weight_decay=sasrec.sasrec_weight_decay,
            seed=seed,
            data_seed=seed,
            use_cpu=not torch.cuda.is_available(),
            eval_strategy=interval,
            save_strategy="epoch",
            save_total_limit=2,
            logging_strategy="epoch",
            report_to="none",
            load_best_model_at_end=has_validation,
            metric_for_best_model="eval_ndcg" if has_validation else None,
            greater_is_better=True if has_validation else None,
            dataloader_pin_memory=torch.cuda.is_available(),
            remove_unused_columns=False,
            restore_callback_states_from_checkpoint=True,
        )
