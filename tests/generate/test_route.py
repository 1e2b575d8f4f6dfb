"""The way prompts go through a model: hybrid and recurrent models, wrong caches, the measurement's own faults."""

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from bigrec_hf.data.prompts import parse_answer
from bigrec_hf.data.trie import build_title_trie
from bigrec_hf.generate import kv_cache, route
from bigrec_hf.generate.constrained import Constraint
from bigrec_hf.generate.decoder import Decoder, common_prefix_length
from bigrec_hf.generate.route import (
    NO_CACHE,
    ONE_BY_ONE,
    PROMPT_CACHE,
    SHARED_PREFIX,
    STOCK,
    choose_route,
    measure,
    probe_length,
)
from bigrec_hf.generate.strategy import Decoding
from tests.helpers.architectures import tiny_architecture
from tests.helpers.tiny import TITLES, tiny_model, tiny_tokenizer

HYBRIDS = ["bamba", "falcon_h1", "granitemoehybrid", "lfm2", "mamba", "qwen3_next"]
STRATEGIES = {
    "greedy": Decoding("greedy", max_new_tokens=6),
    "beam": Decoding("beam", num_beams=3, max_new_tokens=6),
    "sample": Decoding("sample", num_return_sequences=2, max_new_tokens=6, seed=3),
    "constrained": Decoding("constrained", num_beams=3),
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(padding_side="left")


@pytest.fixture(scope="module")
def prompts(tokenizer):
    texts = ("Toy Story, Heat and some more of them", "nothing", "Babe")
    return [tokenizer(f"The user has watched the following movies before:{text}\n")["input_ids"] for text in texts]


def decoder(model, tokenizer, strategy, prompts):
    constraint = Constraint(build_title_trie(TITLES, "alpaca-basic", tokenizer)) if strategy == "constrained" else None
    prefix = prompts[0][: common_prefix_length(prompts)]
    return Decoder(model, tokenizer, STRATEGIES[strategy], shared_prefix=prefix, constraint=constraint)


def stock_scores(model, prompt, decoding):
    output = model.generate(
        input_ids=torch.tensor([prompt]),
        generation_config=GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            num_beams=decoding.num_beams,
            num_return_sequences=decoding.num_beams,
            eos_token_id=2,
            pad_token_id=3,
            return_dict_in_generate=True,
            output_scores=True,
        ),
    )
    return output.sequences_scores.tolist()


def stock_texts(model, tokenizer, prompt, n, use_cache=True):
    """transformers' own generate on this prompt alone."""
    output = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        generation_config=GenerationConfig(
            max_new_tokens=6,
            num_beams=n,
            num_return_sequences=n,
            eos_token_id=2,
            pad_token_id=3,
            use_cache=use_cache,
        ),
    )
    return [parse_answer(text) for text in tokenizer.batch_decode(output[:, len(prompt) :], skip_special_tokens=True)]


@pytest.mark.parametrize("name", HYBRIDS)
def test_hybrid_models_fall_back_to_stock_generate(tokenizer, prompts, name):
    model = tiny_architecture(name)
    for strategy, n in (("greedy", 1), ("beam", 3)):
        ours = decoder(model, tokenizer, strategy, prompts)
        texts, _ = ours.decode(prompts, list("abc"))
        assert texts == [stock_texts(model, tokenizer, prompt, n) for prompt in prompts]
        assert ours.route.name == STOCK and set(ours.route.reasons) == {SHARED_PREFIX, PROMPT_CACHE}
    for strategy in ("sample", "constrained"):
        ours = decoder(model, tokenizer, strategy, prompts)
        texts, scores = ours.decode(prompts, list("abc"))
        for row, prompt in enumerate(prompts):
            alone = ours.decode([prompt], ["abc"[row]])
            assert alone[0] == [texts[row]] and alone[1][0] == pytest.approx(scores[row], abs=1e-4)


@pytest.mark.parametrize("name", ["gpt_neo", "mpt"])
def test_a_model_that_padding_inside_the_prompt_changes_shares_no_prefix(tokenizer, prompts, name):
    """Local attention and distances that count padding: nothing in the cache's layers tells."""
    model = tiny_architecture(name)
    ours = decoder(model, tokenizer, "beam", prompts)
    assert ours.decode(prompts, list("abc"))[0] == [stock_texts(model, tokenizer, prompt, 3) for prompt in prompts]
    assert ours.route.name == PROMPT_CACHE and "differs by" in ours.route.reasons[SHARED_PREFIX]


