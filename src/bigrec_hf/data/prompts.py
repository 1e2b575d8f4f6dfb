"""The prompt templates; the same function renders prompts for training and for inference.

Wording and layout are those of the reference scripts (BIGRec, arXiv 2308.08434; Bi-Step-Rec), minus stray tokens.
"""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.metrics.ndcg_hr.titles import clean_title

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase


SYSTEM_MESSAGE = "You are a helpful AI assistant."
ALPACA_PREAMBLE = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request. "
)
ENHANCED_LINE = "Only output the name of the recommended thing. Do not include any explanations or extra information."
ENHANCED_CHAT = 'Only output in the following format, including the end token:\n"<name of the recommended thing>"'
KEYWORDS_PLACEHOLDERS = ("first", "second", "third")
KEYWORDS_TASK = (
    "List 5 to 8 short keywords that describe this {noun}: its genre, theme, setting, mood, and the series or people "
    'it belongs to. Answer with one line of JSON and nothing else, in this form: {{"keywords": "first, second, third"}}'
)
TEMPLATES = ("alpaca-basic", "alpaca-enhanced", "chat-basic", "chat-enhanced")
TITLE_LIST = "titles"  # the template of data.title_lists, which writes token ids, no running text
PROMPT_DATE = datetime(2024, 7, 26)  # in place of today in chat templates that print it; the default of Llama 3
INPUT_TAIL = "\n "  # the reference ends every input with a line break and one space


def build_instruction(noun: str, verb: str, noun_singular: str | None = None) -> str:
    """The task in one sentence, as in `build_instruction("movies", "watched")`.

    The singular defaults to the noun without its `s`.
    """
    singular = noun_singular or noun.removesuffix("s")
    return (
        f"Given a list of {noun} the user has {verb} before, "
        f"please recommend a new {singular} that the user likes to the user."
    )


def build_input_prefix(noun: str, verb: str) -> str:
    """The text before the first history title."""
    return f"The user has {verb} the following {noun} before:"


def build_input(noun: str, verb: str, titles: Sequence[str]) -> str:
    """The history as one line of quoted titles, oldest first."""
    return join_input(build_input_prefix(noun, verb), titles)


def join_input(prefix: str, titles: Sequence[str]) -> str:
    """A reference `input`: the prefix, the titles in double quotes, and INPUT_TAIL."""
    return prefix + ", ".join(f'"{title}"' for title in titles) + INPUT_TAIL


def parse_input(text: str) -> tuple[str, list[str]]:
    """Split a reference `input` into its prefix and history titles: the inverse of `join_input`.

    A title that itself contains `", "` (quote, comma, space, quote) looks like two titles and is split in two. Raises
    BigrecError if the titles do not end with a quote.
    """
    body = text.rstrip()
    start = body.find(':"')
    if start < 0:
        return body, []
    prefix, quoted = body[: start + 1], body[start + 1 :]
    if len(quoted) < 2 or not quoted.endswith('"'):
        raise BigrecError(f'the input {text!r} does not end its list of titles with a quote: expected prefix:"A", "B"')
    return prefix, quoted[1:-1].split('", "')


def build_output(title: str) -> str:
    """The completion the model learns: the title in double quotes."""
    return f'"{title}"'


def format_prompt(
    template: str, instruction: str, input_text: str, tokenizer: PreTrainedTokenizerBase | None = None
) -> str:
    """Render one prompt, up to where the completion begins.

    `template` is one of TEMPLATES; the chat templates need the `tokenizer` of a chat model. Raises BigrecError for
    an unknown template, or if the tokenizer has no chat template.
    """
    if template == "alpaca-basic":
        return f"{ALPACA_PREAMBLE}\n\n### Instruction:\n{instruction}\n\n### Input:\n{input_text}\n\n### Response:\n"
    if template == "alpaca-enhanced":
        return (
            f"{ALPACA_PREAMBLE}\n\n### Instruction:\n{instruction}\n{ENHANCED_LINE}\n"
            f"### Input:\n{input_text}\n\n### Response:\n"
        )
    if template == "chat-basic":
        user = f"{instruction}\n\n{input_text}"
    elif template == "chat-enhanced":
        user = f"{instruction}\n{ENHANCED_CHAT}\n{input_text}"
    else:
        raise BigrecError(f"unknown prompt template {template!r}: choose one of {', '.join(TEMPLATES)}")
    if tokenizer is None or not tokenizer.chat_template:
        name = getattr(tokenizer, "name_or_path", None)
        raise BigrecError(
            f"{template} needs a tokenizer with a chat template, but {name!r} has none: use an alpaca template"
        )
    return render_chat(tokenizer, user)


def render_chat(tokenizer: PreTrainedTokenizerBase, user: str) -> str:
    """One user turn behind SYSTEM_MESSAGE, which begins the user's turn if the chat template has no system role.

    A template that prints the date of today prints PROMPT_DATE: a prompt must not change from day to day. Raises
    BigrecError if the template cannot be rendered.
    """
    from jinja2 import TemplateError

    template = tokenizer.get_chat_template()
    if has_system_role(tokenizer, template):
        messages = [{"role": "system", "content": SYSTEM_MESSAGE}, {"role": "user", "content": user}]
    else:
        messages = [{"role": "user", "content": f"{SYSTEM_MESSAGE}\n\n{user}"}]
    try:  # transformers annotates the union over all options; without tokenizing it is the text
        return tokenizer.apply_chat_template(  # type: ignore[return-value]
            messages, chat_template=pin_date(template), tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise BigrecError(
            f"the chat template of {tokenizer.name_or_path!r} cannot be rendered ({error}): use an alpaca template"
        ) from error


@lru_cache(maxsize=8)
def has_system_role(tokenizer: PreTrainedTokenizerBase, template: str) -> bool:
    """Whether a chat template renders a system message in front of a user's; some raise an error."""
    from jinja2 import TemplateError

    messages = [{"role": "system", "content": SYSTEM_MESSAGE}, {"role": "user", "content": "user"}]
    try:
        tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False)
    except TemplateError:
        return False
    return True


