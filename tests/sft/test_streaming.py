"""Streaming: the examples of the other way, in parts that are disjoint and complete, and a training on them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets.packaged_modules.parquet.parquet import Parquet
from hypothesis import given
from hypothesis import strategies as st

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.examples import load_examples
from bigrec_hf.settings import DataSettings, ModelSettings, PromptSettings, RunSettings
from bigrec_hf.sft import stage as sft
from bigrec_hf.sft import streaming
from bigrec_hf.sft.trainer import CompletionLossTrainer
from tests.helpers.tiny import tiny_tokenizer, write_tiny_json
from tests.sft import test_sft

LIMITS = {"max_history": 10, "max_length": 1024, "completion_only": True}
N_TRAIN = 96  # rows of the fixture's train split
QUICK = replace(
    test_sft.QUICK, streaming=True, sample=0, shuffle_buffer=20, global_batch_size=16, lora_dropout=0.1, patience=0
)


@pytest.fixture(scope="module")
def grouped(tiny_prepared, tmp_path_factory):
    """The prepared set with row groups of 10 rows, in a folder whose name is a glob pattern."""
    folder = tmp_path_factory.mktemp("grouped") / "movies [1]*"
    shutil.copytree(tiny_prepared, folder)
    for split in ("train", "validation"):
        file = folder / "data" / "default" / f"{split}.parquet"
        pq.write_table(pq.read_table(file), file, row_group_size=10)
    assert pq.read_metadata(folder / "data" / "default" / "train.parquet").num_row_groups == 10
    return str(folder)


def stream(datasets, *, sample=0, seed=0, shuffle_buffer=1, n_processes=1):
    return streaming.stream_examples(
        datasets, "train", sample=sample, seed=seed, shuffle_buffer=shuffle_buffer, n_processes=n_processes
    )


def ids(examples, n: int) -> list[str]:
    return [example[C.EXAMPLE_ID] for example in islice(examples, n)]


# --- what is read ---------------------------------------------------------------------------------------------------


def test_unshuffled_tokens_are_those_of_the_other_way_in_order(grouped):
    whole = load_examples(grouped, "train")
    expected, _ = sft.tokenize_examples(whole, "alpaca-basic", tiny_tokenizer(), **LIMITS)
    examples, sources = stream([grouped])
    tokens = list(islice(sft.tokenize_stream(examples, "alpaca-basic", tiny_tokenizer(), **LIMITS), N_TRAIN + 2))
    assert (len(sources[0].rows), len(expected)) == (N_TRAIN, N_TRAIN)
    assert tokens[:N_TRAIN] == expected.to_list()
    assert tokens[N_TRAIN:] == expected.to_list()[:2]  # the next pass
    assert list(islice(examples, N_TRAIN)) == whole.to_list()  # every column


def test_a_sample_has_the_rows_of_the_other_way(grouped):
    expected = load_examples(grouped, "train", sample=17, seed=5)[C.EXAMPLE_ID]
    examples, sources = stream([grouped], sample=17, seed=5)
    order = list(load_examples(grouped, "train")[C.EXAMPLE_ID])
    assert ids(examples, 17) == sorted(expected, key=order.index)
    assert len(sources[0].rows) == 17
    drawn = streaming.draw_examples([grouped, grouped], "validation", sample=5, seed=5)
    once = load_examples(grouped, "validation", sample=5, seed=5)[C.EXAMPLE_ID]
    assert len(drawn) == 10 and set(drawn[C.EXAMPLE_ID][:5]) == set(once) == set(drawn[C.EXAMPLE_ID][5:])


def test_every_pass_has_each_example_once_in_another_order_that_follows_from_the_seed(grouped):
    passes = np.reshape(ids(stream([grouped], shuffle_buffer=20)[0], 2 * N_TRAIN), (2, N_TRAIN)).tolist()
    whole = list(load_examples(grouped, "train")[C.EXAMPLE_ID])
    assert sorted(passes[0]) == sorted(passes[1]) == sorted(whole)
    assert passes[0] != passes[1] != whole != passes[0]
    assert ids(stream([grouped], shuffle_buffer=20)[0], N_TRAIN) == passes[0]
    assert ids(stream([grouped], shuffle_buffer=20, seed=1)[0], N_TRAIN) != passes[0]


@pytest.mark.parametrize("n_processes", [2, 3])
@pytest.mark.parametrize("shuffle_buffer", [1, 20])
def test_processes_read_disjoint_parts_and_only_their_row_groups(grouped, monkeypatch, n_processes, shuffle_buffer):
    read = []
    tables = Parquet._generate_tables

    def logged(self, **where):
        for key, table in tables(self, **where):
            read.append(len(table))
            yield key, table

    monkeypatch.setattr(Parquet, "_generate_tables", logged)
    examples, _ = stream([grouped], shuffle_buffer=shuffle_buffer, n_processes=n_processes)
    assert examples.num_shards == n_processes  # what accelerate hands out
    size, parts = N_TRAIN // n_processes, []
    for rank in range(n_processes):
        read.clear()
        parts.append(ids(examples.shard(n_processes, rank), size))
        assert size <= sum(read) <= size + 20  # whole row groups of 10 at both ends
    assert sorted(chain.from_iterable(parts)) == sorted(load_examples(grouped, "train")[C.EXAMPLE_ID])


def test_several_sets_are_mixed_in_proportion(grouped, tiny_prepared):
    examples, sources = stream([grouped, tiny_prepared], sample=0, shuffle_buffer=2)
    assert [len(source.rows) for source in sources] == [N_TRAIN, N_TRAIN]
    seen = ids(examples, 2 * N_TRAIN)
    assert sorted(seen) == sorted(2 * list(load_examples(grouped, "train")[C.EXAMPLE_ID]))
    assert len(set(seen[:N_TRAIN])) < 80  # about half of each, not one after the other


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 70), st.integers(0, 9))
def test_shuffle_keeps_every_element(elements, size, seed):
    shuffled = list(streaming.shuffle(iter(elements), size, np.random.default_rng(seed)))
    assert sorted(shuffled) == sorted(elements)
    if size == 1:
        assert shuffled == elements


@given(st.lists(st.integers(0, 9), min_size=1, max_size=4), st.integers(0, 9))
def test_mix_keeps_every_element_and_each_order(sizes, seed):
    streams = [iter([(at, i) for i in range(size)]) for at, size in enumerate(sizes)]
    mixed = list(streaming.mix(streams, sizes, np.random.default_rng(seed)))
    assert sorted(mixed) == [(at, i) for at, size in enumerate(sizes) for i in range(size)]
    assert all([i for part, i in mixed if part == at] == list(range(size)) for at, size in enumerate(sizes))


@given(st.integers(1, 50), st.integers(1, 6))
def test_shares_cover_the_rows_once(n, n_processes):
    source = streaming.Source("", "", [n], range(100, 100 + n))
    shares = [source.share([rank], n_processes) for rank in range(n_processes)]
    assert [row for share in shares for row in share] == list(source.rows)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert list(source.share(range(n_processes), n_processes)) == list(source.rows)


# --- training -------------------------------------------------------------------------------------------------------


def train(folder: Path, tiny_model_dir: str, dataset: str, **changes) -> dict:
    settings = replace(QUICK, adapter_dir=str(folder / "adapter"), **changes)
    model = ModelSettings(base_model=tiny_model_dir, dtype="float32")
    return sft.main(
        RunSettings(run_dir=str(folder)), DataSettings(dataset=[dataset]), model, PromptSettings(), settings
    )


def test_a_streamed_training_counts_as_the_other_one(tmp_path, tiny_model_dir, grouped):
    record = train(tmp_path / "streamed", tiny_model_dir, grouped, global_batch_size=20)
    assert (tmp_path / "streamed" / "adapter" / "adapter_model.safetensors").is_file()
    other = train(tmp_path / "whole", tiny_model_dir, grouped, global_batch_size=20, streaming=False)
    assert record["optimizer_steps"] == other["optimizer_steps"] == 10  # 96 / 20, rounded up, twice
    for name in ("n_train", "n_validation", "epochs_done"):
        assert record[name] == other[name], name
    assert record["streamed"] == [{"dataset": grouped, "rows": N_TRAIN, "examples": N_TRAIN}]
    evaluated = [[entry["epoch"] for entry in run["history"] if "eval_loss" in entry] for run in (record, other)]
    assert evaluated[0] == pytest.approx([1, 2]) and evaluated[1] == [1, 2]
    losses = [[entry["loss"] for entry in run["history"] if "loss" in entry] for run in (record, other)]
    assert losses[0][-1] < losses[0][0] and losses[0][-1] == pytest.approx(losses[1][-1], rel=0.3)


def test_an_interrupted_training_goes_on_to_the_same_adapter(tmp_path, tiny_model_dir, grouped, monkeypatch):
    whole = train(tmp_path / "whole", tiny_model_dir, grouped)
    step = CompletionLossTrainer.training_step

    def broken(self, *rest, **more):
        if self.state.global_step == 8:  # 6 steps a pass: in the second one, after the checkpoint of the first
            raise RuntimeError("power cut")
        return step(self, *rest, **more)

    with monkeypatch.context() as patched, pytest.raises(RuntimeError, match="power cut"):
        patched.setattr(CompletionLossTrainer, "training_step", broken)
        train(tmp_path / "cut", tiny_model_dir, grouped)
    resumed = train(tmp_path / "cut", tiny_model_dir, grouped)
    weights = [
        torch.load(folder / "optimizer.pt", weights_only=True)["state"]
        for folder in sorted(tmp_path.glob("*/checkpoints/checkpoint-12"))
    ]
    assert len(weights) == 2 and weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][key]["exp_avg"], weights[1][key]["exp_avg"]) for key in weights[0])
    assert resumed["optimizer_steps"] == whole["optimizer_steps"] == 12
    assert resumed["best_eval_loss"] == whole["best_eval_loss"]
    # cut between the last checkpoint and the adapter: nothing is left to train
    (tmp_path / "cut" / "adapter" / "training.json").unlink()
    monkeypatch.setattr(CompletionLossTrainer, "training_step", None)
    assert train(tmp_path / "cut", tiny_model_dir, grouped)["optimizer_steps"] == 12


def test_settings_of_streams_leave_finished_adapters_of_the_other_way_alone(grouped):
    def marks(**changes):
        model = ModelSettings(base_model=str(Path(grouped)))
        return sft.training_settings(
            RunSettings(), DataSettings(dataset=[grouped]), model, PromptSettings(), replace(QUICK, **changes)
        )

    assert marks(streaming=False) == marks(streaming=False, shuffle_buffer=7)
    assert "streaming" not in marks(streaming=False)
    assert marks(shuffle_buffer=7) != marks(shuffle_buffer=8)


SCRIPT = """
import json, os, sys
from pathlib import Path
from bigrec_hf import cli
from bigrec_hf.sft import trainer
loss = trainer.CompletionLossTrainer.compute_loss
def logged(self, model, inputs, *rest, **more):
    if model.training:
        with open(Path(sys.argv[1], f"seen-{os.environ['RANK']}.txt"), "a") as log:
            for row, mask in zip(inputs["input_ids"].tolist(), inputs["attention_mask"].tolist()):
                log.write(json.dumps(row[: sum(mask)]) + "\\n")
    return loss(self, model, inputs, *rest, **more)