@pytest.mark.parametrize(
    ("name", "reason", "stock_is_wrong"),
    [
        ("rwkv", "cannot use beam search with a cache", False),  # raises
        ("recurrent_gemma", "beams that change places leave states behind", True),
        ("minimax", "beams that change places leave states behind", True),
    ],
)
def test_beams_of_models_whose_states_do_not_follow_them_take_no_cache(
    tokenizer, prompts, name, reason, stock_is_wrong
):
    model = tiny_architecture(name)
    greedy = decoder(model, tokenizer, "greedy", prompts)
    assert greedy.decode(prompts, list("abc"))[0] == [stock_texts(model, tokenizer, prompt, 1) for prompt in prompts]
    assert greedy.route.name in (STOCK, ONE_BY_ONE)
    ours = decoder(model, tokenizer, "beam", prompts)
    found = ours.decode(prompts, list("abc"))
    assert ours.route.name == NO_CACHE and reason in ours.route.reasons[ONE_BY_ONE]
    for row, prompt in enumerate(prompts):
        assert found[0][row] == stock_texts(model, tokenizer, prompt, 3, use_cache=False)
    if stock_is_wrong:
        stock = Decoding("beam", num_beams=3, max_new_tokens=6)
        scores = [stock_scores(model, prompt, stock) for prompt in prompts]
        assert not np.allclose(found[1], scores, atol=1e-3)


def test_a_model_that_ignores_the_mask_is_asked_one_by_one(tokenizer, prompts, monkeypatch):
    model = tiny_model(seed=1)
    expected = [stock_texts(model, tokenizer, prompt, 3) for prompt in prompts]
    forward = model.model.forward
    monkeypatch.setattr(
        model.model,
        "forward",
        lambda input_ids=None, attention_mask=None, past_key_values=None, **more: forward(
            input_ids, past_key_values=past_key_values, use_cache=more.get("use_cache")
        ),
    )
    ours = decoder(model, tokenizer, "beam", prompts)
    assert ours.decode(prompts, list("abc"))[0] == expected
    assert ours.route.name == ONE_BY_ONE and set(ours.route.reasons) == {SHARED_PREFIX, PROMPT_CACHE, STOCK}


@pytest.mark.parametrize("untrained", [False, True])
def test_caches_that_do_not_move_with_their_beams_are_noticed(monkeypatch, untrained):
    """Also where hardly anything depends on the text: the probabilities of an untrained model."""
    model = tiny_model(seed=1, spread=0.02 if untrained else 0.3)
    assert choose_route(model, [5, 6, 7, 8], 3, beams=True).name == SHARED_PREFIX
    monkeypatch.setattr(kv_cache.AnswerLayer, "reorder_cache", lambda self, beam_idx: None)
    chosen = measure(model, [5, 6, 7, 8], 4, 3, beams=True)
    assert chosen.name == STOCK  # transformers' own cache
    assert "leave states behind" in chosen.reasons[SHARED_PREFIX]


def test_what_a_route_raises_is_its_reason_but_memory_is_not(monkeypatch):
    def raising(error):
        def broken(*rest, **more):
            raise error

        monkeypatch.setattr(route, "prompts_cache", broken)

    raising(TypeError("no such argument\nmore"))
    chosen = choose_route(tiny_model(seed=1), [5, 6, 7, 8], 3)
    assert chosen.name == STOCK
    assert chosen.reasons == dict.fromkeys((SHARED_PREFIX, PROMPT_CACHE), "TypeError: no such argument")
    raising(torch.OutOfMemoryError("too much"))
    with pytest.raises(torch.OutOfMemoryError):
        choose_route(tiny_model(seed=1), [5, 6, 7, 8], 3)


def test_no_number_is_no_equality(monkeypatch):
    next_tokens = route._next_tokens

    def damaged(model, prompts, pad_id, name, prefix=()):
        return next_tokens(model, prompts, pad_id, name, prefix) * (torch.nan if name == SHARED_PREFIX else 1)

    monkeypatch.setattr(route, "_next_tokens", damaged)
    assert choose_route(tiny_model(seed=1), [5, 6, 7, 8], 3).name == PROMPT_CACHE


def test_measured_once_for_a_model_and_again_beyond_a_window(monkeypatch):
    measured = []

    def counted(model, longest, n, pad_id, *, beams):
        measured.append(n)
        return measure(model, longest, n, pad_id, beams=beams)

    monkeypatch.setattr(route, "measure", counted)
    plain = tiny_model(seed=1)
    for n in (10, 9, 200, 70, 300):
        choose_route(plain, [5] * n, 3)
    assert measured == [10, 64]
    windowed = tiny_architecture("gpt_neo")  # a window of 8
    assert probe_length(windowed, 8) == 8 and probe_length(windowed, 200) == 200
    assert choose_route(windowed, [5, 6, 7, 8, 9, 10], 3).name == SHARED_PREFIX
    assert choose_route(windowed, list(range(5, 45)), 3).name == PROMPT_CACHE
