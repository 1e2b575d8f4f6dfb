"""The wheel alone is enough: outside the repository, a shipped recipe runs by its name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_BUILT = shutil.ignore_patterns(".*", "tests", "runs", "build", "*.egg-info", "__pycache__")


def run(*command: str, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, timeout=400, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with the installed wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "source", ignore=NOT_BUILT)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "dist", "./source", cwd=folder)
    (wheel,) = (folder / "dist").glob("bigrec_hf-*.whl")
    run(*pip, "install", "--no-deps", "--target", str(folder / "site"), str(wheel), cwd=folder)
    return folder / "site"


@pytest.mark.slow
def test_a_shipped_recipe_runs_by_its_name(site, raw_movies, tiny_model_dir, tmp_path):
    environment = {"PYTHONPATH": str(site)}
    where = run(sys.executable, "-c", "import bigrec_hf; print(bigrec_hf.__file__)", cwd=tmp_path, **environment)
    assert where.startswith(str(site))
    command = (sys.executable, "-m", "bigrec_hf")
    assert "quickstart/movielens_dense" in run(*command, "recipes", cwd=tmp_path, **environment)
    small = ["--sample", "8", "--epochs", "1", "--validation_sample", "4", "--eval_sample", "4", "--exact_width", "4"]
    model = ["--raw_dir", str(raw_movies), "--base_model", tiny_model_dir, "--baselines", "popularity"]
    small += ["--min_items", "0", "--ks", "1", "5"]
    name = "quickstart/movielens_dense"
    out = run(*command, "run", "--config", name, *model, *small, cwd=tmp_path, **environment)
    folder = tmp_path / "runs" / f"quickstart-movielens_dense-base_model-{Path(tiny_model_dir).name}-sample-8"
    assert (folder / "report.html").is_file() and (folder / "finetuned" / "results.json").is_file()
    assert "report" in out
    history = run(
        *command, "recommend", "--run_dir", str(folder), "--history", "Toy Story (1995)", cwd=tmp_path, **environment
    )
    assert history.strip()
