"""Trainings of tiny models of many architectures, and their loss and gradients against the definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from trl import SFTConfig, SFTTrainer

from bigrec_hf.sft.trainer import CompletionLossTrainer
from tests.helpers.architectures import tiny_architecture
from tests.helpers.tiny import tiny_tokenizer

IGNORED = -100


def tokens(seed: int = 0) -> Dataset:
    """Examples of 50 to 64 tokens that begin with the same 40, the last 5 supervised."""
    rng = np.random.default_rng(seed)
    prefix = rng.integers(4, 600, 40).tolist()
    rows = [prefix + rng.integers(4, 600, int(length)).tolist() for length in (24, 10, 17, 20)]
    return Dataset.from_dict({"input_ids": rows, "labels": [[IGNORED] * (len(row) - 5) + row[-5:] for row in rows]})


def make_trainer(folder: Path, name: str, changes: dict[str, Any] | None = None, **options: Any):
    config = {"max_length": 64, "per_device_train_batch_size": 4, "report_to": "none", "use_cpu": True, "bf16": False}
    config |= {"activation_checkpointing": False, **options}
    return CompletionLossTrainer(
        model=tiny_architecture(name, **(changes or {})),
        args=SFTConfig(str(folder), **config),
        train_dataset=tokens(),
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(
            r=2,
            lora_dropout=0.0,
            target_modules="all-linear",
            exclude_modules=r".*(router|out_proj|gate)$",  # PEFT cannot adapt PhiMoE's router and Mamba's out_proj
            task_type="CAUSAL_LM",
        ),
    )


def loss_and_gradients(trainer: SFTTrainer, compute_loss: Any) -> tuple[float, list[torch.Tensor]]:
    batch = trainer.data_collator(list(trainer.train_dataset))
    trainer.model.eval()  # dropout off, gradients on
    loss = compute_loss(trainer, trainer.model, batch)
    weights = [value for name, value in trainer.model.named_parameters() if "lora_B" in name]
    return loss.item(), list(torch.autograd.grad(loss, weights, allow_unused=True))


def definition(trainer: SFTTrainer, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """The cross-entropy of the labels under the model's own logits, and its own router loss where that is asked for."""
    others = {key: value for key, value in inputs.items() if key != "labels"}
    if trainer.aux_loss_enabled:
        others["output_router_logits"] = True
    outputs = model(**others, use_cache=False)
    loss = torch.nn.functional.cross_entropy(outputs.logits[:, :-1].flatten(0, 1), inputs["labels"][:, 1:].flatten())
    if not trainer.aux_loss_enabled:
        return loss
    if outputs.aux_loss is None:  # Llama 4
        config, mask = trainer.base().config, inputs["attention_mask"]
        experts = config.num_local_experts, config.num_experts_per_tok
        outputs.aux_loss = load_balancing_loss_func(outputs.router_logits, *experts, mask)
    return loss + trainer.router_aux_loss_coef * outputs.aux_loss


def check_equal(trainer: CompletionLossTrainer) -> None:
    """Loss and gradients of ours are those of the definition on the model's own attention."""
    ours, our_gradients = loss_and_gradients(trainer, CompletionLossTrainer.compute_loss)
    if trainer.shares:
        trainer.base().set_attn_implementation("sdpa")
    wanted, wanted_gradients = loss_and_gradients(trainer, definition)
    assert ours == pytest.approx(wanted, rel=2e-5)
    for got, right in zip(our_gradients, wanted_gradients, strict=True):
        assert (got is None) == (right is None)
        if got is not None:
            torch.testing.assert_close(got, right, rtol=1e-3, atol=1e-3 * float(right.abs().max()))
