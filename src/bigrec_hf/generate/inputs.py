"""What is answered, and how it is asked: the examples, the catalog's titles, the prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from datasets import Dataset, concatenate_datasets

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.shards import share_of_rows
from bigrec_hf.data.catalog import load_catalog
from bigrec_hf.data.examples import evaluation_rows, load_config, load_examples, load_json_examples
from bigrec_hf.data.prompts import TITLE_LIST, fit_prompt
from bigrec_hf.data.title_lists import TitleLists

if TYPE_CHECKING:
    from collections.abc import Sequence

    from accelerate import PartialState
    from transformers import PreTrainedTokenizerBase


def load_evaluation(
    dataset: Sequence[str], test_json: Sequence[str], catalog: str | None, *, split: str, eval_sample: int
) -> tuple[Dataset, list[str]]:
    """The examples to answer (`data.EXAMPLE_FEATURES`) and the catalog's titles, by row.

    JSON files win over the prepared set; they need a catalog. A file of at most `eval_sample` records is taken whole,
    in its own order: the reference's `test_5000.json` is already drawn. Raises BigrecError where something is missing.
    """
    if test_json and catalog is None:
        raise BigrecError(
            "the reference's JSON files hold titles only: set catalog (section `data`) to a prepared set, "
            "movies.dat, id2name.txt or a CSV"
        )
    loaded = None if catalog is None else load_catalog(catalog)
    if loaded is None or not test_json:
        if not dataset:
            raise BigrecError("no examples given: set dataset or test_json (section `data`)")
        titles = list(loaded.titles if loaded is not None else load_config(dataset[0], "items", "train")[C.TITLE])
        return load_examples(dataset[0], split, sample=eval_sample), titles
    parts = [load_json_examples(path, rows_by_title=loaded.rows_by_title) for path in test_json]
    # without a sample the loader keeps the file's order
    parts = [
        part.select(evaluation_rows(len(part), eval_sample)) if 0 < eval_sample < len(part) else part for part in parts
    ]
    examples = concatenate_datasets(parts)
    if len(set(examples[C.EXAMPLE_ID])) < len(examples):
        raise BigrecError(
            f"several of {', '.join(test_json)} share a file name, so their example ids clash: rename one"
        )
    return examples, list(loaded.titles)


def render_prompts(
    examples: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    template: str,
    max_history: int,
    max_tokens: int,
    lists: TitleLists | None = None,
) -> tuple[list[list[int]], int]:
    """Token ids of every example's prompt, and how many history titles were left out to fit `max_tokens`.

    `lists`: the titles as the template `titles` writes them (default: whole).
    """
    if max_tokens < 1:
        raise BigrecError("max_length leaves no token for the prompt: it must exceed max_new_tokens")
    prompts, n_dropped = [], 0
    limits = {"max_history": max_history, "max_tokens": max_tokens}
    if template == TITLE_LIST and lists is None:
        lists = TitleLists(tokenizer)
    columns = (C.INSTRUCTION, C.INPUT_PREFIX, C.HISTORY_TITLES)
    for instruction, prefix, titles in zip(*(examples[column] for column in columns), strict=True):
        if template == TITLE_LIST and lists is not None:
            ids, dropped = lists.prompt(prefix, titles, **limits)
        else:
            _, ids, dropped = fit_prompt(template, instruction, prefix, titles, tokenizer, **limits)
        prompts.append(ids)
        n_dropped += dropped
    return prompts, n_dropped


def render_together(
    examples: Dataset, tokenizer: PreTrainedTokenizerBase, state: PartialState, **limits: Any
) -> tuple[list[list[int]], int]:
    """`render_prompts` of all examples in every process, of which each renders its share and tells the others."""
    rows = share_of_rows(len(examples), 1, state.process_index, state.num_processes)
    share = render_prompts(examples.select(range(len(examples))[rows]), tokenizer, **limits)
    shares = gather_object([share])
    return [ids for prompts, _ in shares for ids in prompts], sum(n_dropped for _, n_dropped in shares)
