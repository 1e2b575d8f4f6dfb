"""The libraries above huggingface_hub, unmodified: datasets, evaluate, transformers, peft."""

from __future__ import annotations

import shutil
from pathlib import Path

import datasets
import evaluate
import pytest
import torch
from datasets import Dataset, DatasetDict, load_dataset
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from tests.helpers.tiny import tiny_model, tiny_tokenizer
from tests.loopback_hub.fixtures import PROJECT, HubHandle

CARD = """---
configs:
- config_name: default
  default: true
  data_files:
  - {split: train, path: data/train-*.parquet}
  - {split: test, path: data/test.parquet}
- config_name: items
  data_files:
  - {split: train, path: items.parquet}
---
# A set
"""


@pytest.fixture
def parquet_folder(tmp_path: Path) -> Path:
    """A data set repository as one writes it by hand: parquet files, configs and splits in the card's YAML."""
    root = tmp_path / "set"
    (root / "data").mkdir(parents=True)
    (root / "README.md").write_text(CARD)
    for shard in range(2):
        rows = [3 * shard + i for i in range(3)]
        Dataset.from_dict({"row": rows, "title": [f"Film {i}" for i in rows]}).to_parquet(
            root / "data" / f"train-{shard}.parquet"
        )
    Dataset.from_dict({"row": [9], "title": ["Amélie"]}).to_parquet(root / "data" / "test.parquet")
    Dataset.from_dict({"item_id": ["a", "b"]}).to_parquet(root / "items.parquet")
    return root


def publish(hub: HubHandle, name: str, folder: Path, kind: str = "model", **values: object) -> str:
    repo_id = hub.new_id(name)
    hub.api().create_repo(repo_id, repo_type=kind, space_sdk="gradio" if kind == "space" else None, **values)
    hub.api().upload_folder(repo_id=repo_id, repo_type=kind, folder_path=folder)
    return repo_id


def test_load_dataset(hub: HubHandle, parquet_folder: Path, tmp_path: Path) -> None:
    repo_id = publish(hub, "set", parquet_folder, "dataset", private=True)
    pinned = hub.api().dataset_info(repo_id).sha
    loaded = load_dataset(repo_id, cache_dir=tmp_path / "cache")
    assert {split: rows.num_rows for split, rows in loaded.items()} == {"train": 6, "test": 1}
    assert loaded["train"]["row"][:] == [0, 1, 2, 3, 4, 5] and loaded["test"][0]["title"] == "Amélie"
    assert load_dataset(repo_id, "items", split="train", cache_dir=tmp_path / "cache")["item_id"][:] == ["a", "b"]

    Dataset.from_dict({"row": [10, 11], "title": ["x", "y"]}).to_parquet(parquet_folder / "data" / "test.parquet")
    hub.api().upload_folder(repo_id=repo_id, repo_type="dataset", folder_path=parquet_folder)
    for revision, rows in {"main": [10, 11], pinned: [9]}.items():
        for cache in ("cache", "other"):
            got = load_dataset(repo_id, split="test", revision=revision, cache_dir=tmp_path / cache)
            assert got["row"][:] == rows


def test_stream_a_dataset(hub: HubHandle, parquet_folder: Path) -> None:
    repo_id = publish(hub, "set", parquet_folder, "dataset")
    hub.faults.add("drop", "*/train-1.parquet", method="GET", after=10)
    streamed = load_dataset(repo_id, split="train", streaming=True)
    assert [row["row"] for row in streamed] == [0, 1, 2, 3, 4, 5]
    assert hub.faults.all()[0]["hits"] == 1
    with pytest.raises(datasets.exceptions.DatasetNotFoundError):
        load_dataset("alice/no-such-set", streaming=True)
    with pytest.raises(datasets.exceptions.DatasetNotFoundError, match="Revision 'no-such-revision' doesn't exist"):
        load_dataset(repo_id, revision="no-such-revision")


def test_push_a_dataset_dict(hub: HubHandle, tmp_path: Path) -> None:
    repo_id = hub.new_id("pushed")
    parts = DatasetDict({name: Dataset.from_dict({"n": [1, 2, i]}) for i, name in enumerate(("train", "test"))})
    parts.push_to_hub(repo_id, private=True)
    parts["test"].push_to_hub(repo_id, "other", split="validation")
    loaded = load_dataset(repo_id, cache_dir=tmp_path)
    assert {name: rows["n"][:] for name, rows in loaded.items()} == {"train": [1, 2, 0], "test": [1, 2, 1]}
    assert load_dataset(repo_id, "other", split="validation", cache_dir=tmp_path)["n"][:] == [1, 2, 1]