trainer.CompletionLossTrainer.compute_loss = logged
sys.exit(cli.main(sys.argv[2:]))
"""


def test_two_processes_train_on_disjoint_parts(tmp_path, tiny_model_dir, grouped):
    (tmp_path / "process.py").write_text(SCRIPT)
    flags = {"dataset": grouped, "base_model": tiny_model_dir, "run_dir": tmp_path, "epochs": 1, "sample": 0}
    flags |= {"streaming": "true", "shuffle_buffer": 20, "global_batch_size": 16, "micro_batch_size": 4}
    flags |= {"validation_sample": 4, "dtype": "float32"}
    pairs = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    torchrun += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "process.py"), str(tmp_path), "sft", *pairs],
        env=os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "adapter" / "training.json").read_text())
    assert (record["n_processes"], record["optimizer_steps"]) == (2, 6)
    seen = [[json.loads(line) for line in (tmp_path / f"seen-{rank}.txt").open()] for rank in (0, 1)]
    tokens, _ = sft.tokenize_examples(load_examples(grouped, "train"), "alpaca-basic", tiny_tokenizer(), **LIMITS)
    rows = tokens["input_ids"][:]
    assert sorted(seen[0]) == sorted(rows[: N_TRAIN // 2])
    assert sorted(seen[1]) == sorted(rows[N_TRAIN // 2 :])


# --- refusals -------------------------------------------------------------------------------------------------------


def test_what_cannot_stream_is_refused_before_any_work(tmp_path, grouped):
    def fails(words, *, json_file=None, **changes):
        data = DataSettings(dataset=[grouped], train_json=[json_file] if json_file else [])
        settings = replace(QUICK, adapter_dir=str(tmp_path / "adapter"), **changes)
        with pytest.raises(BigrecError, match=words):
            sft.main(RunSettings(), data, ModelSettings(base_model="no/model"), PromptSettings(), settings)

    fails("packing does not go with streaming", packing=True)
    fails("length_grouping does not go with streaming", length_grouping=True)
    fails("'max_steps' does not go with streaming", trainer_args={"max_steps": 3})
    fails("a JSON file is read whole", json_file=write_tiny_json(tmp_path / "train.json", 3))
    assert [path.name for path in tmp_path.iterdir()] == ["train.json"]


def test_missing_and_too_few_examples_are_one_line_errors(tmp_path, grouped):
    with pytest.raises(BigrecError, match="2 examples for 3 processes"):
        stream([grouped], sample=2, n_processes=3)
    with pytest.raises(BigrecError, match="does not exist"):
        stream([str(tmp_path / "none")])
    copy = tmp_path / "copy"
    shutil.copytree(grouped, copy)
    file = copy / "data" / "default" / "train.parquet"
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    with pytest.raises(BigrecError, match="is empty"):
        stream([str(copy)])
    file.unlink()
    with pytest.raises(BigrecError, match=r"no data/default/train\.parquet"):
        stream([str(copy)])
