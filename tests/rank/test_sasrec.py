"""SASRec: sequences, windows and losses by hand; causality, padding, learning, leaks, saving, resumption, the stage."""

import json
import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, TrainerCallback

from bigrec_hf.cli import main as cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.processes import PRECISION
from bigrec_hf.data.catalog import Catalog, catalog_sha256, load_catalog
from bigrec_hf.data.examples import load_config
from bigrec_hf.data.generations import Examples
from bigrec_hf.data.item_scores import read_scores
from bigrec_hf.data.sequences import ItemSequences, training_sequences
from bigrec_hf.prepare.stage import prepare_dataset
from bigrec_hf.rank.sasrec.model import (
    SasRecConfig,
    SasRecModel,
    inclusion_probabilities,
    sampled_softmax_loss,
    softmax_loss,
)
from bigrec_hf.rank.sasrec.stage import check_catalog, trained_model
from bigrec_hf.rank.sasrec.trainer import score_histories, train_sasrec
from bigrec_hf.rank.sasrec.windows import pad_histories, windows
from bigrec_hf.settings import DataSettings, RankOptions, SasrecSettings

SETTINGS = SasrecSettings(
    sasrec_dim=16,
    sasrec_layers=1,
    sasrec_heads=2,
    sasrec_dropout=0.1,
    sasrec_max_length=4,
    sasrec_stride=2,
    sasrec_epochs=3,
    sasrec_patience=0,
    sasrec_lr=0.01,
    sasrec_batch_size=16,
    sasrec_weight_decay=0.0,
    sasrec_negatives=0,
)


def tiny_sasrec(seed=0, **config):
    torch.manual_seed(seed)
    values = {"n_items": 7, "hidden_size": 8, "max_length": 5, "initializer_range": 0.5, **config}
    return SasRecModel(SasRecConfig(**values)).eval()


def sequences_of(lists):
    return ItemSequences(
        np.array([row for rows in lists for row in rows], np.int64), np.cumsum([0, *map(len, lists)]).astype(np.int64)
    )


def as_lists(sequences):
    return [sequences.items[a:b].tolist() for a, b in pairwise(sequences.starts)]


def example_table(rows):
    users, histories, targets = zip(*rows, strict=True)
    return pa.table(
        {
            "user_id": pa.array(users),
            "history": pa.array(histories, pa.list_(pa.int32())),
            "target": pa.array(targets, pa.int32()),
        }
    )


# --- data ------------------------------------------------------------------------------------------------------------


def test_training_sequences_by_hand():
    table = example_table(
        [("u", [1, 2], 3), ("v", [], 9), ("u", [2, 3], 4), ("w", [5], 6), ("u", [3, 4], 1), ("w", [8, 7], 2)]
    )
    assert as_lists(training_sequences(table)) == [
        [1, 2, 3, 4, 1],
        [9],
        [5, 6],
        [8, 7, 2],
    ]  # w's second: no link
    assert as_lists(training_sequences(table.slice(2, 3))) == [[2, 3, 4, 1], [5, 6]]  # offsets of a slice
    assert as_lists(training_sequences(table.slice(0, 0))) == []


@pytest.mark.parametrize("preset", ["bigrec-movie", "bigrec-game", "leave-one-out"])
def test_no_validation_or_test_target_is_learned(preset, raw_movies, tmp_path):
    """Every user's training sequence is exactly what comes before that user's first held-out target."""
    prepare_dataset("movielens", str(raw_movies), str(tmp_path / "set"), preset=preset)
    interactions = load_config(str(tmp_path / "set"), "interactions", "train").to_polars()
    full = {user: rows["row"].to_list() for (user,), rows in interactions.sort("timestamp").group_by(["user_id"])}
    held_out = {}
    for split in ("validation", "test"):
        for example in load_config(str(tmp_path / "set"), "default", split):
            user, position = example["example_id"].rsplit(":", 1)
            held_out[user] = min(held_out.get(user, math.inf), int(position))
            assert full[user][int(position)] == example["target"]
    train = load_config(str(tmp_path / "set"), "default", "train").data.table
    users = list(dict.fromkeys(train["user_id"].to_pylist()))
    sequences = as_lists(training_sequences(train))
    assert len(sequences) == len(users) > 10 and held_out
    for user, sequence in zip(users, sequences, strict=True):
        assert sequence == full[user][: held_out.get(user, len(full[user]))]


