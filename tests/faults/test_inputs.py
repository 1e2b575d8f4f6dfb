"""A small share of `make attack`: hostile recipes, raw files and artifacts end with one clear line."""

from __future__ import annotations

import pytest

from bigrec_hf import Recommender
from tests.faults import inputs
from tests.faults.make import raw_sources

SMALL, LARGE = 40, 400
AMOUNTS = [SMALL, pytest.param(LARGE, marks=pytest.mark.slow)]


@pytest.mark.parametrize("n", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_recipes(n):
    count = inputs.attack_recipes(n, seed=n)
    assert count.unclear == [] and count.tried >= n // 2 and count.refused


@pytest.mark.parametrize("n", AMOUNTS)
def test_raw_files(n, tmp_path):
    count = inputs.attack_raw_files(raw_sources(tmp_path), n, seed=n)
    assert count.unclear == [] and count.tried >= n // 2 and count.refused


@pytest.mark.parametrize("n", AMOUNTS)
def test_recommender(n, tiny_run, tmp_path):
    saved = Recommender.from_pretrained(tiny_run).save_pretrained(tmp_path / "saved")
    count = inputs.attack_recommender(saved, n, seed=n)
    assert count.unclear == [] and count.tried >= n // 2 and count.refused


@pytest.mark.parametrize("n", AMOUNTS)
def test_runs(n, tiny_run, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    count = inputs.attack_run(tiny_run, n, seed=n)
    assert count.unclear == [] and count.tried >= n // 2 and count.refused
