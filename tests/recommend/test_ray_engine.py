"""Actors on a Ray cluster, one of them killed, give the files of one process: `recommend`, `generate`, `ground`."""

from __future__ import annotations

import importlib.util
import json
import shutil

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from bigrec_hf import cli
from tests.helpers.processes import run_python

NO_RAY = importlib.util.find_spec("ray") is None
needs_ray = pytest.mark.skipif(NO_RAY, reason="Ray is not installed (extra: ray)")

# an actor that is killed while it works on a task, once
KILLED = """
import os, signal, sys
from pathlib import Path
from bigrec_hf import cli
from bigrec_hf.common import ray_actors
marker, task = sys.argv[1], int(sys.argv[2])
class Killed(ray_actors.Actor):
    def __call__(self, batch):
        if batch["number"][0] == task and not Path(marker).exists():
            Path(marker).write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)
ray_actors.Actor = Killed
sys.exit(cli.main(sys.argv[3:]))
"""


def by_two_actors(flags, marker, task):
    """The command with two actors, one of which is killed in the middle."""
    words = [*map(str, flags), "--num_actors", "2", "--debug"]
    done = run_python("-c", KILLED, marker, task, *words, RAY_TMPDIR="/tmp", RAY_worker_niceness="0")
    assert done.returncode == 0, done.stderr[-3000:]
    assert marker.is_file()


@pytest.mark.skipif(not NO_RAY, reason="Ray is installed")
@pytest.mark.parametrize("switch", [["--engine", "ray"], ["--num_actors", "2"]])
def test_without_ray_the_extra_is_named(dense_run, switch, tmp_path, capsys):
    flags = ["--run_dir", str(dense_run), "--users", "all", "--output", str(tmp_path / "r.csv"), *switch]
    assert cli.main(["recommend", *flags]) == 2
    assert "pip install 'bigrec_hf[ray]'" in capsys.readouterr().err and not (tmp_path / "r.csv").exists()


@pytest.mark.slow
@needs_ray
def test_recommend(dense_run, tmp_path):
    def flags(name):
        where = ["--run_dir", dense_run, "--users", "all", "--output", tmp_path / name, "--batch_users", 4]
        return ["recommend", *map(str, where)]

    assert cli.main(flags("one.parquet")) == 0
    by_two_actors([*flags("two.parquet"), "--engine", "ray"], tmp_path / "killed", 2)
    assert pl.read_parquet(tmp_path / "two.parquet").equals(pl.read_parquet(tmp_path / "one.parquet"))


@pytest.mark.slow
@needs_ray
@pytest.mark.parametrize("run", ["tiny_run", "dense_run"])
def test_generate(run, request, tmp_path):
    run_dir = shutil.copytree(request.getfixturevalue(run), tmp_path / "run")
    flags = ["generate", "--config", run_dir / "recipe.yaml", "--output_dir", run_dir, "--generate_batch_size", 2]
    assert cli.main([*map(str, flags), "--method", "one"]) == 0
    by_two_actors([*flags, "--method", "two"], tmp_path / "killed", 3)
    one, two = (pl.read_parquet(run_dir / name / "generations.parquet") for name in ("one", "two"))
    assert one.equals(two)
    if run == "dense_run":
        one, two = (load_file(run_dir / name / "scores.safetensors") for name in ("one", "two"))
        assert all(np.array_equal(one[key], two[key]) for key in one) and list(one) == list(two)
    records = [json.loads((run_dir / name / "generate.json").read_text()) for name in ("one", "two")]
    assert records[0].get("route") == records[1].get("route")
    assert [record["n_processes"] for record in records] == [1, 2]
    assert not (run_dir / "two" / "shards").exists()


@pytest.mark.slow
@needs_ray
def test_the_catalog_index(tiny_run, tmp_path, monkeypatch):
    run_dir = shutil.copytree(tiny_run, tmp_path / "run")
    before = {file.name: file.read_bytes() for file in (run_dir / "index").iterdir()}
    shutil.rmtree(run_dir / "index")
    flags = ["ground", "--config", run_dir / "recipe.yaml", "--output_dir", run_dir]
    by_two_actors(flags, tmp_path / "killed", 0)
    assert {file.name: file.read_bytes() for file in (run_dir / "index").iterdir()} == before
