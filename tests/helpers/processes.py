"""Commands in processes of their own: one alone, two that work together, one that is killed at a chosen point.

A process under test ends itself (`os.kill(os.getpid(), signal.SIGKILL)`) at the point the test is about. Nothing waits
for a moment to come, so a busy machine changes no result; HANG only ends what would otherwise never end.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HANG = 3000  # seconds
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
TORCHRUN = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
TORCHRUN += ["--rdzv_endpoint", "localhost:0"]
ACCELERATE = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]

# a stage that is killed once it has written as many shards as the first argument says
KILLED_AFTER_SHARDS = """
import os, signal, sys
from bigrec_hf import cli
from bigrec_hf.common.shards import ShardFolder
left, write = int(sys.argv[1]), ShardFolder.write_table
def killed(self, *shard):
    global left
    write(self, *shard)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
ShardFolder.write_table = killed
sys.exit(cli.main(sys.argv[2:]))
"""


def run_python(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python with these arguments, its output kept."""
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=HANG,
    )


def run_pair(
    *arguments: object, launcher: list[str] = TORCHRUN, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Two processes on the CPU (gloo)."""
    return run_python(*launcher, *arguments, ACCELERATE_USE_CPU="true", **environment)


def flags(**values: object) -> list[str]:
    """`--name value` for each; a list's elements follow its name."""
    return [
        str(part)
        for name, value in values.items()
        for part in (f"--{name}", *(value if isinstance(value, list) else [value]))
    ]
