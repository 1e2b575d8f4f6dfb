"""The GPU benchmark runs where there is no GPU (--tiny), and counts parameters as transformers does."""

from __future__ import annotations

import json
import sys

import pytest
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks import gpu


@pytest.mark.slow
def test_the_benchmark_runs_on_a_tiny_model(tmp_path, monkeypatch, capsys):
    arguments = ["gpu", "--tiny", "--work_dir", str(tmp_path / "work"), "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", arguments)
    gpu.main()
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["weights"] for row in rows] == ["bf16", "4-bit (NF4)"]
    for row in rows:
        for stage in ("train", "generate"):
            cell = row[stage]
            assert cell["ratio"] == pytest.approx(cell["ours"] / cell["stock"]) and cell["ours"] > 0
            assert cell["share_of_ceiling"] > 0  # below 1 where nothing else runs
    assert printed.count("| tiny |") == 4 and "matmul ceiling" in printed


def test_without_a_gpu_the_real_sizes_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="no GPU here"):
        gpu.main()


def test_block_parameters_are_those_of_the_layers():
    hidden, intermediate, layers, heads, kv_heads, vocabulary, _ = gpu.SHAPES["tiny"]
    config = Qwen2Config(
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=vocabulary,
    )
    layers = Qwen2ForCausalLM(config).model.layers
    matrices = sum(parameter.numel() for parameter in layers.parameters() if parameter.dim() == 2)
    assert gpu.block_parameters("tiny") == matrices
