"""log p of all titles: against plain forward passes, title by title."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.trie import build_trie
from bigrec_hf.generate.title_scores import TitleScorer
from bigrec_hf.models.catalog_head import catalog_head
from bigrec_hf.models.trie_loss import token_columns

END = 1
TITLES = [[5, END], [5, 6, END], [5, 6, 7, 8, END], [5, 6, 7, 9, END], [10, END], [11, 12, 13, END], [11, 12, 14, END]]
PROMPTS = [[20, 21, 22], [23, 24], [25, 26, 27, 28, 29]]


def tiny(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=1.0,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def plainly(model, prompt: list[int], title: list[int], titles: list[list[int]] = TITLES) -> float:
    """log p over the trie's continuations, one plain forward pass per title."""
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + title])).logits[0].double()
    total = 0.0
    for place, token in enumerate(title):
        allowed = sorted({other[place] for other in titles if other[:place] == title[:place] and len(other) > place})
        total += float(logits[len(prompt) + place - 1, allowed].log_softmax(0)[allowed.index(token)])
    return total


def scorer_log_probs(model, titles: list[list[int]] = TITLES, **options) -> np.ndarray:
    trie, leaves = build_trie(titles)
    token_ids, columns = token_columns(trie)
    with catalog_head(model, token_ids) as head:
        return TitleScorer(model, head, trie, columns, **options).log_probs(PROMPTS)[:, leaves]


def test_every_title_gets_the_log_p_of_a_plain_pass_and_they_sum_to_one():
    model = tiny()
    found = scorer_log_probs(model)
    expected = [[plainly(model, prompt, title) for title in TITLES] for prompt in PROMPTS]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.exp(found).sum(axis=1), 1.0, atol=1e-5)


def test_a_narrow_walk_is_exact_on_the_likeliest_path_and_still_a_distribution():
    model = tiny()
    wide, narrow = scorer_log_probs(model), scorer_log_probs(model, width=1)
    np.testing.assert_allclose(np.exp(narrow).sum(axis=1), 1.0, atol=1e-5)
    assert not np.allclose(wide, narrow)  # one of the two open nodes of the first level was not visited
    for row in range(len(PROMPTS)):
        assert np.isclose(wide[row], narrow[row], atol=1e-5).sum() >= 3


def beams(model, prompt: list[int], width: int) -> dict[tuple[int, ...], float]:
    """Titles and log p of a plain beam search: the `width` likeliest prefixes of every length, each token among the
    continuations of its prefix, one forward pass per prefix."""
    alive: dict[tuple[int, ...], float] = {(): 0.0}
    ended = {}
    while alive:
        longer = {}
        for prefix, log_p in alive.items():
            allowed = sorted({title[len(prefix)] for title in TITLES if tuple(title[: len(prefix)]) == prefix})
            with torch.inference_mode():
                logits = model(torch.tensor([[*prompt, *prefix]])).logits[0, -1, allowed].double()
            for token, step in zip(allowed, logits.log_softmax(0).tolist(), strict=True):
                (ended if token == END else longer)[(*prefix, token)] = log_p + step
        alive = dict(sorted(longer.items(), key=lambda one: -one[1])[:width])
    return ended


@pytest.mark.parametrize("seed", range(5))
def test_beams_find_the_same_titles_at_the_top(seed):
    """Enough beams find the same order of all titles; the likeliest few of a narrow search have the same log p."""
    model = tiny(seed)
    exact = scorer_log_probs(model)
    for prompt, log_p in zip(PROMPTS, exact, strict=True):
        everything = beams(model, prompt, width=len(TITLES))
        best = sorted(everything, key=lambda title: -everything[title])
        assert [TITLES[row] for row in np.argsort(-log_p)] == [list(title) for title in best]
        for title, found in beams(model, prompt, width=2).items():
            assert found == pytest.approx(log_p[TITLES.index(list(title))], abs=1e-5)


