"""The benchmark runs, and its independent loop writes the same JSON as prepare, odd titles and ties included."""

from __future__ import annotations

import sys

import pytest
from benchmarks.common import read_rows

from benchmarks import prepare as benchmark


@pytest.mark.slow
def test_the_benchmark_runs_and_both_sides_agree(tmp_path, monkeypatch):
    options = ["--sizes", "3000", "--rows", "4000", "--repeats", "1", "--work_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["prepare", *options, "--out", str(tmp_path / "results")])
    benchmark.main()
    _, (beside, large) = read_rows(tmp_path / "results" / "prepare.json")
    assert beside.same is True and beside.baseline_s > 0
    assert large.baseline_s == pytest.approx(beside.baseline_s * 4 / 3, rel=1e-3)


def test_made_up_ratings_have_the_size_asked_for(tmp_path):
    benchmark.write_ratings(tmp_path / "raw", 3000)
    lines = (tmp_path / "raw/ratings.dat").read_text().splitlines()
    assert len(lines) == 3000
    assert all(line.count("::") == 3 for line in lines)