def test_windows_by_hand():
    inputs, labels = windows(sequences_of([[1, 2, 3, 4, 5], [6], [7, 8]]), 3, 3, 0)
    assert inputs.tolist() == [[2, 3, 4], [0, 0, 1], [0, 0, 7]]
    assert labels.tolist() == [[3, 4, 5], [-100, -100, 2], [-100, -100, 8]]
    inputs, labels = windows(sequences_of([[1, 2, 3, 4, 5]]), 3, 1, 0)
    assert inputs.tolist() == [[2, 3, 4], [1, 2, 3], [0, 1, 2], [0, 0, 1]]
    assert labels[:, -1].tolist() == [5, 4, 3, 2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=12), max_size=5), st.integers(1, 6), st.data())
def test_windows_hold_every_transition(lists, length, data):
    stride = data.draw(st.integers(1, length))
    inputs, labels = windows(sequences_of(lists), length, stride, 10)
    seen = [(x, y) for row, want in zip(inputs, labels, strict=True) for x, y in zip(row, want, strict=True) if y >= 0]
    expected = [pair for rows in lists for pair in pairwise(rows)]
    assert set(seen) == set(expected)
    if stride == length:
        assert sorted(seen) == sorted(expected)
    assert ((inputs == 10) == (labels == -100)).all()


def test_histories_are_padded_and_cut():
    assert pad_histories([[1, 2, 3, 4], [], [5], [-1, 6, -1]], 3, 9).tolist() == [
        [2, 3, 4],
        [9, 9, 9],
        [9, 9, 5],
        [9, 9, 6],
    ]
    assert pad_histories([], 3, 9).shape == (0, 3)


# --- model -----------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=5), st.integers(0, 6), st.data())
def test_a_later_item_changes_no_earlier_state(history, other, data):
    model = tiny_sasrec()
    at = data.draw(st.integers(1, len(history) - 1))
    changed = [*history[:at], other, *history[at + 1 :]]
    with torch.no_grad():
        states = model(torch.tensor([history, changed])).last_hidden_state
    torch.testing.assert_close(states[0, :at], states[1, :at], rtol=0, atol=0)
    if other != history[at]:
        assert (states[0, at] - states[1, at]).abs().max() > 1e-3


def test_padding_changes_nothing_on_either_side():
    model, pad = tiny_sasrec(), 7
    with torch.no_grad():
        plain = model(torch.tensor([[3, 1, 4]])).logits
        padded = model(torch.tensor([[pad, pad, 3, 1, 4], [3, 1, 4, pad, pad], [pad, 3, 1, 4, pad]])).logits
        assert torch.isfinite(model(torch.full((1, 5), pad)).logits).all()
    torch.testing.assert_close(padded, plain.expand(3, -1), rtol=1e-5, atol=1e-6)
    assert plain.shape == (1, 7)  # padding is no candidate


def test_order_and_every_item_matter():
    model = tiny_sasrec()
    with torch.no_grad():
        logits = model(torch.tensor([[1, 2, 3], [2, 1, 3], [4, 2, 3]])).logits
    assert (logits[0] - logits[1]).abs().max() > 1e-3 and (logits[0] - logits[2]).abs().max() > 1e-3


def test_loss_equals_brute_force_softmax():
    model = tiny_sasrec()
    inputs, labels = torch.tensor([[7, 2, 5], [1, 3, 0]]), torch.tensor([[-100, 5, 6], [3, -100, 2]])
    with torch.no_grad():
        output = model(inputs, labels=labels)
        table = model.items.weight[:7].double()
        losses = []
        for i, t in zip(*np.nonzero(labels.numpy() >= 0), strict=True):
            scores = [math.exp(float(output.last_hidden_state[i, t].double() @ table[j])) for j in range(7)]
            losses.append(-math.log(scores[int(labels[i, t])] / sum(scores)))
    assert float(output.loss) == pytest.approx(np.mean(losses), rel=1e-5)


