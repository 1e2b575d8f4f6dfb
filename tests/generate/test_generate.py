"""Generation: clean decoding, independence of the batch, restart after a kill, several processes."""

import itertools
import json
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import get_peft_model
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.shards import ShardFolder, write_texts
from bigrec_hf.data.examples import load_examples
from bigrec_hf.data.generations import answer_flags
from bigrec_hf.data.prompts import parse_answer
from bigrec_hf.generate import inputs, job
from bigrec_hf.generate import stage as generate
from bigrec_hf.generate.batches import plan_batches
from bigrec_hf.generate.decoder import Decoder, common_prefix_length
from bigrec_hf.generate.route import PROMPT_CACHE, SHARED_PREFIX
from bigrec_hf.generate.strategy import ChooseToken, Decoding, end_token_ids, line_break_ids, uniforms
from bigrec_hf.models.loading import lora_config
from bigrec_hf.settings import DataSettings, PromptSettings
from bigrec_hf.settings.recipes import build_settings
from tests.helpers.processes import KILLED_AFTER_SHARDS, flags, run_pair, run_python
from tests.helpers.tiny import TITLES, save_tiny_model, tiny_model, tiny_tokenizer, write_tiny_catalog, write_tiny_json

BEAM = Decoding("beam", max_new_tokens=12)
GREEDY = Decoding("greedy", max_new_tokens=12)
SAMPLE = Decoding("sample", max_new_tokens=12, num_return_sequences=2, top_k=40, top_p=0.95, seed=3)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer(padding_side="left")


@pytest.fixture(scope="module", params=["llama", "qwen2"])
def model(request):
    return tiny_model(request.param, seed=1)


@pytest.fixture(scope="module")
def prompts(tokenizer):
    rng = np.random.default_rng(0)
    histories = [[TITLES[i] for i in rng.permutation(20)[:n]] for n in (3, 0, 10, 1, 7)]
    texts = ["The user has watched the following movies before:" + ", ".join(history) + "\n" for history in histories]
    return [tokenizer(text)["input_ids"] for text in texts]


def decode(model, tokenizer, decoding, prompts, *, share=True):
    prefix = prompts[0][: common_prefix_length(prompts)] if share else ()
    decoder = Decoder(model, tokenizer, decoding, shared_prefix=prefix)
    return decoder.decode(prompts, [f"user{i}:3" for i in range(len(prompts))])


def plain_generate(model, tokenizer, prompts, **options):
    """transformers' own generate on left-padded prompts, nothing shared: the independent reference."""
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
    model.generation_config = GenerationConfig()
    output = model.generate(
        input_ids=ids,
        attention_mask=(torch.arange(width) >= torch.tensor([[width - len(prompt)] for prompt in prompts])).long(),
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        return_dict_in_generate=True,
        output_scores=True,
        **options,
    )
    return [
        parse_answer(tokenizer.decode(row, skip_special_tokens=True)) for row in output.sequences[:, width:]
    ], output


