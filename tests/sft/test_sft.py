"""Training: tokens and labels, every precision, and that a kill or a second process changes nothing."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import SFTTrainer

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import write_json
from bigrec_hf.common.locks import locked_folder
from bigrec_hf.data.examples import EXAMPLE_FEATURES, load_examples, load_json_examples
from bigrec_hf.data.prompts import ALPACA_PREAMBLE
from bigrec_hf.models.loading import load_base, load_generator, lora_config
from bigrec_hf.settings import DataSettings, ModelSettings, PromptSettings, RunSettings, SftSettings
from bigrec_hf.sft import adapter_folder, pairs
from bigrec_hf.sft import stage as sft
from bigrec_hf.sft import trainer as training
from bigrec_hf.sft.config import trainer_config
from bigrec_hf.sft.tokenize import count_tokens, tokenize_examples
from bigrec_hf.sft.trainer import CompletionLossTrainer
from tests.helpers.processes import flags, run_pair, run_python
from tests.helpers.tiny import save_tiny_model, tiny_tokenizer, write_tiny_json

LIMITS = {"max_history": 10, "max_length": 1024, "completion_only": True}
QUICK = SftSettings(
    sample=16,
    validation_sample=8,
    epochs=2,
    learning_rate=1e-2,
    warmup_steps=0,
    global_batch_size=8,
    micro_batch_size=4,
    lora_dropout=0.0,
)


def one_example(titles: list[str], target: str) -> Dataset:
    record = {
        "example_id": ["u:3"],
        "instruction": ["Recommend."],
        "input_prefix": ["Seen:"],
        "history": [list(range(len(titles)))],
        "history_titles": [titles],
        "target": [7],
        "target_title": [target],
    }
    return Dataset.from_dict(record, features=EXAMPLE_FEATURES)


def train(folder: Path, tiny_model_dir: str, tiny_prepared: str, quantization: str = "none", **changes) -> dict:
    run = RunSettings(run_dir=str(folder), seed=changes.pop("seed", 0))
    settings = replace(QUICK, **{"adapter_dir": str(folder / "adapter"), **changes})
    model = ModelSettings(base_model=tiny_model_dir, dtype="float32", quantization=quantization)
    return sft.main(run, DataSettings(dataset=[tiny_prepared]), model, PromptSettings(), settings)


def adapter_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


class Stopped(BaseException):
    """A kill: no handler of the code under test may catch it."""


ADAPTER_NAMES = {"adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}


# --- tokens and labels ----------------------------------------------------------------------------------------------


def test_labels_cover_the_title_and_eos_only():
    tokenizer = tiny_tokenizer()
    tokens = tokenize_examples(
        one_example(["Heat (1995)", "Fargo (1996)"], "Babe (1995)"),
        "alpaca-basic",
        tokenizer,
        max_history=10,
        max_length=1024,
        completion_only=True,
    )
    ids, labels = tokens[0]["input_ids"], tokens[0]["labels"]
    assert tokens[0]["n_dropped"] == 0
    assert ids[-1] == tokenizer.eos_token_id
    answer = [label for label in labels if label != -100]
    assert tokenizer.decode(answer[:-1]) == '"Babe (1995)"'
    assert labels[-len(answer) :] == ids[-len(answer) :]
    prompt = tokenizer.decode(ids[: -len(answer)])
    assert prompt == (
        f"{ALPACA_PREAMBLE}\n\n### Instruction:\nRecommend.\n\n### Input:\n"
        'Seen:"Heat (1995)", "Fargo (1996)"\n \n\n### Response:\n'
    )


def test_whole_sequence_loss_labels_every_token():
    tokens = tokenize_examples(
        one_example(["Heat (1995)"], "Babe (1995)"),
        "chat-basic",
        tiny_tokenizer(),
        max_history=10,
        max_length=1024,
        completion_only=False,
    )
    assert tokens[0]["labels"] == tokens[0]["input_ids"]


def test_a_long_history_loses_its_oldest_titles_never_the_completion():
    titles = [f"Movie number {i} (19{i:02d})" for i in range(40)]
    tokenizer = tiny_tokenizer()
    options = {"max_history": 40, "completion_only": True}
    full = tokenize_examples(one_example(titles, "Babe (1995)"), "alpaca-basic", tokenizer, max_length=4096, **options)
    limit = len(full[0]["input_ids"]) - 60
    cut = tokenize_examples(one_example(titles, "Babe (1995)"), "alpaca-basic", tokenizer, max_length=limit, **options)
    text, dropped = tokenizer.decode(cut[0]["input_ids"]), cut[0]["n_dropped"]
    assert len(cut[0]["input_ids"]) <= limit
    assert 0 < dropped < 40
    assert text.endswith('"Babe (1995)"</s>')
    assert f'"{titles[dropped]}"' in text
    assert f'"{titles[dropped - 1]}"' not in text


def test_no_room_for_a_prompt_is_an_error():
    with pytest.raises(BigrecError, match="raise max_length"):
        tokenize_examples(
            one_example([], "Babe (1995)"),
            "alpaca-basic",
            tiny_tokenizer(),
            max_history=10,
            max_length=20,
            completion_only=True,
        )


def tokenize_split(datasets: list[str], json_files: list[str], *, folder: Path, sample=0, template="alpaca-basic"):
    return pairs.tokenize_split(
        datasets, json_files, "train", template, tiny_tokenizer(), sample=sample, seed=0, folder=folder, **LIMITS
    )


@pytest.mark.parametrize("sample", [0, 17])
def test_tokens_on_disk_are_those_in_memory(tmp_path, tiny_prepared, sample):
    dataset = str(shutil.copytree(tiny_prepared, tmp_path / "movies [1]*"))  # a name that is a glob pattern
    tokens = tokenize_split([dataset], [], sample=sample, folder=tmp_path / "tokens")
    examples = load_examples(dataset, "train", sample=sample, seed=0)
    expected = tokenize_examples(examples, "alpaca-basic", tiny_tokenizer(), **LIMITS)
    assert tokens.to_list() == expected.to_list()
    assert tokens.cache_files == [{"filename": str(tmp_path / "tokens" / "train-0-0-of-1.arrow")}]  # mapped, not read
    n_dropped = sum(expected["n_dropped"])
    assert count_tokens(tokens) == (sum(map(len, expected["input_ids"])), n_dropped)
    mapped = load_examples(dataset, "train", sample=sample, seed=0, cache_dir=tmp_path / "rows")
    assert list(mapped) == examples.to_list() and mapped.cache_files  # every column


def test_tokens_of_an_interrupted_training_are_used_again(tmp_path, tiny_prepared, monkeypatch):
    first = tokenize_split([tiny_prepared], [], folder=tmp_path).to_list()
    monkeypatch.setattr(pairs, "tokenize_examples", None)
    assert tokenize_split([tiny_prepared], [], folder=tmp_path).to_list() == first


@pytest.mark.parametrize(("n_processes", "sample"), [(2, 17), (5, 3)])
def test_each_process_tokenizes_its_share(tmp_path, tiny_prepared, monkeypatch, n_processes, sample):
    whole = tokenize_split([tiny_prepared], [], sample=sample, folder=tmp_path / "one").to_list()
    sizes = []

    def counted(rows, *rest, **more):
        sizes.append(len(rows))
        return tokenize_examples(rows, *rest, **more)

    class OthersMissing(Exception):
        pass

    def meet(rank: int) -> None:
        if rank < n_processes - 1:
            raise OthersMissing

    monkeypatch.setattr(pairs, "tokenize_examples", counted)
    for rank in range(n_processes):
        state = SimpleNamespace(num_processes=n_processes, process_index=rank, wait_for_everyone=partial(meet, rank))
        monkeypatch.setattr(pairs, "process_state", lambda state=state: state)
        with contextlib.suppress(OthersMissing):
            tokens = tokenize_split([tiny_prepared], [], sample=sample, folder=tmp_path / "many")
    assert tokens.to_list() == whole
    assert sum(sizes) == sample and max(sizes) - min(sizes) <= 1


# --- settings -------------------------------------------------------------------------------------------------------


def test_missing_data_model_and_adapter_are_one_line_errors(tmp_path, tiny_prepared):
    with pytest.raises(BigrecError, match="--dataset"):
        sft.main(RunSettings(), DataSettings(), ModelSettings(), PromptSettings(), SftSettings())
    with pytest.raises(BigrecError, match="does not exist"):
        train(tmp_path, str(tmp_path / "none"), tiny_prepared)
    base = save_tiny_model(tmp_path / "base")
    with pytest.raises(BigrecError, match="bigrec-hf sft"):
        load_generator(base, str(tmp_path), dtype="float32", quantization="none", attn_implementation=None)


# --- training -------------------------------------------------------------------------------------------------------


def loss_curve(trainer_class, tiny_model_dir: str, tiny_prepared: str, folder: Path) -> list[float]:
    tokenizer = tiny_tokenizer()
    examples = load_examples(tiny_prepared, "train", sample=16, seed=0)
    options = {"max_history": 10, "max_length": 1024, "completion_only": True}
    tokens = tokenize_examples(examples, "alpaca-basic", tokenizer, **options)
    settings = replace(QUICK, epochs=3)
    config = trainer_config(str(folder), settings, n_train=16, has_validation=True, dtype=torch.float32)
    trainer = trainer_class(
        model=load_base(tiny_model_dir, dtype="float32"),
        args=config,
        train_dataset=tokens,
        eval_dataset=tokens,
        processing_class=tokenizer,
        peft_config=lora_config(r=8, alpha=16, dropout=0.0, target_modules=["q_proj", "v_proj"]),
    )
    trainer.train()
    return [
        log.get("loss", log.get("eval_loss"))
        for log in trainer.state.log_history
        if "loss" in log or "eval_loss" in log
    ]


def test_our_cpu_loss_is_the_stock_loss(tmp_path, tiny_model_dir, tiny_prepared):
    ours = loss_curve(training.CompletionLossTrainer, tiny_model_dir, tiny_prepared, tmp_path / "ours")
    stock = loss_curve(SFTTrainer, tiny_model_dir, tiny_prepared, tmp_path / "stock")
    assert len(ours) == 6 + 3
    np.testing.assert_allclose(ours, stock, rtol=2e-5)
    assert ours[-1] < ours[0]


class Snapshots(TrainerCallback):
    """The adapter before every optimizer step."""

    def __init__(self):
        self.weights = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        self.weights.append(
            {name: value.detach().clone() for name, value in model.named_parameters() if "lora_" in name}
        )


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_step_moves_the_adapter_of_a_quantized_base(
    tmp_path, tiny_model_dir, tiny_prepared, monkeypatch, quantization
):
    snapshots = Snapshots()
    trained = training.CompletionLossTrainer.train
    monkeypatch.setattr(
        training.CompletionLossTrainer,
        "train",
        lambda self, **options: (self.add_callback(snapshots), trained(self, **options))[1],
    )
    train(tmp_path, tiny_model_dir, tiny_prepared, quantization, learning_rate=1e-4, epochs=3, evals_per_epoch=0)
    assert {value.dtype for value in snapshots.weights[0].values()} == {torch.float32}
    before, after = snapshots.weights[2:4]
    moved = {
        kind: torch.cat([(before[name] != after[name]).flatten() for name in before if kind in name]).double().mean()
        for kind in ("lora_A", "lora_B")
    }
    assert moved["lora_A"] > 0.99 and moved["lora_B"] > 0.99


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
def test_every_precision_trains_and_loads_again(tmp_path, tiny_model_dir, tiny_prepared, quantization):
    record = train(tmp_path, tiny_model_dir, tiny_prepared, quantization, epochs=4)
    losses = [log["eval_loss"] for log in record["history"] if "eval_loss" in log]
    assert len(losses) == 4
    assert losses[-1] < losses[0] - 0.05
    # q: 64 -> 64, v: 64 -> 32, rank 8, two layers
    assert record["trainable_parameters"] == 2 * 8 * ((64 + 64) + (64 + 32))
    base = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tiny_model_dir).parameters())
    assert record["total_parameters"] == base + record["trainable_parameters"]
    model = load_generator(
        tiny_model_dir,
        str(tmp_path / "adapter"),
        dtype="float32",
        quantization=quantization,
        attn_implementation=None,
    )
    assert isinstance(model, PeftModel) == (quantization != "none")
    assert any(bool((t != 0).any()) for name, t in adapter_weights(tmp_path).items() if "lora_B" in name)
    names = {path.name for path in (tmp_path / "adapter").iterdir()}  # what can be published, and no more
    assert names == {*ADAPTER_NAMES, "adapter_config.json", "training.json"}


def test_four_bit_training_is_not_changed_by_evaluations(tmp_path, tiny_model_dir, tiny_prepared):
    with_evaluation = train(tmp_path / "a", tiny_model_dir, tiny_prepared, "4bit", evals_per_epoch=1, patience=0)
    without = train(tmp_path / "b", tiny_model_dir, tiny_prepared, "4bit", evals_per_epoch=0)
    curves = [[log["loss"] for log in r["history"] if "loss" in log] for r in (with_evaluation, without)]
    assert len(curves[0]) == 4
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-4)


@pytest.mark.parametrize("option", ["packing", "length_grouping", "activation_checkpointing", "whole_sequence"])
def test_options_train(tmp_path, tiny_model_dir, tiny_prepared, option):
    changes = {"completion_only": False} if option == "whole_sequence" else {option: True}
    record = train(tmp_path, tiny_model_dir, tiny_prepared, **changes)
    losses = [log["eval_loss"] for log in record["history"] if "eval_loss" in log]
    assert losses[-1] < losses[0]


def test_a_training_loss_on_prompts_too_leaves_the_validation_loss_on_titles(tmp_path, tiny_model_dir, tiny_prepared):
    frozen = {"learning_rate": 1e-12, "epochs": 1, "warmup_steps": 0}
    folders = ((tmp_path / str(only), only) for only in (True, False))
    plain, whole = (
        train(folder, tiny_model_dir, tiny_prepared, completion_only=only, **frozen) for folder, only in folders
    )
    assert whole["train_loss"] != pytest.approx(plain["train_loss"], rel=1e-2)
    for name in ("best_eval_loss", "best_nats_per_target"):
        assert whole[name] == pytest.approx(plain[name], rel=1e-5)


def test_packing_takes_the_same_steps_and_does_not_leak_between_examples(tmp_path, tiny_model_dir, tiny_prepared):
    """All examples in one step, packed or not: the same losses, warm-up and evaluations."""
    changes = {"epochs": 4, "global_batch_size": 16, "micro_batch_size": 2, "warmup_steps": 2, "patience": 0}
    logs = []
    for packing in (True, False):
        record = train(tmp_path / str(packing), tiny_model_dir, tiny_prepared, packing=packing, **changes)
        kinds = {"loss": [], "eval_loss": [], "learning_rate": []}
        for entry in record["history"]:
            for kind, values in kinds.items():
                values += [entry[kind]] if kind in entry else []
        logs.append(kinds)
    packed, plain = logs
    assert len(plain["loss"]) == len(plain["eval_loss"]) == 4
    assert packed["learning_rate"] == plain["learning_rate"]
    np.testing.assert_allclose(packed["loss"], plain["loss"], rtol=1e-4)
    np.testing.assert_allclose(packed["eval_loss"], plain["eval_loss"], rtol=1e-4)


def test_several_data_sets_and_json_files(tmp_path, tiny_model_dir, tiny_prepared):
    file = write_tiny_json(tmp_path / "train.json", 30)
    tokens = tokenize_split(
        [tiny_prepared, tiny_prepared], [file], sample=10, template="chat-basic", folder=tmp_path / "tokens"
    )
    drawn = load_examples(tiny_prepared, "train", seed=0).select(range(10))
    parts = [
        tokenize_examples(examples, "chat-basic", tiny_tokenizer(), **LIMITS).to_list()
        for examples in (drawn, drawn, load_json_examples(file, sample=10, seed=0))
    ]
    assert tokens.to_list() == parts[0] + parts[1] + parts[2]
    record = sft.main(
        RunSettings(run_dir=str(tmp_path)),
        DataSettings(train_json=[file], validation_json=[file]),
        ModelSettings(base_model=tiny_model_dir),
        PromptSettings(train_prompt="chat-basic"),
        replace(QUICK, adapter_dir=str(tmp_path / "adapter")),
    )
    assert (record["n_train"], record["n_validation"]) == (16, 8)


def test_early_stopping_keeps_the_best_adapter(tmp_path, tiny_model_dir, tiny_prepared, monkeypatch):
    scripted, seen = iter([3.0, 2.0, 2.5, 2.4, 1.0]), []
    loop = CompletionLossTrainer.evaluation_loop

    def scripted_loop(self, *args, **options):
        output = loop(self, *args, **options)
        output.metrics["eval_loss"] = next(scripted)
        weights = get_peft_model_state_dict(self.model)
        seen.append({name: value.detach().clone() for name, value in weights.items()})
        return output

    monkeypatch.setattr(CompletionLossTrainer, "evaluation_loop", scripted_loop)
    record = train(tmp_path, tiny_model_dir, tiny_prepared, epochs=12, patience=2)
    assert len(seen) == 4 and record["best_eval_loss"] == 2.0  # two evaluations without a better one, then the end
    kept = adapter_weights(tmp_path)
    assert kept.keys() == seen[1].keys()
    assert all(torch.equal(kept[name], seen[1][name]) for name in kept)
    assert not all(torch.equal(kept[name], seen[3][name]) for name in kept)


@pytest.mark.parametrize("killed_at", [3, 4])
def test_patience_counts_on_after_a_kill(tmp_path, tiny_model_dir, tiny_prepared, monkeypatch, killed_at):
    """Evaluations 3 and 4 are no better than 2: the training ends at 4, killed after 3 or 4 or not at all."""
    scripted = {1: 3.0, 2: 2.0, 3: 2.5, 4: 2.4, 5: 1.0, 6: 0.5}
    loop = CompletionLossTrainer.evaluation_loop

    def scripted_loop(self, *args, **options):
        output = loop(self, *args, **options)
        output.metrics["eval_loss"] = scripted[round(self.state.epoch)]
        return output

    def kill(output_dir, **options):
        if (Path(output_dir) / f"checkpoint-{2 * killed_at}").exists():
            raise Stopped

    monkeypatch.setattr(CompletionLossTrainer, "evaluation_loop", scripted_loop)
    changes = {"epochs": 6, "patience": 2}
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr("transformers.trainer.rotate_checkpoints", kill)
        train(tmp_path, tiny_model_dir, tiny_prepared, **changes)
    record = train(tmp_path, tiny_model_dir, tiny_prepared, **changes)
    assert [log["eval_loss"] for log in record["history"] if "eval_loss" in log] == [3.0, 2.0, 2.5, 2.4]
    assert record["optimizer_steps"] == 8
    assert record["best_eval_loss"] == 2.0


def test_a_finished_adapter_is_kept_and_changed_settings_train_again(tmp_path, tiny_model_dir, tiny_prepared, capsys):
    first = train(tmp_path, tiny_model_dir, tiny_prepared)
    assert not (tmp_path / "adapter" / "checkpoints").exists()
    again = train(tmp_path, tiny_model_dir, tiny_prepared)
    assert "kept" in capsys.readouterr().out
    assert again["started"] == first["started"]
    changed = train(tmp_path, tiny_model_dir, tiny_prepared, seed=1)
    assert changed["fingerprint"] != first["fingerprint"]


def test_the_same_seed_gives_the_same_adapter(tmp_path, tiny_model_dir, tiny_prepared):
    for name in ("a", "b"):
        train(tmp_path / name, tiny_model_dir, tiny_prepared, lora_dropout=0.1)
    first, second = adapter_weights(tmp_path / "a"), adapter_weights(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- kills and processes --------------------------------------------------------------------------------------------


def command(folder: Path, tiny_model_dir: str, tiny_prepared: str, **changes) -> list[str]:
    values = {"sample": 16, "validation_sample": 4, "epochs": 6, "learning_rate": 0.01, "warmup_steps": 0}
    values |= {"global_batch_size": 8, "micro_batch_size": 4, "lora_dropout": 0.1, "patience": 0}
    return flags(dataset=tiny_prepared, base_model=tiny_model_dir, dtype="float32", run_dir=folder, **values | changes)


def same_weights(one: Path, other: Path) -> bool:
    first, second = adapter_weights(one), adapter_weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


KILLED_AT_STEP = """
import os, signal, sys
from bigrec_hf import cli
from bigrec_hf.sft.trainer import CompletionLossTrainer
step = CompletionLossTrainer.training_step
def killed(self, *rest, **more):
    if self.state.global_step == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, *rest, **more)
