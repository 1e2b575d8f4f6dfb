"""The documentation builds as a site, every link in it leads somewhere, and it loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def build(folder: Path, root: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_the_site_builds_and_needs_no_other_server(tmp_path):
    result = build(tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page)
    assert not loaded
    api = (tmp_path / "docs" / "api" / "index.html").read_text(encoding="utf-8")
    assert 'id="bigrec_hf.Recommender.recommend"' in api
    notebook = (tmp_path / "docs" / "notebooks" / "own_data" / "index.html").read_text(encoding="utf-8")
    assert "prepare_frame" in notebook and 'href="../read_a_run/"' in notebook
