"""A tiny run that is killed, or finds the disk full, at its N-th write; the next `run` must give the same artifacts.

A write is an audit event of Python (a file opened for writing, renamed, removed) inside the run's folder, or a call of
a library that writes files itself; of those, half a file is left. Each attempt is a fork of this process, which imports
everything first and computes nothing, so that an attempt costs no import.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
import sys
import tempfile
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bigrec_hf import cli
from tests.helpers.tiny import save_tiny_model, write_raw_movies
from tests.helpers.tiny_run import write_recipe

SMALL: dict[str, Any] = {
    "pipeline": {"baselines": ["popularity"]},
    "data": {"eval_sample": 4},
    "sft": {"sample": 8, "validation_sample": 4, "epochs": 2, "global_batch_size": 4, "micro_batch_size": 4},
    "generate": {"decoding": "greedy", "num_beams": 1, "max_new_tokens": 4},
}
SAME = ("data/**/*", "index/*", "adapter/*.safetensors", "adapter/tokenizer*", "*/*.parquet", "*/results.json")


@dataclass
class Kills:
    """How many attempts there were, how many runs came to the same end afterwards, and what did not."""

    tried: int = 0
    survived: int = 0
    unclear: list[str] = field(default_factory=list)


def contents(run: Path) -> dict[str, str]:
    """The files of a run whose bytes depend on its inputs alone."""
    files = {file for pattern in SAME for file in run.glob(pattern) if file.is_file()}
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def forked(arguments: list[str], log: Path, watched: Path, point: int, action: str) -> tuple[int, str]:
    """Exit code (negative: the signal) and output of the command in a fork, with a fault at write number `point`."""
    child = os.fork()
    if not child:
        code = 99
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            Fault(watched, point, action).install()
            code = cli.main(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")


class Fault:
    """Counts writes in `watched`; at number `point` (0: never) it kills the process, or from there the disk is full."""

    def __init__(self, watched: Path, point: int, action: str) -> None:
        self.watched, self.point, self.action, self.n = str(watched), point, action, 0

    def install(self) -> None:
        import pyarrow.parquet
        import safetensors.numpy
        import safetensors.torch
        import torch

        sys.addaudithook(self.audit)
        for module, name in (
            *((pyarrow.parquet, "write_table"), (torch, "save")),
            *((safetensors.torch, "save_file"), (safetensors.numpy, "save_file")),
        ):
            original = getattr(module, name)
            for other in list(sys.modules.values()):  # some have imported the function itself
                for key, value in list(vars(other).items()) if other else ():
                    if value is original:
                        setattr(other, key, self.halved(original))

    def audit(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        elif event in ("os.rename", "os.remove", "os.mkdir"):
            path, writes = arguments[0], event == "os.rename"
        else:
            return
        if isinstance(path, str | os.PathLike) and str(path).startswith(self.watched) and (writes or event != "open"):
            self.count(fails=event in ("open", "os.mkdir"))

    def halved(self, original: Any) -> Any:
        def write(*arguments: Any, **options: Any) -> Any:
            path = next((a for a in arguments if isinstance(a, str | os.PathLike)), None)
            if path is None or not str(path).startswith(self.watched):
                return original(*arguments, **options)
            self.n += 1
            reached = self.point and (self.n == self.point or (self.action == "full" and self.n > self.point))
            result = original(*arguments, **options)
            if reached:
                os.truncate(path, os.path.getsize(path) // 2)  # noqa: PTH202 (no audit event)
                self.n -= 1
                self.count(fails=True)
            return result

        return write

    def count(self, *, fails: bool) -> None:
        self.n += 1
        if self.point and self.action == "kill" and self.n == self.point:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.point and self.action == "full" and self.n >= self.point and fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.watched)
        if not self.point:
            print(f"write {self.n}")


def leftovers(folder: Path) -> list[str]:
    """Temporary files that nobody will remove."""
    return [str(file) for file in folder.rglob("*") if file.name.endswith(".tmp") or ".tmp-" in file.name]


def attack(n: int, seed: int, seconds: float) -> dict[str, Kills]:
    """At most `n` kills and `n` full disks, each at another write, until `seconds` are over."""
    import random
    import time

    import bigrec_hf.generate.stage
    import bigrec_hf.pipeline.run
    import bigrec_hf.sft.stage  # noqa: F401 (imported before the first fork)

    end, found = time.monotonic() + seconds, {"kill": Kills(), "full": Kills()}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_raw_movies(folder / "raw")
        base = os.fork()
        if not base:  # the tokenizer's threads would not survive in later forks
            save_tiny_model(folder / "base", spread=0.05)
            os._exit(0)
        os.waitpid(base, 0)
        recipe = str(write_recipe(folder, folder / "raw", str(folder / "base"), **SMALL))
        arguments, log, run = ["run", "--config", recipe], folder / "log", folder / "run"
        code, said = forked(arguments, log, run, 0, "kill")
        if code:
            raise RuntimeError(f"the undisturbed run ended with {code}: {said[-500:]}")
        wanted = contents(run)
        n_writes = said.count("write ")
        points = random.Random(seed).sample(range(1, n_writes + 1), min(n, n_writes))
        for point in points:
            for action, count in found.items():
                if time.monotonic() > end:
                    return found
                shutil.rmtree(run, ignore_errors=True)
                where = f"{action} at write {point} of {n_writes}"
                code, said = forked(arguments, log, run, point, action)
                count.tried += 1
                if "Traceback" in said or (action == "full" and code not in (0, 1, 2)):
                    count.unclear.append(f"{where}: ended with {code}: {said[-400:]}")
                code, said = forked(arguments, log, run, 0, action)
                after = contents(run)
                wrong = sorted(file for file in {*wanted, *after} if wanted.get(file) != after.get(file))
                if code or wrong or leftovers(folder):
                    last = said.strip().splitlines()[-1:]
                    count.unclear.append(f"{where}: then {code}, {wrong[:3]} {leftovers(folder)[:2]} {last}")
                else:
                    count.survived += 1
    return found
