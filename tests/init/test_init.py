"""`bigrec-hf init`: a recipe from flags or answers, for the machine that is found."""

from __future__ import annotations

import builtins
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import yaml

from bigrec_hf import cli
from bigrec_hf.common import environment
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.init import measure, stage
from bigrec_hf.init.choices import MOST_EASE_ITEMS, fit_to, memory_formula
from bigrec_hf.init.machine import Machine, local_folder, n_parameters
from bigrec_hf.init.measure import Speed, distinguishing, formula_speed
from bigrec_hf.init.plan import in_words, make_plan, usual_minutes
from bigrec_hf.init.questions import noun_and_verb, positive
from bigrec_hf.settings import RUN_SECTIONS
from bigrec_hf.settings.recipes import build_settings, read_recipe

TITLES = ["Emma", "Persuasion", "Dracula", "Walden", "Ulysses", "Middlemarch", "Utopia", "Candide", "Kim", "Hamlet"]
OLD_CPU = Machine(cpus=4, memory=8.0, dtype="float32")
NEW_CPU = Machine(cpus=2, memory=24.0, dtype="bfloat16")
GPU = Machine(cpus=16, memory=128.0, dtype="bfloat16", gpu="NVIDIA A10G", gpu_memory=22.0)
FACTS = {"items": 500, "examples": {"train": 5000, "validation": 800, "test": 900}}


