"""The temperature of the loss over the catalog: by hand, in training only, and what adapters depend on."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.trie import build_trie
from bigrec_hf.models.trie_loss import first_token_sums, token_columns
from bigrec_hf.settings import DataSettings, ModelSettings, PromptSettings, RunSettings, SftSettings
from bigrec_hf.sft.stage import training_settings
from bigrec_hf.sft.temperature import LEAST, MOST, PACE, SHARE, Temperature, fitting_temperature, read_temperature
from tests.sft.test_dense_training import train


def test_without_variance_by_hand():
    # logits m + 3 log(4) for the target, m for 15 others: at t = 3 the odds are 4 : 15; with the variance left out,
    # -log p = log(16) - lead / t = log(4) at t = lead / log(4) = 3
    assert fitting_temperature(3 * math.log(4), 0.0, 0.0, 16) == pytest.approx(3.0)


def test_with_variance_by_hand():
    # c = log(16 / 4) = log(4), lead 6: c t^2 - 6 t + 4 = 0
    c = math.log(4)
    expected = (6 + math.sqrt(36 - 4 * c * 4)) / (2 * c)
    assert fitting_temperature(7.0, 1.0, 8.0, 16) == pytest.approx(expected)
    assert math.log(16) + (1 - 7) / expected + 8 / (2 * expected**2) == pytest.approx(-math.log(SHARE))


@pytest.mark.parametrize(
    ("lead", "variance", "n_tokens", "expected"),
    [
        (0.1, 0.0, 1000, LEAST),  # hardly better than the others
        (-5.0, 1.0, 1000, LEAST),  # worse
        (50.0, 1.0, 1000, MOST),
        (1.0, 1.0, 4, MOST),  # a quarter each already
        (12.0, 1000.0, 100, 12.0 / (2 * math.log(25.0))),  # no solution: the vertex
    ],
)
def test_limits(lead, variance, n_tokens, expected):
    assert fitting_temperature(lead, 0.0, variance, n_tokens) == pytest.approx(expected)


@given(st.floats(-50, 50), st.floats(-50, 50), st.floats(0, 500), st.integers(1, 100_000))
def test_it_stays_within_its_limits(target, mean, variance, n_tokens):
    assert LEAST <= fitting_temperature(target, mean, variance, n_tokens) <= MOST


def test_the_sums_cover_first_tokens_only():
    titles = [[5, 1], [5, 6, 1], [7, 8, 1], [9, 1]]  # three first tokens
    trie, _ = build_trie(titles)
    token_ids, columns = token_columns(trie)
    logits = torch.arange(3.0 * len(token_ids)).reshape(3, -1)
    root = {int(trie.tokens[node]): node for node in range(int(trie.first_child[0]), int(trie.first_child[1]))}
    inner = root[5]  # two titles begin with 5
    nodes, targets = torch.tensor([0, inner, 0]), torch.tensor([root[7], int(trie.first_child[inner]), root[9]])
    place = {int(token): at for at, token in enumerate(token_ids)}
    every = [float(logits[row, place[token]]) for row in (0, 2) for token in (5, 7, 9)]
    expected = [2, float(logits[0, place[7]] + logits[2, place[9]]), 6, sum(every), sum(x * x for x in every)]
    assert first_token_sums(logits, nodes, targets, trie, columns).tolist() == pytest.approx(expected)


def test_the_moving_average_by_hand():
    # 2 targets with logits 8 and 6, 32 logits with mean 1 and a sum of squares of 32 (variance 0)
    sums = torch.tensor([2.0, 14.0, 32.0, 32.0, 32.0])
    fitting = 6 / math.log(4)  # lead 7 - 1, n = 16
    adaptive = Temperature(None)
    adaptive.update(sums)
    assert adaptive.value == pytest.approx(LEAST + PACE * (fitting - LEAST))
    before = adaptive.value
    adaptive.update(torch.zeros(5))  # no first token in the batch
    assert adaptive.value == before
    again = Temperature.from_state(adaptive.state())
    assert (again.fixed, again.value) == (None, before)


def test_settings():
    assert [read_temperature(value) for value in ("1", "1.0", "2.5", "adaptive")] == [1.0, 1.0, 2.5, None]
    for value in ("0", "-1", "nan", "inf", "warm", ""):
        with pytest.raises(BigrecError, match="give a number above 0, or adaptive"):
            read_temperature(value)


def test_adapters_without_a_temperature_keep_their_fingerprint(tiny_model_dir, tiny_prepared):
    def settings(**changes):
        return training_settings(
            RunSettings(),
            DataSettings(dataset=[tiny_prepared]),
            ModelSettings(base_model=tiny_model_dir),
            PromptSettings(),
            SftSettings(**changes),
        )

    assert "trie_temperature" not in settings() and settings() == settings(trie_temperature="1.0")
    assert settings(trie_temperature="2")["trie_temperature"] == "2"


def test_only_the_training_has_a_temperature(tiny_model_dir, tiny_prepared, tmp_path):
    """With a learning rate of almost nothing, validation is that of the base model, whatever the temperature."""
    records = {
        t: train(tmp_path / t, tiny_model_dir, tiny_prepared, trie_temperature=t, learning_rate=1e-12, epochs=1)
        for t in ("1", "3", "adaptive")
    }
    (one, three, adaptive) = ([e for e in records[t]["history"] if "eval_loss" in e][-1] for t in records)
    assert one["eval_loss"] == pytest.approx(three["eval_loss"]) == pytest.approx(adaptive["eval_loss"])
    losses = [next(e["loss"] for e in records[t]["history"] if "loss" in e) for t in records]
    assert abs(losses[0] - losses[1]) > 1e-3 and abs(losses[0] - losses[2]) > 1e-3
