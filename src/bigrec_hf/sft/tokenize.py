"""TODO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from datasets import Dataset, Features, IterableDataset, List, Value
from transformers import PreTrainedTokenizerBase

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.data.prompts import build_output, completion_token_ids, fit_prompt
from bigrec_hf.sft.trainer import IGNORED

TOKENS = Features({"input_ids": List(Value("int32")), "labels": List(Value("int32")), "n_dropped": Value("int32")})


def example_tokenizer(
    template: str, tokenizer: PreTrainedTokenizerBase, *, max_history: int, max_length: int, completion_only: bool
) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The function from an example (data.EXAMPLE_FEATURES) to its TOKENS: at most `max_length` of them, EOS last.

    Labels of the prompt are -100 where `completion_only`. It raises BigrecError where a completion leaves no room for a
    prompt.
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
    examples: Dataset, template: str, tokenizer: PreTrainedTokenizerBase, **limits: Any
) -> tuple[Dataset, int]:
    """Examples as `input_ids` and `labels` (`example_tokenizer`, whose `limits` are given by name).

    Returns the data set and how many history titles were dropped to fit.
    """
    tokens = examples.map(
        example_tokenizer(template, tokenizer, **limits),
        remove_columns=examples.column_names,
        features=TOKENS,
        load_from_cache_file=False,
        desc="tokenize",
    )
    n_dropped = sum(tokens["n_dropped"])
    return tokens.remove_columns("n_dropped"), n_dropped


def tokenize_stream(
    examples: IterableDataset, template: str, tokenizer: PreTrainedTokenizerBase, **limits: Any
) -> IterableDataset:
    """What `tokenize_examples` makes, one example after another as they are asked for."""
    tokenize = example_tokenizer(template, tokenizer, **limits)
    tokens = examples.map(tokenize, remove_columns=examples.column_names, features=TOKENS)
    return tokens.remove_columns("n_dropped")
