"""The inputs of `generate`: examples, titles of the catalog, prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    from accelerate import PartialState
    from transformers import PreTrainedTokenizerBase

    from bigrec_hf.settings import DataSettings, PromptSettings


def load_evaluation(data: DataSettings) -> tuple[Dataset, list[str]]:
    """Return the evaluation examples (EXAMPLE_FEATURES) and the titles of the catalog, by row.

    JSON files take precedence over the prepared set; they need a catalog. A file of at most `eval_sample` records is
    used whole, in its order: the reference's `test_5000.json` is already a sample. Raises BigrecError if something
    is missing.
    """
    if not data.test_json:
        if not data.dataset:
            raise BigrecError("no examples given: set dataset or test_json (section `data`)")
        if data.catalog is not None:
            titles = load_catalog(data.catalog).titles
        else:
            titles = load_config(data.dataset[0], "items", "train")[C.TITLE]
        return load_examples(data.dataset[0], data.split, sample=data.eval_sample), list(titles)
    if data.catalog is None:
        raise BigrecError(
            "the reference's JSON files hold titles only: set catalog (section `data`) to a prepared set, "
            "movies.dat, id2name.txt or a CSV"
        )
    catalog = load_catalog(data.catalog)
    parts = [load_json_examples(path, rows_by_title=catalog.rows_by_title) for path in data.test_json]
    # without sampling, the loader keeps the order of the file
    parts = [
        part.select(evaluation_rows(len(part), data.eval_sample)) if 0 < data.eval_sample < len(part) else part
        for part in parts
    ]
    examples = concatenate_datasets(parts)
    if len(set(examples[C.EXAMPLE_ID])) < len(examples):
        raise BigrecError(
            f"several of {', '.join(data.test_json)} share a file name, so their example ids clash: rename one"
        )
    return examples, list(catalog.titles)


def template_of(prompt: PromptSettings) -> str:
    """Return the template for generation: that of training, unless another one is set."""
    return prompt.inference_prompt or prompt.train_prompt


def render_prompts(
    examples: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptSettings,
    answer_tokens: int,
    lists: TitleLists | None = None,
) -> tuple[list[list[int]], int]:
    """Return the token ids of every prompt, and how many history titles were dropped to fit `max_length`.

    `answer_tokens`: those of `max_length` reserved for the answer; `lists`: the titles as the template `titles` writes
    them (default: whole). Raises BigrecError if no token is left for the prompt.
    """
    max_tokens = prompt.max_length - answer_tokens
    if max_tokens < 1:
        raise BigrecError("max_length leaves no token for the prompt: it must exceed max_new_tokens")
    prompts, n_dropped = [], 0
    template, limits = template_of(prompt), {"max_history": prompt.max_history, "max_tokens": max_tokens}
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
    examples: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    state: PartialState,
    prompt: PromptSettings,
    answer_tokens: int,
    lists: TitleLists | None = None,
) -> tuple[list[list[int]], int]:
    """Return `render_prompts` of all examples; each process renders a part and sends it to the others."""
    rows = share_of_rows(len(examples), 1, state.process_index, state.num_processes)
    share = render_prompts(examples.select(range(len(examples))[rows]), tokenizer, prompt, answer_tokens, lists)
    shares = gather_object([share])
    return [ids for prompts, _ in shares for ids in prompts], sum(n_dropped for _, n_dropped in shares)
