"""The engine vLLM: our side of its contract against a stand-in module, and parity where the real one is installed."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.generate import stage as generate
from bigrec_hf.generate.strategy import Decoding
from bigrec_hf.generate.vllm_engine import VllmDecoder, check_vllm
from bigrec_hf.settings.ray import RaySettings
from bigrec_hf.settings.recipes import build_settings
from tests.helpers.tiny import save_tiny_model, tiny_tokenizer, write_tiny_catalog, write_tiny_json

BEAM = Decoding("beam", num_beams=3, num_return_sequences=2, max_new_tokens=8)
GREEDY = Decoding("greedy", max_new_tokens=8)
SAMPLE = Decoding("sample", num_return_sequences=2, max_new_tokens=8, temperature=0.5, top_p=0.9, top_k=7, seed=3)
TITLES = ["Heat (1995)", "Fargo (1996)", "Babe (1995)"]


@dataclass
class Params:
    """SamplingParams and BeamSearchParams: what they are given."""

    values: dict = field(default_factory=dict)

    def __init__(self, **values):
        self.values = values

    def __getattr__(self, name):
        return self.values[name]


class LoRARequest(SimpleNamespace):
    def __init__(self, name, number, path):
        super().__init__(name=name, number=number, path=path)


@pytest.fixture
def calls(monkeypatch):
    """A stand-in `vllm` that answers with scripted tokens; returns what it was asked."""
    tokenizer = tiny_tokenizer(padding_side="left")
    eos, newline = tokenizer.eos_token_id, tokenizer("\n")["input_ids"][0]
    answer = [tokenizer(f'"{title}"')["input_ids"] for title in TITLES]
    asked = SimpleNamespace(llm=None, generate=[], beams=[], lora=None, answer=answer, eos=eos, newline=newline)

    class LLM:
        def __init__(self, **options):
            asked.llm = options

        def beam_search(self, prompts, params, lora_request=None):
            asked.beams.append((prompts, params))
            asked.lora = lora_request
            outputs = []
            for prompt in prompts:  # in vLLM's order, which is not that of the scores: its lengths count the prompt
                ids = [[*answer[0], eos], [*answer[1], newline, *answer[2], eos], [*answer[2], eos]]
                beams = [
                    SimpleNamespace(tokens=[*prompt["prompt_token_ids"], *row], cum_logprob=total)
                    for row, total in zip(ids, (-9.0, -3.0, -1.0), strict=True)
                ]
                outputs.append(SimpleNamespace(sequences=beams))
            return outputs

        def generate(self, prompts, sampling_params, use_tqdm=True, lora_request=None):
            assert len(prompts) == len(sampling_params)
            asked.generate.append((prompts, sampling_params))
            asked.lora = lora_request
            outputs = []
            for number, params in enumerate(sampling_params):
                rows = []
                for sample in range(params.n):
                    ids = [*answer[(number + sample) % 3], newline]
                    steps = [{token: SimpleNamespace(logprob=-1.0 - sample)} for token in ids]
                    rows.append(SimpleNamespace(token_ids=ids, logprobs=steps))
                outputs.append(SimpleNamespace(outputs=rows[::-1]))  # worst first
            return outputs

    vllm, sampling, lora, request = (ModuleType(name) for name in ("vllm", "sampling_params", "lora", "request"))
    vllm.LLM, vllm.SamplingParams, sampling.BeamSearchParams, request.LoRARequest = LLM, Params, Params, LoRARequest
    vllm.__version__ = "0.0-stand-in"
    modules = {"vllm": vllm, "vllm.sampling_params": sampling, "vllm.lora": lora, "vllm.lora.request": request}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return asked


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"), seed=1, generation={"eos_token_id": [2, 5]})


def decoder(base, decoding, **options):
    options = {"adapter": None, "quantization": "none", "vllm_args": {}, **options}
    adapter = options.pop("adapter")
    return VllmDecoder(base, adapter, tiny_tokenizer(), decoding, dtype="float32", max_length=512, **options)


PROMPTS, IDS = [[7, 8, 9], [7, 8]], ["u:1", "u:2"]


def test_beams_by_hand(calls, base):
    texts, scores = decoder(base, BEAM).decode(PROMPTS, IDS)
    lengths = [len(calls.answer[2]) + 1, len(calls.answer[1]) + len(calls.answer[2]) + 2]
    assert texts == [["Babe (1995)", "Fargo (1996)"]] * 2  # best first, two of three, cut at the line break
    np.testing.assert_allclose(scores, [[-1.0 / lengths[0], -3.0 / lengths[1]]] * 2)
    [(prompts, params)] = calls.beams
    assert prompts == [{"prompt_token_ids": [7, 8, 9]}, {"prompt_token_ids": [7, 8]}]
    assert params.values == {"beam_width": 3, "max_tokens": 8, "length_penalty": 1.0, "temperature": 0.0}


def test_greedy_by_hand(calls, base):
    texts, scores = decoder(base, GREEDY).decode(PROMPTS, IDS)
    assert texts == [["Heat (1995)"], ["Fargo (1996)"]] and scores == [[-1.0], [-1.0]]
    params = calls.generate[0][1][0]
    assert (params.n, params.temperature, params.max_tokens) == (1, 0.0, 8)
    assert {calls.eos, 2, 5, calls.newline} <= set(params.stop_token_ids)


def test_samples_come_best_first_with_a_seed_an_example(calls, base):
    engine = decoder(base, SAMPLE)
    texts, scores = engine.decode(PROMPTS, IDS)
    assert texts == [["Heat (1995)", "Fargo (1996)"], ["Fargo (1996)", "Babe (1995)"]]
    assert scores == [[-1.0, -2.0]] * 2
    engine.decode(PROMPTS[::-1], IDS[::-1])
    first, second = ([params.seed for params in given] for _, given in calls.generate)
    assert first == second[::-1] and len(set(first)) == 2  # neither the batch nor the place in it has a say
    params = calls.generate[0][1][0]
    assert (params.temperature, params.top_p, params.top_k) == (0.5, 0.9, 7)


def test_an_answer_that_vllm_ended_itself_is_whole(calls, base):
    calls.newline = None
    calls.answer[0].append(calls.eos)
    assert decoder(base, GREEDY).decode(PROMPTS[:1], IDS[:1])[0] == [["Heat (1995)"]]


def test_how_the_model_is_loaded(calls, base, tmp_path):
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 12}))
    engine = decoder(base, BEAM, adapter=str(tmp_path), quantization="4bit", vllm_args={"seed": 5, "x": 1})
    engine.decode(PROMPTS, IDS)
    expected = {
        "model": base,
        "dtype": "float32",
        "quantization": "bitsandbytes",
        "max_model_len": 512,
        "generation_config": "vllm",
        "enable_lora": True,
        "max_lora_rank": 16,
        "seed": 5,
        "x": 1,
    }
    assert expected.items() <= calls.llm.items()
    assert calls.lora.path == str(tmp_path) and calls.lora.number > 0  # vLLM: adapters count from 1
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 1024}))
    with pytest.raises(BigrecError, match="rank 1024 of the adapter exceeds"):
        decoder(base, BEAM, adapter=str(tmp_path))


@pytest.mark.parametrize(
    ("decoding", "quantization", "n", "words"),
    [
        (Decoding("constrained"), "none", 1, "cannot decode by constrained, only by beam, greedy, sample"),
        (BEAM, "8bit", 1, "use 4bit or none"),
        (BEAM, "none", 2, "start one process"),
    ],
)
def test_what_it_cannot_do_is_said_before_a_model_is_loaded(calls, decoding, quantization, n, words):
    with pytest.raises(BigrecError, match=words):
        check_vllm(decoding, quantization, n)


def test_actors_ask_ray_for_a_gpu(calls):
    with pytest.raises(BigrecError, match=r"vLLM needs a GPU: --resources '\{GPU: 1\}'"):
        check_vllm(BEAM, "none", 1, RaySettings(num_actors=2))
    assert check_vllm(BEAM, "none", 1, RaySettings(num_actors=2, resources={"GPU": 1})) == {"vllm": "0.0-stand-in"}


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(BigrecError, match=r"pip install 'bigrec_hf\[vllm\]'"):
        check_vllm(BEAM, "none", 1)


def run(folder, base, **overrides):
    given = {
        "base_model": base,
        "test_json": [write_tiny_json(folder / "test.json", 5)],
        "catalog": write_tiny_catalog(folder / "catalog.csv"),
        "method": "zero_shot",
        "max_new_tokens": 8,
        "generate_batch_size": 2,
        "dtype": "float32",
        "run_dir": str(folder / overrides.get("engine", "hf")),
    }
    resolved = build_settings(None, given | overrides)
    generate.main(**{name: resolved[name] for name in ("run", "data", "model", "prompt", "generate")})
    folder = folder / overrides.get("engine", "hf") / "zero_shot"
    return pq.read_table(folder / "generations.parquet"), json.loads((folder / "generate.json").read_text())


def test_the_stage_writes_the_same_files(calls, base, tmp_path):
    table, facts = run(tmp_path, base, engine="vllm", num_beams=3, vllm_args={"gpu_memory_utilization": 0.5})
    built_in, _ = run(tmp_path, base, num_beams=3)
    assert table.schema.equals(built_in.schema)
    for name in (C.EXAMPLE_ID, C.TARGET, C.TARGET_TITLE, C.HISTORY):
        assert table[name] == built_in[name]
    assert table[C.TEXTS].to_pylist() == [["Babe (1995)", "Fargo (1996)", "Heat (1995)"]] * 5
    assert [len(prompts) for prompts, _ in calls.beams] == [2, 2, 1]  # the same shards
    assert facts["versions"]["vllm"] == "0.0-stand-in" and facts["generate"]["engine"] == "vllm"
    assert calls.llm["gpu_memory_utilization"] == 0.5 and calls.llm["dtype"] == "float32"
    assert facts["n_in_catalog"] == 5


@pytest.mark.parametrize("decoding", ["greedy", "beam"])
def test_parity_with_the_built_in_engine(base, tmp_path, decoding):
    pytest.importorskip("vllm", reason="the extra vllm is not installed")
    if not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    options = {"decoding": decoding, "num_beams": 1 if decoding == "greedy" else 4, "generate_batch_size": 8}
    built_in, _ = run(tmp_path, base, **options)
    other, _ = run(tmp_path, base, engine="vllm", **options)
    pairs = zip(built_in[C.TEXTS].to_pylist(), other[C.TEXTS].to_pylist(), strict=True)
    assert sum(a[0] == b[0] for a, b in pairs) >= 4  # rounding may flip a near tie
