"""The loss of training is that of the model's own logits: a shared prefix where that is right, plain batches elsewhere.

All architectures are in tests/models/test_matrix.py.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig
from trl import SFTTrainer

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.sft.shared_prefix import draws_at_random
from bigrec_hf.sft.trainer import CompletionLossTrainer, resting
from tests.helpers.training import check_equal, definition, loss_and_gradients, make_trainer

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


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_measured_decides(tmp_path, name, capsys):
    trainer = make_trainer(tmp_path, name)
    assert (trainer.lean, trainer.shares) == EXPECTED[name]
    told = "plain, no prompt prefix is shared" in capsys.readouterr().out
    assert told == (EXPECTED[name] == PLAIN)
    check_equal(trainer)


@pytest.mark.parametrize(
    ("name", "changes"), [("modernbert-decoder", {}), ("recurrent_gemma", {"logits_soft_cap": 2.0})]
)
def test_trls_loss_is_not_taken_where_it_leaves_out_what_makes_the_logits(tmp_path, name, changes, capsys):
    trainer = make_trainer(tmp_path, name, changes)
    assert "loss: from the model's own logits (TRL's loss of this model is" in capsys.readouterr().out
    check_equal(trainer)
    right, _ = loss_and_gradients(trainer, definition)
    assert loss_and_gradients(trainer, SFTTrainer.compute_loss)[0] != pytest.approx(right, rel=2e-4)
    with pytest.raises(BigrecError, match=r"TRL's loss of this model is .* it cannot be trained with these settings"):
        make_trainer(tmp_path, name, changes, loss_type="dft")
    make_trainer(tmp_path, name, changes, label_smoothing_factor=0.1)  # TRL's own way with whole logits, which is right


@pytest.mark.parametrize("name", ["llama4_text", "phimoe", "granitemoe", "granitemoehybrid"])
def test_models_whose_names_trl_does_not_know(tmp_path, name):
    check_equal(make_trainer(tmp_path, name))


def test_a_dense_model_of_a_family_with_experts_has_no_router_loss(tmp_path):
    trainer = make_trainer(tmp_path, "granitemoehybrid", {"num_local_experts": 0})
    assert not trainer.aux_loss_enabled
    check_equal(trainer)


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
