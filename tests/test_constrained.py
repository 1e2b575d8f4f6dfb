"""Constrained and debiased beams: the allowed tokens, the best titles and p_CF, each against brute force."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigrec_hf import generate
from bigrec_hf.catalog import Catalog, load_catalog
from bigrec_hf.columns import Columns as C
from bigrec_hf.constrained import LEAST_MASS, Assistant, Constraint, TrieProcessor, load_constraint
from bigrec_hf.decoder import Decoder, common_prefix_length
from bigrec_hf.decoding import Decoding
from bigrec_hf.errors import BigrecError
from bigrec_hf.item_scores import write_scores
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.prompts import build_output, completion_token_ids
from bigrec_hf.recipes import build_settings
from bigrec_hf.shards import ShardFolder
from bigrec_hf.trie import build_title_trie, build_trie
from tests.tiny import TITLES, save_tiny_model, tiny_model, tiny_tokenizer, write_tiny_catalog, write_tiny_json

# prefixes of each other, duplicates, outer spaces, an empty one, other scripts, a line break, one token, quotes
CATALOG = [
    *TITLES,
    "Heat",
    "Heat (1995)",
    " Heat (1995)",
    "",
    "H",
    "数独 (2001)",
    "数",
    "A\nB",
    '"Heat" or not',
    "Fargo (1996) 2",
]
PROMPTS = ["The user has watched Heat.\n", "Hi\n", "The user has watched nothing that could be named here, ever.\n"]
EXAMPLES = [f"user{i}:3" for i in range(len(PROMPTS))]


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(padding_side="left")


@pytest.fixture(scope="module")
def model():
    return tiny_model(seed=1)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [tokenizer(text)["input_ids"] for text in PROMPTS]


def title_scores(model, tokenizer, prompt, titles):
    """Summed log-probability and number of tokens of each title after the prompt, one forward pass each."""
    found = {}
    for title in titles:
        if clean_title(title):
            text = tokenizer.decode(prompt)
            ids = completion_token_ids(text, prompt, build_output(title), "alpaca-basic", tokenizer)
            with torch.no_grad():
                logits = model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
            log_probs = logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)]
            found[title] = (log_probs.sum().item(), len(ids))
    return found


def decode(model, tokenizer, prompts, titles=CATALOG, *, share=False, assistant=None, lm_weight=1.0, **options):
    strategy = "constrained" if assistant is None else "debiased"
    constraint = Constraint(build_title_trie(titles, "alpaca-basic", tokenizer), assistant, lm_weight)
    prefix = prompts[0][: common_prefix_length(prompts)] if share else ()
    decoder = Decoder(model, tokenizer, Decoding(strategy, **options), shared_prefix=prefix, constraint=constraint)
    return decoder.decode(prompts, EXAMPLES[: len(prompts)])


class TestBeams:
    @pytest.mark.parametrize("length_penalty", [0.0, 1.0])
    @pytest.mark.parametrize("architecture", ["llama", "qwen2"])
    def test_enough_beams_give_the_best_of_all_titles(self, tokenizer, prompts, architecture, length_penalty):
        model = tiny_model(architecture, seed=1)
        texts, scores = decode(model, tokenizer, prompts, num_beams=40, length_penalty=length_penalty)
        for row, prompt in enumerate(prompts):
            known = title_scores(model, tokenizer, prompt, CATALOG)
            expected = sorted(((total / n**length_penalty, title) for title, (total, n) in known.items()), reverse=True)
            assert [clean_title(title) for _, title in expected] == texts[row]  # all there are, best first
            np.testing.assert_allclose(scores[row], [score for score, _ in expected], rtol=1e-4)

    @pytest.mark.parametrize("num_beams", [1, 2, 4, 10])
    def test_scores_are_those_of_the_titles(self, model, tokenizer, prompts, num_beams):
        texts, scores = decode(model, tokenizer, prompts, TITLES, num_beams=num_beams, length_penalty=0.0)
        for row, prompt in enumerate(prompts):
            known = title_scores(model, tokenizer, prompt, TITLES)
            assert len(set(texts[row])) == num_beams
            np.testing.assert_allclose(scores[row], [known[title][0] for title in texts[row]], rtol=1e-4)
            assert scores[row] == sorted(scores[row], reverse=True)

    def test_padding_order_and_a_shared_prefix_do_not_matter(self, model, tokenizer, prompts):
        texts, scores = decode(model, tokenizer, prompts, num_beams=6)
        prompts = [[*prompts[0][:3], *prompt] for prompt in prompts]
        shared = decode(model, tokenizer, prompts, num_beams=6, share=True)
        backwards = decode(model, tokenizer, prompts[::-1], num_beams=6)
        for row, prompt in enumerate(prompts):
            alone = decode(model, tokenizer, [prompt], num_beams=6)
            assert alone[0][0] == shared[0][row] == backwards[0][-1 - row]
            np.testing.assert_allclose(alone[1][0], shared[1][row], rtol=1e-4)
        assert texts[0] != texts[2]  # the prompt has a say

    def test_the_first_texts_are_kept(self, model, tokenizer, prompts):
        texts, _ = decode(model, tokenizer, prompts, num_beams=6)
        kept, _ = decode(model, tokenizer, prompts, num_beams=6, num_return_sequences=2)
        assert kept == [row[:2] for row in texts]

    def test_one_title(self, model, tokenizer, prompts):
        texts, _ = decode(model, tokenizer, prompts, ["Heat (1995)"] * 2, num_beams=4)
        assert texts == [["Heat (1995)"]] * 3

    def test_other_end_tokens_end_nothing(self, tokenizer, prompts):
        inner = tokenizer("1995")["input_ids"][0]
        texts, _ = decode(tiny_model(seed=1, eos_token_id=[2, inner]), tokenizer, prompts, TITLES, num_beams=20)
        assert all(sorted(row) == sorted(TITLES) for row in texts)

    def test_a_beam_off_the_trie_fails(self, model, tokenizer, prompts, monkeypatch):
        monkeypatch.setattr(
            TrieProcessor, "__call__", lambda self, ids, scores: self.ends.append((torch.empty(0),) * 3) or scores
        )
        with pytest.raises(BigrecError, match="0 different titles in 4 beams for prompt 0"):
            decode(model, tokenizer, prompts, num_beams=4)

    @settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.lists(st.text('aé数 1(\n"', max_size=5), max_size=12), st.integers(1, 12), st.integers(0, 3))
    def test_any_catalog(self, model, tokenizer, prompts, titles, num_beams, seed):
        titles = [*titles, "a", "a", "a1", "aa"]
        texts, scores = decode(model, tokenizer, prompts, titles, num_beams=num_beams, length_penalty=0.0)
        n = len(build_title_trie(titles, "alpaca-basic", tokenizer).texts)
        for row, prompt in enumerate(prompts):
            known = title_scores(model, tokenizer, prompt, set(titles))
            assert len(texts[row]) == min(n, num_beams)
            assert set(texts[row]) <= set(map(clean_title, titles))
            if num_beams >= n:
                best = max(total for total, _ in known.values())
                assert scores[row][0] == pytest.approx(best, rel=1e-4)
