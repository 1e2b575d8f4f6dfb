"""SIGTERM to the launcher of a training on two processes: both end, nothing of it stays, and the next start resumes."""

from __future__ import annotations

import json
import os

import pytest

from tests.helpers.processes import ACCELERATE, TORCHRUN, run_pair

# once the second checkpoint is written, the first process ends its launcher, as a job scheduler would
SCRIPT = """
import os, signal, sys, time
os.write(1, b"PID %d" % os.getpid() + bytes([10]))  # at once: the other process writes to the same pipe
from pathlib import Path
import transformers.trainer

rotate = transformers.trainer.rotate_checkpoints

def end_the_job(output_dir, **options):
    if os.environ.get("END") and Path(output_dir, "checkpoint-2").is_dir():
        if os.environ["RANK"] == "0":
            os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(600)  # as in a step that never ends; the launcher must end it
    rotate(output_dir=output_dir, **options)

transformers.trainer.rotate_checkpoints = end_the_job
from bigrec_hf import cli
sys.exit(cli.main(sys.argv[1:]))
"""


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, ACCELERATE], ids=["torchrun", "accelerate"])
def test_a_terminated_job_leaves_nothing_and_resumes(tmp_path, tiny_model_dir, tiny_prepared, launcher):
    script, place = tmp_path / "script.py", tmp_path / "tmp"
    script.write_text(SCRIPT)
    place.mkdir()
    flags = ["--dataset", tiny_prepared, "--base_model", tiny_model_dir, "--dtype", "float32", "--sample", "16"]
    flags += ["--validation_sample", "4", "--epochs", "2", "--global_batch_size", "8", "--micro_batch_size", "2"]
    command = [script, "sft", *flags, "--run_dir", tmp_path / "run"]
    ended = run_pair(*command, launcher=launcher, END="1", TMPDIR=str(place))
    assert ended.returncode != 0 and "resuming" not in ended.stdout
    pids = [int(line.split()[-1]) for line in ended.stdout.splitlines() if line.startswith("PID")]
    assert len(pids) == 2 and not any(alive(pid) for pid in pids)
    assert not [file for file in (tmp_path / "run").rglob("*") if file.name.endswith(".tmp")]
    assert not list(place.glob("bigrec-hf-*"))
    assert not (tmp_path / "run" / "adapter" / "training.json").exists()
    done = run_pair(*command, launcher=launcher, TMPDIR=str(place))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("resuming from checkpoint-2") == 1
    record = json.loads((tmp_path / "run" / "adapter" / "training.json").read_text())
    assert (record["n_processes"], record["optimizer_steps"]) == (2, 4)
    assert not (tmp_path / "run" / "adapter" / "checkpoints").exists()
