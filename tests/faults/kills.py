"""A tiny run that is killed, or finds the disk full, at every write; the next `run` must give the same artifacts.

A write is an audit event of Python (a file opened for writing, renamed, removed, a folder made) inside the run's
folder, or a call of a library that writes files itself; of those, half a file is left. Its site is what happens to
which file by which function. Every site has its turn before any has its second.

What a SIGKILL leaves is what the folder holds at that write, so the undisturbed run copies its folder at every write
and each copy is finished by another `run`. A full disk is a run of its own, in which nothing can be written from that
write on. Each of these is a fork of one process, which has imported everything and drawn or computed nothing.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import hashlib
import importlib
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
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
WRITE = re.compile(r"^write (\d+) (can|cannot) fail: (.*)$", re.MULTILINE)
# parts of names: hosts and processes, steps, hashes, drawn names
UNSTABLE = re.compile(r"\.[^./]+\.\d+(?=\.tmp$)|(?<=\.tmp-)\d+|(?<=checkpoint-)\d+|[0-9a-f]{16,}|tmp\w{8,}")
IMPORTED_LATE = ("datasets", "matplotlib.figure", "peft.tuners.lora.bnb", "trackio", "scipy.stats")


@dataclass(frozen=True)
class Write:
    """One write of the undisturbed run; a full disk fails those that need space."""

    number: int
    needs_space: bool
    site: str


@dataclass
class Kills:
    """How many attempts there were, how many runs came to the same end afterwards, and what did not."""

    writes: list[Write]
    tried: list[Write] = field(default_factory=list)
    survived: int = 0
    unclear: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        sites, of_all = ({write.site for write in some} for some in (self.tried, self.writes))
        return (
            f"sites {len(sites)} of {len(of_all)}, writes {len(self.tried)} of {len(self.writes)}, "
            f"{self.survived} survived, tracebacks: {len(self.unclear)}"
        )


def contents(run: Path) -> dict[str, str]:
    """The files of a run whose bytes depend on its inputs alone."""
    files = {file for pattern in SAME for file in run.glob(pattern) if file.is_file()}
    return {str(file.relative_to(run)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def forked(
    arguments: list[str], log: Path, watched: Path, *, full: int = 0, killed: int = 0, copies: Path | None = None
) -> tuple[int, str]:
    """Exit code (negative: the signal) and output of the command in a fork; `Fault` tells what happens there."""
    child = os.fork()
    if not child:
        code = 99
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            from bigrec_hf.prepare import stage
            from bigrec_hf.report import page

            stage.WRITERS = 1  # in one order, so that a write has the same number in every run
            page.draw_svg = lambda *_: "<svg></svg>"  # half of the time of a run, and no file of its own
            Fault(watched, full, killed, copies).install()
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
    """Counts the writes in `watched`. From number `full` on the disk is full; number `killed` ends the process; with
    `copies`, every write is printed, and what lies in `watched` is copied to a folder there, named after its number."""

    def __init__(self, watched: Path, full: int, killed: int, copies: Path | None) -> None:
        self.watched, self.full, self.killed, self.copies, self.n = str(watched), full, killed, copies, 0

    def install(self) -> None:
        import pyarrow.parquet
        import safetensors.numpy
        import safetensors.torch
        import torch

        sys.addaudithook(self.audit)
        writer = pyarrow.parquet.ParquetWriter  # a table written in parts
        writer.close = self.halved(writer.close, "ParquetWriter", lambda closed: closed.where)
        for module, name in (
            *((pyarrow.parquet, "write_table"), (torch, "save")),
            *((safetensors.torch, "save_file"), (safetensors.numpy, "save_file")),
        ):
            original = getattr(module, name)
            for other in list(sys.modules.values()):  # some have imported the function itself
                for key, value in list(vars(other).items()) if other else ():
                    if value is original:
                        setattr(other, key, self.halved(original, name))

    def audit(self, event: str, arguments: tuple) -> None:
        if event == "open":
            path, _, flags = arguments
            is_folder = isinstance(path, str | os.PathLike) and Path(path).is_dir()  # not a descriptor
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) and not is_folder
        elif event in ("os.rename", "os.remove", "os.mkdir"):  # not of a file that is missing or a folder that exists
            path = arguments[0]
            writes = os.path.lexists(path) == (event != "os.mkdir")
        else:
            return
        if writes and isinstance(path, str | os.PathLike) and str(path).startswith(self.watched):
            self.count(event, str(path), needs_space=event in ("open", "os.mkdir"))

    def halved(self, original: Any, name: str, path_of: Any = None) -> Any:
        def write(*arguments: Any, **options: Any) -> Any:
            path = path_of(arguments[0]) if path_of else next((a for a in arguments if isinstance(a, str | Path)), None)
            result = original(*arguments, **options)
            if path is not None and str(path).startswith(self.watched):
                half = Path(path).stat().st_size // 2
                self.count(name, str(path), needs_space=True, half=half)
            return result

        return write

    def count(self, event: str, path: str, *, needs_space: bool, half: int | None = None) -> None:
        self.n += 1
        fails = needs_space and self.full and self.n >= self.full
        if half is not None and (fails or self.n == self.killed):
            os.truncate(path, half)
        if self.n == self.killed:
            os.kill(os.getpid(), signal.SIGKILL)
        if fails:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.watched)
        if self.copies is not None:
            where = site(event, os.path.relpath(path, self.watched), sys._getframe(1))
            print(f"\nwrite {self.n} {'can' if needs_space else 'cannot'} fail: {where}")
            copy = self.copies / str(self.n)
            if Path(self.watched).is_dir():
                shutil.copytree(self.watched, copy)
            if half is not None:
                os.truncate(copy / os.path.relpath(path, self.watched), half)


def site(event: str, path: str, frame: FrameType | None) -> str:
    """What happens to which file by which function: that of this package that is nearest to the event."""
    name = UNSTABLE.sub("*", path)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/bigrec_hf/" in file and "/tests/" not in file and not file.endswith(("common/files.py", "cli.py")):
            return f"{event} {name} by {file.rpartition('/bigrec_hf/')[2]}:{frame.f_code.co_name}"
        frame = frame.f_back
    return f"{event} {name}"


def leftovers(folder: Path) -> list[str]:
    """Temporary files that nobody will remove."""
    return [str(file) for file in folder.rglob("*") if file.name.endswith(".tmp") or ".tmp-" in file.name]


def in_turns(writes: list[Write], seed: int) -> list[Write]:
    """The writes in random order, those first that are the first of their site, then the second, and so on."""
    shuffled = random.Random(seed).sample(writes, len(writes))
    turn: dict[str, int] = {}
    turns = []
    for write in shuffled:
        turns.append(turn.setdefault(write.site, 0))
        turn[write.site] += 1
    return [write for _, write in sorted(zip(turns, shuffled, strict=True), key=lambda pair: pair[0])]


class TinyRun:
    """The inputs of a tiny run in a folder, and what its undisturbed run wrote."""

    def __init__(self, folder: Path) -> None:
        import bigrec_hf.generate.stage
        import bigrec_hf.pipeline.run
        import bigrec_hf.sft.stage  # noqa: F401 (imported before the first fork)

        for name in IMPORTED_LATE:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        self.folder, self.run, self.log, self.copies = folder, folder / "run", folder / "log", folder / "copies"
        write_raw_movies(folder / "raw")
        base = os.fork()
        if not base:  # the tokenizer's threads would not survive in later forks
            save_tiny_model(folder / "base", spread=0.05)
            os._exit(0)
        os.waitpid(base, 0)
        self.arguments = ["run", "--config", str(write_recipe(folder, folder / "raw", str(folder / "base"), **SMALL))]
        gc.collect()
        gc.freeze()  # nothing of this process is garbage in a fork
        code, said = forked(self.arguments, self.log, self.run, copies=self.copies)
        if code:
            raise RuntimeError(f"the undisturbed run ended with {code}: {said[-500:]}")
        self.wanted = contents(self.run)
        self.writes = [Write(int(n), can == "can", where) for n, can, where in WRITE.findall(said)]

    def kill(self, write: Write) -> list[str]:
        """The folder as a kill at this write leaves it."""
        shutil.rmtree(self.run, ignore_errors=True)
        if (self.copies / str(write.number)).is_dir():
            shutil.copytree(self.copies / str(write.number), self.run)
        return []

    def fill(self, write: Write) -> list[str]:
        """Run on a disk that is full from this write on; what is unclear about how that ends."""
        shutil.rmtree(self.run, ignore_errors=True)
        code, said = forked(self.arguments, self.log, self.run, full=write.number)
        return [f"ended with {code}: {said[-400:]}"] if "Traceback" in said or code not in (0, 1, 2) else []

    def finish(self) -> list[str]:
        """Run once more; what is unclear about it, or other than in the undisturbed run."""
        code, said = forked(self.arguments, self.log, self.run)
        after = contents(self.run)
        wrong = sorted(file for file in {*self.wanted, *after} if self.wanted.get(file) != after.get(file))
        left = leftovers(self.run)
        return (
            [f"then {code}, {wrong[:3]} {left[:2]} {said.strip().splitlines()[-1:]}"] if code or wrong or left else []
        )


def attack(n: int, seed: int, seconds: float) -> dict[str, Kills]:
    """At most `n` kills and `n` full disks, each at another write, until `seconds` are over."""
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as place:
        tiny = TinyRun(Path(place))
        found = {"kill": Kills(tiny.writes), "full": Kills([write for write in tiny.writes if write.needs_space])}
        turns = {action: in_turns(count.writes, seed)[:n] for action, count in found.items()}
        for turn in range(max(map(len, turns.values()))):
            for action, count in found.items():
                if time.monotonic() > end:
                    return found
                if turn < len(turns[action]):
                    write = turns[action][turn]
                    first = tiny.kill(write) if action == "kill" else tiny.fill(write)
                    then = tiny.finish()
                    count.tried.append(write)
                    count.survived += not then
                    count.unclear += [f"{action} at write {write.number} ({write.site}): {s}" for s in first + then]
    return found
