"""Training with the dense objective: against plain passes, without leaks, resumed, quantized, on two processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.title_lists import title_lists
from bigrec_hf.data.trie import build_trie
from bigrec_hf.models.trie_loss import title_choices
from bigrec_hf.settings import DataSettings, ModelSettings, PromptSettings, RunSettings, SftSettings
from bigrec_hf.sft import stage as sft
from bigrec_hf.sft.dense import FIRST, ROWS, DenseCollator
from bigrec_hf.sft.dense_data import load_dense
from bigrec_hf.sft.dense_trainer import DenseTrainer
from bigrec_hf.sft.temperature import Temperature
from tests.helpers.processes import flags, run_pair
from tests.helpers.tiny import TITLES, tiny_model, tiny_tokenizer

LISTS = PromptSettings(train_prompt="titles", max_length=64, short_titles=True)
DENSE = SftSettings(
    objective="dense",
    loss="trie",
    sample=0,
    validation_sample=8,
    epochs=2,
    learning_rate=1e-2,
    warmup_steps=0,
    global_batch_size=4,
    micro_batch_size=4,
    lora_dropout=0.0,
)


def train(
    folder: Path, model_dir: str, prepared: str, quantization: str = "none", dtype: str = "float32", **changes
) -> dict:
    model = ModelSettings(base_model=model_dir, dtype=dtype, quantization=quantization)
    settings = replace(DENSE, adapter_dir=str(folder / "adapter"), **changes)
    return sft.main(RunSettings(run_dir=str(folder)), DataSettings(dataset=[prepared]), model, LISTS, settings)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / "adapter_model.safetensors")


class Bare(DenseTrainer):
    """compute_loss alone, without a trainer around it."""

    def __init__(self, head, trie, columns) -> None:
        self.head, self.trie, self.columns = head, trie, columns
        self.args = type("Args", (), {"average_tokens_across_devices": False})()

    temperature = Temperature(1.0)


@pytest.mark.parametrize("loss", ["full", "trie"])
def test_loss_and_gradients_are_those_of_one_plain_pass_per_target(loss):
    from bigrec_hf.models.catalog_head import catalog_head
    from bigrec_hf.models.trie_loss import token_columns

    tokenizer = tiny_tokenizer()
    lists = title_lists(tokenizer, TITLES, short=False)
    ids, header = lists.titles(TITLES), lists.header("Seen:")
    trie, _ = build_trie(ids)
    token_ids, columns = token_columns(trie)
    history = [3, 7, 19, 0, 12]

    model = tiny_model()
    collator = DenseCollator(header, ids, title_choices(ids, trie) if loss == "trie" else None)
    with catalog_head(model, token_ids if loss == "trie" else None) as head:
        trainer = Bare(head, trie if loss == "trie" else None, columns)
        dense = trainer.compute_loss(model, collator([{ROWS: history, FIRST: 1}]))
        dense.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}

    plain = tiny_model()
    total = 0.0
    for place in range(1, len(history)):
        prompt = [*header, *(token for row in history[:place] for token in ids[row])]
        title = ids[history[place]]
        logits = plain(torch.tensor([prompt + title])).logits[0]
        for step, token in enumerate(title):
            row = logits[len(prompt) + step - 1]
            if loss == "trie":
                allowed = sorted({other[step] for other in ids if other[:step] == title[:step]})
                total = total - row[allowed].log_softmax(0)[allowed.index(token)]
            else:
                total = total - row.log_softmax(0)[token]
    (total / 4).backward()
    torch.testing.assert_close(dense, total / 4, atol=1e-4, rtol=1e-4)
    for name, parameter in plain.named_parameters():
        if name != "lm_head.weight":  # frozen in both trainings; the head's slice has no gradient
            torch.testing.assert_close(gradients[name], parameter.grad, atol=1e-4, rtol=1e-3, msg=name)


def test_training_lowers_the_loss_writes_an_adapter_and_keeps_it(tiny_model_dir, tiny_prepared, tmp_path, capsys):
    record = train(tmp_path, tiny_model_dir, tiny_prepared, epochs=8)
    losses = [entry["eval_loss"] for entry in record["history"] if "eval_loss" in entry]
    assert losses[-1] < losses[0] < np.log(len(TITLES)) + 0.5  # twenty titles compete
    assert record["n_train_targets"] > 0
    assert len(weights(tmp_path)) == 8
    again = train(tmp_path, tiny_model_dir, tiny_prepared, epochs=8)
    assert again == record
    assert "kept" in capsys.readouterr().out


def test_no_training_token_comes_from_validation_or_test(tiny_prepared, tmp_path):
    """A marker title that only occurs in the interactions, the validation and the test split is never trained on."""
    import shutil

    marked = tmp_path / "marked"
    shutil.copytree(tiny_prepared, marked)
    facts = json.loads((marked / "facts.json").read_text())
    del facts["files_sha256"]  # the tables are changed on purpose
    (marked / "facts.json").write_text(json.dumps(facts))
    train_rows = pq.read_table(marked / "data/default/train.parquet")
    marker = 4
    keep = [
        marker not in row["history"] and row["target"] != marker
        for row in train_rows.select(["history", "target"]).to_pylist()
    ]
    assert any(keep) and not all(keep)
    pq.write_table(train_rows.filter(pa.array(keep)), marked / "data/default/train.parquet")
    for split in ("validation", "test"):
        rows = pq.read_table(marked / f"data/default/{split}.parquet")
        targets = pa.array([marker] * len(rows), rows.schema.field("target").type)
        rows = rows.set_column(rows.schema.get_field_index("target"), rows.schema.field("target"), targets)
        pq.write_table(rows, marked / f"data/default/{split}.parquet")
    data = load_dense(str(marked), tiny_tokenizer(), LISTS, DENSE, seed=0)
    assert marker not in {row for rows in data.train[ROWS] for row in rows}
    assert {rows[-1] for rows in data.validation[ROWS]} == {marker}


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantized_base_is_trained_too(quantization, tiny_model_dir, tiny_prepared, tmp_path):
    record = train(tmp_path, tiny_model_dir, tiny_prepared, quantization, epochs=1)
    assert np.isfinite(record["train_loss"])


def test_bfloat16_trains_what_float32_does(tiny_model_dir, tiny_prepared, tmp_path):
    """Within what 16 bits round: the same losses on the way, and an adapter kept in float32."""
    whole = train(tmp_path / "float32", tiny_model_dir, tiny_prepared)
    half = train(tmp_path / "bfloat16", tiny_model_dir, tiny_prepared, dtype="bfloat16")
    losses = [[entry["loss"] for entry in record["history"] if "loss" in entry] for record in (whole, half)]
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.02)
    assert half["best_eval_loss"] == pytest.approx(whole["best_eval_loss"], rel=0.02)
    assert (whole["dtype"], half["dtype"]) == ("float32", "bfloat16") and losses[0] != losses[1]
    assert {tensor.dtype for tensor in weights(tmp_path / "bfloat16").values()} == {torch.float32}


def test_the_full_vocabulary_costs_more_nats_than_the_catalog(tiny_model_dir, tiny_prepared, tmp_path):
    full = train(tmp_path / "full", tiny_model_dir, tiny_prepared, loss="full", epochs=1)
    trie = train(tmp_path / "trie", tiny_model_dir, tiny_prepared, loss="trie", epochs=1)
    assert full["best_eval_loss"] > trie["best_eval_loss"]


@pytest.mark.parametrize(
    "prompt, sft_changes, data, words",
    [
        ({"train_prompt": "alpaca-basic"}, {}, {}, "set train_prompt titles"),
        ({}, {"objective": "pairs", "loss": "full"}, {}, "objective dense"),
        ({"train_prompt": "alpaca-basic"}, {"objective": "pairs"}, {}, "loss trie needs"),
        ({}, {"packing": True}, {}, "packing cannot be combined"),
        ({}, {"loss": "full", "trie_temperature": "2"}, {}, "trie_temperature 2 needs the loss trie"),
        ({}, {"trie_temperature": "warm"}, {}, "'warm': give a number above 0, or adaptive"),
        ({}, {}, {"train_json": ["x.json"]}, "one prepared data set"),
        ({"max_length": 3}, {}, {}, "raise it"),
        ({}, {"dense_context": 50}, {}, "lower dense_context"),
    ],
)
def test_settings_that_do_not_go_together(prompt, sft_changes, data, words, tiny_model_dir, tiny_prepared, tmp_path):
    with pytest.raises(BigrecError, match=words):
        sft.main(
            RunSettings(run_dir=str(tmp_path)),
            replace(DataSettings(dataset=[tiny_prepared]), **data),
            ModelSettings(base_model=tiny_model_dir, dtype="float32"),
            replace(LISTS, **prompt),
            replace(DENSE, adapter_dir=str(tmp_path / "adapter"), **sft_changes),
        )


@pytest.mark.parametrize("temperature", ["1", "adaptive"])
def test_an_interrupted_training_ends_with_the_same_adapter(
    temperature, tiny_model_dir, tiny_prepared, tmp_path, monkeypatch
):
    changes = {"trie_temperature": temperature}
    whole = train(tmp_path / "whole", tiny_model_dir, tiny_prepared, **changes)
    step = DenseTrainer.training_step

    def dies(self, *args, **kwargs):
        if self.state.global_step >= whole["optimizer_steps"] * 3 // 4:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(DenseTrainer, "training_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "cut", tiny_model_dir, tiny_prepared, **changes)
    monkeypatch.setattr(DenseTrainer, "training_step", step)
    train(tmp_path / "cut", tiny_model_dir, tiny_prepared, **changes)
    a, b = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
def test_two_processes_train_the_same_adapter(tiny_model_dir, tiny_prepared, tmp_path):
    alone = train(tmp_path / "alone", tiny_model_dir, tiny_prepared, micro_batch_size=2)
    arguments = flags(
        dataset=tiny_prepared, base_model=tiny_model_dir, dtype="float32", train_prompt="titles", max_length=64,
        short_titles="true", objective="dense", loss="trie", sample=0, validation_sample=8, epochs=2,
        learning_rate=1e-2, warmup_steps=0, global_batch_size=4, micro_batch_size=2, lora_dropout=0,
        run_dir=tmp_path / "two",
    )  # fmt: skip
    done = run_pair("-m", "bigrec_hf.sft", *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    a, b = weights(tmp_path / "alone"), weights(tmp_path / "two")
    assert alone["optimizer_steps"] > 0
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=1e-3, rtol=1e-2)