def test_sampled_loss_is_the_full_one_when_all_items_are_drawn():
    torch.manual_seed(0)
    table = torch.randn(9, 4, requires_grad=True)
    states, targets = torch.randn(6, 4, requires_grad=True), torch.randint(9, (6,))
    full = softmax_loss(states, targets, table)
    sampled = sampled_softmax_loss(states, targets, table, torch.arange(9), torch.zeros(9))
    torch.testing.assert_close(sampled, full)
    gradients = [torch.autograd.grad(loss, (states, table)) for loss in (full, sampled)]
    torch.testing.assert_close(*gradients)
    assert inclusion_probabilities(torch.arange(9), 9).tolist() == [1.0] * 9


def test_sampled_normalizer_is_unbiased():
    """The mean over draws of exp(loss) x exp(target's score) is the full normalizer; without logQ it is far below."""
    torch.manual_seed(1)
    table, states, targets = torch.randn(40, 4), torch.randn(1, 4), torch.tensor([3])
    chance = inclusion_probabilities(torch.arange(40) ** 2, 10)
    assert float(chance.sum()) == pytest.approx(10, abs=1e-4) and float(chance.max()) <= 1
    full = float(softmax_loss(states, targets, table).exp())
    draws, plain = [], []
    for _ in range(4000):
        rows = (torch.rand(40) < chance).nonzero().flatten()
        draws.append(float(sampled_softmax_loss(states, targets, table, rows, chance[rows].log()).exp()))
        plain.append(float(sampled_softmax_loss(states, targets, table, rows, torch.zeros(len(rows))).exp()))
    assert np.mean(draws) == pytest.approx(full, rel=0.05)
    assert np.mean(plain) < 0.6 * full


def test_inclusion_probabilities_by_hand():
    chance = inclusion_probabilities(torch.tensor([0, 0, 0, 99]), 2, power=1.0)
    torch.testing.assert_close(chance, torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0]))  # the capped item's rest is shared out


# --- training --------------------------------------------------------------------------------------------------------


def examples(histories, targets):
    return Examples([f"e{i}" for i in range(len(targets))], targets, histories)


def cycle(n_items=6, n_users=40, length=9):
    return [[(user + step) % n_items for step in range(length)] for user in range(n_users)]


@pytest.mark.parametrize("negatives", [0, 4])
def test_learns_a_cycle(tmp_path, negatives):
    validation = examples([[0, 1, 2, 3], [4]], [4, 5])
    options = replace(SETTINGS, sasrec_epochs=8, sasrec_negatives=negatives)
    model, record = train_sasrec(sequences_of(cycle()), np.full(6, 60), validation, tmp_path, options, seed=0)
    scores = score_histories(model, [[row] for row in range(6)], counts=np.ones(6))
    assert scores.argmax(axis=1).tolist() == [1, 2, 3, 4, 5, 0]
    assert record["best_validation_ndcg@10"] == 1 and record["epochs_done"] == 8


