"""The settings of a training as TRL's configuration: batch sizes, intervals, precision, trainer_args."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.processes import PRECISION
from bigrec_hf.settings import SftSettings
from bigrec_hf.sft.config import batch_sizes, check_launcher, trainer_config


def config(settings: SftSettings | None = None, **options):
    given = {"n_train": 1024, "has_validation": True, "dtype": torch.float32, **options}
    return trainer_config("unused", settings or SftSettings(), **given)


def test_batch_sizes_count_examples():
    assert batch_sizes(SftSettings(), 1, 1) == (8, 16)
    assert batch_sizes(SftSettings(), 1, 4) == (8, 4)
    with pytest.raises(BigrecError, match="choose 126"):
        batch_sizes(SftSettings(micro_batch_size=6), 1, 1)
    # packed, 5 examples in a row: a pass of 2 rows is 10 examples, 13 passes are 130
    assert batch_sizes(SftSettings(), 5, 1) == (2, 13)
    assert batch_sizes(SftSettings(), 5, 2) == (2, 6)
    assert batch_sizes(SftSettings(), 40, 1) == (1, 3)
    assert batch_sizes(SftSettings(global_batch_size=8), 40, 1) == (1, 1)


def test_reference_settings_give_eight_steps_an_epoch():
    made = config()
    assert 1024 / (made.per_device_train_batch_size * made.gradient_accumulation_steps) == 8
    assert (made.learning_rate, made.warmup_steps, made.num_train_epochs) == (1e-4, 20, 5)
    assert made.lr_scheduler_type == "linear"
    assert made.load_best_model_at_end
    assert made.metric_for_best_model == "eval_loss"


def test_evaluation_intervals_count_packed_rows_as_steps_do():
    for n_rows in (1024, 205):
        made = config(SftSettings(evals_per_epoch=4, packing=n_rows < 1024), n_rows=n_rows)
        assert (made.eval_strategy, made.eval_steps, made.save_steps) == ("steps", 2, 2)


@pytest.mark.parametrize(
    ("args", "field", "value"),
    [
        ({"learning_rate": "1e-4"}, "learning_rate", 1e-4),  # a text in YAML 1.1
        ({"max_grad_norm": 0.3}, "max_grad_norm", 0.3),
        ({"dataloader_num_workers": 1}, "dataloader_num_workers", 1),
        ({"save_total_limit": None}, "save_total_limit", None),
        ({"max_steps": "1e2"}, "max_steps", 100),
    ],
)
def test_trainer_args_win(args, field, value):
    assert getattr(config(SftSettings(trainer_args=args)), field) == value


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"max_seq_length": 3}, "'max_seq_length' is not a field of trl.SFTConfig"),
        ({"learning_rate": "abc"}, "learning_rate: 'abc' is not a number"),
        ({"logging_steps": [1]}, r"logging_steps: \[1\] is not a number"),
        ({"bf16": "no"}, "bf16: 'no' is neither true nor false"),
        (
            {"lr_scheduler_type": "steep"},
            r"refuses these settings .*correct trainer_args \['lr_scheduler_type'\]",
        ),
        ({"eval_strategy": "weekly"}, "refuses these settings"),
        ({"eval_steps": "often"}, "eval_steps: 'often' is not a number"),
        ({"max_steps": 1.5}, "max_steps: 1.5 is not a whole number"),
    ],
)
def test_wrong_trainer_args_are_one_line(args, words):
    with pytest.raises(BigrecError, match=words):
        config(SftSettings(trainer_args=args))


def test_a_wrong_trainer_argument_on_the_command_line(tmp_path, tiny_model_dir, tiny_prepared, capsys):
    flags = ["--dataset", tiny_prepared, "--base_model", tiny_model_dir, "--run_dir", str(tmp_path), "--sample", "8"]
    flags += ["--global_batch_size", "8"]
    assert cli.main(["sft", *flags, "--trainer_args", "{learning_rate: abc}"]) == 2
    assert "error: trainer_args learning_rate: 'abc' is not a number" in capsys.readouterr().err


def test_weights_in_float32_are_trained_in_float32_whatever_accelerate_says(monkeypatch):
    monkeypatch.setenv(PRECISION, "bf16")
    assert config().mixed_precision == "no"
    assert config(dtype=torch.bfloat16).mixed_precision == "bf16"
    assert os.environ[PRECISION] == "bf16"


def test_several_gpus_and_one_process_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    with pytest.raises(BigrecError, match=r"one process sees 2 GPUs: .*accelerate launch.*CUDA_VISIBLE_DEVICES"):
        check_launcher(SimpleNamespace(device=gpu, num_processes=1))
    check_launcher(SimpleNamespace(device=gpu, num_processes=2))
    check_launcher(SimpleNamespace(device=cpu, num_processes=1))


def test_fsdp_without_whole_state_dicts_is_refused(monkeypatch):
    cpu = SimpleNamespace(device=torch.device("cpu"), num_processes=2)
    monkeypatch.setenv("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")
    check_launcher(cpu)  # not launched with FSDP
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(BigrecError, match="fsdp_state_dict_type is SHARDED_STATE_DICT"):
        check_launcher(cpu)
    monkeypatch.setenv("FSDP_STATE_DICT_TYPE", "FULL_STATE_DICT")
    check_launcher(cpu)
