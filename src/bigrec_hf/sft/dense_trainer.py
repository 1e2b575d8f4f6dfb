"""The trainer of the dense objective: TRL's SFTTrainer with -log p(title), in nats per target, as its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from peft import PeftModel
from transformers import PreTrainedModel
from trl import SFTTrainer

from bigrec_hf.data.trie import Trie
from bigrec_hf.models.catalog_head import CatalogHead, catalog_head
from bigrec_hf.models.checkpoints import ExactResume
from bigrec_hf.models.loading import keep_trainable_precise
from bigrec_hf.models.trie_loss import first_token_sums, token_columns, trie_losses
from bigrec_hf.sft.nats import NatsPerTarget
from bigrec_hf.sft.sample import greedy_leaf
from bigrec_hf.sft.temperature import Temperature


class DenseTrainer(NatsPerTarget, ExactResume, SFTTrainer):
    """Batches of a `sft.dense.DenseCollator`. Logits are computed only at positions with a loss.

    The loss of a step is the mean over its targets, that of an evaluation the mean over its targets, one per row. Only
    steps have a temperature; it multiplies their loss, as in MSL, so that gradients keep their size.
    """

    def __init__(self, *args: Any, trie: Trie | None, temperature: float | None = 1.0, **options: Any) -> None:
        """`trie`: after each prefix only tokens that can continue a title compete (loss trie); None: all (full).

        `temperature`: that of the loss trie, None = adaptive (`sft.temperature`).
        """
        super().__init__(*args, **options)
        self.add_callback(Temperature(temperature))
        keep_trainable_precise(self.model)
        self.trie: Trie | None = None
        self.token_ids: torch.Tensor | None = None
        self.head: CatalogHead | None = None
        if trie is not None:
            self.trie = trie.to(self.args.device)
            self.token_ids, self.columns = token_columns(self.trie)

    model: PreTrainedModel | PeftModel

    @property
    def temperature(self) -> Temperature:
        """The temperature of this training; a resumption replaces the object."""
        return next(found for found in self.callback_handler.callbacks if isinstance(found, Temperature))

    def train(self, *args: Any, **options: Any) -> Any:
        """`Trainer.train` with the catalog's head in place of the model's."""
        with catalog_head(self.model, self.token_ids) as self.head:
            return super().train(*args, **options)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of one batch; `num_items_in_batch` counts the targets of the step on all devices."""
        if self.head is None:
            raise RuntimeError("the head is in place during `train` only")
        self.head.positions = inputs["positions"]
        outputs = model(input_ids=inputs["input_ids"], use_cache=False)
        scale = 1.0
        if self.trie is None:
            losses = torch.nn.functional.cross_entropy(outputs.logits.float(), inputs["targets"], reduction="none")
        else:
            choices = (outputs.logits, inputs["nodes"], inputs["targets"], self.trie, self.columns)
            if model.training:
                if self.temperature.fixed is None:
                    self.temperature.update(self.accelerator.reduce(first_token_sums(*choices), "sum"))
                scale = self.temperature.value
            losses = trie_losses(*choices, temperature=scale)
        count = (inputs["labels"] != -100).sum() if num_items_in_batch is None else num_items_in_batch
        self.add_nats(losses.sum(), (inputs["labels"] != -100).sum())
        loss = scale * losses.sum() / torch.as_tensor(count).clamp(min=1)
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # DDP averages gradients, the count is over all processes
        return (loss, outputs) if return_outputs else loss


def predict_title(trainer: DenseTrainer, *, prompt: Sequence[int], trie: Trie, named: Mapping[int, str]) -> str:
    """Return the title that the trainer's model finds greedily after a prompt; `trie` of all, `named` by leaf."""
    if trainer.head is None:
        raise RuntimeError("the head is in place during `train` only")
    columns = trie.tokens.to(trainer.args.device) if trainer.trie is None else trainer.columns
    return named[greedy_leaf(cast(torch.nn.Module, trainer.model), trainer.head, prompt, trie, columns)]
