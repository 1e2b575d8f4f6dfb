"""Shipped recipes with rewards, run from raw files to report with a tiny model of the same family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from bigrec_hf import cli
from bigrec_hf.settings.recipes import build_settings
from tests.helpers.tiny import save_tiny_model

ROOT = Path(__file__).resolve().parents[2]
RECIPES = {path.stem: path for path in (ROOT / "recipes" / "study").glob("*grpo*.yaml")}
FAMILIES = {
    "movielens_grpo": "llama",
    "movielens_grpo_qwen2.5-0.5b": "qwen2",
    "movielens_grpo_qwen2.5-1.5b": "qwen2",
}
SMALL = {  # what a catalog of 20 titles and a tiny model need
    "data": {"eval_sample": 10},
    "sft": {"validation_sample": 8, "learning_rate": 1e-2},
    "grpo": {"grpo_sample": 16, "grpo_validation_sample": 8, "grpo_learning_rate": 1e-3},
    "score": {"ks": [1, 10], "bootstrap": 20},
}


def test_every_recipe_has_a_tiny_twin():
    assert RECIPES.keys() == FAMILIES.keys()


@pytest.mark.slow
def test_tiny_twin_of_written_titles_runs(raw_movies, tmp_path):
    recipe = ROOT / "recipes" / "study" / "movielens_written_qwen2.5-0.5b.yaml"
    model = save_tiny_model(tmp_path / "model", "qwen2", spread=0.05)
    own = {
        "extends": str(recipe),
        "run": {"run_dir": str(tmp_path / "run")},
        "data": {"eval_sample": 6},
        "model": {"base_model": model, "dtype": "float32"},
        "prepare": {"raw_dir": str(raw_movies), "prepared_dir": str(tmp_path / "data"), "download": None},
        "sft": {"sample": 16, "epochs": 1, "validation_sample": 4},
        "generate": {"num_beams": 2, "max_new_tokens": 8},
        "grpo": {"grpo_sample": 16},
        "score": {"ks": [1, 10], "bootstrap": 20},
    }
    (tmp_path / "twin.yaml").write_text(yaml.safe_dump(own))
    assert cli.main(["run", "--config", str(tmp_path / "twin.yaml"), "--debug"]) == 0
    used = json.loads((tmp_path / "run" / "grpo_adapter" / "training.json").read_text())
    assert used["optimizer_steps"] == 1 and used["settings"]["grpo_rollout"] == "text"
    for key in ("group_size", "rewards", "grpo_batch_size", "grpo_micro_batch_size", "train_prompt"):
        section = "prompt" if key == "train_prompt" else "grpo"
        assert used["settings"][key] == getattr(build_settings(recipe, {})[section], key), key
    assert (tmp_path / "run" / "reward_index" / "fingerprint.json").is_file()
    for method in ("finetuned", "grpo"):
        assert json.loads((tmp_path / "run" / method / "results.json").read_text())["n_examples"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_tiny_twin_runs(name, raw_movies, tmp_path):
    model = save_tiny_model(tmp_path / "model", FAMILIES[name], spread=0.05)
    own = SMALL | {
        "extends": str(RECIPES[name]),
        "run": {"run_dir": str(tmp_path / "run")},
        "model": {"base_model": model, "dtype": "float32"},
        "prepare": {"raw_dir": str(raw_movies)},
    }
    (tmp_path / "twin.yaml").write_text(yaml.safe_dump(own))
    assert cli.main(["run", "--config", str(tmp_path / "twin.yaml"), "--debug"]) == 0
    shipped = build_settings(RECIPES[name], {})
    used = json.loads((tmp_path / "run" / "grpo_adapter" / "training.json").read_text())
    assert used["optimizer_steps"] == 2 and used["n_train"] == 16
    changed = {"grpo_sample", "grpo_validation_sample", "grpo_learning_rate", "grpo_adapter_dir"}
    for key, value in vars(shipped["grpo"]).items():
        if key in used["settings"] and key not in changed:
            assert used["settings"][key] == value, key
    sft = json.loads((tmp_path / "run" / "adapter" / "training.json").read_text())["settings"]
    for key in ("objective", "loss", "lora_r", "lora_target_modules", "global_batch_size", "micro_batch_size"):
        assert sft[key] == getattr(shipped["sft"], key), key
    evaluations = [entry for entry in used["history"] if "eval_loss" in entry]
    assert evaluations and all(("eval_ndcg@10" in entry) == (FAMILIES[name] == "qwen2") for entry in evaluations)
    for method in ("finetuned", "grpo"):
        assert json.loads((tmp_path / "run" / method / "results.json").read_text())["n_examples"] == 10
