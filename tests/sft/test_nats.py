"""-log p(title) per validation target: the same number from both objectives, and from a plain pass."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import SFTConfig

from bigrec_hf.data.title_lists import title_lists
from bigrec_hf.models.catalog_head import catalog_head
from bigrec_hf.sft.dense import FIRST, ROWS, DenseCollator
from bigrec_hf.sft.dense_trainer import DenseTrainer
from bigrec_hf.sft.nats import best_nats
from bigrec_hf.sft.trainer import IGNORED, CompletionLossTrainer
from tests.helpers.tiny import TITLES, tiny_model, tiny_tokenizer

HISTORIES = [[3, 7, 19], [0, 12, 5, 8], [1], [2, 4], [11, 10, 9]]
TARGETS = [6, 15, 19, 0, 13]


def lists_and_header():
    lists = title_lists(tiny_tokenizer(), TITLES, short=False)
    return lists.titles(TITLES), lists.header("Seen:")


def evaluated(folder, trainer_class, rows, **options):
    """The metrics of an evaluation in batches of two; the last one is smaller."""
    config = {"per_device_eval_batch_size": 2, "report_to": "none", "use_cpu": True, "bf16": False, "max_length": 256}
    config |= {"remove_unused_columns": trainer_class is not DenseTrainer}
    trainer = trainer_class(
        model=tiny_model(),
        args=SFTConfig(str(folder), dataset_kwargs={"skip_prepare_dataset": True}, **config),
        train_dataset=rows,
        eval_dataset=rows,
        processing_class=tiny_tokenizer(),
        peft_config=LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"),
        **options,
    )
    if trainer_class is CompletionLossTrainer:
        return trainer.evaluate()
    with catalog_head(trainer.model, None) as trainer.head:
        return trainer.evaluate()


def pair_rows():
    """Rows of pairs with the prompts of lists: the loss is on the title and its end token."""
    ids, header = lists_and_header()
    prompts = [[*header, *(token for row in history for token in ids[row])] for history in HISTORIES]
    rows = [prompt + ids[target] for prompt, target in zip(prompts, TARGETS, strict=True)]
    labels = [[IGNORED] * len(p) + ids[target] for p, target in zip(prompts, TARGETS, strict=True)]
    return Dataset.from_dict({"input_ids": rows, "labels": labels})


@torch.no_grad()
def plain() -> list[float]:
    """-log p of each target's tokens, summed, by one pass per row."""
    model, found = tiny_model().eval(), []
    for row, labels in zip(pair_rows()["input_ids"], pair_rows()["labels"], strict=True):
        log_p = model(torch.tensor([row])).logits[0].log_softmax(-1)
        start = labels.index(next(label for label in labels if label != IGNORED))
        found.append(-sum(float(log_p[at - 1, row[at]]) for at in range(start, len(row))))
    return found


def test_both_objectives_give_the_nats_of_a_plain_pass(tmp_path):
    ids, header = lists_and_header()
    rows = [[*history, target] for history, target in zip(HISTORIES, TARGETS, strict=True)]
    dense_rows = Dataset.from_dict({ROWS: rows, FIRST: list(map(len, HISTORIES))})
    collator = DenseCollator(header, ids)
    dense = evaluated(tmp_path / "dense", DenseTrainer, dense_rows, data_collator=collator, trie=None)
    pairs = evaluated(tmp_path / "pairs", CompletionLossTrainer, pair_rows())
    expected = sum(plain()) / len(TARGETS)
    assert dense["eval_nats_per_target"] == pytest.approx(expected, abs=1e-4)
    assert pairs["eval_nats_per_target"] == pytest.approx(expected, abs=1e-4)
    assert dense["eval_loss"] == pytest.approx(dense["eval_nats_per_target"], abs=1e-4)
    assert pairs["eval_loss"] < expected / 2  # a mean over tokens


def test_where_trl_computes_the_loss_the_number_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(CompletionLossTrainer, "measure", lambda self: (False, False))
    pairs = evaluated(tmp_path, CompletionLossTrainer, pair_rows())
    assert pairs["eval_nats_per_target"] == pytest.approx(sum(plain()) / len(TARGETS), abs=1e-4)


def test_the_best_evaluation_is_recorded():
    history = [{"loss": 1.0}, {"eval_loss": 2.0, "eval_nats_per_target": 20.0}]
    history += [{"eval_loss": 1.5, "eval_nats_per_target": 15.0}, {"eval_loss": 1.6, "eval_nats_per_target": 14.0}]
    assert best_nats(history) == 15.0
    assert best_nats([{"eval_loss": 1.0}]) is None and best_nats([]) is None
