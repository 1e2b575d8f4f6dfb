"""grpo_rollout text: TRL samples titles from an adapter of the objective pairs; rewards are those of grounded rows."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from trl import GRPOConfig

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.ground.index import CatalogIndex
from bigrec_hf.grpo import stage
from bigrec_hf.grpo.grounded import Grounding, grounded_ndcg
from bigrec_hf.grpo.rewards import WeightedRewards, hit, load_rewards
from bigrec_hf.grpo.text import TextTrainer, grpo_config, in_order, keep_base, load_texts
from bigrec_hf.models.loading import load_base, load_trainable
from bigrec_hf.settings import DataSettings, GrpoSettings, ModelSettings, PromptSettings, RunSettings, SftSettings
from bigrec_hf.sft import stage as sft
from tests.grpo.test_grpo_training import split_file, with_marked_labels
from tests.helpers.processes import flags, run_pair
from tests.helpers.tiny import tiny_tokenizer

PAIRS = PromptSettings(max_length=512)
GRPO = GrpoSettings(
    grpo_rollout="text",
    group_size=4,
    rewards={"hit": 1.0, "ndcg": 1.0},
    grpo_sample=4,
    grpo_epochs=2,
    grpo_learning_rate=3e-3,
    grpo_batch_size=2,
    grpo_micro_batch_size=2,
    kl_beta=0.1,
)


@pytest.fixture(scope="module")
def start(tmp_path_factory, tiny_model_dir, tiny_prepared) -> Path:
    """The adapter of a short training on pairs."""
    folder = tmp_path_factory.mktemp("start") / "adapter"
    settings = SftSettings(
        sample=16, epochs=8, learning_rate=2e-2, warmup_steps=0, evals_per_epoch=0, global_batch_size=8,
        micro_batch_size=8, adapter_dir=str(folder),
    )  # fmt: skip
    model = ModelSettings(base_model=tiny_model_dir, dtype="float32")
    sft.main(RunSettings(), DataSettings(dataset=[tiny_prepared]), model, PAIRS, settings)
    return folder


def learn(folder: Path, start: Path, model_dir: str, prepared: str, **changes) -> dict:
    model = ModelSettings(base_model=model_dir, dtype="float32")
    settings = replace(GRPO, start_adapter=str(start), grpo_adapter_dir=str(folder / "new"), **changes)
    return stage.main(RunSettings(), DataSettings(dataset=[prepared]), model, PAIRS, settings)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def curve(record: dict, name: str) -> list[float]:
    return [entry[name] for entry in record["history"] if name in entry]


def grounding(**changes) -> Grounding:
    """Four titles at 0, 1, 3 and 3 on a line, the last two alike; an unknown text is where its number says."""
    catalog = Catalog(["a", "b", "c", "d"], ["A", "B", "C", "C"])
    index = CatalogIndex(catalog, np.array([[0.0], [1], [3], [3]], np.float32), {})
    options = {
        "targets": {"x": 1, "y": 3},
        "histories": {"x": [0], "y": [0, 1]},
        "rewards": WeightedRewards({"hit": (1.0, hit), "ndcg": (10.0, grounded_ndcg)}),
    }
    encode = lambda texts: np.array([[float(text)] for text in texts], np.float32)  # noqa: E731
    return Grounding(index=index, encode=encode, **(options | changes))


def test_rewards_of_texts_by_hand():
    logged: dict[str, float] = {}
    texts = ['"B"', "0.9", "A", "", 'C"\nmore', "2.4"]
    values = grounding()(
        ["p"] * 6, texts, example_id=["x", "x", "x", "x", "y", "y"], log_metric=logged.__setitem__, completion_ids=None
    )
    third = 1 / np.log2(3)  # NDCG of rank 2
    assert values == pytest.approx([11, 11, 10 * third, 0, 11, 11])
    assert logged["in_catalog"] == pytest.approx(3 / 6) and logged["hit_rate"] == pytest.approx(4 / 6)
    assert logged["reward_hit"] == pytest.approx(4 / 6) and logged["reward_ndcg"] == pytest.approx((4 + third) / 6)


def test_to_write_nothing_is_never_the_best():
    penalty = WeightedRewards({"hit": (-3.0, hit)})
    values = grounding(rewards=penalty)(
        ["p"] * 3, ["B", "A", '" " "'], example_id=["x"] * 3, log_metric=lambda name, value: None
    )
    assert values == [-3.0, 0.0, -3.0]


def test_merging_for_another_engine_leaves_the_base_as_it_was(start, tiny_model_dir):
    model = load_trainable(load_base(tiny_model_dir, dtype="bfloat16", for_training=True), str(start))
    before = {name: value.clone() for name, value in model.state_dict().items()}

    def sync():
        model.merge_adapter()
        model.unmerge_adapter()

    sync()
    rounded = model.state_dict()
    assert any(not torch.equal(rounded[name], value) for name, value in before.items())
    model.load_state_dict(before)
    keep_base(model, sync)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_log_probabilities_that_are_not_the_models_are_refused(
    start, tiny_model_dir, tiny_prepared, tmp_path, monkeypatch
):
    found = TextTrainer._get_per_token_logps_and_entropies
    monkeypatch.setattr(
        TextTrainer,
        "_get_per_token_logps_and_entropies",
        lambda *args, **options: (1.1 * found(*args, **options)[0], None, None),
    )
    with pytest.raises(BigrecError, match=r"mean log-probability .* take another base model"):
        learn(tmp_path, start, tiny_model_dir, tiny_prepared)


def test_titles_that_are_the_same_are_one_row():
    groups = grounding().groups(["y", "y"], ["C", "2.9"])
    assert groups.is_target.all() and groups.rows.tolist() == [[2], [2]] and groups.target_ranks.tolist() == [1, 1]
    assert list(groups.histories) == [[0, 1], [0, 1]]


def test_only_empty_answers_have_no_reward():
    logged: dict[str, float] = {}
    assert grounding()(["p"], [' "" \n'], example_id=["x"], log_metric=logged.__setitem__) == [0.0]
    assert logged == {"in_catalog": 0, "hit_rate": 0, "reward_hit": 0, "reward_ndcg": 0}


def test_prompts_are_those_of_generate_and_leave_room_for_a_title(tiny_prepared):
    tokenizer = tiny_tokenizer()
    titles = ["short", "a much longer title"]
    examples = load_texts(tiny_prepared, tokenizer, PAIRS, 5, seed=0, titles=titles)
    longest = len(tokenizer('"a much longer title"', add_special_tokens=False)["input_ids"])
    assert examples.completion_tokens == longest + 2 and len(examples.rows) == 5
    assert set(examples.rows.column_names) == {"prompt", "example_id"}
    assert all(text.endswith("### Response:\n") for text in examples.rows["prompt"])
    assert set(examples.targets) == set(examples.histories) == set(examples.rows["example_id"])
    with pytest.raises(BigrecError, match="raise max_length"):
        load_texts(tiny_prepared, tokenizer, replace(PAIRS, max_length=30), 5, seed=0, titles=titles)


def test_the_adapter_learns_and_the_parts_of_the_reward_are_logged(start, tiny_model_dir, tiny_prepared, tmp_path):
    record = learn(tmp_path, start, tiny_model_dir, tiny_prepared, rewards={"hit": 2.0, "ndcg": 1.0}, grpo_epochs=1.5)
    before, after = weights(start), weights(tmp_path / "new")
    assert any(not torch.equal(before[name], after[name]) for name in before)
    parts = [2 * np.array(curve(record, "reward_hit")) + np.array(curve(record, "reward_ndcg"))]
    np.testing.assert_allclose(parts[0], curve(record, "reward"), atol=1e-5)
    assert record["optimizer_steps"] == 3 and record["n_train"] == 4 and record["epochs_done"] == 1.5
    assert record["n_train_targets"] == 6  # examples read, the x axis of its plots


def test_all_epochs_are_rows_in_an_order_of_the_seed():
    rows = Dataset.from_dict({"prompt": list("abcd")})
    order = in_order(rows, replace(GRPO, grpo_epochs=2.5), seed=1)["prompt"][:]
    assert len(order) == 10 and sorted(order[:4]) == sorted(order[4:8]) == list("abcd") and len({*order[8:]}) == 2
    assert order == in_order(rows, replace(GRPO, grpo_epochs=2.5), seed=1)["prompt"][:]
    assert order != in_order(rows, replace(GRPO, grpo_epochs=2.5), seed=2)["prompt"][:]
    with pytest.raises(BigrecError, match="grpo_batch_size is 2, more than the 1 examples"):
        in_order(rows, replace(GRPO, grpo_epochs=0.25), seed=1)


def test_a_learning_rate_of_zero_changes_nothing_and_no_reference_is_written(
    start, tiny_model_dir, tiny_prepared, tmp_path
):
    record = learn(tmp_path, start, tiny_model_dir, tiny_prepared, grpo_learning_rate=0.0)
    before, after = weights(start), weights(tmp_path / "new")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert curve(record, "kl") == pytest.approx([0] * 4, abs=1e-6)
    assert not [path for path in (tmp_path / "new").iterdir() if path.is_dir()]


def test_no_reward_sees_a_label_of_validation_or_test(start, tiny_model_dir, tiny_prepared, tmp_path, monkeypatch):
    prepared, marker = with_marked_labels(tiny_prepared, tmp_path)
    train = pq.read_table(split_file(Path(prepared), "train"))
    truth = dict(zip(train[C.EXAMPLE_ID].to_pylist(), train[C.TARGET].to_pylist(), strict=True))
    seen, call = [], WeightedRewards.__call__

    def watched(self, groups):
        seen.append(groups)
        return call(self, groups)

    monkeypatch.setattr(WeightedRewards, "__call__", watched)
    names = ["hit", "ndcg", "percentile", "similarity", "relevance_diversity_novelty"]
    record = learn(tmp_path, start, tiny_model_dir, prepared, rewards=dict.fromkeys(names, 1.0), grpo_epochs=1)
    assert all(len(curve(record, f"reward_{name}")) == 2 for name in names)
    assert seen
    for groups in seen:
        assert [truth[name] for name in groups.example_ids] == groups.targets.tolist()
        assert marker not in groups.targets and not any(marker in history for history in groups.histories)


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_same_adapter(
    start, tiny_model_dir, tiny_prepared, tmp_path, monkeypatch
):
    whole = learn(tmp_path / "whole", start, tiny_model_dir, tiny_prepared)
    step = TextTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step >= 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(TextTrainer, "training_step", dies)
    with pytest.raises(KeyboardInterrupt):
        learn(tmp_path / "cut", start, tiny_model_dir, tiny_prepared)
    monkeypatch.setattr(TextTrainer, "training_step", step)
    again = learn(tmp_path / "cut", start, tiny_model_dir, tiny_prepared)
    a, b = weights(tmp_path / "whole" / "new"), weights(tmp_path / "cut" / "new")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert curve(again, "kl") == curve(whole, "kl") and curve(whole, "kl")[-1] > 0


@pytest.mark.parametrize(
    ("prompt", "changes", "message"),
    [
        (replace(PAIRS, train_prompt="titles"), {}, "set another train_prompt"),
        (PAIRS, {"grpo_rollout": "titles"}, "or grpo_rollout text"),
        (PAIRS, {"grpo_method": "sdpo"}, "grpo_method is 'sdpo'.*leave it at 'grpo'"),
        (PAIRS, {"target_in_group": True}, "target_in_group is True.*leave it at False"),
        (PAIRS, {"rewards": {"ranked": 1}}, "the reward ranked needs groups"),
        (PAIRS, {"grpo_trainer_args": {"no_such": 1}}, "'no_such' is not a field of trl.GRPOConfig"),
        (PAIRS, {"dpo_beta": 2.0}, "dpo_beta is 2.0.*leave it at 1.0"),
        (PAIRS, {"grpo_trainer_args": {"num_generations": 3}}, "num_generations: it follows from the settings"),
        (PAIRS, {"grpo_trainer_args": {"beta": "high"}}, "beta: 'high' is not a number"),
    ],
)
def test_settings_that_do_not_go_together(prompt, changes, message, start, tiny_model_dir, tiny_prepared, tmp_path):
    settings = replace(GRPO, start_adapter=str(start), grpo_adapter_dir=str(tmp_path / "new"), **changes)
    model = ModelSettings(base_model=tiny_model_dir, dtype="float32")
    with pytest.raises(BigrecError, match=message):
        stage.main(RunSettings(), DataSettings(dataset=[tiny_prepared]), model, prompt, settings)


def test_settings_reach_trl(tmp_path):
    config = stage_config(tmp_path, scale_advantages=False, grpo_trainer_args={"temperature": "0.7"})
    assert isinstance(config, GRPOConfig)
    assert (config.num_generations, config.per_device_train_batch_size, config.gradient_accumulation_steps) == (4, 8, 1)
    assert config.beta == 0.1 and config.temperature == 0.7 and config.scale_rewards == "none"
    with pytest.raises(BigrecError, match="use 16 bits"):
        stage_config(tmp_path, quantized=True, grpo_trainer_args={"use_vllm": True})
    assert config.max_completion_length == 9 and not config.use_vllm


def stage_config(folder: Path, quantized: bool = False, **changes) -> GRPOConfig:
    settings = replace(GRPO, **changes)
    return grpo_config(str(folder), settings, dtype=torch.float32, quantized=quantized, seed=0, tokens=9, n_examples=8)


def test_the_name_ndcg_stands_for_the_grounded_list():
    rewards = load_rewards({"ndcg": 1}, lambda: None, lambda: None, ndcg=grounded_ndcg)
    assert rewards.parts["ndcg"][1] is grounded_ndcg


@pytest.mark.slow
def test_two_processes_share_the_examples(start, tiny_model_dir, tiny_prepared, tmp_path):
    arguments = flags(
        dataset=tiny_prepared, base_model=tiny_model_dir, dtype="float32", train_prompt="alpaca-basic", max_length=512,
        start_adapter=start, output_dir=tmp_path / "two" / "new", grpo_rollout="text", group_size=4, grpo_sample=4,
        rewards="{hit: 1, similarity: 1}", grpo_epochs=1, grpo_learning_rate=3e-3, grpo_batch_size=2,
        grpo_micro_batch_size=1, kl_beta=0.1,
    )  # fmt: skip
    done = run_pair("-m", "bigrec_hf.grpo", *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads((tmp_path / "two" / "new" / "training.json").read_text())
    assert record["n_processes"] == 2 and record["optimizer_steps"] == 2
    assert curve(record, "kl")[0] == pytest.approx(0, abs=1e-6) and len(curve(record, "reward_similarity")) == 2
    before, after = weights(start), weights(tmp_path / "two" / "new")
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    assert not (tmp_path / "two" / "new" / "ref").exists()
