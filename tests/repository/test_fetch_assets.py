"""scripts/fetch_assets.py: what is fetched; no network."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts/fetch_assets.py"


@pytest.mark.parametrize(
    ("flags", "wanted"), [([], ["ml-100k", "SmolLM2-135M-Instruct"]), (["--encoder"], ["all-MiniLM-L6-v2"])]
)
def test_the_encoder_alone_or_the_quickstarts_assets(tmp_path, monkeypatch, flags, wanted):
    spec = importlib.util.spec_from_file_location("fetch_assets", SCRIPT)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    fetched = []
    monkeypatch.setattr(script, "publish_folder", lambda build, target: fetched.append(target.name))
    monkeypatch.setattr(sys, "argv", ["fetch_assets", "--output_dir", str(tmp_path), *flags])
    script.main()
    assert fetched == wanted