CompletionLossTrainer.training_step = killed
sys.exit(cli.main(["sft", *sys.argv[2:]]))
"""


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_adapter(tmp_path, tiny_model_dir, tiny_prepared):
    (tmp_path / "killed.py").write_text(KILLED_AT_STEP)
    for name in ("whole", "killed"):
        arguments = command(tmp_path / name, tiny_model_dir, tiny_prepared)
        if name == "killed":
            done = run_python(tmp_path / "killed.py", 5, *arguments)
            assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
            assert list((tmp_path / name / "adapter" / "checkpoints").glob("checkpoint-[2-9]*/trainer_state.json"))
            assert not (tmp_path / name / "adapter" / "training.json").exists()
        done = run_python("-m", "bigrec_hf.sft", *arguments)
        assert done.returncode == 0, done.stderr[-2000:]
    assert same_weights(tmp_path / "whole", tmp_path / "killed")


HALF_WRITTEN = [
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("adapter_model.safetensors", "rng_state.pth")),
    "optimizer.pt",
    pytest.param("trainer_state.json", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_model_dir, tiny_prepared) -> Path:
    """The folder of a training of four epochs."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    train(folder, tiny_model_dir, tiny_prepared, epochs=4, lora_dropout=0.1, patience=0)
    return folder


@pytest.mark.parametrize("file", HALF_WRITTEN)
def test_a_training_killed_while_it_writes_a_checkpoint_resumes(
    tmp_path, tiny_model_dir, tiny_prepared, uninterrupted, monkeypatch, file
):
    """The folder of step 4 is left without what comes after `file`, and with half of that."""
    changes = {"epochs": 4, "lora_dropout": 0.1, "patience": 0}
    written = ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]

    def rotate_never_reached(output_dir, **options):
        checkpoint = Path(output_dir) / "checkpoint-4"
        if checkpoint.exists():
            for name in written[written.index(file) + 1 :]:
                (checkpoint / name).unlink()
            (checkpoint / file).write_bytes((checkpoint / file).read_bytes()[:100])
            raise Stopped

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr("transformers.trainer.rotate_checkpoints", rotate_never_reached)
        train(tmp_path / "killed", tiny_model_dir, tiny_prepared, **changes)
    train(tmp_path / "killed", tiny_model_dir, tiny_prepared, **changes)
    assert same_weights(uninterrupted, tmp_path / "killed")


