"""Training by the clock, and what is shown meanwhile. The clock is a counter: a second per reading."""

from __future__ import annotations

import itertools
import json
import sqlite3
from types import SimpleNamespace

import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from bigrec_hf.sft import callbacks
from bigrec_hf.sft.callbacks import OneLine, TimeLimit
from bigrec_hf.sft.dense_trainer import DenseTrainer
from tests.helpers.processes import flags, run_python
from tests.helpers.tiny import tiny_tokenizer
from tests.sft.test_dense_training import train


@pytest.fixture
def clock(monkeypatch):
    seconds = itertools.count()
    monkeypatch.setattr(callbacks, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))


def test_the_learning_rate_falls_to_zero_at_the_limit(tiny_model_dir, tiny_prepared, tmp_path, clock):
    record = train(tmp_path, tiny_model_dir, tiny_prepared, epochs=50, max_minutes=0.5, evals_per_epoch=1)
    logs = [log for log in record["history"] if "learning_rate" in log]
    rates = [log["learning_rate"] for log in logs]
    assert rates == sorted(rates, reverse=True)
    assert 0 <= rates[-1] < 0.15 * rates[0] <= 0.15 * 1e-2
    assert record["optimizer_steps"] == len(rates) <= 30  # of 50 epochs
    assert record["epochs_done"] < 50
    last = [log for log in record["history"] if "eval_loss" in log][-1]
    assert last["step"] == record["optimizer_steps"]  # the end is evaluated, and may be the best
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_the_clock_goes_on_after_a_kill(tiny_model_dir, tiny_prepared, tmp_path, clock, monkeypatch):
    step = DenseTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step == 8:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    changes = {
        "epochs": 50,
        "max_minutes": 0.5,
        "evals_per_epoch": 1,
        "trainer_args": {"save_steps": 2, "eval_steps": 2},
    }
    whole = train(tmp_path / "whole", tiny_model_dir, tiny_prepared, **changes)
    monkeypatch.setattr(DenseTrainer, "training_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", tiny_model_dir, tiny_prepared, **changes)
    monkeypatch.setattr(DenseTrainer, "training_step", step)
    cut = train(tmp_path / "cut", tiny_model_dir, tiny_prepared, **changes)
    assert abs(cut["optimizer_steps"] - whole["optimizer_steps"]) <= 4  # what came after the last checkpoint is lost


