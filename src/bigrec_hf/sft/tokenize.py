"""Training examples as tokens and labels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.data.prompts import build_output, completion_token_ids, fit_prompt
from bigrec_hf.sft.trainer import IGNORED

TOKENS = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32")), "n_dropped": Value("int32")})


def example_tokenizer(
    template: str, tokenizer: PreTrainedTokenizerBase, *, max_history: int, max_length: int, completion_only: bool
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Return a function from an example (EXAMPLE_FEATURES) to its TOKENS: at most `max_length` of them, EOS last.

    With `completion_only` the labels of the prompt are -100. The function raises BigrecError if a completion leaves no
    room for a prompt.
    """

    def tokenize(example: dict[str, Any]) -> dict[str, Any]:
        completion = build_output(example[C.TARGET_TITLE])
        longest = len(tokenizer(completion, add_special_tokens=False)["input_ids"]) + 2  # EOS, a possible merge
        text, prompt, n_dropped = fit_prompt(
            template,
            example[C.INSTRUCTION],
            example[C.INPUT_PREFIX],
            example[C.HISTORY_TITLES],
            tokenizer,
            max_history=max_history,
            max_tokens=max_length - longest,
        )
        answer = completion_token_ids(text, prompt, completion, template, tokenizer)
        return {
            "input_ids": prompt + answer,
            "labels": ([IGNORED] * len(prompt) if completion_only else prompt) + answer,
            "n_dropped": n_dropped,
        }

    return tokenize


def tokenize_examples(
    examples: Dataset, template: str, tokenizer: PreTrainedTokenizerBase, *, file: Path | None = None, **limits: Any
) -> Dataset:
    """Return examples as TOKENS (`example_tokenizer`, which takes `limits`).

    They are held in memory, or written to `file` (Arrow) and mapped into memory.
    """
    return examples.map(
        example_tokenizer(template, tokenizer, **limits),
        remove_columns=examples.column_names,
        features=TOKENS,
        load_from_cache_file=False,
        cache_file_name=None if file is None else str(file),
        desc="tokenize",
    )


def count_tokens(tokens: Dataset) -> tuple[int, int]:
    """Return the number of tokens in all examples, and of history titles dropped to fit."""
    table = tokens.data.table
    return pc.sum(pc.list_value_length(table["input_ids"])).as_py(), pc.sum(table["n_dropped"]).as_py()