def test_two_trainings_side_by_side_have_checkpoints_of_their_own(tmp_path, tiny_model_dir, tiny_prepared, monkeypatch):
    def stop_at_step_4(output_dir, **options):
        if (Path(output_dir) / "checkpoint-4").exists():
            raise Stopped

    one, two = ({"adapter_dir": str(tmp_path / name), "lora_dropout": 0.1, "epochs": 4} for name in ("one", "two"))
    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr("transformers.trainer.rotate_checkpoints", stop_at_step_4)
        train(tmp_path, tiny_model_dir, tiny_prepared, **one)
    train(tmp_path, tiny_model_dir, tiny_prepared, **two, learning_rate=1e-3)
    assert (tmp_path / "one" / "checkpoints" / "checkpoint-4").is_dir()
    assert not (tmp_path / "two" / "checkpoints").exists()


def test_an_adapter_that_another_command_trains_is_left_alone(tmp_path, tiny_model_dir, tiny_prepared):
    with (
        locked_folder(tmp_path / "run" / "adapter"),
        pytest.raises(BigrecError, match=r"another bigrec-hf command is working in .*adapter"),
    ):
        train(tmp_path / "run", tiny_model_dir, tiny_prepared)
    assert not (tmp_path / "run" / "adapter").exists()


def test_weights_never_lie_under_the_record_of_other_settings(tmp_path, tiny_model_dir, tiny_prepared, monkeypatch):
    train(tmp_path, tiny_model_dir, tiny_prepared)
    first = adapter_weights(tmp_path)

    def killed_before_the_record(path, value):
        if Path(path).name == "training.json":
            raise Stopped
        write_json(path, value)

    with monkeypatch.context() as patched, pytest.raises(Stopped):
        patched.setattr(adapter_folder, "write_json", killed_before_the_record)
        train(tmp_path, tiny_model_dir, tiny_prepared, learning_rate=1e-3)
    other = adapter_weights(tmp_path)
    assert not torch.equal(first[next(iter(first))], other[next(iter(first))])
    train(tmp_path, tiny_model_dir, tiny_prepared)
    again = adapter_weights(tmp_path)
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_training_that_writes_no_adapter_fails(tmp_path, tiny_model_dir, tiny_prepared, monkeypatch):
    train(tmp_path, tiny_model_dir, tiny_prepared)
    with (
        monkeypatch.context() as patched,
        pytest.raises(BigrecError, match=r"wrote no adapter to .*checkpoints are kept"),
    ):
        patched.setattr(CompletionLossTrainer, "save_model", lambda *args, **options: None)
        train(tmp_path, tiny_model_dir, tiny_prepared, evals_per_epoch=0, epochs=1)
    assert not (tmp_path / "adapter" / "training.json").exists()
    assert not (tmp_path / "adapter" / "adapter_model.safetensors").exists()  # the older one neither


