"""Prompts: the four templates by hand, the reference's input text, fitting into a token budget."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.prompts import (
    build_input,
    build_input_prefix,
    build_instruction,
    build_output,
    completion_token_ids,
    fit_prompt,
    format_prompt,
    join_input,
    parse_answer,
    parse_input,
    pin_date,
    prompt_facts,
    prompt_token_ids,
)
from tests.helpers.tiny import TITLES, tiny_tokenizer

MOVIE_INSTRUCTION = (
    "Given a list of movies the user has watched before, please recommend a new movie that the user likes to the user."
)
MOVIE_INPUT = 'The user has watched the following movies before:"Heat (1995)", "Fargo (1996)"\n '
PREFIX = "The user has watched the following movies before:"


def test_movie_texts():
    assert build_instruction("movies", "watched") == MOVIE_INSTRUCTION
    assert build_input("movies", "watched", ["Heat (1995)", "Fargo (1996)"]) == MOVIE_INPUT
    assert build_output("Heat (1995)") == '"Heat (1995)"'


def test_game_texts():
    assert build_instruction("video games", "played") == (
        "Given a list of video games the user has played before, "
        "please recommend a new video game that the user likes to the user."
    )
    assert build_input("video games", "played", ["Doom"]) == (
        'The user has played the following video games before:"Doom"\n '
    )


def test_an_irregular_singular_is_given():
    assert "a new series that" in build_instruction("series", "watched", "series")


def test_alpaca_basic():
    assert format_prompt("alpaca-basic", MOVIE_INSTRUCTION, MOVIE_INPUT) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request. \n"
        "\n"
        "### Instruction:\n"
        "Given a list of movies the user has watched before, "
        "please recommend a new movie that the user likes to the user.\n"
        "\n"
        "### Input:\n"
        'The user has watched the following movies before:"Heat (1995)", "Fargo (1996)"\n'
        " \n"
        "\n"
        "### Response:\n"
    )


def test_alpaca_enhanced():
    assert format_prompt("alpaca-enhanced", MOVIE_INSTRUCTION, MOVIE_INPUT) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request. \n"
        "\n"
        "### Instruction:\n"
        "Given a list of movies the user has watched before, "
        "please recommend a new movie that the user likes to the user.\n"
        "Only output the name of the recommended thing. Do not include any explanations or extra information.\n"
        "### Input:\n"
        'The user has watched the following movies before:"Heat (1995)", "Fargo (1996)"\n'
        " \n"
        "\n"
        "### Response:\n"
    )


def test_chat_basic():
    assert format_prompt("chat-basic", MOVIE_INSTRUCTION, MOVIE_INPUT, tiny_tokenizer()) == (
        "<|im_start|>system\n"
        "You are a helpful AI assistant.<|im_end|>\n"
        "<|im_start|>user\n"
        "Given a list of movies the user has watched before, "
        "please recommend a new movie that the user likes to the user.\n"
        "\n"
        'The user has watched the following movies before:"Heat (1995)", "Fargo (1996)"\n'
        " <|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_chat_enhanced():
    assert format_prompt("chat-enhanced", MOVIE_INSTRUCTION, MOVIE_INPUT, tiny_tokenizer()) == (
        "<|im_start|>system\n"
        "You are a helpful AI assistant.<|im_end|>\n"
        "<|im_start|>user\n"
        "Given a list of movies the user has watched before, "
        "please recommend a new movie that the user likes to the user.\n"
        "Only output in the following format, including the end token:\n"
        '"<name of the recommended thing>"\n'
        'The user has watched the following movies before:"Heat (1995)", "Fargo (1996)"\n'
        " <|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def chat_tokenizer(template: str):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return tokenizer


TURNS = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"


def test_a_template_without_a_system_role_has_the_message_in_the_users_turn():
    refusing = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + TURNS
    )
    for template, text in ((refusing, "[user] You are a helpful AI assistant.\n\nA\n\nB\n"), (TURNS, None)):
        tokenizer = chat_tokenizer(template)
        expected = text or "[system] You are a helpful AI assistant.\n[user] A\n\nB\n"
        assert format_prompt("chat-basic", "A", "B", tokenizer) == expected
        assert prompt_facts("chat-basic", tokenizer) == ({"system_message": "in the user's turn"} if text else {})
        assert prompt_facts("alpaca-basic", tokenizer) == {}


def test_a_template_that_cannot_be_rendered_is_one_line():
    for template in ("{{ raise_exception('no, never') }}", "{% for m in messages %}"):
        with pytest.raises(BigrecError, match=r"cannot be rendered \(.*\): use an alpaca template"):
            format_prompt("chat-basic", "A", "B", chat_tokenizer(template))


LLAMA_DATE = (
    "{%- if not date_string is defined %}{%- if strftime_now is defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}{%- else %}{%- set date_string = '26 Jul 2024' %}{%- endif %}"
    "{%- endif %}Today Date: {{ date_string }}\n"
)


@pytest.mark.parametrize(
    ("head", "text"),
    [
        (LLAMA_DATE, "Today Date: 26 Jul 2024\n"),
        ("{{ strftime_now('%Y-%m-%d') }}\n", "2024-07-26\n"),
        ("\n  {% macro today() %}{{ strftime_now('%A, %B %d, %Y %H:%M') }}{% endmacro %}{{ today() }}\n", None),
    ],
)
def test_the_date_of_today_is_pinned(head, text):
    tokenizer = chat_tokenizer(head + TURNS)
    rendered = format_prompt("chat-basic", "A", "B", tokenizer)
    if text is None:
        assert "Friday, July 26, 2024 00:00\n[system]" in rendered
    else:
        assert rendered.startswith(text + "[system]")
    assert prompt_facts("chat-basic", tokenizer) == {"prompt_date": "2024-07-26"}


@pytest.mark.parametrize("start", ["", "\n", "  ", "\n\n", "{%- if true %}", "x\n"])
def test_pinning_changes_nothing_but_the_date(start):
    template = (
        start + "{% if messages %}|{{ strftime_now('26') }}|{% endif %}" + ("{% endif %}" if "if" in start else "")
    )
    messages = [{"role": "user", "content": "A"}]
    tokenizer = chat_tokenizer(template)
    plain, pinned = (
        tokenizer.apply_chat_template(messages, chat_template=given, tokenize=False)
        for given in (template, pin_date(template))
    )
    assert plain == pinned


def test_mistakes_name_their_remedy():
    with pytest.raises(BigrecError, match="choose one of alpaca-basic"):
        format_prompt("alpaca", "", "")
    with pytest.raises(BigrecError, match="use an alpaca template"):
        format_prompt("chat-basic", "", "", tiny_tokenizer(chat=False))
    with pytest.raises(BigrecError, match="use an alpaca template"):
        format_prompt("chat-basic", "", "")


class TestParseInput:
    def test_by_hand(self):
        assert parse_input(MOVIE_INPUT) == (PREFIX, ["Heat (1995)", "Fargo (1996)"])
        assert parse_input(PREFIX + "\n ") == (PREFIX, [])
        assert parse_input(f'{PREFIX}"Say "Hi", Bob"\n ') == (PREFIX, ['Say "Hi", Bob'])

    @given(st.lists(st.text(st.characters(exclude_characters='"', exclude_categories=["Cs"]), min_size=1), max_size=10))
    def test_inverse_of_join(self, titles):
        assert parse_input(join_input(PREFIX, titles)) == (PREFIX, titles)

    def test_prefix_of_every_domain(self):
        prefix = build_input_prefix("video games", "played")
        assert parse_input(join_input(prefix, ["Doom"])) == (prefix, ["Doom"])

    def test_an_unclosed_quote_is_refused(self):
        with pytest.raises(BigrecError, match="does not end"):
            parse_input(f'{PREFIX}"Heat')


@pytest.mark.parametrize(
    "text, title",
    [
        ('"Heat (1995)"', "Heat (1995)"),
        (' "Heat (1995)" \nThe user', "Heat (1995)"),
        ('"Heat (1995)"\r\nmore', "Heat (1995)"),
        ('"Heat', "Heat"),
        ("", ""),
        ("\nHeat", ""),
        ('""', ""),
        ('Say "Hi", Bob', 'Say "Hi", Bob'),
        ("A\u0085B", "A\u0085B"),  # no line break of ours: titles hold it under latin-1
    ],
)
def test_parse_answer(text, title):
    assert parse_answer(text) == title


class TestTokenIds:
    def test_alpaca_gets_the_tokenizers_special_tokens_and_chat_does_not(self):
        tokenizer = tiny_tokenizer()
        tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
        plain = tokenizer("Heat", add_special_tokens=False)["input_ids"]
        assert prompt_token_ids("alpaca-basic", "Heat", tokenizer) == [1, *plain]  # no closing EOS
        assert prompt_token_ids("chat-basic", "Heat", tokenizer) == plain

    @pytest.mark.parametrize("template", ["alpaca-basic", "alpaca-enhanced", "chat-basic", "chat-enhanced"])
    def test_training_sees_the_prompt_that_generation_sees(self, template):
        tokenizer = tiny_tokenizer()
        text, ids, _ = fit_prompt(
            template, MOVIE_INSTRUCTION, PREFIX, TITLES[:3], tokenizer, max_history=10, max_tokens=500
        )
        completion = completion_token_ids(text, ids, build_output("Amélie (2001)"), template, tokenizer)
        assert completion[-1] == tokenizer.eos_token_id
        assert tokenizer.decode([*ids, *completion[:-1]]) == text + '"Amélie (2001)"'


class TestFitPrompt:
    tokenizer = tiny_tokenizer()

    def fit(self, titles, max_history, max_tokens, template="alpaca-basic"):
        return fit_prompt(
            template,
            MOVIE_INSTRUCTION,
            PREFIX,
            titles,
            self.tokenizer,
            max_history=max_history,
            max_tokens=max_tokens,
        )

    def test_the_newest_titles_stay(self):
        text, _, dropped = self.fit(TITLES[:5], 2, 10_000)
        assert text == self.fit(TITLES[3:5], 10, 10_000)[0]
        assert dropped == 0  # max_history is a choice, not a loss

    def test_one_token_too_few_costs_the_oldest_title(self):
        n = len(self.fit(TITLES[:3], 10, 10_000)[1])
        assert self.fit(TITLES[:3], 10, n)[2] == 0
        text, ids, dropped = self.fit(TITLES[:3], 10, n - 1)
        assert dropped == 1 and len(ids) < n
        assert TITLES[0] not in text and TITLES[1] in text and TITLES[2] in text

    @given(st.lists(st.sampled_from(TITLES), max_size=12), st.integers(0, 12), st.integers(80, 220))
    def test_always_within_the_budget_and_a_suffix_of_the_history(self, titles, max_history, max_tokens):
        empty = len(self.fit([], 0, 10_000)[1])
        if max_tokens < empty:
            with pytest.raises(BigrecError, match="raise max_length"):
                self.fit(titles, max_history, max_tokens)
            return
        text, ids, dropped = self.fit(titles, max_history, max_tokens)
        wanted = titles[-max_history:] if max_history else []
        assert len(ids) <= max_tokens
        assert text == format_prompt("alpaca-basic", MOVIE_INSTRUCTION, join_input(PREFIX, wanted[dropped:]))
        if dropped:  # one title more would not have fitted
            longer = format_prompt("alpaca-basic", MOVIE_INSTRUCTION, join_input(PREFIX, wanted[dropped - 1 :]))
            assert len(self.tokenizer(longer)["input_ids"]) > max_tokens

    def test_no_room_even_without_history(self):
        with pytest.raises(BigrecError, match="raise max_length"):
            self.fit(TITLES[:3], 10, 5)
