"""The lean CPU loss is TRL's on every architecture: a shared prefix where that is right, plain batches elsewhere."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoConfig
from trl import SFTConfig, SFTTrainer

from bigrec_hf.sft.shared_prefix import draws_at_random
from bigrec_hf.sft.trainer import CompletionLossTrainer, resting
from tests.helpers.architectures import ARCHITECTURES, tiny_architecture
from tests.helpers.tiny import tiny_tokenizer

IGNORED = -100
SHARED, PLAIN, STOCK = (True, True), (True, False), (False, False)  # lean loss, shared prefix
EXPECTED: dict[str, tuple[bool, bool]] = {
    "llama": SHARED,
    "qwen2": SHARED,
    "mistral": SHARED,
    "gpt2": SHARED,
    "deepseek_v3": SHARED,  # latent attention: values of another width than keys
    # windows shorter than the examples
    "mistral, sliding window": PLAIN,
    "phi3, sliding window": PLAIN,
    "starcoder2, sliding window": PLAIN,
    "gemma3_text": PLAIN,
    # attention of their own: transformers' common one is never called, or not for all there is
    "falcon, rotary": PLAIN,
    "falcon, alibi": PLAIN,  # raises on a merged batch
    "stablelm": PLAIN,
    "nemotron": PLAIN,
    "diffllama": PLAIN,
    # no attention; experts with a loss of their own
    "mamba": PLAIN,
    "mixtral": STOCK,
    "mixtral, sliding window": STOCK,
}
# models whose loss TRL itself cannot compute: with that of the router it asks for config.num_experts, which they lack
NO_ROUTER_LOSS = {"phimoe", "phimoe, sliding window", "granitemoe", "granitemoehybrid"}
NOT_TRAINED = {"llama4_text"}  # TRL calls its model without a head and gets one with it


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


def check_equal(trainer: CompletionLossTrainer) -> None:
    """Loss and gradients of ours and of TRL's on the model's own attention."""
    ours, our_gradients = loss_and_gradients(trainer, CompletionLossTrainer.compute_loss)
    if trainer.shares:
        trainer.base().set_attn_implementation("sdpa")
    stock, stock_gradients = loss_and_gradients(trainer, SFTTrainer.compute_loss)
    assert ours == pytest.approx(stock, rel=2e-5)
    for got, wanted in zip(our_gradients, stock_gradients, strict=True):
        assert (got is None) == (wanted is None)
        if got is not None:
            torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_measured_decides(tmp_path, name, capsys):
    trainer = make_trainer(tmp_path, name)
    assert (trainer.lean, trainer.shares) == EXPECTED[name]
    told = "plain, no prompt prefix is shared" in capsys.readouterr().out
    assert told == (EXPECTED[name] == PLAIN)
    check_equal(trainer)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - set(EXPECTED) - NOT_TRAINED))
def test_loss_and_gradients_are_trls(tmp_path, name):
    check_equal(make_trainer(tmp_path, name, **({"router_aux_loss_coef": 0.0} if name in NO_ROUTER_LOSS else {})))


def test_a_window_wider_than_the_examples_does_not_matter(tmp_path):
    trainer = make_trainer(tmp_path, "mistral, sliding window", {"sliding_window": 64})
    assert (trainer.lean, trainer.shares) == SHARED
    check_equal(trainer)


@pytest.mark.parametrize(
    "options", [{"loss_type": "dft"}, {"label_smoothing_factor": 0.1}, {"router_aux_loss_coef": 0.05}]
)
def test_other_losses_are_left_to_trl(tmp_path, options):
    trainer = make_trainer(tmp_path, "mixtral", **options)
    ours, gradients = loss_and_gradients(trainer, CompletionLossTrainer.compute_loss)
    stock, wanted = loss_and_gradients(trainer, SFTTrainer.compute_loss)
    assert ours == stock
    for got, want in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(got, want)
    plain = make_trainer(tmp_path, "mixtral", router_aux_loss_coef=0.0)
    assert (plain.lean, plain.shares) == SHARED
    assert ours != pytest.approx(loss_and_gradients(plain, SFTTrainer.compute_loss)[0], rel=1e-4)


@pytest.mark.parametrize(
    ("setting", "value", "draws"),
    [("attention_dropout", 0.5, True), ("attention_dropout", 0.0, False), ("router_jitter_noise", 0.01, True)],
)
def test_random_draws_of_a_base(setting, value, draws):
    config = AutoConfig.for_model("mixtral")
    setattr(config, setting, value)  # drawn by a function, not by a module
    assert draws_at_random(SimpleNamespace(modules=list, config=config)) == draws
    assert draws_at_random(SimpleNamespace(modules=lambda: [torch.nn.Dropout(0.1)], config=config))


def test_measuring_changes_nothing_that_training_draws(tmp_path):
    trainer = make_trainer(tmp_path, "llama")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    trainer.model.train()
    metrics = trainer._metrics["eval"]
    with resting(trainer):
        torch.rand(3)
        trainer.measure()
    assert torch.equal(torch.get_rng_state(), before)
    assert trainer.model.training
    assert trainer._metrics["eval"] is metrics
    assert not metrics
