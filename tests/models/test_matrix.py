"""docs/models.md says what is measured: some architectures in the quick tests, all of them in the slow ones."""

from __future__ import annotations

import re

import pytest

from bigrec_hf.generate import route
from tests.helpers.architectures import ARCHITECTURES
from tests.models import matrix
from tests.models.matrix import PAGE, Cell, measure_row, read_page, write_page

# shared prefix, sliding window, latent attention, experts, recurrent states that follow beams and that do not, own head
SAMPLE = ("llama", "gemma3_text", "deepseek_v3", "phimoe", "lfm2", "rwkv", "minimax", "modernbert-decoder")


@pytest.fixture(scope="module")
def committed():
    return read_page(PAGE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", SAMPLE)
def test_a_row_is_as_measured(committed, name):
    assert measure_row(name) == committed[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(ARCHITECTURES) - set(SAMPLE)))
def test_every_other_row_is_as_measured(committed, name):
    assert measure_row(name) == committed[name]


def test_the_page_has_every_architecture_and_is_written_by_the_script(committed):
    assert list(committed) == list(ARCHITECTURES)
    page = PAGE.read_text(encoding="utf-8")
    assert write_page(committed, re.search(r"transformers (\S+) ", page)[1]) == page


def test_a_page_is_read_as_it_was_written():
    cells = [Cell("yes"), Cell("falls back", "one"), Cell("refused", "two"), Cell("falls back", "one")]
    rows = {
        "llama": dict(zip(matrix.COLUMNS, [*cells, Cell("yes"), Cell("yes")], strict=True)),
        "phi3, sliding window": dict.fromkeys(matrix.COLUMNS, Cell("yes")),
    }
    page = write_page(rows)
    assert read_page(page) == rows
    assert "| llama | yes | falls back (1) | refused (2) | falls back (1) | yes | yes |" in page
    assert "| **yes / falls back / refused** | 2 / 0 / 0 | 1 / 1 / 0 | 1 / 0 / 1 |" in page


def test_a_wrong_result_is_no_cell(monkeypatch):
    monkeypatch.setattr(route, "_beams_move", lambda *rest: (True, ""))  # states of beams that stay where they were
    with pytest.raises(AssertionError):
        measure_row("minimax")
