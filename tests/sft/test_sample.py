"""The prediction shown at each evaluation: greedy, one line, and without any effect on the training."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from bigrec_hf.data.title_lists import title_lists
from bigrec_hf.data.trie import build_trie
from bigrec_hf.models.catalog_head import catalog_head
from bigrec_hf.models.trie_loss import token_columns
from bigrec_hf.settings import DataSettings, ModelSettings, PromptSettings, RunSettings
from bigrec_hf.sft import stage as sft
from bigrec_hf.sft.callbacks import OneLine
from bigrec_hf.sft.sample import MOST_TOKENS, Sample, ShowSample, greedy_leaf, greedy_tokens
from tests.helpers.tiny import TITLES, tiny_model, tiny_tokenizer, write_tiny_json
from tests.sft.test_dense_training import train as train_dense
from tests.sft.test_dense_training import weights
from tests.sft.test_sft import QUICK, train


def test_the_line():
    line = Sample(["A", "B", "C", "D"], "E", lambda trainer: "").line
    assert line("F") == "...; B; C; D -> F (next in truth: E)"
    assert line("") == "...; B; C; D -> nothing (next in truth: E)"
    assert line("x" * 50).startswith(f"...; B; C; D -> {'x' * 37}... (")
    assert Sample([], "E\n", lambda trainer: "").line("a\nb") == "no history -> a b (next in truth: E)"


class Plain(torch.nn.Module):
    """A model without a cache."""

    def __init__(self, model):
        super().__init__()
        self.model, self.calls = model, 0

    def forward(self, input_ids, **_):
        self.calls += 1
        return SimpleNamespace(logits=self.model(input_ids=input_ids).logits)


@pytest.mark.parametrize("seed", range(4))
def test_greedy_tokens_are_those_of_generate(seed):
    model, prompt = tiny_model(seed=seed), [5, 17, 200, 31, 8]
    end = model.generation_config.eos_token_id
    given = torch.tensor([prompt])
    expected = model.generate(
        given, attention_mask=torch.ones_like(given), do_sample=False, max_new_tokens=MOST_TOKENS, pad_token_id=0
    )[0, len(prompt) :].tolist()
    with torch.no_grad():
        found = greedy_tokens(model, prompt, end)
        assert found == [token for token in expected if token != end]
        plain = Plain(model)
        assert greedy_tokens(plain, prompt, end) == found and plain.calls == len(found) + (len(found) < MOST_TOKENS)


@pytest.mark.parametrize("short", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_greedy_titles_follow_the_likeliest_branch(short, whole):
    model, tokenizer = tiny_model(), tiny_tokenizer()
    ids = title_lists(tokenizer, TITLES, short=short).titles(TITLES)
    trie, leaves = build_trie(ids)
    prompt = [5, 17, 200]
    prefix: list[int] = []
    with torch.no_grad():
        while prefix not in ids:  # by hand: the likeliest of the next tokens of the titles that begin like this
            logits = model(input_ids=torch.tensor([[*prompt, *prefix]])).logits[0, -1]
            following = sorted({title[len(prefix)] for title in ids if title[: len(prefix)] == prefix})
            prefix = [*prefix, max(following, key=lambda token: float(logits[token]))]
        token_ids, columns = (None, trie.tokens) if whole else token_columns(trie)
        with catalog_head(model, token_ids) as head:
            leaf = greedy_leaf(model, head, prompt, trie, columns)
    assert leaf == leaves[ids.index(prefix)]


@pytest.mark.parametrize("objective", ["pairs", "dense", "dense full"])
def test_training_shows_it_and_is_the_same_without(
    objective, tiny_model_dir, tiny_prepared, tmp_path, capsys, monkeypatch
):
    start = train if objective == "pairs" else train_dense
    changes = {"lora_dropout": 0.3} | ({"loss": "full"} if objective == "dense full" else {})
    record = start(tmp_path / "with", tiny_model_dir, tiny_prepared, **changes)
    out = capsys.readouterr().out.splitlines()
    shown = [entry for entry in record["history"] if "sample" in entry]
    evaluations = [entry for entry in record["history"] if "eval_loss" in entry]
    assert len(shown) == len(evaluations) == 2
    assert [entry["step"] for entry in shown] == [entry["step"] for entry in evaluations]
    for entry in shown:
        assert f"  {entry['sample']}" in out
        assert entry["sample"].endswith(")") and " (next in truth: " in entry["sample"]
        assert objective == "pairs" or entry["sample_prediction"] in TITLES
    written = json.loads((tmp_path / "with" / "adapter" / "training.json").read_text())
    assert written["history"] == record["history"]
    monkeypatch.setattr(ShowSample, "on_evaluate", lambda *args, **kwargs: None)
    record = start(tmp_path / "without", tiny_model_dir, tiny_prepared, **changes)
    assert not any("sample" in entry for entry in record["history"])
    one, other = weights(tmp_path / "with"), weights(tmp_path / "without")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_memorized_title_is_predicted(tiny_model_dir, tmp_path):
    """The prompt is the one of training: what is validated on has been learned by heart."""
    records = write_tiny_json(tmp_path / "one.json", 1)
    (record,) = json.loads((tmp_path / "one.json").read_text())
    settings = replace(
        QUICK, sample=0, epochs=40, global_batch_size=1, micro_batch_size=1, lora_target_modules=["all-linear"]
    )
    data = DataSettings(train_json=[records], validation_json=[records])
    model = ModelSettings(base_model=tiny_model_dir, dtype="float32")
    settings = replace(settings, adapter_dir=str(tmp_path / "adapter"))
    found = sft.main(RunSettings(), data, model, PromptSettings(), settings)
    last = [entry for entry in found["history"] if "sample" in entry][-1]
    assert last["sample_prediction"] == record["output"].strip('"')


def test_a_model_that_cannot_predict_trains_on(capsys):
    trainer = SimpleNamespace(
        is_fsdp_enabled=False,
        is_world_process_zero=lambda: True,
        model=torch.nn.Linear(1, 1),
        callback_handler=SimpleNamespace(callbacks=[]),
    )
    asked = []

    def fails(trainer):
        asked.append(trainer.model.training)
        raise RuntimeError("no\nway")

    show = ShowSample(trainer, Sample(["A"], "B", fails))
    state = SimpleNamespace(global_step=3, log_history=[])
    for _ in range(2):
        show.on_evaluate(None, state, None)
    assert asked == [False] and trainer.model.training and state.log_history == []
    assert capsys.readouterr().out == "no sample predictions: RuntimeError: no way\n"
    trainer.is_world_process_zero = lambda: False
    ShowSample(trainer, Sample(["A"], "B", fails)).on_evaluate(None, state, None)
    assert len(asked) == 1


def test_tensorboard_gets_the_text():
    written = []
    writer = SimpleNamespace(add_text=lambda *args: written.append(args))
    trainer = SimpleNamespace(
        is_fsdp_enabled=False,
        is_world_process_zero=lambda: True,
        model=torch.nn.Linear(1, 1),
        callback_handler=SimpleNamespace(callbacks=[OneLine(1), SimpleNamespace(tb_writer=writer)]),
    )
    state = SimpleNamespace(global_step=3, log_history=[])
    ShowSample(trainer, Sample(["A"], "B", lambda trainer: "C")).on_evaluate(None, state, None)
    assert written == [("eval/sample", "A -> C (next in truth: B)", 3)]
    assert state.log_history == [{"step": 3, "sample_prediction": "C", "sample": "A -> C (next in truth: B)"}]
