"""Training on top of an adapter: the written adapter is the sum of both, and goes with the original base."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.fingerprints import fingerprint
from bigrec_hf.hub.recommender import Recommender
from bigrec_hf.models.loading import load_generator
from bigrec_hf.models.stacked import adapter_factors, add_factors, merge_start, write_sum
from bigrec_hf.settings import DataSettings, ModelSettings, PromptSettings, RunSettings
from bigrec_hf.sft import adapter_folder
from bigrec_hf.sft import stage as sft
from bigrec_hf.sft.trainer import CompletionLossTrainer
from tests.helpers.tiny_run import as_rows, make_run, rankings, run_histories
from tests.sft.test_dense_training import train as train_dense
from tests.sft.test_sft import QUICK, Stopped, adapter_weights, train

IDS = torch.arange(10, 60).reshape(2, 25)


def random_adapter(folder: Path, model_dir: str, *, seed: int = 0, **config) -> str:
    """An adapter whose B is not zero, on the tiny model."""
    torch.manual_seed(seed)
    config = {"r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **config}
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_dir), LoraConfig(**config))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(str(folder))
    return str(folder)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def load(model_dir: str, adapter: str | Path | None) -> torch.nn.Module:
    name = None if adapter is None else str(adapter)
    return load_generator(model_dir, name, dtype="float32", quantization="none", attn_implementation=None)


# --- the sum --------------------------------------------------------------------------------------------------------


def test_two_updates_by_hand():
    a1, b1 = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [0.0]])
    a2, b2 = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    only = torch.tensor([[5.0, 7.0]]), torch.tensor([[1.0], [1.0]])
    added = add_factors({"x": (a1, b1), "y": only}, {"x": (a2, b2)})
    a, b = added["x"]
    assert a.tolist() == [[1, 2], [0, 1], [1, 0]] and b.tolist() == [[1, 2, 0], [0, 0, 3]]
    assert (b @ a).tolist() == [[1, 4], [3, 0]]  # [[1, 2], [0, 0]] + [[0, 2], [3, 0]]
    a, b = added["y"]
    assert a.shape == (3, 2) and b.shape == (2, 3) and (b @ a).tolist() == [[5, 7], [5, 7]]


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.booleans()), min_size=1, max_size=4), st.integers(0, 99))
def test_products_add_up(layers, seed):
    generator = torch.Generator().manual_seed(seed)
    pair = [{}, {}]
    for number, (rank, *held) in enumerate(layers):
        for factors, has in zip(pair, held, strict=True):
            if has:
                a, b = (torch.randint(-9, 9, shape, generator=generator).double() for shape in ((rank, 4), (3, rank)))
                factors[str(number)] = a, b
    if not all(pair):
        return
    zero = torch.zeros(1, 4).double(), torch.zeros(3, 1).double()
    added = add_factors(*pair)
    assert set(added) == set(pair[0]) | set(pair[1]) and len({len(a) for a, _ in added.values()}) == 1
    for place, (a, b) in added.items():
        first, second = (factors.get(place, zero) for factors in pair)
        assert torch.equal(b @ a, first[1] @ first[0] + second[1] @ second[0])


@pytest.mark.parametrize(
    "first",
    [
        {},
        {"use_rslora": True, "r": 4, "lora_alpha": 5},
        {"target_modules": ["k_proj", "q_proj", "down_proj"]},
        {"target_modules": r".*layers\.1\.(self_attn\.v_proj|mlp\.up_proj)"},
        {"rank_pattern": {"v_proj": 5}, "alpha_pattern": {"layers.0.self_attn.q_proj": 1}},
    ],
)
def test_the_written_adapter_computes_what_the_chain_does(first, tiny_model_dir, tmp_path):
    start = random_adapter(tmp_path / "first", tiny_model_dir, **first)
    base, factors = merge_start(AutoModelForCausalLM.from_pretrained(tiny_model_dir), start, ["v_proj"])
    assert torch.allclose(logits(base), logits(load(tiny_model_dir, start)), atol=1e-6)
    chain = get_peft_model(base, LoraConfig(r=2, lora_alpha=3, target_modules=["v_proj", "o_proj"]))
    for name, parameter in chain.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    expected = logits(chain)
    assert (expected - logits(load(tiny_model_dir, start))).abs().max() > 1e-2
    write_sum(tmp_path / "sum", chain, factors)
    assert (expected - logits(load(tiny_model_dir, tmp_path / "sum"))).abs().max() < 1e-5
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model_dir), str(tmp_path / "sum"))
    assert (expected - logits(plain)).abs().max() < 1e-5
    adapted = {name for name, _ in plain.named_modules() if name.endswith("lora_A")}
    assert len(adapted) == len(set(factors) | set(adapter_factors(chain, "second")))  # no layer more
    again, _ = merge_start(AutoModelForCausalLM.from_pretrained(tiny_model_dir), str(tmp_path / "sum"), [])
    assert (expected - logits(again)).abs().max() < 1e-5


# --- training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [train, train_dense])
def test_training_starts_from_the_adapter(objective, tiny_model_dir, tiny_prepared, tmp_path, monkeypatch):
    start = random_adapter(tmp_path / "first", tiny_model_dir, r=4)
    trainers = []
    write = adapter_folder.write_adapter

    def watched(trained, *args):
        trainers.append(trained.trainer)
        write(trained, *args)

    monkeypatch.setattr(adapter_folder, "write_adapter", watched)
    record = objective(tmp_path / "second", tiny_model_dir, tiny_prepared, init_adapter=start)
    adapter = tmp_path / "second" / "adapter"
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], set(config["target_modules"])) == (12, 12, {"q_proj", "v_proj"})
    assert config["base_model_name_or_path"] == tiny_model_dir
    trained = logits(trainers[0].model)
    assert (trained - logits(load(tiny_model_dir, adapter))).abs().max() < 1e-5
    assert (trained - logits(load(tiny_model_dir, start))).abs().max() > 1e-3
    kept = objective(tmp_path / "second", tiny_model_dir, tiny_prepared, init_adapter=start)
    assert len(trainers) == 1 and kept["seconds"] == record["seconds"]


def test_without_one_the_fingerprint_is_that_of_earlier_releases(tiny_model_dir, tiny_prepared, tmp_path):
    def settings(**changes):
        model = ModelSettings(base_model=tiny_model_dir)
        section = replace(QUICK, adapter_dir=str(tmp_path), **changes)
        return sft.training_settings(
            RunSettings(), DataSettings(dataset=[tiny_prepared]), model, PromptSettings(), section
        )

    assert not any("init" in name for name in settings())
    start = random_adapter(tmp_path / "first", tiny_model_dir)
    marks = [fingerprint(settings()), fingerprint(settings(init_adapter=start))]
    config = json.loads((tmp_path / "first" / "adapter_config.json").read_text())
    (tmp_path / "first" / "adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 7}))
    marks.append(fingerprint(settings(init_adapter=start)))
    random_adapter(tmp_path / "first", tiny_model_dir, seed=1)
    marks.append(fingerprint(settings(init_adapter=start)))
    assert len(set(marks)) == 4


def test_an_interrupted_training_ends_with_the_same_adapter(tiny_model_dir, tiny_prepared, tmp_path, monkeypatch):
    start = random_adapter(tmp_path / "first", tiny_model_dir)
    train(tmp_path / "whole", tiny_model_dir, tiny_prepared, init_adapter=start)
    step = CompletionLossTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise Stopped
        return step(self, *args, **kwargs)

    monkeypatch.setattr(CompletionLossTrainer, "training_step", dies)
    with pytest.raises(Stopped):
        train(tmp_path / "cut", tiny_model_dir, tiny_prepared, init_adapter=start)
    assert any((tmp_path / "cut" / "adapter" / "checkpoints").glob("checkpoint-*"))
    monkeypatch.setattr(CompletionLossTrainer, "training_step", step)
    train(tmp_path / "cut", tiny_model_dir, tiny_prepared, init_adapter=start)
    whole, cut = adapter_weights(tmp_path / "whole"), adapter_weights(tmp_path / "cut")
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ({"use_dora": True}, "a variant of LoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"target_modules": ["embed_tokens"]}, "layers other than linear ones"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights"),
    ],
)
def test_only_plain_lora_can_be_added(first, words, tiny_model_dir, tmp_path):
    start = random_adapter(tmp_path / "first", tiny_model_dir, **first)
    with pytest.raises(BigrecError, match=f"has {words}.*: only plain LoRA"):
        merge_start(AutoModelForCausalLM.from_pretrained(tiny_model_dir), start, ["q_proj"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantization": "8bit"}, "cannot be merged into a base in 8bit.*set quantization to none"),
        ({"init_adapter": "{tmp}/none"}, "none' is neither a folder nor a Hub id"),
        ({"init_adapter": "{tmp}/second/adapter"}, "is the folder to write to"),
        ({"lora_target_modules": ["embed_tokens"]}, "model.embed_tokens is not a linear layer"),
    ],
)
def test_settings_that_do_not_go_together(changes, words, tiny_model_dir, tiny_prepared, tmp_path):
    start = random_adapter(tmp_path / "first", tiny_model_dir)
    changes = {"init_adapter": start} | changes
    changes["init_adapter"] = changes["init_adapter"].replace("{tmp}", str(tmp_path))
    with pytest.raises(BigrecError, match=words):
        train(tmp_path / "second", tiny_model_dir, tiny_prepared, **changes)


def test_a_sharded_base_and_another_base_are_refused(tiny_model_dir, tiny_prepared, tmp_path, monkeypatch):
    start = random_adapter(tmp_path / "first", tiny_model_dir)
    record = {"settings": {"base_revision": "sha256:" + "0" * 64}}
    (tmp_path / "first" / "training.json").write_text(json.dumps(record))
    with pytest.raises(BigrecError, match="trained on another base model"):
        train(tmp_path / "second", tiny_model_dir, tiny_prepared, init_adapter=start)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(BigrecError, match="is sharded"):
        train(tmp_path / "second", tiny_model_dir, tiny_prepared, init_adapter=start)


@pytest.mark.slow
def test_a_run_recommends_and_is_published_with_it(raw_movies, tiny_model_dir, tiny_run, tmp_path):
    run = make_run(tmp_path, raw_movies, tiny_model_dir, sft={"init_adapter": str(tiny_run / "adapter")})
    histories, _ = run_histories(run)
    found = Recommender.from_pretrained(run).recommend(histories, top_k=5, exclude_seen=False)
    assert as_rows(found) == rankings(run)
    flags = ["--repo_id", "alice/second", "--base_model", "alice/base", "--output_dir", str(tmp_path / "out")]
    assert cli.main(["publish", "adapter", "--run_dir", str(run), *flags, "--debug"]) == 0
    folder = tmp_path / "out" / "models" / "alice" / "second"
    settings = json.loads((folder / "training.json").read_text())["settings"]
    assert settings["init_adapter"].startswith("sha256:")
    assert f"| trained on top of the adapter | {settings['init_adapter']} |" in (folder / "README.md").read_text()
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 16
