"""Training data of the objective pairs: one history and its next title per row, tokenized to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase

from bigrec_hf.common.processes import process_state
from bigrec_hf.common.shards import share_of_rows
from bigrec_hf.data.examples import load_examples, load_json_examples
from bigrec_hf.settings import DataSettings, PromptSettings, SftSettings
from bigrec_hf.sft.sample import Sample, text_sample
from bigrec_hf.sft.tokenize import count_tokens, tokenize_examples

TOKENS_DIR = "_tokens"  # in the folder of checkpoints; the Trainer never pushes names that start with _


def tokenize_split(
    datasets: list[str],
    json_files: list[str],
    split: str,
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sample: int,
    seed: int,
    folder: Path,
    **limits: Any,
) -> Dataset:
    """Return `sample` examples from each prepared data set or JSON file as TOKENS, concatenated.

    Each process tokenizes its part to a file in `folder`, unless an interrupted training of the same settings has left
    it there, and maps the files of all processes into memory, so that a split may be larger than memory.
    """
    state, files = process_state(), []
    for number, name in enumerate([*datasets, *json_files]):
        if number < len(datasets):
            examples = load_examples(name, split, sample=sample, seed=seed, cache_dir=folder)
        else:
            examples = load_json_examples(name, sample=sample, seed=seed)
        for rank in range(state.num_processes):
            share = share_of_rows(len(examples), 1, rank, state.num_processes)
            file = folder / f"{split}-{number}-{rank}-of-{state.num_processes}.arrow"
            if share.start == share.stop:
                continue
            files.append(str(file))
            if rank == state.process_index and not file.is_file():
                rows = examples.select(range(share.start, share.stop))
                tokenize_examples(rows, template, tokenizer, file=file, **limits)
    state.wait_for_everyone()
    return concatenate_datasets([Dataset.from_file(file) for file in files])


def load_pairs(
    data: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptSettings,
    sft: SftSettings,
    *,
    seed: int,
    folder: Path,
) -> tuple[Dataset, Dataset | None, dict[str, int], Sample | None]:
    """Return training and validation examples as TOKENS in `folder`, one history and next title per row; counts; and
    the validation example to show predictions of.
    """
    shared: dict[str, Any] = {
        "seed": seed,
        "folder": folder / TOKENS_DIR,
        "max_history": prompt.max_history,
        "max_length": prompt.max_length,
    }
    template, validation, shown = prompt.train_prompt, None, None
    if (data.dataset or data.validation_json) and sft.evals_per_epoch > 0:
        files = data.validation_json
        example = first_example(data, seed=seed, folder=folder / TOKENS_DIR)
        shown = text_sample(example, template, tokenizer, max_history=prompt.max_history, max_length=prompt.max_length)
        validation = tokenize_split(
            *(data.dataset, files, "validation", template, tokenizer),
            sample=sft.validation_sample,
            completion_only=True,  # whatever training counts: -log p(title), as with the objective dense
            **shared,
        )
    train = tokenize_split(
        *(data.dataset, data.train_json, "train", template, tokenizer),
        sample=sft.sample,
        completion_only=sft.completion_only,
        **shared,
    )
    n_tokens, n_dropped = count_tokens(train)
    return train, validation, {"n_train_tokens": n_tokens, "n_history_titles_dropped": n_dropped}, shown


def first_example(data: DataSettings, *, seed: int, folder: Path) -> dict[str, Any]:
    """Return the first example of the (first) validation split as it is sampled."""
    if data.dataset:
        return load_examples(data.dataset[0], "validation", sample=1, seed=seed, cache_dir=folder)[0]
    return load_json_examples(data.validation_json[0], sample=1, seed=seed)[0]