def write_books(folder: Path) -> None:
    """books.csv: twelve invented readers of six books each, with ISO dates."""
    rows = [
        f"reader {user},978{(3 * user + step * step) % 10},{TITLES[(3 * user + step * step) % 10]},"
        f"2024-{1 + step:02}-{1 + user:02}"
        for user in range(12)
        for step in range(6)
    ]
    (folder / "books.csv").write_text("\n".join(["user,isbn,title,date", *rows]) + "\n")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder with books.csv, in which the command runs; no cache of models."""
    write_books(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stage, "find_machine", lambda: NEW_CPU)
    return tmp_path


def at_terminal(monkeypatch, answers: list[str]) -> list[str]:
    """Give these answers, one per question; returns the list of the questions, filled as they are asked."""
    asked: list[str] = []

    def answer(question: str) -> str:
        asked.append(question)
        if len(asked) > len(answers):
            raise EOFError
        return answers[len(asked) - 1]

    monkeypatch.setattr(builtins, "input", answer)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    return asked


def test_flags_write_a_recipe_and_the_next_two_commands(here, monkeypatch, capsys):
    asked = at_terminal(monkeypatch, [])
    words = ["--ratings_file", "books.csv", "--noun", "books", "--verb", "read", "--max_minutes", "3"]
    assert cli.main(["init", *words, "--base_model", "org/Tiny-10M", "--debug"]) == 0
    assert not asked  # with flags nothing is asked, even at a terminal
    recipe = yaml.safe_load(Path("books.yaml").read_text())
    assert recipe["extends"] == "own_data/smollm2_dense"
    assert recipe["prepare"] == {"source": "tabular", "ratings_file": "books.csv", "noun": "books", "verb": "read"}
    assert recipe["model"] == {"base_model": "org/Tiny-10M", "dtype": "bfloat16"}
    assert recipe["sft"]["max_minutes"] == 3
    out = capsys.readouterr().out
    assert out.endswith(
        "bigrec-hf run --config books.yaml\nbigrec-hf recommend --run_dir runs/books --users all --output recs.csv\n"
    )
    assert "columns: user = user, item = isbn, title = title, time = date (2024 to 2024)" in out
    assert "by a formula" in out and "10 million parameters" in out
    assert f"hardware: {NEW_CPU}" in Path("books.yaml").read_text()


def test_run_reads_the_recipe(here):
    assert cli.main(["init", "--ratings_file", "books.csv", "--measure", "false", "--base_model", "a/b-1M"]) == 0
    settings = build_settings("books.yaml", {})
    assert settings["run"].run_dir == "runs/books"
    assert settings["data"].dataset == ["runs/books/data"]
    assert settings["sft"].objective == "dense" and settings["generate"].decoding == "exact"
    assert all(name in settings for name in RUN_SECTIONS)
    for word in shlex.split("run --config books.yaml --help"), shlex.split("recommend --help"):
        assert cli.main(word) == 0


def test_five_questions(here, tiny_model_dir, monkeypatch, capsys):
    monkeypatch.setattr(measure, "TRAIN_SECONDS", 0.5)
    answers = ["books.csv", "old books read", tiny_model_dir, "", "mine.yaml"]
    asked = at_terminal(monkeypatch, answers)
    assert cli.main(["init", "--measure", "false"]) == 2  # a flag was given, so that nothing is asked
    assert not asked and "give it with --ratings_file" in capsys.readouterr().err
    assert cli.main(["init", "--debug"]) == 0
    assert len(asked) == 5
    assert asked[1].endswith("[items chosen] ") and "One pass over the data takes" in asked[3]
    recipe = yaml.safe_load(Path("mine.yaml").read_text())
    assert (recipe["prepare"]["noun"], recipe["prepare"]["verb"]) == ("old books", "read")
    assert recipe["model"]["base_model"] == tiny_model_dir
    assert recipe["sft"]["max_minutes"] == 1  # one pass takes less
    out = capsys.readouterr().out
    assert re.search(r"measured here: \d+ training steps in \d+ s, \d+ histories scored", out)
    assert "bigrec-hf recommend --run_dir runs/mine --users all" in out


def test_without_a_terminal_nothing_is_asked(here, monkeypatch, capsys):
    asked = at_terminal(monkeypatch, ["books.csv"])
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False))
    assert cli.main(["init"]) == 2
    assert not asked and "no table of ratings: give it with --ratings_file" in capsys.readouterr().err


def test_bad_answers_are_asked_for_again(here, monkeypatch, capsys):
    Path("taken.yaml").write_text("{}\n")
    answers = ["nowhere.csv", "", "books.csv", "books", "books read", "./none", "a/b-1M", "soon", "-1", "2,5"]
    asked = at_terminal(monkeypatch, [*answers, "taken.yaml", "mine", "mine.yaml"])
    assert cli.main(["init"]) == 0
    assert len(asked) == 13
    out = capsys.readouterr().out
    for reason in (
        "'nowhere.csv' is not a file",
        "'books' is one word",
        "'./none' does not exist",
        "'soon' is not a number of minutes",
        "taken.yaml exists",
        "'mine' does not end in .yaml",
    ):
        assert reason in out
    assert yaml.safe_load(Path("mine.yaml").read_text())["sft"]["max_minutes"] == 2.5
    assert Path("taken.yaml").read_text() == "{}\n"


@pytest.mark.parametrize(
    ("answers", "message"),
    [(["a", "b", "c"], "'c' is not a file"), (["books.csv", "books read"], "the input ended at the question 'Base")],
)
def test_three_bad_answers_or_none_end_it(here, answers, message, monkeypatch, capsys):
    at_terminal(monkeypatch, answers)
    assert cli.main(["init"]) == 2
    assert message in capsys.readouterr().err
    assert not list(here.glob("*.yaml"))


def test_a_recipe_is_only_replaced_on_request(here, capsys):
    words = ["init", "--ratings_file", "books.csv", "--measure", "false", "--base_model", "a/b-1M"]
    Path("books.yaml").write_text("sft: {sample: 7}\n")
    assert cli.main(words) == 2
    assert "books.yaml exists: name another recipe with --output, or replace it" in capsys.readouterr().err
    assert Path("books.yaml").read_text() == "sft: {sample: 7}\n"
    assert cli.main([*words, "--overwrite"]) == 0
    assert "smollm2_dense" in Path("books.yaml").read_text()


def test_a_column_is_named_with_the_flag_of_prepare(here, capsys):
    text = Path("books.csv").read_text().replace("user,isbn", "who reads,isbn", 1)
    Path("books.csv").write_text(text)
    words = ["init", "--ratings_file", "books.csv", "--measure", "false", "--base_model", "a/b-1M"]
    assert cli.main(words) == 2
    assert "no column for the user" in capsys.readouterr().err
    assert not Path("books.yaml").exists()
    assert cli.main([*words, "--user_column", "who reads"]) == 0
    assert read_recipe("books.yaml")["prepare"]["user_column"] == "who reads"


# --- the machine ----------------------------------------------------------------------------------------------------


def test_a_cpu_without_bfloat16_trains_in_float32(here, monkeypatch):
    monkeypatch.setattr(stage, "find_machine", lambda: OLD_CPU)
    assert cli.main(["init", "--ratings_file", "books.csv", "--base_model", "a/b-1M", "--debug"]) == 0
    recipe = read_recipe("books.yaml")
    assert recipe["model"]["dtype"] == "float32"
    assert (recipe["sft"]["global_batch_size"], recipe["prompt"]["max_length"]) == (2, 128)  # as the parent has them
    assert "4 CPU cores without bfloat16 arithmetic, 8 GiB" in Path("books.yaml").read_text()


def test_a_gpu_gets_larger_batches():
    sections = fit_to(GPU, "a/b-135M", 135_000_000, FACTS).sections
    assert sections["model"] == {"base_model": "a/b-135M", "dtype": "bfloat16"}
    assert sections["sft"] == {"global_batch_size": 8, "micro_batch_size": 8}
    assert str(GPU) == "NVIDIA A10G, 22 GiB (bfloat16); 16 CPU cores, 128 GiB"


def test_a_large_model_takes_less_of_everything():
    """7B: 1.1 * 7e9 * 2 bytes + 2 GiB = 16.3 GiB in 16 bits, 6.3 in 4."""
    assert memory_formula(7e9, "bfloat16") == pytest.approx(16.34, abs=0.01)
    assert memory_formula(7e9, "4bit") == pytest.approx(6.30, abs=0.01)
    whole = fit_to(GPU, "a/b-7B", 7_000_000_000, FACTS)
    assert "quantization" not in whole.sections["model"] and not whole.warnings
    assert whole.sections["sft"]["activation_checkpointing"] and whole.sections["sft"]["learning_rate"] == 2e-4
    small = Machine(16, 64.0, "float16", "Tesla T4", 15.0)
    fit = fit_to(small, "a/b-7B", 7_000_000_000, FACTS)
    assert fit.sections["model"]["quantization"] == "4bit" and not fit.warnings
    (warning,) = fit_to(small, "a/b-70B", 70_000_000_000, FACTS).warnings
    assert "takes about 45 GiB in 4bit, more than the 15 GiB here: choose a smaller one" in warning
    (warning,) = fit_to(OLD_CPU, "a/b-3B", 3_000_000_000, FACTS).warnings
    assert "in float32, more than the 8 GiB here" in warning


def test_a_catalog_that_is_too_large_for_ease_is_pooled_with_itemknn():
    facts = FACTS | {"items": MOST_EASE_ITEMS + 1}
    sections = fit_to(NEW_CPU, "a/b", None, facts).sections
    assert sections["pool"] == {"pool_models": ["itemknn"]} and sections["linear"] == {"linear_models": ["itemknn"]}
    assert "pool" not in fit_to(NEW_CPU, "a/b", None, FACTS).sections
    assert fit_to(NEW_CPU, "a/b", None, FACTS | {"items": 4}).sections["score"] == {"ks": [1, 3]}


def test_memory_is_that_of_the_control_group_if_less(tmp_path, monkeypatch):
    whole = environment.memory_gib()
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(environment, "MEMORY_LIMITS", (str(limit),))
    limit.write_text(f"{2**30}\n")
    assert environment.memory_gib() == 1.0 < whole
    limit.write_text("max\n")
    assert environment.memory_gib() >= whole
    assert stage.find_machine().cpus == environment.cpu_count() >= 1


# --- estimates ------------------------------------------------------------------------------------------------------


def test_a_plan_by_hand():
    """A pass of 10 minutes; 0.5 s per example: 1,700 validation and test examples take 14 min."""
    speed = Speed(600.0, 0.5, 2.0, "measured here")
    assert usual_minutes(speed) == 10
    plan = make_plan(speed, 20, FACTS)
    assert (plan.epochs, plan.eval_sample) == (2.2, 1000)
    assert plan.lines[0].startswith(
        "Time: training 20 min (one pass over the data: 10 min), scoring 1,700 histories 14"
    )
    assert make_plan(speed, 1000, FACTS).epochs == 10  # not forever
    assert "training 1.7 h" in make_plan(speed, 1000, FACTS).lines[0]
    assert make_plan(speed, 0.001, FACTS).epochs == 0.01
    slow = Speed(100_000.0, 5.0, 2.0, "measured here")
    assert usual_minutes(slow) == 60
    assert make_plan(slow, 60, FACTS).eval_sample == 200  # 1,000 examples in 83 min, 400 in 33
    assert usual_minutes(None) == 20 and "not estimated" in make_plan(None, 20, FACTS).lines[0]


def test_the_formula_by_hand(monkeypatch):
    """Titles of 1 + 9/4, 1 + 9/4 and 1 + 1/4 tokens; ten, ten and twenty targets: 90 tokens, 2.25 each."""
    monkeypatch.setattr(measure, "matrix_speed", lambda dtype: 1e6 / measure.EFFICIENCY)
    titles = ["Dracula 1", "Dracula 2", "Emma"]
    assert distinguishing(titles).tolist() == [9, 9, 1]
    assert distinguishing(["A", "A", "AB", ""]).tolist() == [1, 1, 2, 0]
    counts = np.array([10, 10, 20])
    speed = formula_speed(1000, "float32", titles, counts, 0, dtype="float32", exact_width=64)
    assert speed.seconds_per_pass == pytest.approx(4 * 1000 * 90 / 1e6)
    assert speed.seconds_per_example == pytest.approx(2 * 1000 * (22.5 + 0.9) / 1e6)
    assert speed.memory == memory_formula(1000, "float32")


def test_a_products_speed_is_positive():
    assert measure.matrix_speed("float32", seconds=0.01) > 1e6


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135_000_000),
        ("Qwen/Qwen2.5-1.5B-Instruct@main", 1_500_000_000),
        ("huggyllama/llama-7b", 7_000_000_000),
        ("gpt2", None),
    ],
)
def test_the_size_is_told_by_the_name(name, expected):
    assert n_parameters(name) == expected
    assert local_folder(name) is None


def test_the_size_of_a_model_here_is_counted(tiny_model_dir):
    from tests.helpers.tiny import tiny_model

    assert n_parameters(tiny_model_dir) == sum(p.numel() for p in tiny_model().parameters())
    assert local_folder(tiny_model_dir) == Path(tiny_model_dir)


@pytest.mark.parametrize(("minutes", "words"), [(0.001, "1 s"), (0.5, "30 s"), (12.2, "12 min"), (210, "3.5 h")])
def test_durations_in_words(minutes, words):
    assert in_words(minutes) == words


def test_answers():
    assert noun_and_verb("video games played") == ("video games", "played")
    assert positive("1.5") == positive("1,5") == 1.5
    for bad in ("inf", "nan", "0", "x"):
        with pytest.raises(BigrecError, match="not a number of minutes"):
            positive(bad)


# --- end to end -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_from_a_table_to_recommendations(tiny_model_dir, tmp_path, monkeypatch, capsys):
    """init, then the two commands that it prints, as printed."""
    write_books(tmp_path)
    monkeypatch.chdir(tmp_path)
    words = ["--ratings_file", "books.csv", "--noun", "books", "--verb", "read", "--max_minutes", "0.2"]
    assert cli.main(["init", *words, "--base_model", tiny_model_dir, "--debug"]) == 0
    printed = capsys.readouterr().out.splitlines()[-2:]
    recipe = read_recipe("books.yaml")
    assert recipe["sft"]["epochs"] > 0
    for line in printed:
        assert cli.main([*shlex.split(line)[1:], "--debug"]) == 0
    users = {line.split(",")[0] for line in Path("recs.csv").read_text().splitlines()[1:]}
    assert users == {f"reader {number}" for number in range(12)}
