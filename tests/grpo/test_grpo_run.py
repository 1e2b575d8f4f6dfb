"""A run with rewards: the adapters before and after are both ranked and scored."""

from __future__ import annotations

import json

import pytest

from bigrec_hf import cli
from tests.helpers.tiny_run import DENSE, make_run

GRPO = {"group_size": 4, "grpo_sample": 8, "grpo_epochs": 1, "grpo_learning_rate": 1e-2, "grpo_batch_size": 4}
EVALUATED = {"grpo_eval_k": 5, "grpo_validation_sample": 0, "group_width": 0}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, raw_movies, tiny_model_dir):
    changes = DENSE | {"sft": DENSE["sft"] | {"warmup_steps": 0.1}, "grpo": GRPO | EVALUATED}
    pipeline = {"baselines": [], "with_grpo": True}
    return make_run(tmp_path_factory.mktemp("grpo"), raw_movies, tiny_model_dir, **changes, pipeline=pipeline)


def test_both_adapters_are_scored_and_shown(run_dir):
    used = {name: json.loads((run_dir / name / "generate.json").read_text()) for name in ("finetuned", "grpo")}
    assert used["grpo"]["adapter"] == str(run_dir / "grpo_adapter")
    assert used["grpo"]["adapter_sha256"] != used["finetuned"]["adapter_sha256"]
    assert (run_dir / "grpo" / "results.json").is_file()
    assert "| fine-tuned LM, rewards |" in (run_dir / "report.md").read_text()
    assert not (run_dir / "grpo_adapter" / "checkpoints").exists()


def test_validation_during_training_is_that_of_the_stages_after_it(run_dir, tmp_path):
    """The last evaluation's NDCG@5 and HR@5 are those of the finished adapter by `generate`, `ground` and `score`."""
    recipe = ["--config", str(run_dir / "recipe.yaml"), "--run_dir", str(run_dir), "--debug"]
    use = ["--split", "validation", "--eval_sample", "0", "--method", "validated"]
    adapter = ["--adapter", str(run_dir / "grpo_adapter")]
    for stage in (["generate", *use, *adapter], ["ground", *use], ["score", *use[4:]]):
        assert cli.main([stage[0], *recipe, *stage[1:]]) == 0
    scores = json.loads((run_dir / "validated" / "results.json").read_text())
    log = json.loads((run_dir / "grpo_adapter" / "training.json").read_text())["history"]
    last = [entry for entry in log if "eval_loss" in entry][-1]
    for name in ("ndcg@5", "hr@5"):
        assert last[f"eval_{name}"] == pytest.approx(scores[name], abs=1e-6) and last[f"eval_{name}"] > 0


def test_a_second_run_keeps_everything_and_other_rewards_are_another_run(run_dir, capsys):
    recipe = ["--config", str(run_dir / "recipe.yaml"), "--run_dir", str(run_dir)]
    assert cli.main(["run", *recipe]) == 0
    out = capsys.readouterr().out
    assert "== grpo: done and unchanged" in out and "== generate:grpo: done and unchanged" in out
    assert cli.main(["run", *recipe, "--rewards", "{hit: 2}"]) == 2
    assert "grpo.rewards" in capsys.readouterr().err


def test_the_adapter_can_be_used_by_hand(run_dir, tmp_path):
    recipe = ["--config", str(run_dir / "recipe.yaml"), "--run_dir", str(run_dir), "--debug"]
    new = ["--start_adapter", str(run_dir / "grpo_adapter"), "--output_dir", str(tmp_path / "more")]
    assert cli.main(["grpo", *recipe, *new, "--grpo_method", "sdpo", "--grpo_sample", "4"]) == 0
    use = ["--method", "more", "--adapter", str(tmp_path / "more")]
    assert cli.main(["generate", *recipe, *use]) == 0


def test_rewards_need_exact_decoding(run_dir, capsys):
    flags = ["--decoding", "beam", "--ranking", "distance"]
    assert cli.main(["run", "--config", str(run_dir / "recipe.yaml"), *flags]) == 2
    assert "with_grpo trains the probabilities of all titles" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--grpo_batch_size", "5", "--grpo_micro_batch_size", "2"], "grpo_batch_size 5 is not a multiple of grpo_mic"),
        (["--grpo_trainer_args", "{max_grad_norms: 1}"], "grpo_trainer_args 'max_grad_norms' is not a field of"),
    ],
)
def test_what_the_trainer_of_rewards_would_refuse_is_refused_before_the_first_training(
    flags, words, run_dir, tmp_path, capsys
):
    command = ["run", "--config", str(run_dir / "recipe.yaml"), "--run_dir", str(tmp_path / "new")]
    assert cli.main([*command, *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
