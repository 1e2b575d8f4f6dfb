"""Constrained and debiased beams: the allowed tokens, the best titles and p_CF, each against brute force."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.shards import ShardFolder
from bigrec_hf.data.catalog import Catalog, load_catalog
from bigrec_hf.data.item_scores import write_scores
from bigrec_hf.data.prompts import build_output, completion_token_ids
from bigrec_hf.data.trie import build_title_trie, build_trie
from bigrec_hf.generate import job
from bigrec_hf.generate import stage as generate
from bigrec_hf.generate.constrained import LEAST_MASS, Assistant, Constraint, TrieProcessor, load_constraint
from bigrec_hf.generate.decoder import Decoder, common_prefix_length
from bigrec_hf.generate.strategy import Decoding
from bigrec_hf.settings.recipes import build_settings
from tests.helpers.tiny import TITLES, save_tiny_model, tiny_model, tiny_tokenizer, write_tiny_catalog, write_tiny_json

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
        prompts = [[*prompts[0][:3], *prompt] for prompt in prompts]
        shared = decode(model, tokenizer, prompts, num_beams=6, share=True)
        backwards = decode(model, tokenizer, prompts[::-1], num_beams=6)
        for row, prompt in enumerate(prompts):
            alone = decode(model, tokenizer, [prompt], num_beams=6)
            assert alone[0][0] == shared[0][row] == backwards[0][-1 - row]
            np.testing.assert_allclose(alone[1][0], shared[1][row], rtol=1e-4)
        assert shared[0][0] != shared[0][2]  # the prompt has a say

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


def allowed_by_brute_force(sequences, prefix, probabilities):
    """Token -> summed probability of the sequences that begin with prefix + token, normalized over the tokens."""
    mass = {}
    for sequence, probability in zip(sequences, probabilities, strict=True):
        if len(sequence) > len(prefix) and tuple(sequence[: len(prefix)]) == prefix:
            mass[sequence[len(prefix)]] = mass.get(sequence[len(prefix)], LEAST_MASS) + probability
    total = sum(mass.values())
    return {token: value / total for token, value in mass.items()}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=5), min_size=1, max_size=15),
    st.integers(2, 4),
    st.sampled_from([0.0, 0.3, 1.0]),
    st.integers(0, 2**32 - 1),
)
def test_mask_and_mixed_scores_equal_brute_force(sequences, num_beams, lm_weight, seed):
    """Beams of two prompts go on at random, as `generate` would let them, dead ones and repeated ones included."""
    rng = np.random.default_rng(seed)
    trie, row_leaf = build_trie(sequences)
    item_scores = rng.normal(0, 5, (2, len(sequences))).astype(np.float32)
    probabilities = np.exp(item_scores.astype(np.float64))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    cumulated = Assistant(item_scores, {"a": 1, "b": 0}).cumulated(["a", "b"], row_leaf, trie.n_leaves)
    np.testing.assert_allclose(cumulated[:, -1], 1)
    processor = TrieProcessor(trie, num_beams, 2, torch.from_numpy(cumulated), lm_weight)
    answers = [()] * (2 * num_beams)
    alive = [row % num_beams == 0 for row in range(2 * num_beams)]
    for _ in range(trie.depth):
        ids = torch.tensor([[7, 7, *answer] for answer in answers])
        scores = torch.from_numpy(rng.normal(0, 3, (len(answers), 5)).astype(np.float32)).log_softmax(-1)
        got = processor(ids, scores.clone())
        for row, answer in enumerate(answers):
            expected = np.full(5, -np.inf)
            for token, p in allowed_by_brute_force(sequences, answer, probabilities[1 - row // num_beams]).items():
                expected[token] = lm_weight * scores[row, token].item() + (1 - lm_weight) * np.log(p)
            if alive[row]:
                np.testing.assert_allclose(got[row].numpy(), expected, atol=1e-5)
        continued, still = [], []
        for prompt in range(2):
            rows = range(prompt * num_beams, (prompt + 1) * num_beams)
            fresh = {(answers[r], t) for r in rows for t in range(5) if alive[r] and got[r, t] > -np.inf}
            chosen = [sorted(fresh)[i] for i in rng.permutation(len(fresh))[:num_beams]]
            # where too few are left, `generate` goes on with what has -inf: a token not allowed, or a repeated beam
            filler = [(answers[rows[0]], 4), *chosen]
            padding = [filler[rng.integers(len(filler))] for _ in range(num_beams - len(chosen))]
            continued += [(*answer, token) for answer, token in [*chosen, *padding]]
            still += [True] * len(chosen) + [False] * len(padding)
        answers, alive = continued, still


class TestAssistant:
    def test_by_hand(self):
        # leaves 0: [1 1], 1: [1 2], 2: [3]; rows 0 and 3 share leaf 1, row 4 has no leaf
        assistant = Assistant(np.log(np.array([[1, 2, 3, 1, 3]], np.float32)), {"u": 0})
        cumulated = assistant.cumulated(["u"], np.array([1, 0, 2, 1, -1]), 3)
        np.testing.assert_allclose(np.diff(cumulated), [[0.2, 0.2, 0.3]], rtol=1e-6)

    def test_huge_scores_overflow_nowhere(self):
        assistant = Assistant(np.array([[1e30, -1e30, 0]], np.float32), {"u": 0})
        np.testing.assert_array_equal(np.diff(assistant.cumulated(["u"], np.arange(3), 3)), [[1, 0, 0]])

    def test_item_scores_alone_give_the_best_items(self, model, tokenizer, prompts):
        scores = np.random.default_rng(0).normal(0, 2, (3, len(TITLES))).astype(np.float32)
        assistant = Assistant(scores, {name: row for row, name in enumerate(EXAMPLES)})
        options = {"assistant": assistant, "lm_weight": 0.0, "length_penalty": 0.0, "num_beams": 20}
        texts, found = decode(model, tokenizer, prompts, TITLES, **options)
        for row in range(3):
            log_p = torch.from_numpy(scores[row]).double().log_softmax(0).numpy()
            order = np.argsort(-log_p)
            assert texts[row] == [TITLES[item] for item in order]
            np.testing.assert_allclose(found[row], log_p[order], atol=1e-4)

    def test_the_model_alone_is_constrained_decoding(self, model, tokenizer, prompts):
        assistant = Assistant(np.zeros((3, len(CATALOG)), np.float32), {name: row for row, name in enumerate(EXAMPLES)})
        options = {"num_beams": 5, "length_penalty": 0.0}
        mixed = decode(model, tokenizer, prompts, assistant=assistant, lm_weight=1.0, **options)
        assert mixed == decode(model, tokenizer, prompts, **options)

    def test_a_mix_adds_up(self, model, tokenizer, prompts):
        scores = np.random.default_rng(1).normal(0, 2, (3, len(TITLES))).astype(np.float32)
        assistant = Assistant(scores, {name: row for row, name in enumerate(EXAMPLES)})
        options = {"assistant": assistant, "lm_weight": 0.25, "length_penalty": 0.0, "num_beams": 20}
        texts, found = decode(model, tokenizer, prompts, TITLES, **options)
        for row, prompt in enumerate(prompts):
            known = title_scores(model, tokenizer, prompt, TITLES)
            log_p = torch.from_numpy(scores[row]).double().log_softmax(0).tolist()
            total = {t: 0.25 * known[t][0] + 0.75 * p for t, p in zip(TITLES, log_p, strict=True)}
            assert texts[row] == sorted(total, key=total.get, reverse=True)
            np.testing.assert_allclose(found[row], sorted(total.values(), reverse=True), rtol=1e-4)

    def test_a_weight_outside_0_to_1(self):
        with pytest.raises(BigrecError, match=r"lm_weight is 1.5"):
            Constraint(None, None, 1.5)

    def test_no_scores(self, tokenizer):
        catalog = Catalog(["a"], ["A"])
        with pytest.raises(BigrecError, match="set assistant_scores"):
            load_constraint("debiased", catalog, "alpaca-basic", tokenizer, [], assistant_scores=None, lm_weight=0.5)


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets")
    catalog = write_tiny_catalog(folder / "catalog.csv")
    ids = [f"test#{row}" for row in range(11)]
    scores = np.random.default_rng(0).normal(0, 3, (11, len(TITLES)))
    write_scores(folder / "scores.safetensors", scores, ids, load_catalog(catalog))
    return {
        "base_model": save_tiny_model(folder / "model", seed=1),
        "test_json": [write_tiny_json(folder / "test.json", 11)],
        "catalog": catalog,
        "method": "zero_shot",
        "max_new_tokens": 2,  # has no say
        "generate_batch_size": 2,
        "decoding": "constrained",
        "num_beams": 3,
        "assistant_scores": str(folder / "scores.safetensors"),
    }


def run_generate(assets, run_dir, **overrides):
    resolved = build_settings(None, {**assets, "run_dir": str(run_dir), **overrides})
    generate.main(**{name: resolved[name] for name in ("run", "data", "model", "prompt", "generate")})
    folder = Path(run_dir) / "zero_shot"
    return pq.read_table(folder / "generations.parquet"), json.loads((folder / "generate.json").read_text())


class TestMain:
    @pytest.mark.parametrize("template", ["alpaca-basic", "chat-basic"])
    @pytest.mark.parametrize("decoding", ["constrained", "debiased"])
    def test_all_texts_are_titles_whatever_the_batch(self, assets, tmp_path, decoding, template):
        options = {"decoding": decoding, "train_prompt": template}
        table, facts = run_generate(assets, tmp_path / "a", **options)
        assert all(set(texts) <= set(TITLES) and len(set(texts)) == 3 for texts in table[C.TEXTS].to_pylist())
        assert all(table[C.IN_CATALOG].to_pylist()) and facts["n_in_catalog"] == 11
        assert facts["constraint"]["n_titles"] == len(TITLES)
        other, _ = run_generate(assets, tmp_path / "b", **options, generate_batch_size=7)
        assert other[C.TEXTS] == table[C.TEXTS]

    def test_an_interrupted_run_goes_on(self, assets, tmp_path, monkeypatch):
        whole, _ = run_generate(assets, tmp_path / "whole", decoding="debiased")

        def cut_off(self, number, *rest, write=ShardFolder.write_table):
            if number == 3:
                raise KeyboardInterrupt
            write(self, number, *rest)

        monkeypatch.setattr(ShardFolder, "write_table", cut_off)
        with pytest.raises(KeyboardInterrupt):
            run_generate(assets, tmp_path / "cut", decoding="debiased")
        monkeypatch.undo()
        table, facts = run_generate(assets, tmp_path / "cut", decoding="debiased")
        assert facts["n_resumed"] == 6 and table.equals(whole)

    def test_the_weight_has_a_say_and_the_length_penalty_none(self, assets, tmp_path):
        choices = [{"lm_weight": 0.0}, {"lm_weight": 1.0}, {"lm_weight": 1.0, "length_penalty": 3.0}]
        tables = [
            run_generate(assets, tmp_path / str(i), decoding="debiased", **options)[0]
            for i, options in enumerate(choices)
        ]
        assert tables[0][C.TEXTS] != tables[1][C.TEXTS]
        assert tables[1].equals(tables[2])

    def test_scores_of_another_catalog_are_refused_before_the_model_loads(self, assets, tmp_path, monkeypatch):
        monkeypatch.setattr(job, "load_generator", lambda *rest, **more: pytest.fail("the model was loaded"))
        other = tmp_path / "other.csv"
        other.write_text(Path(assets["catalog"]).read_text(encoding="utf-8") + "i99,Alien\n", encoding="utf-8")
        with pytest.raises(BigrecError, match="catalog"):
            run_generate(assets, tmp_path / "run", decoding="debiased", catalog=str(other))
