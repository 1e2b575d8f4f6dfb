"""The benchmark of streaming runs on what `prepare` would have written."""

from __future__ import annotations

import sys

import pytest

from benchmarks import streaming as benchmark
from bigrec_hf.data.examples import load_examples
from tests.helpers.tiny import save_tiny_model


def test_made_up_sets_are_prepared_sets(tmp_path):
    benchmark.write_set(tmp_path / "set", 30)
    examples = load_examples(str(tmp_path / "set"), "train")
    assert len(examples) == 30
    assert all(len(titles) == benchmark.WINDOW for titles in examples["history_titles"])


@pytest.mark.parametrize("mode", ["stream", "whole", "read"])
def test_the_benchmark_runs(tmp_path, monkeypatch, capsys, mode):
    model = save_tiny_model(tmp_path / "model")
    monkeypatch.setattr(sys, "argv", ["streaming", "--rows", "40", "--modes", mode, "--base_model", model])
    benchmark.main()
    rows, ran, _, mib = capsys.readouterr().out.splitlines()[-1].strip("| ").split(" | ")
    assert (rows, ran) == ("40", mode) and int(mib.replace(",", "")) > 100