class TestDecoder:
    @pytest.mark.parametrize("share", [True, False])
    def test_beams_equal_plain_generate(self, model, tokenizer, prompts, share):
        texts, scores = decode(model, tokenizer, BEAM, prompts, share=share)
        expected, output = plain_generate(
            model, tokenizer, prompts, num_beams=4, num_return_sequences=4, max_new_tokens=12
        )
        assert [text for row in texts for text in row] == expected
        np.testing.assert_allclose(np.ravel(scores), output.sequences_scores.numpy(), atol=1e-4)
        assert all(row == sorted(row, reverse=True) for row in scores)

    @pytest.mark.parametrize("share", [True, False])
    def test_greedy_equals_plain_generate(self, model, tokenizer, prompts, share):
        texts, scores = decode(model, tokenizer, GREEDY, prompts, share=share)
        expected, output = plain_generate(model, tokenizer, prompts, max_new_tokens=12)
        assert [row[0] for row in texts] == expected
        # an answer without end or line break: its score is the mean log-probability of all 12 tokens
        ends = {tokenizer.eos_token_id, *line_break_ids(tokenizer).tolist()}
        log_probs = model.compute_transition_scores(output.sequences, output.scores, normalize_logits=True)
        whole = [row for row in range(len(prompts)) if not ends & set(output.sequences[row, -12:].tolist())]
        assert whole
        for row in whole:
            assert scores[row][0] == pytest.approx(log_probs[row].mean().item(), abs=1e-4)

    def test_an_adapter_beside_the_base_has_its_say_in_the_cached_prompts(self, tokenizer, prompts):
        lora = lora_config(r=4, alpha=64, dropout=0.0, target_modules=["q_proj", "v_proj"])
        tuned = get_peft_model(tiny_model(seed=1), lora).eval()
        torch.manual_seed(0)
        for name, weight in tuned.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.5)
        options = {"num_beams": 4, "num_return_sequences": 4, "max_new_tokens": 12}
        expected, output = plain_generate(tuned, tokenizer, prompts, **options)
        texts, scores = decode(tuned, tokenizer, BEAM, prompts)
        assert [text for row in texts for text in row] == expected
        np.testing.assert_allclose(np.ravel(scores), output.sequences_scores.numpy(), atol=1e-4)
        with tuned.disable_adapter():
            assert decode(tuned, tokenizer, BEAM, prompts)[0] != texts  # so the adapter matters

    @pytest.mark.parametrize("decoding", [BEAM, GREEDY, SAMPLE], ids=lambda decoding: decoding.strategy)
    def test_batch_order_and_sharing_do_not_matter(self, model, tokenizer, prompts, decoding):
        texts, scores = decode(model, tokenizer, decoding, prompts)
        for row, prompt in enumerate(prompts):
            alone = Decoder(model, tokenizer, decoding).decode([prompt], [f"user{row}:3"])
            assert alone[0] == [texts[row]]
            np.testing.assert_allclose(alone[1], [scores[row]], atol=1e-4)

    def test_cut_answers_end_at_eos_and_first_line_break(self, tokenizer):
        class Scripted(Decoder):
            def __init__(self, strategy):
                super().__init__(tiny_model(), tokenizer, Decoding(strategy))

        eos, newline = tokenizer.eos_token_id, tokenizer("\n")["input_ids"][0]
        title = tokenizer('"Heat (1995)"')["input_ids"]
        ids = [*title, newline, *title, eos, *title]
        assert Scripted("greedy")._cut(ids) == [*title, newline]
        assert Scripted("beam")._cut(ids) == [*title, newline, *title, eos]
        assert Scripted("beam")._text(Scripted("beam")._cut(ids)) == "Heat (1995)"
        assert Scripted("greedy")._text([eos]) == ""

    def test_greedy_stops_at_the_line_break_without_changing_the_text(self, tokenizer, prompts):
        model = tiny_model(seed=1)
        newline = tokenizer("\n")["input_ids"][0]
        with torch.no_grad():  # after some tokens the line break wins everywhere
            model.lm_head.weight[newline] = 4 * model.lm_head.weight.abs().mean()
        long = Decoding("greedy", max_new_tokens=40)
        texts, _ = decode(model, tokenizer, long, prompts)
        expected, output = plain_generate(model, tokenizer, prompts, max_new_tokens=40)
        assert [row[0] for row in texts] == expected
        assert any(newline in row for row in output.sequences[:, -40:-1].tolist())

    def test_nothing_leaks_from_the_models_own_generation_config(self, tmp_path, tokenizer, prompts):
        greedy_file = {
            "repetition_penalty": 5.0,
            "no_repeat_ngram_size": 1,
            "bad_words_ids": [[7]],
            "min_new_tokens": 12,
        }
        for decoding in (BEAM, GREEDY, SAMPLE):
            clean = tiny_model(seed=2)
            expected = decode(clean, tokenizer, decoding, prompts)
            dirty = tiny_model(seed=2)
            dirty.generation_config = GenerationConfig(
                do_sample=True,
                temperature=0.01,
                top_k=1,
                top_p=0.01,
                length_penalty=-3.0,
                early_stopping=True,
                num_beam_groups=1,
                num_return_sequences=1,
                **greedy_file,
            )
            assert decode(dirty, tokenizer, decoding, prompts) == expected

    def test_end_ids_of_tokenizer_config_and_generation_config_all_count(self, tokenizer):
        model = tiny_model(eos_token_id=[9, 8])
        model.generation_config = GenerationConfig(eos_token_id=[8, 7])
        assert end_token_ids(tokenizer, model.config, model.generation_config) == [tokenizer.eos_token_id, 7, 8, 9]

    def test_a_second_end_token_ends_the_answer(self, tokenizer, prompts):
        model = tiny_model(seed=1)
        first = plain_generate(model, tokenizer, prompts[:1], max_new_tokens=3)[1].sequences[0, -3:].tolist()
        model.generation_config = GenerationConfig(eos_token_id=[tokenizer.eos_token_id, first[1]])
        texts, _ = Decoder(model, tokenizer, GREEDY).decode(prompts[:1], ["a"])
        assert texts == [[parse_answer(tokenizer.decode(first[:1]))]]

    def test_a_prompt_that_does_not_begin_with_the_shared_prefix_is_refused(self, tokenizer, prompts):
        decoder = Decoder(tiny_model(), tokenizer, GREEDY, shared_prefix=[1, 2, 3])
        with pytest.raises(ValueError, match="shared prefix"):
            decoder.decode([prompts[0]], ["a"])

    def test_a_sliding_window_shares_no_prefix(self, tokenizer, prompts):
        model = tiny_model("qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=0)
        decoder = Decoder(model, tokenizer, GREEDY, shared_prefix=prompts[0][: common_prefix_length(prompts)])
        decoder.decode(prompts, ["a"] * len(prompts))
        assert decoder.prefix == [] and decoder.route.name == PROMPT_CACHE
        assert decoder.route.reasons == {SHARED_PREFIX: "its attention has a sliding window"}


class TestSampling:
    def test_the_chosen_token_inverts_the_distribution_function(self):
        scores = torch.log(torch.tensor([[0.5, 0.25, 0.25]])).repeat(5, 1)
        draws = torch.tensor([[0.0], [0.49], [0.51], [0.74], [0.999]])
        chosen = ChooseToken(Decoding("sample"), draws)(None, scores).argmax(dim=-1)
        assert chosen.tolist() == [0, 0, 1, 1, 2]

    def test_frequencies_are_those_of_transformers_warpers(self):
        rng = torch.Generator().manual_seed(0)
        scores = torch.randn(1, 50, generator=rng) * 2
        warpers = LogitsProcessorList([TemperatureLogitsWarper(0.7), TopKLogitsWarper(10), TopPLogitsWarper(0.9)])
        expected = warpers(None, scores.clone()).softmax(-1)[0]
        n = 20_000
        draws = (torch.arange(n)[:, None] + 0.5) / n  # evenly spread: the counts are exact up to one
        choose = ChooseToken(Decoding("sample", temperature=0.7, top_k=10, top_p=0.9), draws)
        counts = choose(None, scores.repeat(n, 1)).argmax(-1).bincount(minlength=50)
        assert (counts / n - expected).abs().max() < 2 / n
        assert counts[expected == 0].sum() == 0

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=30), st.integers(0, 2**24 - 1))
    def test_a_token_without_mass_is_never_chosen(self, scores, numerator):
        scores = torch.tensor([[*scores, -torch.inf]])
        choose = ChooseToken(Decoding("sample", top_k=1), torch.tensor([[numerator / 2**24]]))
        chosen = choose(None, scores).argmax(-1).item()
        assert scores[0, chosen] == scores.max()

    def test_draws_depend_on_seed_example_and_number_alone(self):
        first = uniforms(0, "7:12", 0, 64)
        assert np.array_equal(first, uniforms(0, "7:12", 0, 64))
        assert np.array_equal(first[:16], uniforms(0, "7:12", 0, 16))
        assert not np.array_equal(first, uniforms(1, "7:12", 0, 64))
        assert not np.array_equal(first, uniforms(0, "7:13", 0, 64))
        assert not np.array_equal(first, uniforms(0, "7:12", 1, 64))
        assert first.min() >= 0 and first.max() < 1

    def test_several_samples_come_best_first(self, model, tokenizer, prompts):
        decoding = Decoding("sample", max_new_tokens=6, num_return_sequences=5)
        texts, scores = decode(model, tokenizer, decoding, prompts)
        assert all(row == sorted(row, reverse=True) for row in scores)
        assert all(len(set(row)) > 1 for row in texts)

    def test_low_temperature_is_greedy(self, tokenizer, prompts):
        model = tiny_model(seed=1)
        cold = Decoding("sample", max_new_tokens=12, temperature=1e-4)
        assert decode(model, tokenizer, cold, prompts)[0] == decode(model, tokenizer, GREEDY, prompts)[0]