class Killed(TrainerCallback):
    """What a kill in the middle of an epoch looks like."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 17:
            raise KeyboardInterrupt


@pytest.mark.parametrize("negatives", [0, 3])
def test_killed_and_resumed_equals_uninterrupted(tmp_path, negatives):
    rng = np.random.default_rng(0)
    inputs = (sequences_of(rng.integers(0, 8, (50, 9)).tolist()), np.full(8, 50), examples([[0, 1]], [2]))
    options = replace(SETTINGS, sasrec_negatives=negatives)
    whole, record = train_sasrec(*inputs, tmp_path / "whole", options, seed=3)
    assert record["optimizer_steps"] > 20
    with pytest.raises(KeyboardInterrupt):
        train_sasrec(*inputs, tmp_path / "killed", options, seed=3, callbacks=[Killed()])
    torch.rand(5)  # the state of the process does not matter
    resumed, again = train_sasrec(*inputs, tmp_path / "killed", options, seed=3)
    assert again["optimizer_steps"] == record["optimizer_steps"]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)


def test_float32_whatever_accelerate_says(tmp_path, monkeypatch):
    inputs = (sequences_of(cycle()), np.full(6, 60), examples([[0, 1]], [2]))
    model, _ = train_sasrec(*inputs, tmp_path / "plain", SETTINGS, seed=3)
    monkeypatch.setenv(PRECISION, "bf16")
    launched, _ = train_sasrec(*inputs, tmp_path / "launched", SETTINGS, seed=3)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(launched.state_dict()[name], value, rtol=0, atol=0)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_checkpoint_cut_off_while_it_was_written_is_not_resumed_from(tmp_path, file):
    inputs = (sequences_of(cycle()), np.full(6, 60), examples([[0, 1]], [2]))
    options = replace(SETTINGS, sasrec_epochs=4)
    whole, record = train_sasrec(*inputs, tmp_path / "whole", options, seed=3)
    train_sasrec(*inputs, tmp_path / "cut", options, seed=3)
    newest = tmp_path / "cut" / f"checkpoint-{record['optimizer_steps']}"
    (newest / file).write_bytes((newest / file).read_bytes()[:100])
    (newest / "trainer_state.json").unlink()
    resumed, again = train_sasrec(*inputs, tmp_path / "cut", options, seed=3)
    assert again["optimizer_steps"] == record["optimizer_steps"]
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())


@pytest.mark.parametrize("killed_at", [3, 4])
def test_patience_counts_on_after_a_kill(tmp_path, monkeypatch, killed_at):
    """Epochs 3 and 4 are no better than 2: the training ends at 4, killed after 3 or 4 or not at all."""
    evaluated = []

    def scripted(rank, ks):
        value = [0.1, 0.3, 0.2, 0.2, 0.9, 0.9][len(evaluated)]
        evaluated.append(value)
        return {f"ndcg@{ks[0]}": value, f"hr@{ks[0]}": value}

    def kill(output_dir, **options):
        if len(evaluated) == killed_at:
            raise KeyboardInterrupt

    monkeypatch.setattr("bigrec_hf.rank.sasrec.trainer.mean_scores", scripted)
    inputs = (sequences_of(cycle()), np.full(6, 60), examples([[0, 1]], [2]))
    options = replace(SETTINGS, sasrec_epochs=6, sasrec_patience=2)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("transformers.trainer.rotate_checkpoints", kill)
        train_sasrec(*inputs, tmp_path, options, seed=1)
    _, record = train_sasrec(*inputs, tmp_path, options, seed=1)
    assert record["epochs_done"] == 4
    assert evaluated == [0.1, 0.3, 0.2, 0.2]


def test_same_seed_same_model_and_early_stopping(tmp_path):
    inputs = (sequences_of(cycle()), np.full(6, 60), examples([[5, 0]], [3]))  # the validation target never follows
    options = replace(SETTINGS, sasrec_epochs=30, sasrec_patience=2)
    one, record = train_sasrec(*inputs, tmp_path / "a", options, seed=1)
    two, _ = train_sasrec(*inputs, tmp_path / "b", options, seed=1)
    assert record["epochs_done"] < 30
    assert all(torch.equal(value, two.state_dict()[name]) for name, value in one.state_dict().items())


def test_an_empty_history_is_scored_by_popularity():
    scores = score_histories(tiny_sasrec(), [[], [1], [-1]], counts=np.arange(7))
    np.testing.assert_allclose(scores[[0, 2]], np.tile(np.log1p(np.arange(7)), (2, 1)), rtol=1e-6)
    assert scores.dtype == np.float32 and not np.allclose(scores[1], scores[0])


# --- saving and the stage --------------------------------------------------------------------------------------------


def test_saved_and_loaded_model_is_the_same(tmp_path, monkeypatch):
    model = tiny_sasrec(catalog_sha256="abc")
    model.save_pretrained(tmp_path / "model")
    loaded = SasRecModel.from_pretrained(tmp_path / "model").eval()
    assert loaded.config.catalog_sha256 == "abc" and loaded.config.padding_id == 7
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    ids = torch.tensor([[7, 1, 2]])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
        monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
        remote = AutoModel.from_pretrained(tmp_path / "model", trust_remote_code=True).eval()
        assert type(remote) is not SasRecModel
        torch.testing.assert_close(remote(ids).logits, model(ids).logits)


STAGE = [
    *("--sasrec_dim", "8", "--sasrec_layers", "1", "--sasrec_epochs", "2", "--sasrec_batch_size", "32"),
    *("--eval_sample", "0", "--ks", "5", "10"),
]


def test_stage_writes_model_rankings_and_scores(tiny_prepared, tmp_path, capsys):
    run = tmp_path / "run"
    arguments = ["sasrec", "--dataset", tiny_prepared, "--run_dir", str(run), *STAGE]
    assert cli(arguments) == 0
    catalog = load_catalog(tiny_prepared)
    for folder, split in ((run / "sasrec", "test"), (run / "validation" / "sasrec", "validation")):
        table = pq.read_table(folder / "rankings.parquet")
        examples = load_config(tiny_prepared, "default", split)
        assert sorted(table["example_id"].to_pylist()) == sorted(examples["example_id"])
        scores = read_scores(folder / "scores.safetensors", table["example_id"].to_pylist(), catalog)
        targets = table["target"].to_numpy()
        own = scores[np.arange(len(scores)), targets][:, None]
        assert table["rank"].to_pylist() == (scores > own).sum(axis=1).tolist()  # no ties among trained scores
        results = json.loads((folder / "results.json").read_text())
        assert results["baseline"] == "sasrec" and results["hr@10"] == np.mean(table["rank"].to_numpy() < 10)
    assert not (run / "sasrec" / "checkpoints").exists()
    assert "| validation |" in capsys.readouterr().out
    before = (run / "sasrec" / "model" / "model.safetensors").stat().st_mtime_ns
    assert cli(arguments) == 0 and "kept" in capsys.readouterr().out
    assert (run / "sasrec" / "model" / "model.safetensors").stat().st_mtime_ns == before
    assert cli([*arguments, "--seed", "1"]) == 0
    assert (run / "sasrec" / "model" / "model.safetensors").stat().st_mtime_ns > before


def test_stage_scores_the_examples_that_were_generated(tiny_prepared, tmp_path):
    examples = load_config(tiny_prepared, "default", "test")[:3]
    titles = load_catalog(tiny_prepared).titles
    table = pa.table(
        {
            "example_id": examples["example_id"],
            "target": pa.array(examples["target"], pa.int32()),
            "target_title": [titles[row] for row in examples["target"]],
            "history": examples["history"],
            "texts": [["x"]] * 3,
        }
    )
    (tmp_path / "run" / "finetuned").mkdir(parents=True)
    pq.write_table(table, tmp_path / "run" / "finetuned" / "generations.parquet")
    assert cli(["sasrec", "--dataset", tiny_prepared, "--run_dir", str(tmp_path / "run"), *STAGE]) == 0
    rankings = pq.read_table(tmp_path / "run" / "sasrec" / "rankings.parquet")
    assert rankings["example_id"].to_pylist() == examples["example_id"]


def test_faults(tiny_prepared, tmp_path, capsys):
    assert cli(["sasrec", "--run_dir", str(tmp_path)]) == 2
    assert "--dataset" in capsys.readouterr().err
    assert cli(["sasrec", "--dataset", tiny_prepared, "--run_dir", str(tmp_path), "--sasrec_heads", "3"]) == 2
    assert "hidden size 64 is not a multiple of 3 attention heads" in capsys.readouterr().err
    assert cli(["sasrec", "--dataset", tiny_prepared, "--run_dir", str(tmp_path), "--sasrec_stride", "11"]) == 2
    assert "stride 11 is outside 1 to max_length, 10" in capsys.readouterr().err
    with pytest.raises(BigrecError, match="no training sequence has two items"):
        train_sasrec(sequences_of([[1], [2]]), np.ones(7), examples([], []), tmp_path, SETTINGS, seed=0)
    catalog = Catalog(["a"] * 7, ["A"] * 7)
    with pytest.raises(BigrecError, match="another catalog"):
        check_catalog(tiny_sasrec(), catalog)
    with pytest.raises(ValueError, match="6 items were given"):
        tiny_sasrec()(torch.zeros(1, 6, dtype=torch.int64))


def test_an_empty_train_split_is_refused(tiny_prepared, tmp_path, monkeypatch):
    catalog = load_catalog(tiny_prepared)
    assert catalog_sha256(catalog) == catalog_sha256(load_catalog(tiny_prepared))
    empty = load_config(tiny_prepared, "default", "train").select([])
    monkeypatch.setattr("bigrec_hf.rank.sasrec.stage.load_config", lambda *_: empty)
    with pytest.raises(BigrecError, match="is empty"):
        trained_model(tmp_path, DataSettings(dataset=[tiny_prepared]), catalog, SETTINGS, RankOptions(), seed=0)