def test_titles_behind_an_unvisited_node_share_its_probability_by_popularity():
    """Width 1 visits one of the open nodes 5 and 11 of the first level; what lies behind the other is shared."""
    model = tiny()
    popularity = np.array([1.0, 2.0, 3.0, 4.0, 1.0, 7.0, 3.0])  # in the order of TITLES, which is that of the leaves
    exact, narrow = scorer_log_probs(model), scorer_log_probs(model, width=1, popularity=popularity)
    np.testing.assert_allclose(np.exp(narrow).sum(axis=1), 1.0, atol=1e-5)
    behind = {5: [0, 1, 2, 3], 11: [5, 6]}
    for wide, found in zip(np.exp(exact), np.exp(narrow), strict=True):
        skipped = behind[5] if wide[behind[5]].sum() < wide[behind[11]].sum() else behind[11]
        shares = popularity[skipped] / popularity[skipped].sum()
        np.testing.assert_allclose(found[skipped], wide[skipped].sum() * shares, rtol=1e-4)


def test_what_nothing_descends_from_is_forgotten_and_changes_nothing(monkeypatch):
    """A broad first level, of which one chain goes on: its other nodes leave the cache."""
    chain = [[2, 3, 4, 5, 6, 7, 8, 9, last, END] for last in (10, 11)]
    broad = [[first, last, END] for first in range(12, 24) for last in (24, 25)]
    titles, lengths = [*chain, *broad], []
    forget = TitleScorer._forget

    def recorded(self, walk, chosen):
        forget(self, walk, chosen)
        lengths.append(walk.slots.shape[1])
        assert {layer.keys.shape[2] for layer in walk.cache.layers} == {walk.prompt_mask.shape[1] + lengths[-1]}

    monkeypatch.setattr(TitleScorer, "_forget", recorded)
    model = tiny()
    found = scorer_log_probs(model, titles)
    expected = [[plainly(model, prompt, title, titles) for title in titles] for prompt in PROMPTS]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert lengths == [0, 1, 2, 3, 4, 5, 6, 7]  # the 13 nodes of the first level are one when the second is computed


def test_what_is_less_likely_than_chance_is_not_followed_by_a_narrow_walk():
    model = tiny()
    wide, narrow = scorer_log_probs(model), scorer_log_probs(model, width=100)
    np.testing.assert_allclose(np.exp(narrow).sum(axis=1), 1.0, atol=1e-5)
    chance = -np.log(len(TITLES))
    np.testing.assert_allclose(narrow[wide >= chance], wide[wide >= chance], atol=1e-5)
    changed = ~np.isclose(wide, narrow, atol=1e-5)
    assert changed.any() and (narrow[changed] < chance).all()


@pytest.mark.parametrize("width", [1, 2, 3])
def test_a_narrow_walk_is_checked_on_a_title_that_was_visited(width, monkeypatch):
    checked, check = [], TitleScorer._check

    def watched(self, prompt, log_p):
        checked.append(log_p)
        check(self, prompt, log_p)

    monkeypatch.setattr(TitleScorer, "_check", watched)
    model = tiny()
    popular = np.ones(len(TITLES))
    popular[::3] = 1e9  # a share of an unvisited node is mostly that of one title, often the likeliest of all
    narrow, wide = scorer_log_probs(model, width=width, popularity=popular), scorer_log_probs(model)
    given = checked[0].numpy()[build_trie(TITLES)[1]]
    known = np.isfinite(given)
    assert 0 < known.sum() < len(TITLES)
    np.testing.assert_allclose(given[known], wide[0][known], atol=1e-4)
    assert (np.abs(narrow[0][~known] - wide[0][~known]) > 1e-3).any()


def test_the_model_has_its_own_head_again_afterwards():
    model = tiny()
    head = model.lm_head
    scorer_log_probs(model)
    assert model.lm_head is head


def test_sliding_windows_are_refused():
    config = MistralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, sliding_window=4,
    )  # fmt: skip
    config.layer_types = ["sliding_attention"]
    with pytest.raises(BigrecError, match="decoding constrained"):
        scorer_log_probs(MistralForCausalLM(config).eval())


def test_a_model_that_ignores_the_mask_is_refused():
    model = tiny()
    forward = model.model.forward
    model.model.forward = lambda *args, attention_mask=None, **kwargs: forward(*args, **kwargs)
    with pytest.raises(BigrecError, match="ignores masks"):
        scorer_log_probs(model)
