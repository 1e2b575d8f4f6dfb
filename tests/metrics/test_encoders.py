"""Encoders: last real token whatever the padding, against encoding one text at a time; tiny models, no network."""

import numpy as np
import pytest
import torch
from bigrec_hf.metrics.ndcg_hr.encoders import (
    LastTokenEncoder,
    SentenceEncoder,
    is_sentence_model,
    last_token_states,
    load_encoder,
    resolve_dtype,
    token_batches,
)

from tests.helpers.encoders import one_by_one, save_lm, save_sentence_model

TEXTS = ["a", "b c d e f", "a b", "c", "b c", "f e d c b a a b c", "a b"]


@pytest.mark.parametrize("padding_side", ["left", "right"])
@pytest.mark.parametrize("pad", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 12, 4096])
def test_last_token_equals_one_by_one(tmp_path, padding_side, pad, batch_tokens):
    path = save_lm(tmp_path, padding_side=padding_side, pad=pad)
    vectors = load_encoder(path, device="cpu").encode(TEXTS, batch_tokens)
    assert vectors.dtype == np.float32 and vectors.shape == (len(TEXTS), 16)
    np.testing.assert_allclose(vectors, one_by_one(path, TEXTS), atol=2e-5)
    assert (vectors[2] == vectors[6]).all()  # equal texts, equal vectors


def test_no_head_is_loaded_and_nothing_is_printed(tmp_path, capsys):
    encoder = load_encoder(save_lm(tmp_path), device="cpu")
    assert not hasattr(encoder.model, "lm_head")
    assert "UNEXPECTED" not in capsys.readouterr().err


def test_equal_texts_are_encoded_once(tmp_path, monkeypatch):
    encoder = load_encoder(save_lm(tmp_path), device="cpu")
    seen = []
    monkeypatch.setattr(encoder, "_last_states", lambda batch: seen.extend(batch) or np.zeros((len(batch), 16)))
    encoder.encode(["a b", "c", "a b", "a b"])
    assert len(seen) == 2


@pytest.mark.parametrize(("bos", "token"), [(True, "<s>"), (False, "</s>")])
def test_an_empty_text_is_the_bos_or_eos_token(tmp_path, bos, token):
    encoder = load_encoder(save_lm(tmp_path, bos=bos), device="cpu")
    assert encoder.tokenize(["", "a"])[0] == [encoder.tokenizer.convert_tokens_to_ids(token)]
    assert np.isfinite(encoder.encode(["", "a"])).all()


def test_a_text_beyond_the_positions_is_cut(tmp_path):
    encoder = load_encoder(save_lm(tmp_path), device="cpu")
    assert [len(ids) for ids in encoder.tokenize(["a " * 100])] == [32]


def test_no_text(tmp_path):
    assert load_encoder(save_lm(tmp_path), device="cpu").encode([]).shape == (0, 16)


def test_last_token_states_hand_computed():
    hidden = torch.arange(12.0).reshape(2, 3, 2)
    mask = torch.tensor([[0, 1, 1], [1, 1, 0]])  # left-padded, right-padded
    assert last_token_states(hidden, mask).tolist() == [[4, 5], [8, 9]]


def test_batches_hold_every_text_once_and_their_budget():
    lengths = np.random.default_rng(0).integers(1, 50, 200).tolist()
    batches = token_batches(lengths, 100)
    assert sorted(i for batch in batches for i in batch) == list(range(200))
    assert all(len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 100 for batch in batches)
    with pytest.raises(ValueError, match="batch_tokens=0"):
        token_batches([1], 0)


def test_a_large_batch_holds_one_length_and_a_small_one_is_filled_up():
    batches = token_batches([4] * 200 + [3] * 300 + [2] * 10 + [1] * 10, 4096)
    assert [len(batch) for batch in batches] == [200, 300, 20]


def test_sentence_model(tmp_path):
    path = save_sentence_model(tmp_path)
    assert is_sentence_model(path) and not is_sentence_model(save_lm(tmp_path / "lm"))
    encoder = load_encoder(path, device="cpu")
    assert isinstance(encoder, SentenceEncoder) and encoder.encode([]).shape == (0, 16)
    vectors = encoder.encode(TEXTS, batch_tokens=64)
    expected = np.concatenate([encoder.model.encode([text]) for text in TEXTS])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_faults(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        load_encoder(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="dtype='float8'"):
        load_encoder(save_lm(tmp_path / "lm"), dtype="float8")
    encoder = load_encoder(save_lm(tmp_path / "bare", bos=False), device="cpu")
    encoder.tokenizer.eos_token = None
    with pytest.raises(ValueError, match="neither BOS nor EOS"):
        encoder.encode([""])


def test_dtype():
    cpu = torch.device("cpu")
    assert resolve_dtype("bfloat16", cpu) is torch.bfloat16
    assert resolve_dtype("auto", cpu) in (torch.bfloat16, torch.float32)


def test_kinds():
    assert {LastTokenEncoder.kind, SentenceEncoder.kind} == {"last-token", "sentence-transformers"}
