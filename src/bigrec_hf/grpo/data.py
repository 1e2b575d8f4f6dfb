"""Training examples and targets of reinforcement learning, from the training split of a prepared data set alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from datasets import Dataset

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.examples import load_config, load_titles, read_train_counts
from bigrec_hf.data.generations import sample_examples
from bigrec_hf.data.prepared import load_facts
from bigrec_hf.data.prompts import build_input_prefix
from bigrec_hf.data.samples import training_sample
from bigrec_hf.data.sequences import ItemSequences, training_sequences
from bigrec_hf.generate.exact import CatalogTokens, catalog_tokens
from bigrec_hf.models.trie_loss import Choices, title_choices
from bigrec_hf.sft.dense import DenseCollator, dense_validation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bigrec_hf.settings import PromptSettings
    from bigrec_hf.settings.grpo import GrpoSettings

NUMBER = "number"  # column: which training example


@dataclass(frozen=True)
class TrainingExamples:
    """N examples, each a prefix of a user's training history and the item that came next."""

    example_ids: list[str]
    histories: list[list[int]]  # catalog rows, oldest first
    targets: dict[str, int]  # example id -> catalog row, which stands for all rows whose titles have the same tokens

    def targets_of(self, numbers: Sequence[int]) -> np.ndarray:
        """Return the targets of these examples, (n,) int64."""
        return np.array([self.targets[self.example_ids[number]] for number in numbers], np.int64)


@dataclass(frozen=True)
class CatalogTitles:
    """The catalog's titles as tokens. Of rows whose titles have the same tokens, the first one stands for all."""

    tokens: CatalogTokens
    ids: list[list[int]]  # by catalog row, [] without text
    choices: Choices  # by catalog row
    row_of_leaf: np.ndarray  # (n_leaves,) int64
    leaf_of_row: np.ndarray  # (n_items,) int64, -1 without text


@dataclass(frozen=True)
class GrpoData:
    """Everything that a training reads."""

    train: Dataset  # column NUMBER
    validation: Dataset | None  # as `sft.dense.dense_validation` returns it
    examples: TrainingExamples
    catalog: CatalogTitles
    sequences: ItemSequences  # of the training split
    collator: PromptCollator


@dataclass(frozen=True)
class PromptCollator:
    """Collate training examples into prompts, and rows of the validation set as the dense objective does."""

    examples: TrainingExamples
    dense: DenseCollator
    max_history: int
    max_length: int

    def prompt(self, history: Sequence[int]) -> list[int]:
        """Return the token ids of one prompt, that which `generate` makes of this history."""
        kept = [self.dense.titles[row] for row in history[-self.max_history :]] if self.max_history > 0 else []
        n_tokens = len(self.dense.header) + sum(map(len, kept))
        while n_tokens > self.max_length:
            n_tokens -= len(kept[0])
            kept = kept[1:]
        return [*self.dense.header, *(token for ids in kept for token in ids)]

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return the batch, all int64: `numbers` (B,) of the examples; `input_ids` (B, T), right-padded, and `lengths`
        (B,) of their prompts; `labels` (B, 2), one other than -100 per example, which
        the trainer counts (from the second column on, as those of a language model)."""
        if NUMBER not in rows[0]:
            return self.dense(rows)
        numbers = [row[NUMBER] for row in rows]
        prompts = [self.prompt(self.examples.histories[number]) for number in numbers]
        width = max(map(len, prompts))
        padded = [prompt + [self.dense.pad_id] * (width - len(prompt)) for prompt in prompts]
        return {
            "numbers": torch.tensor(numbers),
            "input_ids": torch.tensor(padded),
            "lengths": torch.tensor([len(prompt) for prompt in prompts]),
            "labels": torch.tensor([[-100, number] for number in numbers]),
        }


def load_catalog_titles(
    tokenizer: PreTrainedTokenizerBase, titles: Sequence[str], *, short: bool, train_counts: np.ndarray
) -> CatalogTitles:
    """Return a catalog's titles as tokens; `short`, `train_counts`: as in `generate.exact.catalog_tokens`."""
    tokens = catalog_tokens(tokenizer, titles, short=short, train_counts=train_counts)
    ids = tokens.lists.titles(titles)
    leaf_of_row = np.full(len(titles), -1, np.int64)
    leaf_of_row[tokens.rows] = tokens.leaves
    row_of_leaf = np.empty(tokens.trie.n_leaves, np.int64)
    row_of_leaf[tokens.leaves[::-1]] = tokens.rows[::-1]  # the first row of a leaf is written last
    return CatalogTitles(tokens, ids, title_choices(ids, tokens.trie), row_of_leaf, leaf_of_row)


