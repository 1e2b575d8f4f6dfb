"""`recommend --engine ray`: two actors on a local cluster, one of them killed, give the rows of one process."""

from __future__ import annotations

import importlib.util

import polars as pl
import pytest

from bigrec_hf import cli
from tests.helpers.processes import run_python

NO_RAY = importlib.util.find_spec("ray") is None

# an actor that is killed while it works on shard 2, once
KILLED = """
import os, signal, sys
from pathlib import Path
from bigrec_hf import cli
from bigrec_hf.recommend import ray_engine, stage
marker = sys.argv[1]
class Killed(ray_engine.Worker):
    def __call__(self, batch):
        if batch["number"][0] == 2 and not Path(marker).exists():
            Path(marker).write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)
whole = ray_engine.recommend_on_ray
ray_engine.recommend_on_ray = lambda *given, **more: whole(*given, worker=Killed, **more)
sys.exit(cli.main(sys.argv[2:]))
"""


@pytest.mark.skipif(not NO_RAY, reason="Ray is installed")
def test_without_ray_the_extra_is_named(dense_run, tmp_path, capsys):
    flags = ["--run_dir", str(dense_run), "--users", "all", "--output", str(tmp_path / "r.csv"), "--engine", "ray"]
    assert cli.main(["recommend", *flags]) == 2
    assert "pip install 'bigrec_hf[ray]'" in capsys.readouterr().err and not (tmp_path / "r.csv").exists()


@pytest.mark.slow
@pytest.mark.skipif(NO_RAY, reason="Ray is not installed (extra: ray)")
def test_two_actors_one_killed_give_the_rows_of_one_process(dense_run, tmp_path):
    def flags(name):
        where = ["--run_dir", dense_run, "--users", "all", "--output", tmp_path / name, "--batch_users", 4]
        return ["recommend", *map(str, where), "--debug"]

    assert cli.main(flags("one.parquet")) == 0
    two = [*flags("two.parquet"), "--engine", "ray", "--num_actors", "2"]
    done = run_python("-c", KILLED, tmp_path / "killed", *two, RAY_TMPDIR="/tmp", RAY_worker_niceness="0")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "killed").is_file()
    assert pl.read_parquet(tmp_path / "two.parquet").equals(pl.read_parquet(tmp_path / "one.parquet"))
