"""Locks on a run folder, which keep two commands from writing the same artifacts at the same time.

`run` locks the whole folder. A single stage locks its method (generate, ground, score) or its own name, so that several
methods can be generated side by side. The locks are advisory file locks, which the system releases when a process ends,
however it ends; a leftover lock file has no effect.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from bigrec_hf.common.errors import BigrecError

LOCK_FILE = ".lock"
BY_METHOD = ("generate", "ground", "score")  # stages that write one method's folder


@contextlib.contextmanager
def locked(run_dir: str | Path, stage: str, method: str) -> Iterator[None]:
    """Hold a stage's locks on the run folder `run_dir`; in a job of several processes, only the first holds them.

    Raises BigrecError if another command is working there. On systems without file locks (Windows) nothing is locked.
    """
    try:
        import fcntl
    except ImportError:
        fcntl = None  # type: ignore[assignment]  # a module, or None on Windows
    if fcntl is None or int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    folder = Path(run_dir)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [(folder / LOCK_FILE, fcntl.LOCK_EX if stage == "run" else fcntl.LOCK_SH)]
    if stage != "run":
        wanted.append((folder / f"{LOCK_FILE}-{method if stage in BY_METHOD else stage}", fcntl.LOCK_EX))
    with contextlib.ExitStack() as held:
        for file, kind in wanted:
            stream = held.enter_context(file.open("a"))
            try:
                fcntl.flock(stream, kind | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BigrecError(
                    f"another bigrec-hf command is working in {folder}: wait until it finishes, or use another folder"
                ) from error
        try:
            yield
        finally:  # a command that failed before it wrote anything leaves no folder behind
            if is_new and folder.is_dir() and all(file.name.startswith(LOCK_FILE) for file in folder.iterdir()):
                shutil.rmtree(folder)
