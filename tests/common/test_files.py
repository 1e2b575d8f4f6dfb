"""Files: what killed processes leave is removed by the next command, and SIGTERM leaves nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from bigrec_hf import cli
from bigrec_hf.common import files
from bigrec_hf.common.files import HOST, remove_leftovers, write_atomically, write_json
from bigrec_hf.hub import publish
from tests.helpers.processes import run_python


@pytest.fixture(scope="module")
def dead() -> int:
    """The number of a process that has ended."""
    return subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True
    ).stdout.strip()


def test_only_what_dead_processes_of_this_machine_wrote_is_removed(tmp_path, dead):
    left = [f".rankings.parquet.{HOST}.{dead}.tmp", f"finetuned/shards/.batch-000001.parquet.{HOST}.{dead}.tmp"]
    kept = [f".a.{HOST}.{os.getppid()}.tmp", f".a.{HOST}x.{dead}.tmp", f"a.{HOST}.{dead}.tmp", "notes.tmp", ".x.tmp"]
    for name in (*left, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    assert {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} == set(kept)


def test_a_killed_write_leaves_the_old_file_and_the_next_command_no_other(tmp_path):
    write_json(tmp_path / "run/a.json", {"old": 1})
    code = (
        "import os, sys; from bigrec_hf.common.files import write_atomically\n"
        "def half(path): path.write_text('half'); os.kill(os.getpid(), 9)\n"
        "write_atomically(sys.argv[1], half)"
    )
    assert run_python("-c", code, tmp_path / "run/a.json").returncode == -9
    assert len(list((tmp_path / "run").iterdir())) == 2
    assert cli.main(["score", "--run_dir", str(tmp_path / "run")]) == 2
    assert {file.name for file in (tmp_path / "run").iterdir() if "lock" not in file.name} == {"a.json"}
    assert files.read_json(tmp_path / "run/a.json") == {"old": 1}


def test_a_killed_publish_leaves_nothing_to_the_next(tmp_path, monkeypatch, dead):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in (f"bigrec-hf-{HOST}-{dead}-x", f"bigrec-hf-{HOST}-{os.getppid()}-x", "bigrec-hf-mine"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_text("x")
    (tmp_path / f"bigrec-hf-{HOST}-{dead}-link").symlink_to(tmp_path / "bigrec-hf-mine")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert cli.main(["publish", "metric", "--repo_id", "a/b", "--output_dir", str(tmp_path / "out"), "--debug"]) == 0
    assert not (tmp_path / f"bigrec-hf-{HOST}-{dead}-x").exists()
    assert (tmp_path / f"bigrec-hf-{HOST}-{os.getppid()}-x/model.safetensors").is_file()
    assert (tmp_path / "bigrec-hf-mine/model.safetensors").is_file()


def test_sigterm_cleans_up(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def terminated(self, repo_id, repo_type):
        seen.extend(tmp_path.iterdir())

        def half(path: Path) -> None:
            path.write_text("half")
            os.kill(os.getpid(), signal.SIGTERM)

        write_atomically(tmp_path / "file", half)

    monkeypatch.setattr(publish.Publisher, "build", terminated)
    assert cli.main(["publish", "metric", "--repo_id", "a/b"]) == 143
    assert "terminated" in capsys.readouterr().err
    assert len(seen) == 1 and list(tmp_path.iterdir()) == []
    assert signal.getsignal(signal.SIGTERM) == before
