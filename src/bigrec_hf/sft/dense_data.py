"""Training data of the dense objective, from a prepared data set."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.examples import load_config, load_titles
from bigrec_hf.data.generations import sample_examples
from bigrec_hf.data.prepared import load_facts
from bigrec_hf.data.prompts import build_input_prefix
from bigrec_hf.data.sequences import training_sequences
from bigrec_hf.data.title_lists import title_lists
from bigrec_hf.data.trie import Trie, build_trie
from bigrec_hf.models.trie_loss import title_choices
from bigrec_hf.sft.dense import ROWS, DenseCollator, dense_segments, dense_validation
from bigrec_hf.sft.dense_trainer import DenseTrainer, predict_title
from bigrec_hf.sft.sample import Sample
from bigrec_hf.sft.temperature import read_temperature

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bigrec_hf.settings import PromptSettings, SftSettings


@dataclass(frozen=True)
class DenseData:
    """Everything that a dense training reads: `train` and `validation` have the columns ROWS and FIRST."""

    train: Dataset
    validation: Dataset | None
    collator: DenseCollator
    trie: Trie | None  # of the catalog's titles (loss trie)
    temperature: float | None  # of the loss trie; None = adaptive
    counts: dict[str, int]
    sample: Sample | None  # a validation example to show predictions of

    def trainer_options(self) -> dict[str, Any]:
        """Return the options of `sft.trainer.train_adapter` besides the data."""
        return {
            "trainer_class": partial(DenseTrainer, trie=self.trie, temperature=self.temperature),
            "collator": self.collator,
            "sample": self.sample,
        }

    def all_epochs(self, sft: SftSettings) -> SftSettings:
        """Return `sft` for a trainer that makes one pass over `train`, which holds all epochs, in order."""
        return replace(
            sft,
            epochs=1.0,
            evals_per_epoch=round(sft.epochs * sft.evals_per_epoch) if sft.epochs > 1 else sft.evals_per_epoch,
            trainer_args={
                "train_sampling_strategy": "sequential",
                "remove_unused_columns": False,
                "dataset_kwargs": {"skip_prepare_dataset": True},
                **sft.trainer_args,
            },
        )


def load_dense(
    dataset: str, tokenizer: PreTrainedTokenizerBase, prompt: PromptSettings, sft: SftSettings, *, seed: int
) -> DenseData:
    """Return the segments of the training split, for all epochs in order, and the validation examples.

    The segments come only from the examples of the training split (`data.sequences`). `sft.sample` > 0 keeps the
    sequences of that many users, sampled with the seed. Raises BigrecError if max_length leaves no room for a title.
    """
    titles, facts = load_titles(dataset).tolist(), load_facts(dataset)
    lists = title_lists(tokenizer, titles, short=prompt.short_titles)
    ids = lists.titles(titles)
    lengths = np.array([len(title) for title in ids])
    header = lists.header(build_input_prefix(facts["noun"], facts["verb"]))
    room = prompt.max_length - len(header)
    if room < 2:
        raise BigrecError(f"max_length {prompt.max_length} leaves only {room} tokens for titles: raise it")
    known = [row for row, title in enumerate(ids) if title]
    titles_trie, leaves = build_trie([ids[row] for row in known])
    trie, choices = None, None
    if sft.loss == "trie":
        trie, choices = titles_trie, title_choices(ids, titles_trie)
    sequences = training_sequences(load_config(dataset, "default", "train").data.table)
    if 0 < sft.sample < len(sequences):
        drawn = np.random.default_rng(seed).permutation(len(sequences))[: sft.sample]
        sequences = sequences.take(np.sort(drawn))
    train, counts = dense_segments(
        sequences,
        lengths,
        epochs=sft.epochs,
        room=room,
        context=sft.dense_context,
        seed=seed,
        batch_size=sft.micro_batch_size,
    )
    validation, sample = None, None
    if sft.evals_per_epoch > 0:
        found = sample_examples(dataset, "validation", sft.validation_sample)
        validation = dense_validation(
            found.histories, found.targets, lengths, room=room, max_history=prompt.max_history
        )
        rows = validation[ROWS][0] if len(validation) else []
        if rows:
            named = dict(zip(leaves.tolist(), (titles[row] for row in known), strict=True))
            prompt_ids = [*header, *(token for row in rows[:-1] for token in ids[row])]
            sample = Sample(
                [titles[row] for row in rows[:-1]],
                titles[rows[-1]],
                partial(predict_title, prompt=prompt_ids, trie=titles_trie, named=named),
            )
    collator = DenseCollator(header, ids, choices, pad_id=tokenizer.pad_token_id or 0)
    return DenseData(train, validation, collator, trie, read_temperature(sft.trie_temperature), counts, sample)