@pytest.mark.parametrize(
    "values, words",
    [
        ({"strategy": "beams"}, "choose one of beam, greedy, sample, constrained"),
        ({"num_beams": 2, "num_return_sequences": 3}, "raise num_beams"),
        ({"num_beams": 3, "num_return_sequences": -3}, "at least 0"),  # `generate` would return no beam at all
        ({"strategy": "greedy", "num_return_sequences": 2}, "beam or sample"),
        ({"strategy": "sample", "temperature": 0.0}, "above 0"),
        ({"strategy": "sample", "top_p": 1.5}, "at most 1"),
        ({"strategy": "sample", "top_k": -1}, "at least 0"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"num_beams": 0}, "at least 1"),
    ],
)
def test_impossible_decoding_is_refused(values, words):
    with pytest.raises(BigrecError, match=words):
        Decoding(**values)


def test_common_prefix_leaves_a_token_of_every_prompt():
    assert common_prefix_length([[1, 2, 3], [1, 2, 4, 5]]) == 2
    assert common_prefix_length([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_prefix_length([[1, 2], [1, 2, 3]]) == 1
    assert common_prefix_length([[1], [2]]) == common_prefix_length([[7]]) == common_prefix_length([]) == 0


def test_batches_by_hand():
    # (longest + 2) x prompts x 1 <= 20: 8 alone with 8, the 4s three at a time, order kept among equals
    assert plan_batches([4, 8, 4, 8, 4], batch_size=3, batch_tokens=20, extra_tokens=2, copies=1) == [
        [1, 3],
        [0, 2, 4],
    ]
    assert plan_batches([5, 5], batch_size=9, batch_tokens=1, extra_tokens=0, copies=4) == [[0], [1]]
    assert plan_batches([], batch_size=9, batch_tokens=1, extra_tokens=0, copies=1) == []


@given(
    st.lists(st.integers(1, 50), max_size=40),
    st.integers(1, 8),
    st.integers(1, 300),
    st.integers(0, 9),
    st.integers(1, 4),
)
def test_batches_hold_every_position_once_within_the_budget(lengths, batch_size, tokens, extra, copies):
    batches = plan_batches(lengths, batch_size=batch_size, batch_tokens=tokens, extra_tokens=extra, copies=copies)
    assert sorted(p for batch in batches for p in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= batch_size
        assert len(batch) == 1 or (max(lengths[p] for p in batch) + extra) * len(batch) * copies <= tokens


def test_flags_by_hand():
    flags = answer_flags(
        [["Heat (1995)", ""], [" "], ['"Fargo (1996)"'], ["Nothing"]],
        [["Heat (1995)"], [""], ["Heat (1995)"], []],
        ["Heat (1995)", "Fargo (1996)", ""],
    )
    assert flags[C.EMPTY] == [False, True, False, False]
    assert flags[C.IN_CATALOG] == [True, False, True, False]
    assert flags[C.IN_HISTORY] == [True, False, False, False]


class TestShardFolder:
    def test_processes_share_what_is_missing(self, tmp_path):
        first, second = (ShardFolder(tmp_path, "k", 5, rank=rank, n_processes=2) for rank in (0, 1))
        write_texts(first, 1, [0], [["a"]], [[0.5]])
        assert (first.own(), second.own()) == ([0, 3], [2, 4])

    def test_another_processs_failure_ends_the_wait(self, tmp_path):
        first, second = (ShardFolder(tmp_path, "k", 1, rank=rank, n_processes=2) for rank in (0, 1))
        second.fail(RuntimeError("out of memory"))
        with pytest.raises(BigrecError, match="process 1 of 2 failed with RuntimeError: out of memory"):
            first.wait_complete()
        assert ShardFolder(tmp_path, "k", 1, rank=1, n_processes=2) is not None  # a new start forgets the failure
        assert not list(tmp_path.glob("k/failed-*"))

    def test_a_lost_row_is_refused(self, tmp_path):
        folder = ShardFolder(tmp_path, "k", 1)
        write_texts(folder, 0, [0, 2], [["a"], ["b"]], [[0.5], [0.25]])
        with pytest.raises(BigrecError, match="2 rows for 3 examples"):
            folder.read(3)


@pytest.fixture(scope="module")
def assets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets")
    return {
        "base_model": save_tiny_model(folder / "model", seed=1, generation={"do_sample": True, "top_k": 1}),
        "test_json": [write_tiny_json(folder / "test.json", 23)],
        "catalog": write_tiny_catalog(folder / "catalog.csv"),
        "method": "zero_shot",
        "max_new_tokens": 6,
        "generate_batch_size": 2,
        "decoding": "sample",
    }


def run_generate(assets, run_dir, **overrides):
    resolved = build_settings(None, {**assets, "run_dir": run_dir and str(run_dir), **overrides})
    generate.main(**{name: resolved[name] for name in ("run", "data", "model", "prompt", "generate")})
    folder = Path(run_dir) / resolved["run"].method
    return pq.read_table(folder / "generations.parquet"), json.loads((folder / "generate.json").read_text())


def test_what_a_chat_template_does_not_say_itself_is_recorded(assets, tmp_path):
    template = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{% if m['role'] == 'system' %}"
    template += "{{ raise_exception('no system role') }}{% endif %}{{ m['content'] }}{% endfor %}"
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    base = save_tiny_model(tmp_path / "model", seed=1)
    tokenizer.save_pretrained(base)
    _, facts = run_generate({**assets, "base_model": base, "train_prompt": "chat-basic"}, tmp_path / "run")
    assert (facts["prompt_date"], facts["system_message"]) == ("2024-07-26", "in the user's turn")
    _, facts = run_generate({**assets, "base_model": base}, tmp_path / "plain")
    assert "prompt_date" not in facts and "system_message" not in facts


def test_answers_of_one_split_never_replace_those_of_another(assets, tmp_path):
    validation = {"split": "validation", "validation_json": assets["test_json"]}
    before, _ = run_generate({**assets, **validation}, tmp_path)
    with pytest.raises(BigrecError, match="holds answers for the validation split, which those for the test split"):
        run_generate(assets, tmp_path)
    again, facts = run_generate({**assets, **validation, "max_new_tokens": 4}, tmp_path)  # other settings may
    assert facts["data"]["split"] == "validation" and len(again) == len(before)
    run_generate(assets, tmp_path / "other")


def command(assets, run_dir):
    return flags(**assets, output_dir=run_dir)


def interrupt_after_shards(monkeypatch, n):
    """Ctrl-C once `n` shards are written."""
    written = itertools.count(1)

    def write(self, *shard, whole=ShardFolder.write_table):
        whole(self, *shard)
        if next(written) == n:
            raise KeyboardInterrupt

    monkeypatch.setattr(ShardFolder, "write_table", write)


@pytest.fixture(scope="module")
def uninterrupted(assets, tmp_path_factory):
    return run_generate(assets, tmp_path_factory.mktemp("whole"))


class TestMain:
    def test_one_row_an_example_in_order(self, assets, uninterrupted, capsys):
        table, facts = uninterrupted
        records = json.loads(Path(assets["test_json"][0]).read_text())
        assert table[C.EXAMPLE_ID].to_pylist() == [f"test#{i}" for i in range(23)]
        assert table[C.TARGET_TITLE].to_pylist() == [record["output"].strip('"') for record in records]
        assert [TITLES[row] for row in table[C.TARGET].to_pylist()] == table[C.TARGET_TITLE].to_pylist()
        assert all(
            len(texts) == len(scores) == 1
            for texts, scores in zip(*(table[c].to_pylist() for c in (C.TEXTS, C.SCORES)), strict=True)
        )
        assert facts["n_examples"] == 23 and facts["n_resumed"] == 0
        assert facts["n_empty"] == sum(table[C.EMPTY].to_pylist())
        assert facts["adapter"] is None and facts["generate"]["max_new_tokens"] == 6

    def test_the_batch_size_does_not_matter(self, assets, uninterrupted, tmp_path):
        table, _ = run_generate(assets, tmp_path, generate_batch_size=7, generate_batch_tokens=900)
        assert table[C.TEXTS] == uninterrupted[0][C.TEXTS]

    def test_another_seed_does(self, assets, uninterrupted, tmp_path):
        table, _ = run_generate(assets, tmp_path, seed=1, temperature=1.0)
        assert table[C.TEXTS] != uninterrupted[0][C.TEXTS]

    def test_finished_answers_are_kept_until_something_changes(self, assets, tmp_path, capsys):
        first, facts = run_generate(assets, tmp_path)
        written = (tmp_path / "zero_shot" / "generations.parquet").stat().st_mtime_ns
        again, same = run_generate(assets, tmp_path)
        assert "kept" in capsys.readouterr().out
        assert (tmp_path / "zero_shot" / "generations.parquet").stat().st_mtime_ns == written
        assert same == facts and again.equals(first)
        changed, facts = run_generate(assets, tmp_path, max_new_tokens=5)
        assert facts["generate"]["max_new_tokens"] == 5
        assert (tmp_path / "zero_shot" / "generations.parquet").stat().st_mtime_ns != written
        (tmp_path / "zero_shot" / "generations.parquet").unlink()  # facts alone are no answers
        again, _ = run_generate(assets, tmp_path, max_new_tokens=5)
        assert again.equals(changed)

    def test_shards_of_other_settings_are_not_mixed_in(self, assets, uninterrupted, tmp_path, monkeypatch):
        interrupt_after_shards(monkeypatch, 5)
        with pytest.raises(KeyboardInterrupt):
            run_generate(assets, tmp_path, seed=1)
        monkeypatch.undo()
        table, facts = run_generate(assets, tmp_path)
        assert facts["n_resumed"] == 0
        assert table.equals(uninterrupted[0])
        assert not (tmp_path / "zero_shot" / "shards").exists()

    def test_an_interrupted_run_goes_on_with_its_shards(self, assets, uninterrupted, tmp_path, monkeypatch):
        """Killed outright in test_a_killed_run_gives_the_same; interrupted here, which needs no process of its own."""
        interrupt_after_shards(monkeypatch, 5)
        with pytest.raises(KeyboardInterrupt):
            run_generate(assets, tmp_path)
        monkeypatch.undo()
        table, facts = run_generate(assets, tmp_path)
        assert facts["n_resumed"] == 10
        assert table.equals(uninterrupted[0])

    @pytest.mark.slow
    def test_a_killed_run_gives_the_same(self, assets, uninterrupted, tmp_path):
        (tmp_path / "killed.py").write_text(KILLED_AFTER_SHARDS)
        done = run_python(tmp_path / "killed.py", 5, "generate", *command(assets, tmp_path))
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert len(list(tmp_path.glob("zero_shot/shards/*/batch-*.parquet"))) == 5
        table, facts = run_generate(assets, tmp_path)
        assert facts["n_resumed"] == 10
        assert table.equals(uninterrupted[0])

    @pytest.mark.slow
    def test_two_processes_give_the_same(self, assets, uninterrupted, tmp_path):
        script = tmp_path / "counting.py"
        script.write_text(
            "import os, sys\n"
            "from bigrec_hf import cli\n"
            "from bigrec_hf.generate import inputs\n"
            "render = inputs.render_prompts\n"
            "def counted(examples, *rest, **more):\n"
            f"    open({str(tmp_path)!r} + '/rank-' + os.environ['RANK'], 'w').write(str(len(examples)))\n"
            "    return render(examples, *rest, **more)\n"
            "inputs.render_prompts = counted\n"
            "sys.exit(cli.main(['generate', *sys.argv[1:]]))\n"
        )
        done = run_pair(script, *command(assets, tmp_path))
        assert done.returncode == 0, done.stderr
        table = pq.read_table(tmp_path / "zero_shot" / "generations.parquet")
        assert table.equals(uninterrupted[0])
        facts = json.loads((tmp_path / "zero_shot" / "generate.json").read_text())
        assert facts["n_processes"] == 2 and facts["prompts_sha256"] == uninterrupted[1]["prompts_sha256"]
        assert [(tmp_path / f"rank-{rank}").read_text() for rank in (0, 1)] == ["11", "12"]  # examples rendered by each
        assert done.stdout.count("23 examples") == 1

    @pytest.mark.slow
    def test_one_failing_process_ends_the_job(self, assets, tmp_path):
        script = tmp_path / "failing.py"
        script.write_text(
            "import os, sys\n"
            "from bigrec_hf import cli\n"
            "from bigrec_hf.generate import decoder\n"
            "def fail(self, *rest): raise RuntimeError('this process is broken')\n"
            "if os.environ['RANK'] == '1': decoder.Decoder.decode = fail\n"
            "sys.exit(cli.main(['generate', *sys.argv[1:]]))\n"
        )
        done = run_pair(script, *command(assets, tmp_path))
        assert done.returncode != 0
        assert "this process is broken" in done.stderr
        assert not (tmp_path / "zero_shot" / "generations.parquet").exists()

    def test_beams_are_all_kept(self, assets, tmp_path):
        table, _ = run_generate(assets, tmp_path, decoding="beam", num_beams=3, eval_sample=4)
        assert len(table) == 4 and all(len(texts) == 3 for texts in table[C.TEXTS].to_pylist())

    def test_long_histories_give_way(self, assets, tmp_path):
        table, facts = run_generate(assets, tmp_path, max_length=110, eval_sample=6, train_prompt="chat-basic")
        assert facts["dropped_history_titles"] > 0 and facts["prompt_tokens_max"] <= 104
        assert len(table) == 6

    @pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
    def test_the_runs_own_adapter_on_a_prepared_set(self, tiny_prepared, tmp_path, quantization):
        base = save_tiny_model(tmp_path / "model", seed=1, spread=0.1)
        config = lora_config(r=4, alpha=64, dropout=0.0, target_modules=["all-linear"])
        tuned = get_peft_model(tiny_model(seed=1, spread=0.1), config)
        for name, parameter in tuned.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        tuned.save_pretrained(tmp_path / "run" / "adapter")
        options = {
            "base_model": base,
            "dataset": [tiny_prepared],
            "decoding": "beam",
            "num_beams": 2,
            "max_new_tokens": 6,
            "dtype": "float32",  # as the expected texts below, whatever this machine multiplies fast
            "quantization": quantization,
        }
        table, facts = run_generate(options, tmp_path / "run")
        without, _ = run_generate(options, tmp_path / "run", method="zero_shot")
        examples = load_examples(tiny_prepared, "test", sample=5000)
        assert table[C.EXAMPLE_ID].to_pylist() == list(examples[C.EXAMPLE_ID])
        assert table[C.HISTORY].to_pylist() == list(examples[C.HISTORY])
        assert table[C.TEXTS] != without[C.TEXTS]  # the adapter has a say
        assert len(facts["adapter_sha256"]) == 64
        if quantization == "none":  # merged here, beside the base there
            prompts, _ = inputs.render_prompts(examples, tiny_tokenizer(), PromptSettings(), 64)
            decoder = Decoder(tuned.eval(), tiny_tokenizer(), Decoding("beam", num_beams=2, max_new_tokens=6))
            expected, _ = decoder.decode(prompts, list(examples[C.EXAMPLE_ID]))
            assert table[C.TEXTS].to_pylist() == expected

    def test_an_existing_catalog_title_is_flagged(self, assets, tmp_path, monkeypatch):
        monkeypatch.setattr(Decoder, "_text", lambda self, answer: TITLES[3])
        table, facts = run_generate(assets, tmp_path)
        histories = [[TITLES[row] for row in history] for history in table[C.HISTORY].to_pylist()]
        assert table[C.IN_HISTORY].to_pylist() == [TITLES[3] in history for history in histories]
        assert facts["n_in_catalog"] == 23 and facts["n_empty"] == 0
        assert 0 < facts["n_in_history"] < 23

    def test_a_small_json_file_keeps_its_order_and_a_large_one_is_drawn(self, assets):
        def load(eval_sample):
            files = {"test_json": assets["test_json"], "catalog": assets["catalog"]}
            return inputs.load_evaluation(DataSettings(**files, eval_sample=eval_sample))

        whole, titles = load(eval_sample=5000)
        assert list(whole[C.EXAMPLE_ID]) == [f"test#{i}" for i in range(23)] and titles == list(TITLES)
        drawn = pd.DataFrame({"i": range(23)}).sample(n=5, random_state=42)["i"]
        assert list(load(eval_sample=5)[0][C.EXAMPLE_ID]) == [f"test#{i}" for i in drawn]

    def test_files_of_one_name_would_share_ids(self, assets):
        with pytest.raises(BigrecError, match="share a file name"):
            inputs.load_evaluation(DataSettings(test_json=assets["test_json"] * 2, catalog=assets["catalog"]))

    @pytest.mark.parametrize(
        "overrides, words",
        [
            ({"run_dir": None}, "--output_dir"),
            ({"base_model": None}, "base_model"),
            ({"method": "finetuned"}, "train one with `bigrec-hf sft`"),
            ({"catalog": None}, "set catalog"),
            ({"test_json": []}, "set dataset or test_json"),
            ({"max_length": 6}, "must exceed max_new_tokens"),
            ({"max_length": 50}, "raise max_length"),
        ],
    )
    def test_mistakes_are_named_before_the_model_loads(self, assets, tmp_path, monkeypatch, overrides, words):
        monkeypatch.setattr(job, "load_generator", lambda *rest, **more: pytest.fail("the model was loaded"))
        with pytest.raises(BigrecError, match=words):
            run_generate(
                assets, **{"run_dir": tmp_path, **overrides} if "run_dir" not in overrides else {"run_dir": None}
            )
