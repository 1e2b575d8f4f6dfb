"""The benchmarks' common helper: ratios, targets, files, table and plot; memory measured in a child."""

from __future__ import annotations

import os

import numpy as np
import pytest
from benchmarks.__main__ import END, START, render, update_readme
from benchmarks.common import Row, alternate, markdown_row, peak_mib_in_child, plot_cost, read_rows, write_result


def filled(mib: int):
    """A call that touches that many MiB, and again and again: they are seen however seldom one looks."""

    def fill():
        values = np.ones(mib * 2**17)
        return [values.sum() for _ in range(50)]

    return fill


def failing():
    raise ValueError("no input")


def dying():
    return lambda: os._exit(3)


def test_a_row_hand_computed():
    row = Row(
        "sft", "small", 10, ours_s=2.0, baseline_s=9.0, count=100, counted="tokens", fraction=0.5, ceiling="bound"
    )
    row.aim("times plain", row.ratio, least=4)
    row.aim("fraction", 0.5, least=0.6)
    row.aim("seconds", 2.0, most=1)
    assert row.ratio == 4.5
    assert list(row.targets.values()) == [True, False, False]
    line = markdown_row(row)
    assert "| 50 tokens/s | 11.1 tokens/s | 4.5 | 50% bound |" in line
    assert "times plain >= 4; fraction >= 0.6 (is 0.5); seconds <= 1 (is 2)" in line


def test_functions_take_turns_and_the_median_counts(monkeypatch):
    clock, order = [0.0], []
    naps = iter([50.0, 1.0, 2.0])

    def nap():
        order.append("a")
        clock[0] += next(naps)

    monkeypatch.setattr("benchmarks.common.now", lambda: clock[0])
    taken, results = alternate({"a": nap, "b": lambda: order.append("b") or 7}, 3)
    assert order == ["a", "b"] * 3
    assert taken == {"a": 2.0, "b": 0.0} and results["b"] == 7


def test_memory_of_a_call_in_a_fresh_process():
    assert peak_mib_in_child(filled, mib=64) == pytest.approx(64, abs=16)


@pytest.mark.parametrize(("prepare", "message"), [(failing, "no input"), (dying, "ended with 3")])
def test_a_child_that_fails_does_not_hang(prepare, message):
    with pytest.raises(RuntimeError, match=message):
        peak_mib_in_child(prepare)


def test_results_become_a_table_and_plots_between_the_markers(tmp_path):
    rows = [Row("rank", f"{n} items", n, n * 0.1, n * 0.5, same=True) for n in (1, 10, 100)]
    write_result("ground", rows, tmp_path, peak=np.float64(1.23456789))
    head, read = read_rows(tmp_path / "ground.json")
    assert read == rows and head["facts"] == {"peak": 1.2346}
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{START}\nold\n{END}\nafter\n", encoding="utf-8")
    update_readme(render(tmp_path), readme)
    text = readme.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old" not in text
    assert "| rank | 100 items | 10 s | 50 s | 5.0 |" in text
    assert "results/ground.png" in text and (tmp_path / "ground.png").stat().st_size > 1000


def test_two_sizes_are_no_plot_and_other_results_are_an_error(tmp_path):
    assert not plot_cost("x", [Row("x", "1", 1, 1.0), Row("x", "2", 2, 2.0)], tmp_path / "x.png")
    with pytest.raises(SystemExit, match="different results"):
        write_result("x", [Row("x", "1", 1, 1.0, same=False)], tmp_path)