def test_warm_up_comes_first():
    group = {"lr": 0.0, "initial_lr": 1.0}
    limit = TimeLimit(1000)
    args = SimpleNamespace(get_warmup_steps=lambda steps: 4, warmup_steps=4, lr_scheduler_type="linear")
    for step, expected in ((0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (7, 0.5), (9, 1 / 6)):
        optimizer, schedule = SimpleNamespace(param_groups=[group]), SimpleNamespace(_last_lr=[])
        state = SimpleNamespace(global_step=step, max_steps=10)
        limit.on_step_begin(args, state, None, optimizer=optimizer, lr_scheduler=schedule)
        assert group["lr"] == pytest.approx(expected, abs=1e-3)
        assert schedule._last_lr == [group["lr"]]


@pytest.mark.parametrize(
    ("spent", "step", "expected"), [(0.05, 0, 0.5), (0.0, 49, 0.5), (0.2, 10, 0.8), (0.0, 0, 0.01)]
)
def test_a_warm_up_of_a_tenth_is_a_tenth_of_the_time_or_of_the_steps(spent, step, expected, monkeypatch):
    group, limit = {"lr": 0.0, "initial_lr": 1.0}, TimeLimit(1)
    monkeypatch.setattr(limit, "spent", lambda: spent)
    args = SimpleNamespace(get_warmup_steps=lambda steps: 100, warmup_steps=0.1, lr_scheduler_type="linear")
    optimizer, scheduler = SimpleNamespace(param_groups=[group]), SimpleNamespace(_last_lr=[])
    limit.on_step_begin(
        args, SimpleNamespace(global_step=step, max_steps=1000), None, optimizer=optimizer, lr_scheduler=scheduler
    )
    assert group["lr"] == pytest.approx(expected)


@pytest.mark.parametrize(("schedule", "expected"), [("linear", 0.25), ("cosine", 0.1464466)])
def test_the_rate_falls_along_the_schedule_of_the_arguments(schedule, expected, monkeypatch):
    """A quarter of the time is left: 1/4, or (1 + cos(3/4 pi)) / 2."""
    group, limit = {"lr": 0.0, "initial_lr": 1.0}, TimeLimit(1)
    monkeypatch.setattr(limit, "spent", lambda: 0.75)
    args = SimpleNamespace(get_warmup_steps=lambda steps: 0, warmup_steps=0, lr_scheduler_type=schedule)
    optimizer, scheduler = SimpleNamespace(param_groups=[group]), SimpleNamespace(_last_lr=[])
    state = SimpleNamespace(global_step=1, max_steps=10)
    limit.on_step_begin(args, state, None, optimizer=optimizer, lr_scheduler=scheduler)
    assert group["lr"] == pytest.approx(expected)


def test_one_line_shows_loss_and_pace_and_keeps_evaluations(capsys, clock):
    line = OneLine(n_targets=300, n_tokens=100_000)
    args = SimpleNamespace(load_best_model_at_end=True)
    state = SimpleNamespace(is_world_process_zero=True, max_steps=100, global_step=0, best_metric=None)
    line.on_train_begin(None, state, None)
    state.global_step = 10
    line.on_log(None, state, None, logs={"loss": 6.9, "learning_rate": 5e-4})
    assert line.training_bar.postfix == "loss 6.900, lr 0.0005, 30.0 targets/s, 10,000.0 tokens/s"  # 10 steps in 1 s
    line.on_log(args, state, None, logs={"eval_loss": 6.5})
    state.best_metric = 6.5
    line.on_log(args, state, None, logs={"eval_loss": 6.7})
    line.on_train_end(None, state, None)
    out = capsys.readouterr().out
    assert "step 10 of 100: validation loss 6.5000 (best)" in out
    assert "step 10 of 100: validation loss 6.7000\n" in out


@pytest.mark.slow
def test_a_tracker_is_named_in_trainer_args(tiny_model_dir, tiny_prepared, tmp_path):
    """trackio writes to a local database, so the test needs no network."""
    given = flags(
        dataset=tiny_prepared,
        run_dir=tmp_path,
        base_model=tiny_model_dir,
        train_prompt="chat-basic",
        sample=16,
        epochs=2,
        global_batch_size=8,
        trainer_args="{report_to: trackio, project: books, run_name: one}",
    )
    result = run_python("-m", "bigrec_hf", "sft", *given, TRACKIO_DIR=str(tmp_path / "trackio"))
    assert result.returncode == 0, result.stderr
    record = json.loads((tmp_path / "adapter" / "training.json").read_text())
    with sqlite3.connect(tmp_path / "trackio" / "books.db") as database:
        logged = [json.loads(row[0]) for row in database.execute("SELECT metrics FROM metrics ORDER BY step")]
    losses = [values["train/loss"] for values in logged if "train/loss" in values]
    assert len(losses) == record["optimizer_steps"]
    assert [values["eval/loss"] for values in logged if "eval/loss" in values]


def test_a_training_prints_no_dictionaries(tiny_model_dir, tiny_prepared, tmp_path, capsys):
    train(tmp_path, tiny_model_dir, tiny_prepared)
    captured = capsys.readouterr()
    assert "{'" not in captured.out + captured.err
    assert "validation loss" in captured.out
    assert "targets/s" in captured.err and "tokens/s" in captured.err


def test_a_log_holds_no_bar_of_a_short_training(tiny_model_dir, tiny_prepared, tmp_path):
    """Where stderr is a file; nor a warning of a library about what it has set right itself."""
    tokenizer = tiny_tokenizer()
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, **ids)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    given = flags(
        dataset=tiny_prepared,
        run_dir=tmp_path,
        base_model=tmp_path / "gpt2",
        lora_target_modules="c_attn",
        train_prompt="chat-basic",
        sample=16,
        epochs=1,
    )
    result = run_python("-m", "bigrec_hf", "sft", *given)
    assert (result.returncode, result.stderr) == (0, "")
    assert "validation loss" in result.stdout