def pin_date(template: str) -> str:
    """A chat template whose `strftime_now`, which transformers provides, tells PROMPT_DATE; others as they are."""
    if "strftime_now" not in template:
        return template
    values = {f"%{code}": PROMPT_DATE.strftime(f"%{code}") for code in "aAbBdmyYHIMSpjeFxD"}
    values |= {"%-d": str(PROMPT_DATE.day), "%-m": str(PROMPT_DATE.month)}
    replaced = "".join(f".replace('{code}', '{value}')" for code, value in values.items())
    macro = "{% macro strftime_now(format) %}{{ format" + replaced + " }}{% endmacro %}"
    # transformers' Jinja drops one line break behind a block, and spaces in front of one at the start of a line
    return macro + "\n" + template


def prompt_facts(template: str, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What of the prompts is not the chat template's own, for the record: `prompt_date`, `system_message`."""
    facts: dict[str, Any] = {}
    if template.startswith("chat") and tokenizer.chat_template:
        chat_template = tokenizer.get_chat_template()
        if "strftime_now" in chat_template:
            facts["prompt_date"] = f"{PROMPT_DATE:%Y-%m-%d}"
        if not has_system_role(tokenizer, chat_template):
            facts["system_message"] = "in the user's turn"
    return facts


def keywords_prompt_ids(title: str, noun: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of the prompt for one title's keywords, in the tokenizer's chat layout if it has one, else Alpaca.

    The title comes last, so that all these prompts share a prefix (BIGRec's keywords variant asks for comma-separated
    attributes in JSON; the wording is ours).
    """
    template = "chat-basic" if tokenizer.chat_template else "alpaca-basic"
    task = KEYWORDS_TASK.format(noun=noun)
    text = format_prompt(template, task, f'The {noun}: "{title}"', tokenizer)
    return prompt_token_ids(template, text, tokenizer)


def prompt_token_ids(template: str, text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Token ids of a rendered prompt, without the final EOS that some tokenizers append to every text.

    Chat templates spell out their special tokens; alpaca prompts get those that the tokenizer adds (BOS for Llama).
    """
    return without_eos(tokenizer(text, add_special_tokens=not template.startswith("chat"))["input_ids"], tokenizer)


def without_eos(ids: list[int], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids without a final EOS, if there is one."""
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def fit_prompt(
    template: str,
    instruction: str,
    prefix: str,
    titles: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_history: int,
    max_tokens: int,
) -> tuple[str, list[int], int]:
    """Render a prompt of at most `max_tokens` tokens, dropping the oldest history titles as needed.

    Returns the text, its token ids, and how many of the last `max_history` titles were dropped. Raises BigrecError if
    even a prompt without history is too long.
    """
    kept = list(titles[-max_history:]) if max_history > 0 else []
    n_wanted = len(kept)
    while True:
        text = format_prompt(template, instruction, join_input(prefix, kept), tokenizer)
        ids = prompt_token_ids(template, text, tokenizer)
        if len(ids) <= max_tokens:
            return text, ids, n_wanted - len(kept)
        if not kept:
            raise BigrecError(
                f"the {template} prompt takes {len(ids)} tokens without any history, but only {max_tokens} are "
                "available: raise max_length"
            )
        kept = kept[1:]


def completion_token_ids(
    prompt_text: str, prompt_ids: list[int], completion: str, template: str, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Token ids of `completion` after the prompt, with EOS appended.

    Prompt and completion are tokenized together, so that the completion's ids are those of the continuous text; if the
    tokenizer merges across the boundary, the completion is tokenized alone (inference always sees the prompt alone).
    Raises BigrecError if the tokenizer has no EOS token.
    """
    return completions_token_ids(prompt_text, prompt_ids, [completion], template, tokenizer)[0]


def completions_token_ids(
    prompt_text: str,
    prompt_ids: list[int],
    completions: Sequence[str],
    template: str,
    tokenizer: PreTrainedTokenizerBase,
) -> list[list[int]]:
    """`completion_token_ids` for many completions of one prompt, in one tokenizer call."""
    if tokenizer.eos_token_id is None:
        raise BigrecError(f"tokenizer {tokenizer.name_or_path!r} has no EOS token: set eos_token in its configuration")
    if not completions:
        return []
    n = len(prompt_ids)
    special = not template.startswith("chat")
    texts = [prompt_text + completion for completion in completions]
    joint = [without_eos(ids, tokenizer) for ids in tokenizer(texts, add_special_tokens=special)["input_ids"]]
    follows = [ids[n:] if ids[:n] == prompt_ids else [] for ids in joint]
    merged = [i for i, ids in enumerate(follows) if not ids]
    if merged:
        alone = tokenizer([completions[i] for i in merged], add_special_tokens=False)["input_ids"]
        for i, ids in zip(merged, alone, strict=True):
            follows[i] = ids
    return [[*ids, tokenizer.eos_token_id] for ids in follows]


_LINE_BREAK = re.compile(r"[\r\n]")


def parse_answer(text: str) -> str:
    """The generated title: the text after the prompt, up to the first line break, without surrounding quotes."""
    return clean_title(_LINE_BREAK.split(text, maxsplit=1)[0])