def test_load_a_metric_from_its_space(hub: HubHandle, tmp_path: Path) -> None:
    """In a fresh process, from a folder without the project: nothing but the Space is read."""
    folder = tmp_path / "ndcg_hr"
    shutil.copytree(PROJECT / "metrics" / "ndcg_hr", folder, ignore=shutil.ignore_patterns("__pycache__"))
    repo_id = "acme/ndcg_hr"  # evaluate wants the file to have the repository's name
    hub.api().create_repo(repo_id, repo_type="space", space_sdk="gradio", exist_ok=True)
    hub.api().upload_folder(repo_id=repo_id, repo_type="space", folder_path=folder)
    code = """
import sys, evaluate
metric = evaluate.load(sys.argv[1], config_name="rankings")
print(metric.compute(predictions=[[3, 1, 2], [2, 3, 1]], references=[1, 2], ks=[1, 3]))
"""
    done = hub.run_python(code, repo_id, cwd=tmp_path)
    local = evaluate.load(str(PROJECT / "metrics" / "ndcg_hr"), config_name="rankings")
    expected = local.compute(predictions=[[3, 1, 2], [2, 3, 1]], references=[1, 2], ks=[1, 3])
    assert done.stdout.strip() == str(expected)
    assert expected["ndcg@1"] == 0.5 and expected["hr@3"] == 1.0


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.arange(12)[None]).logits


def test_push_and_load_a_model(hub: HubHandle) -> None:
    repo_id = hub.new_id("model")
    model = tiny_model()
    first = model.push_to_hub(repo_id, private=True).oid
    tiny_tokenizer().push_to_hub(repo_id)
    other = tiny_model(seed=1)
    other.push_to_hub(repo_id)
    assert AutoTokenizer.from_pretrained(repo_id)("Toy Story")["input_ids"]
    for revision, expected in {"main": other, first: model}.items():
        loaded = AutoModelForCausalLM.from_pretrained(repo_id, revision=revision)
        assert torch.equal(logits(loaded), logits(expected))
    with pytest.raises(OSError, match="nowhere is not a valid git identifier"):
        AutoModelForCausalLM.from_pretrained(repo_id, revision="nowhere")
    with pytest.raises(OSError, match="not a valid model identifier"):
        AutoModelForCausalLM.from_pretrained("alice/no-such-model")


def test_push_and_load_an_adapter_on_a_base_of_the_hub(hub: HubHandle) -> None:
    base_id, adapter_id = hub.new_id("base"), hub.new_id("adapter")
    tiny_model().push_to_hub(base_id)
    base = AutoModelForCausalLM.from_pretrained(base_id)
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
    tuned.push_to_hub(adapter_id)
    loaded = AutoPeftModelForCausalLM.from_pretrained(adapter_id)
    assert loaded.peft_config["default"].base_model_name_or_path == base_id
    assert torch.equal(logits(loaded), logits(tuned.eval()))
    assert not torch.equal(logits(loaded), logits(AutoModelForCausalLM.from_pretrained(base_id)))


def test_a_trainer_goes_on_from_the_checkpoint_it_pushed(hub: HubHandle, tmp_path: Path) -> None:
    repo_id = hub.new_id("trainer")
    rows = Dataset.from_dict({"input_ids": [[i, i + 1, i + 2, i + 3] for i in range(8)]})
    rows = rows.add_column("labels", rows["input_ids"][:])

    def trainer(name: str, steps: int) -> Trainer:
        arguments = TrainingArguments(
            output_dir=tmp_path / name,
            push_to_hub=True,
            hub_model_id=repo_id,
            hub_strategy="checkpoint",
            max_steps=steps,
            save_steps=2,
            per_device_train_batch_size=2,
            lr_scheduler_type="constant",
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        )
        return Trainer(tiny_model(), arguments, train_dataset=rows)

    first = trainer("first", 2)
    first.train()
    first.push_to_hub()
    hub.api().snapshot_download(repo_id, allow_patterns="last-checkpoint/*", local_dir=tmp_path / "got")
    second, straight = trainer("second", 4), trainer("straight", 4)
    second.train(resume_from_checkpoint=str(tmp_path / "got" / "last-checkpoint"))
    assert second.state.global_step == 4 and get_last_checkpoint(tmp_path / "second").endswith("checkpoint-4")
    straight.train()
    for key, value in straight.model.state_dict().items():
        torch.testing.assert_close(second.model.state_dict()[key], value)