def test_a_lost_adapter_is_trained_again(tmp_path, tiny_model_dir, tiny_prepared):
    train(tmp_path, tiny_model_dir, tiny_prepared, epochs=1)
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    train(tmp_path, tiny_model_dir, tiny_prepared, epochs=1)
    assert adapter_weights(tmp_path)


@pytest.mark.slow
def test_two_processes_train_the_same_adapter(tmp_path, tiny_model_dir, tiny_prepared):
    for n, launch in ((1, run_python), (2, run_pair)):
        options = {"lora_dropout": 0.0, "micro_batch_size": 2, "epochs": 2}
        done = launch("-m", "bigrec_hf.sft", *command(tmp_path / str(n), tiny_model_dir, tiny_prepared, **options))
        assert done.returncode == 0, done.stderr[-3000:]
        record = json.loads((tmp_path / str(n) / "adapter" / "training.json").read_text())
        assert record["n_processes"] == n
    one, two = adapter_weights(tmp_path / "1"), adapter_weights(tmp_path / "2")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'\xff\xfe["a"]', "not UTF-8"),
        (b'["no object"]', "record 0: no text field 'instruction'"),
        (b'[{"instruction": "a", "input": "watched:\\"Heat", "output": "b"}]', "record 0: the input"),
    ],
)
def test_a_broken_json_file_is_named_with_its_record(tmp_path, content, words):
    file = tmp_path / "train.json"
    file.write_bytes(content)
    with pytest.raises(BigrecError, match=words) as error:
        load_json_examples(str(file))
    assert str(file) in str(error.value)


def test_a_json_file_may_open_with_a_byte_order_mark(tmp_path):
    file = tmp_path / "train.json"
    file.write_bytes(b'\xef\xbb\xbf[{"instruction": "a", "input": "watched:", "output": "b"}]')
    assert load_json_examples(str(file))["target_title"] == ["b"]
