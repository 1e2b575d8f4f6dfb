"""The benchmark runs, and its independent loop writes the same JSON as prepare, odd titles and ties included."""

from __future__ import annotations

import sys

from benchmarks import prepare as benchmark


def test_the_benchmark_runs_and_both_sides_agree(tmp_path, monkeypatch, capsys):
    arguments = ["prepare", "--rows", "3000", "--loop_rows", "3000", "--work_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", arguments)
    benchmark.main()
    printed = capsys.readouterr().out
    assert "| row-by-row loop | 3,000 | JSON |" in printed
    assert "JSON equal" in printed


def test_made_up_ratings_have_the_size_asked_for(tmp_path):
    benchmark.write_ratings(tmp_path / "raw", 3000)
    lines = (tmp_path / "raw/ratings.dat").read_text().splitlines()
    assert len(lines) == 3000
    assert all(line.count("::") == 3 for line in lines)
