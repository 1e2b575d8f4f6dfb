"""The titles template: tokens of headers, titles and prompts; titles shortened to what tells them apart."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.title_lists import TitleLists, end_token_id, shorten
from tests.helpers.tiny import tiny_tokenizer

TITLES = ["Alien", "Alien 3", "Heat (1995)", "Heat (1986)", "Toy Story"]
token_lists = st.lists(st.lists(st.integers(2, 5), min_size=1, max_size=5), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def lists() -> TitleLists:
    return TitleLists(tiny_tokenizer())


def test_a_prompt_is_the_header_and_one_title_per_line(lists):
    ids, dropped = lists.prompt("Seen:", TITLES[:2], max_history=10, max_tokens=100)
    end = [lists.end]
    tokens = lists.tokenizer
    parts = [tokens(text, add_special_tokens=False)["input_ids"] + end for text in ("Alien", "Alien 3")]
    assert ids[-len(parts[0] + parts[1]) :] == parts[0] + parts[1]
    assert ids[: -len(parts[0] + parts[1])] == lists.header("Seen:")
    assert dropped == 0


def test_a_title_has_the_same_tokens_in_a_prompt_and_alone(lists):
    one = lists.titles(["Heat (1995)"])[0]
    prompt, _ = lists.prompt("Seen:", TITLES, max_history=10, max_tokens=1000)
    assert any(prompt[i : i + len(one)] == one for i in range(len(prompt)))
    assert one[-1] == lists.end
    assert one.count(lists.end) == 1


def test_quotes_outer_spaces_and_line_breaks_do_not_reach_the_prompt(lists):
    plain = lists.titles(["Toy Story"])
    assert lists.titles([' "Toy Story" ', "Toy\nStory"]) == plain * 2
    assert lists.titles(["", '""']) == [[], []]


def test_the_oldest_titles_give_way(lists):
    whole, _ = lists.prompt("Seen:", TITLES, max_history=3, max_tokens=1000)
    ids, dropped = lists.prompt("Seen:", TITLES, max_history=3, max_tokens=len(whole) - 1)
    assert dropped == 1
    assert ids == lists.prompt("Seen:", TITLES[-2:], max_history=3, max_tokens=1000)[0]
    assert lists.prompt("Seen:", TITLES, max_history=0, max_tokens=1000) == (lists.header("Seen:"), 0)
    with pytest.raises(BigrecError, match="raise max_length"):
        lists.prompt("Seen:", TITLES, max_history=3, max_tokens=1)


def test_shortened_by_hand():
    end = 9
    titles = [[2, 3, 4, end], [2, 3, 5, 6, end], [7, 8, 8, end], [2, 3, end], [7, 8, 8, end]]
    #          Alien 3         Alien Resurrect..   Heat           Alien        Heat again
    assert shorten(titles) == [[2, 3, 4, end], [2, 3, 5, end], [7, end], [2, 3, end], [7, end]]


@given(token_lists)
def test_shortened_titles_stay_apart_and_each_begins_as_the_whole_one(rows):
    end = 9
    titles = [[*row, end] for row in rows]
    short = shorten(titles)
    for (a, b), (c, d) in zip(pairwise(titles), pairwise(short), strict=True):
        assert (a == b) == (c == d)
    assert len(set(map(tuple, short))) == len(set(map(tuple, titles)))
    for whole, cut in zip(titles, short, strict=True):
        assert cut[:-1] == whole[: len(cut) - 1]
        assert cut[-1] == end
        assert len(cut) <= len(whole)


def test_after_shortening_only_the_catalogs_titles_are_short():
    lists = TitleLists(tiny_tokenizer())
    whole = TitleLists(lists.tokenizer)
    lists.shorten(TITLES)
    assert lists.titles(TITLES) == shorten(whole.titles(TITLES))
    assert lists.titles(["Not in the catalog (1999)"]) == whole.titles(["Not in the catalog (1999)"])


def test_the_end_token_is_a_line_break_or_eos():
    tokenizer = tiny_tokenizer()
    end = end_token_id(tokenizer)
    assert tokenizer.decode([end]) == "\n" or end == tokenizer.eos_token_id
