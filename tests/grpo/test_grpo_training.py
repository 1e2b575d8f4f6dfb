"""The `grpo` stage: learns, changes nothing at a learning rate of zero, resumes, sees training examples only."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.fingerprints import fingerprint
from bigrec_hf.data.catalog import catalog_sha256, load_catalog
from bigrec_hf.data.prepared import CONTENT
from bigrec_hf.grpo import stage
from bigrec_hf.grpo.data import NUMBER, load_grpo
from bigrec_hf.grpo.rewards import NAMES, WeightedRewards, hit
from bigrec_hf.grpo.trainer import GrpoTrainer
from bigrec_hf.settings import DataSettings, GrpoSettings, ModelSettings, PromptSettings, RunSettings, SftSettings
from bigrec_hf.sft import stage as sft
from tests.grpo.test_rewards import save_sasrec
from tests.helpers.processes import flags, run_pair
from tests.helpers.tiny import save_tiny_model, tiny_tokenizer

LISTS = PromptSettings(train_prompt="titles", max_length=64, short_titles=True)
GRPO = GrpoSettings(
    group_size=4,
    group_width=0,
    grpo_sample=8,
    grpo_validation_sample=8,
    grpo_epochs=2,
    grpo_learning_rate=3e-3,
    grpo_batch_size=4,
    grpo_micro_batch_size=2,
)


@pytest.fixture(scope="module")
def start(tmp_path_factory, tiny_model_dir, tiny_prepared) -> Path:
    """The adapter of a short training with the objective dense."""
    folder = tmp_path_factory.mktemp("start") / "adapter"
    settings = SftSettings(
        objective="dense", loss="trie", sample=0, validation_sample=8, epochs=1, learning_rate=1e-2, warmup_steps=0,
        global_batch_size=4, micro_batch_size=4, lora_dropout=0.1, adapter_dir=str(folder),
    )  # fmt: skip
    model = ModelSettings(base_model=tiny_model_dir, dtype="float32")
    sft.main(RunSettings(), DataSettings(dataset=[tiny_prepared]), model, LISTS, settings)
    return folder


def learn(folder: Path, start: Path, model_dir: str, prepared: str, quantization: str = "none", **changes) -> dict:
    model = ModelSettings(base_model=model_dir, dtype="float32", quantization=quantization)
    settings = replace(GRPO, start_adapter=str(start), grpo_adapter_dir=str(folder / "new"), **changes)
    return stage.main(RunSettings(), DataSettings(dataset=[prepared]), model, LISTS, settings)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def curve(record: dict, name: str) -> list[float]:
    return [entry[name] for entry in record["history"] if name in entry]


@pytest.mark.parametrize("group_titles", ["beams", "sample"])
def test_rewards_rise_on_examples_that_can_be_memorized(group_titles, start, tiny_model_dir, tiny_prepared, tmp_path):
    record = learn(
        tmp_path, start, tiny_model_dir, tiny_prepared, group_titles=group_titles, rewards={"hit": 1.0},
        group_size=8, grpo_epochs=30, grpo_evals_per_epoch=0, grpo_batch_size=8, grpo_micro_batch_size=8,
        grpo_learning_rate=2e-2,
    )  # fmt: skip
    nats = curve(record, "target_nats")
    assert np.mean(nats[-3:]) < np.mean(nats[:3]) - 1
    if group_titles == "sample":  # the weighted mean of the hits is an estimate of the target's probability
        assert np.mean(curve(record, "reward")[-3:]) > 2 * np.mean(curve(record, "reward")[:3])
    assert curve(record, "kl")[0] == pytest.approx(0, abs=1e-6) and curve(record, "kl")[-1] > 0.1
    assert record["best_eval_loss"] is None
    for name in ("entropy", "hit_rate", "target_in_group", "zero_advantage", "used", "reward_hit"):
        assert len(curve(record, name)) == record["optimizer_steps"] == 30


def test_sdpo_prefers_the_target(start, tiny_model_dir, tiny_prepared, tmp_path):
    record = learn(
        tmp_path, start, tiny_model_dir, tiny_prepared, grpo_method="sdpo", grpo_epochs=30, grpo_evals_per_epoch=0,
        grpo_batch_size=8, grpo_micro_batch_size=4, grpo_learning_rate=2e-2,
    )  # fmt: skip
    assert curve(record, "loss")[0] == pytest.approx(np.log(4), rel=1e-4)
    assert curve(record, "loss")[-1] < 1 and curve(record, "preferred")[-1] > curve(record, "preferred")[0] == 0
    assert curve(record, "target_nats")[-1] < curve(record, "target_nats")[0]
    assert not curve(record, "reward")


def test_the_expected_reward_is_learned_exactly(start, tiny_model_dir, tiny_prepared, tmp_path):
    """All titles are in the group and only the hit counts: the loss is minus the mean probability of the target."""
    record = learn(
        tmp_path, start, tiny_model_dir, tiny_prepared, grpo_method="expected", rewards={"hit": 1}, group_size=20,
        grpo_epochs=30, grpo_evals_per_epoch=0, grpo_batch_size=8, grpo_micro_batch_size=8, grpo_learning_rate=2e-2,
        kl_beta=0.0,
    )  # fmt: skip
    chances = -np.array(curve(record, "loss"))
    assert 0 < chances[0] < 0.3 and chances[-1] > 2 * chances[0]
    nats = np.array(curve(record, "target_nats"))
    assert (chances >= np.exp(-nats) - 1e-3).all()  # the mean of probabilities is at least their geometric mean
    assert max(curve(record, "zero_advantage")) == 0 and min(curve(record, "used")) == 1


@pytest.mark.parametrize("method", ["grpo", "expected", "sdpo"])
def test_a_learning_rate_of_zero_changes_nothing(method, start, tiny_model_dir, tiny_prepared, tmp_path):
    record = learn(tmp_path, start, tiny_model_dir, tiny_prepared, grpo_learning_rate=0.0, grpo_method=method)
    before, after = weights(start), weights(tmp_path / "new")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    losses = curve(record, "eval_loss")
    assert len(losses) == 2 and losses[0] == losses[1]
    assert losses[0] == pytest.approx(curve(json.loads((start / "training.json").read_text()), "eval_loss")[-1])


def test_an_interrupted_training_ends_with_the_same_adapter(
    start, tiny_model_dir, tiny_prepared, tmp_path, monkeypatch
):
    options = {"group_titles": "sample", "kl_beta": 0.1}
    whole = learn(tmp_path / "whole", start, tiny_model_dir, tiny_prepared, **options)
    step = GrpoTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step >= whole["optimizer_steps"] * 3 // 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(GrpoTrainer, "training_step", dies)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", start, tiny_model_dir, tiny_prepared, **options)
    monkeypatch.setattr(GrpoTrainer, "training_step", step)
    again = learn(tmp_path / "cut", start, tiny_model_dir, tiny_prepared, **options)
    a, b = weights(tmp_path / "whole" / "new"), weights(tmp_path / "cut" / "new")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert curve(again, "kl") == curve(whole, "kl")  # the reference is the first adapter, not the checkpoint
    kept = learn(tmp_path / "cut", start, tiny_model_dir, tiny_prepared, **options)
    assert kept["fingerprint"] == again["fingerprint"] and kept["seconds"] == again["seconds"]


def test_adapters_that_a_new_setting_does_not_change_are_kept(start, tiny_model_dir, tiny_prepared, tmp_path):
    settings = (RunSettings(), DataSettings(dataset=[tiny_prepared]), ModelSettings(base_model=tiny_model_dir), LISTS)

    def mark(**changes):
        own = replace(GRPO, start_adapter=str(start), grpo_adapter_dir=str(tmp_path / "new"), **changes)
        return fingerprint(stage.training_settings(*settings, own))

    assert mark() == mark(percentile_by="anything", reward_encoder="any/thing", grpo_eval_k=0)
    assert mark(grpo_eval_k=5) != mark()
    like = {"rewards": {"similarity": 1}}
    other = save_tiny_model(tmp_path / "other", seed=7)
    assert mark(**like) != mark(**like, reward_encoder=other)
    catalog = load_catalog(tiny_prepared)
    sasrec = save_sasrec(tmp_path / "model", catalog_sha256(catalog), len(catalog))
    assert mark(rewards={"percentile": 1}) != mark(rewards={"percentile": 1}, percentile_by=sasrec)


def test_a_curriculum_learns_from_examples_within_reach(start, tiny_model_dir, tiny_prepared, tmp_path):
    record = learn(tmp_path, start, tiny_model_dir, tiny_prepared, curriculum_top=4, kl_beta=0.0)
    used, hits, flat = (np.array(curve(record, name)) for name in ("used", "hit_rate", "zero_advantage"))
    np.testing.assert_allclose(used, hits)
    np.testing.assert_allclose(flat, 1 - hits)
    assert 0 < used.mean() < 1


def test_no_group_is_without_advantage_if_the_target_is_added(start, tiny_model_dir, tiny_prepared, tmp_path):
    record = learn(tmp_path, start, tiny_model_dir, tiny_prepared, target_in_group=True)
    assert max(curve(record, "zero_advantage")) == 0 and min(curve(record, "target_in_group")) == 1
    assert np.mean(curve(record, "hit_rate")) < 1


# --- what is read ---------------------------------------------------------------------------------------------------


def split_file(dataset: Path, split: str) -> Path:
    return dataset / "data" / "default" / f"{split}.parquet"


ALL_REWARDS = {"hit": 1, "ranked": 1, "ndcg": 1, "percentile": 1, "similarity": 1, "relevance_diversity_novelty": 1}


def with_marked_labels(prepared: str, folder: Path) -> tuple[str, int]:
    """A copy of a prepared set in which one item is the target of every validation and test example and, in the
    training split, of none."""
    copy = Path(shutil.copytree(prepared, folder / "marked"))
    train = pq.read_table(split_file(copy, "train"))
    targets = train[C.TARGET].to_numpy()
    marker = int(np.bincount(targets, minlength=20).argmin())
    kept = train.filter(pa.array(targets != marker))
    kept = kept.set_column(
        kept.column_names.index(C.HISTORY),
        C.HISTORY,
        pa.array([[row for row in h if row != marker] for h in kept[C.HISTORY].to_pylist()], train[C.HISTORY].type),
    )
    pq.write_table(kept, split_file(copy, "train"))
    for split in ("validation", "test"):
        table = pq.read_table(split_file(copy, split))
        column = pa.array([marker] * len(table), table[C.TARGET].type)
        pq.write_table(table.set_column(table.column_names.index(C.TARGET), C.TARGET, column), split_file(copy, split))
    facts = json.loads((copy / "facts.json").read_text())
    del facts[CONTENT]  # the hashes of the tables
    (copy / "facts.json").write_text(json.dumps(facts))
    return str(copy), marker


def test_no_reward_sees_a_label_of_validation_or_test(start, tiny_model_dir, tiny_prepared, tmp_path, monkeypatch):
    prepared, marker = with_marked_labels(tiny_prepared, tmp_path)
    train = pq.read_table(split_file(Path(prepared), "train"))
    truth = dict(zip(train[C.EXAMPLE_ID].to_pylist(), train[C.TARGET].to_pylist(), strict=True))
    loaded = load_grpo(prepared, tiny_tokenizer(), LISTS, replace(GRPO, grpo_sample=0), seed=0)
    assert loaded.examples.targets == truth and list(truth) == loaded.examples.example_ids
    assert len(loaded.train) == len(truth) and loaded.train.column_names == [NUMBER]
    assert marker not in loaded.sequences.items
    assert not any(marker in history for history in loaded.examples.histories)

    assert tuple(ALL_REWARDS) == NAMES
    seen, call = [], WeightedRewards.__call__

    def watched(self, groups):
        seen.append(groups)
        return call(self, groups)

    monkeypatch.setattr(WeightedRewards, "__call__", watched)
    record = learn(tmp_path, start, tiny_model_dir, prepared, group_size=20, rewards=ALL_REWARDS)
    assert all(len(curve(record, f"reward_{name}")) == 4 for name in ALL_REWARDS)
    assert curve(record, "eval_loss")  # validation was read, for the loss alone
    assert len(seen) == 8
    for groups in seen:
        assert [truth[name] for name in groups.example_ids] == groups.targets.tolist()
        rewarded = groups.rows[hit(groups) > 0].tolist()
        assert rewarded == groups.targets.tolist() and marker not in rewarded
        assert (groups.rows == marker).any(axis=1).all()  # it is in every group, and never right


@pytest.mark.parametrize("by", ["ease", "sasrec"])
def test_training_does_not_depend_on_the_other_splits(by, start, tiny_model_dir, tiny_prepared, tmp_path):
    """The same training split beside other labels gives the same adapter, with all rewards; SASRec as it is."""
    prepared, _ = with_marked_labels(tiny_prepared, tmp_path)
    catalog = load_catalog(prepared)
    model = by if by == "ease" else save_sasrec(tmp_path / "model", catalog_sha256(catalog), len(catalog))
    other = shutil.copytree(prepared, tmp_path / "other")
    for split in ("validation", "test"):
        shutil.copy(split_file(Path(tiny_prepared), split), split_file(other, split))
    for name, data in (("a", prepared), ("b", str(other))):
        learn(tmp_path / name, start, tiny_model_dir, data, rewards=ALL_REWARDS, percentile_by=model)
    a, b = weights(tmp_path / "a" / "new"), weights(tmp_path / "b" / "new")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not all(torch.equal(a[name], value) for name, value in weights(start).items())


def test_prompts_are_those_of_generation(tiny_prepared):
    from bigrec_hf.data.examples import load_examples
    from bigrec_hf.generate.inputs import render_prompts

    prompt = replace(LISTS, max_history=6, max_length=18)
    loaded = load_grpo(tiny_prepared, tiny_tokenizer(), prompt, replace(GRPO, grpo_sample=0), seed=0)
    examples = load_examples(tiny_prepared, "train")
    expected, dropped = render_prompts(examples, tiny_tokenizer(), prompt, 0, loaded.catalog.tokens.lists)
    assert dropped > 0
    assert [loaded.collator.prompt(history) for history in loaded.examples.histories] == expected


@pytest.mark.parametrize(
    ("prompt", "changes", "words"),
    [
        ({"train_prompt": "alpaca-basic"}, {}, "set train_prompt titles"),
        ({"max_length": 3}, {}, "raise it"),
        ({}, {"group_size": 21}, "catalog has 20 different titles"),
        ({}, {"start_adapter": "no/where/at all"}, "no adapter in 'no/where/at all'"),
        ({}, {"rewards": {"hits": 1}}, "unknown reward 'hits'"),
        ({}, {"rewards": {"percentile": 1}, "percentile_by": "itemknn"}, "neither ease nor the folder of a SASRec"),
        ({}, {"rewards": {"similarity": 1}, "reward_encoder": "no/such/folder"}, "'no/such/folder'"),
        ({}, {"grpo_method": "expected", "group_titles": "sample"}, "set group_titles beams"),
        ({}, {"grpo_adapter_dir": "START"}, "give the new one another folder"),
    ],
)
def test_settings_that_do_not_go_together(prompt, changes, words, start, tiny_model_dir, tiny_prepared, tmp_path):
    changes = {name: str(start) if value == "START" else value for name, value in changes.items()}
    settings = {"start_adapter": str(start), "grpo_adapter_dir": str(tmp_path / "new")} | changes
    model = ModelSettings(base_model=tiny_model_dir, dtype="float32")
    with pytest.raises(BigrecError, match=words):
        stage.main(
            RunSettings(), DataSettings(dataset=[tiny_prepared]), model, replace(LISTS, **prompt),
            replace(GRPO, **settings),
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_bases(quantization, start, tiny_model_dir, tiny_prepared, tmp_path):
    pytest.importorskip("bitsandbytes")
    record = learn(
        tmp_path, start, tiny_model_dir, tiny_prepared, quantization=quantization, group_titles="sample", grpo_epochs=4
    )
    assert np.isfinite(curve(record, "eval_loss")).all() and curve(record, "kl")[-1] > 0
    before, after = weights(start), weights(tmp_path / "new")
    assert not all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.slow
def test_two_processes_train_the_same_adapter(start, tiny_model_dir, tiny_prepared, tmp_path):
    options = {"grpo_epochs": 1, "kl_beta": 0.1, "group_width": 0, "grpo_eval_k": 5}
    alone = learn(tmp_path, start, tiny_model_dir, tiny_prepared, **options)
    arguments = flags(
        dataset=tiny_prepared, base_model=tiny_model_dir, dtype="float32", train_prompt="titles", max_length=64,
        short_titles="true", start_adapter=start, output_dir=tmp_path / "two", group_size=4, grpo_sample=8,
        grpo_validation_sample=8, grpo_learning_rate=3e-3, grpo_batch_size=4, grpo_micro_batch_size=2, **options,
    )  # fmt: skip
    done = run_pair("-m", "bigrec_hf.grpo", *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    together = json.loads((tmp_path / "two" / "training.json").read_text())
    assert together["n_processes"] == 2 and together["optimizer_steps"] == alone["optimizer_steps"] == 2
    for name in ("entropy", "reward", "kl", "eval_ndcg@5", "eval_hr@5"):
        np.testing.assert_allclose(curve(together, name), curve(alone, name), rtol=0.05, atol=1e-3)
    a, b = weights(tmp_path / "new"), weights(tmp_path / "two")
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-3, rtol=1e-2)
