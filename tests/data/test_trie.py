"""The token trie: by hand, then every look-up against brute force over all sequences, then real templates."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import load_catalog
from bigrec_hf.data.prompts import TEMPLATES, build_output, completion_token_ids, fit_prompt
from bigrec_hf.data.trie import build_title_trie, build_trie
from tests.helpers.tiny import TITLES, tiny_tokenizer

DATA = Path(os.environ.get("BIGREC_HF_DATA", "/nonexistent"))


def node_of(trie, prefix):
    node = torch.tensor([0])
    for token in prefix:
        node = trie.child(node, torch.tensor([token]))
    return int(node)


def tokens_after(trie, node):
    _, children = trie.children(torch.tensor([node]))
    return trie.tokens[children].tolist()


class TestByHand:
    # [5 7] ends where [5 7 2] goes on; [5 7 2] stands twice
    trie, leaves = build_trie([[5, 7, 2], [9], [5, 7], [5, 3, 4], [5, 7, 2]])

    def test_numbers(self):
        # levels: root | 5 9 | 5.3 5.7 | 5.3.4 5.7.2
        assert self.trie.tokens.tolist() == [-1, 5, 9, 3, 7, 4, 2]
        assert self.trie.first_child.tolist() == [1, 3, 5, 5, 6, 7, 7, 7]
        assert self.trie.leaf.tolist() == [-1, -1, 3, -1, 1, 0, 2]  # leaves: 534, 57, 572, 9
        assert self.trie.leaf_range.tolist() == [[0, 4], [0, 3], [3, 4], [0, 1], [1, 3], [0, 1], [2, 3]]
        assert self.leaves.tolist() == [2, 3, 1, 0, 2]
        assert (self.trie.depth, self.trie.n_leaves, self.trie.n_nodes) == (3, 4, 7)

    def test_children(self):
        rows, nodes = self.trie.children(torch.tensor([0, -1, 2, 1, 0]))
        assert rows.tolist() == [0, 0, 3, 3, 4, 4]
        assert nodes.tolist() == [1, 2, 3, 4, 1, 2]
        assert self.trie.children(torch.tensor([-1, 2]))[0].tolist() == []

    def test_child(self):
        nodes = torch.tensor([[0, 0, 1], [4, -1, 6]])
        tokens = torch.tensor([[5, 6, 7], [2, 5, 2]])
        assert self.trie.child(nodes, tokens).tolist() == [[1, -1, 4], [6, -1, -1]]

    def test_nothing_to_build(self):
        for sequences in ([], [[1], []]):
            with pytest.raises(BigrecError, match="at least one"):
                build_trie(sequences)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=25))
def test_every_lookup_equals_brute_force(sequences):
    trie, leaves = build_trie(sequences)
    distinct = sorted(set(map(tuple, sequences)))
    assert [distinct[leaf] for leaf in leaves] == list(map(tuple, sequences))
    prefixes = {sequence[:n] for sequence in distinct for n in range(len(sequence) + 1)}
    assert trie.n_nodes == len(prefixes) and trie.n_leaves == len(distinct)
    for prefix in prefixes:
        node = node_of(trie, prefix)
        below = [i for i, sequence in enumerate(distinct) if sequence[: len(prefix)] == prefix]
        assert list(range(*trie.leaf_range[node].tolist())) == below
        assert trie.leaf[node] == (distinct.index(prefix) if prefix in distinct else -1)
        allowed = {sequence[len(prefix)] for sequence in distinct if sequence[: len(prefix)] == prefix != sequence}
        assert tokens_after(trie, node) == sorted(allowed)
        for token in range(5):
            assert (node_of(trie, (*prefix, token)) > 0) == (token in allowed)


def brute_force_ids(title, template, tokenizer):
    """What training gives for this title, after some prompt with a history."""
    text, ids, _ = fit_prompt(
        template, "Recommend.", "The user has watched:", list(TITLES[:3]), tokenizer, max_history=10, max_tokens=500
    )
    return completion_token_ids(text, ids, build_output(title), template, tokenizer)


def path_to_leaf(trie, ids):
    node = node_of(trie, ids)
    return int(trie.leaf[node]) if node >= 0 else -1


@pytest.mark.parametrize("template", TEMPLATES)
def test_paths_are_the_completions_of_training(template):
    tokenizer = tiny_tokenizer()
    titles = [*TITLES, "Heat", "Heat (1995) ", " Heat (1995)", "Heat (1995)", "", '""', "A\nB", "数独 (2001)", "x</s>y"]
    built = build_title_trie(titles, template, tokenizer)
    for row, title in enumerate(titles):
        if not clean_title(title):
            assert built.row_leaf[row] == -1
            continue
        ids = brute_force_ids(title, template, tokenizer)
        assert ids[-1] == tokenizer.eos_token_id
        ids = ids[: ids.index(tokenizer.eos_token_id) + 1]
        assert path_to_leaf(built.trie, ids) == built.row_leaf[row]
        assert built.texts[built.row_leaf[row]] == clean_title(title)
    assert built.row_leaf[19] == built.row_leaf[23]  # the same title twice
    assert len(set(built.row_leaf[[19, 21, 22]])) == 3  # outer spaces are tokens
    assert built.n_ambiguous == 0
    assert (built.trie.first_child.diff()[built.trie.leaf >= 0] == 0).all()  # nothing goes on after the end token


def test_titles_that_the_tokenizer_cannot_tell_apart():
    built = build_title_trie(["a</s>b", "a</s>c", "a"], "alpaca-basic", tiny_tokenizer())
    assert built.row_leaf[0] == built.row_leaf[1] != built.row_leaf[2]
    assert built.n_ambiguous == 1
    assert built.texts[built.row_leaf[0]] == "a</s>b"


def test_no_title():
    with pytest.raises(BigrecError, match="none of the catalog's 2 titles"):
        build_title_trie(["", ' "" '], "alpaca-basic", tiny_tokenizer())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=6), min_size=1, max_size=15), st.sampled_from(TEMPLATES))
@example(["</s>"], "alpaca-basic")
def test_any_unicode_titles(titles, template):
    titles = [*titles, titles[0], titles[0] + " 2", "x"]
    tokenizer = tiny_tokenizer()
    built = build_title_trie(titles, template, tokenizer)
    for row, title in enumerate(titles):
        if clean_title(title):
            ids = brute_force_ids(title, template, tokenizer)
            ids = ids[: ids.index(tokenizer.eos_token_id) + 1]  # a title may spell the end token
            assert path_to_leaf(built.trie, ids) == built.row_leaf[row]


@pytest.mark.skipif(not DATA.is_dir(), reason="BIGREC_HF_DATA not set")
def test_the_game_catalog():
    titles = load_catalog(DATA / "titles" / "game.id2name.txt").titles
    built = build_title_trie(titles, "alpaca-basic", tiny_tokenizer())
    assert built.trie.n_leaves == len(set(titles))
    rows = np.random.default_rng(0).permutation(len(titles))[:200]
    for row in rows:
        ids = brute_force_ids(titles[row], "alpaca-basic", tiny_tokenizer())
        assert path_to_leaf(built.trie, ids) == built.row_leaf[row]