def load_grpo(
    dataset: str, tokenizer: PreTrainedTokenizerBase, prompt: PromptSettings, grpo: GrpoSettings, *, seed: int
) -> GrpoData:
    """Return the training examples, their targets by example id, and the validation rows of a prepared data set.

    Targets and histories are those of the split `train`; validation examples are read for the validation loss only.
    Examples whose target has no text are dropped. Raises BigrecError if a group would need more titles than there are,
    if max_length leaves no room, or if no example is left.
    """
    titles, facts = load_titles(dataset).tolist(), load_facts(dataset)
    catalog = load_catalog_titles(tokenizer, titles, short=prompt.short_titles, train_counts=read_train_counts(dataset))
    if grpo.group_size > catalog.tokens.trie.n_leaves:
        raise BigrecError(
            f"group_size is {grpo.group_size}, but the catalog has {catalog.tokens.trie.n_leaves} different titles: "
            "lower it"
        )
    header = catalog.tokens.lists.header(build_input_prefix(facts["noun"], facts["verb"]))
    room = prompt.max_length - len(header)
    if room < 2:
        raise BigrecError(f"max_length {prompt.max_length} leaves only {room} tokens for titles: raise it")
    train = load_config(dataset, "default", "train")
    examples = training_examples(train, catalog, grpo.grpo_sample, seed=seed)
    validation = None
    if grpo.grpo_evals_per_epoch > 0:
        found = sample_examples(dataset, "validation", grpo.grpo_validation_sample)
        lengths = np.array([len(ids) for ids in catalog.ids])
        validation = dense_validation(
            found.histories, found.targets, lengths, room=room, max_history=prompt.max_history
        )
    dense = DenseCollator(header, catalog.ids, catalog.choices, pad_id=tokenizer.pad_token_id or 0)
    return GrpoData(
        Dataset.from_dict({NUMBER: list(range(len(examples.example_ids)))}),
        validation if validation is not None and len(validation) else None,
        examples,
        catalog,
        training_sequences(train.data.table),
        PromptCollator(examples, dense, prompt.max_history, prompt.max_length),
    )


def training_examples(train: Dataset, catalog: CatalogTitles, sample: int, *, seed: int) -> TrainingExamples:
    """Return the examples of a training split whose targets have a text, or `sample` of them, drawn with the seed.

    Raises BigrecError if there is none, or if an example id occurs twice.
    """
    targets = np.asarray(train[C.TARGET], np.int64)
    known = np.flatnonzero(catalog.leaf_of_row[targets] >= 0) if len(targets) else np.empty(0, np.int64)
    chosen = known[np.sort(training_sample(len(known), sample, seed))]
    if not len(chosen):
        raise BigrecError("the training split has no example whose target has a title: prepare more data")
    ids, histories = train[C.EXAMPLE_ID][:], train[C.HISTORY][:]
    own = {ids[i]: int(catalog.row_of_leaf[catalog.leaf_of_row[targets[i]]]) for i in chosen.tolist()}
    if len(own) < len(chosen):
        raise BigrecError("an example id occurs twice in the training split: prepare the data set again")
    kept = [[row for row in histories[i] if row >= 0] for i in chosen.tolist()]
    return TrainingExamples(list(own), kept, own)
