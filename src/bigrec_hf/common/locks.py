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
    folder = Path(run_dir)
    whole_run = stage == "run"
    with contextlib.ExitStack() as held:
        held.enter_context(_held(folder / LOCK_FILE, folder, shared=not whole_run))
        if not whole_run:
            held.enter_context(_held(folder / f"{LOCK_FILE}-{method if stage in BY_METHOD else stage}", folder))
        yield


@contextlib.contextmanager
def locked_folder(folder: str | Path) -> Iterator[None]:
    """Hold a folder that lies anywhere, as `locked` holds a run's: by a file beside it, so that nothing is in it."""
    folder = Path(os.path.abspath(folder))  # noqa: PTH100 (a link's own place, as the next command will name it)
    with _held(folder.with_name(f"{LOCK_FILE}-{folder.name}"), folder):
        yield


@contextlib.contextmanager
def _held(file: Path, folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock `file`; `folder` is named in the message."""
    try:
        import fcntl
    except ImportError:
        fcntl = None  # type: ignore[assignment]  # a module, or None on Windows
    if fcntl is None or int(os.environ.get("RANK", "0")) > 0:
        yield
        return
    is_new = not file.parent.exists()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as stream:
        try:
            fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BigrecError(
                f"another bigrec-hf command is working in {folder}: wait until it finishes, or use another folder"
            ) from error
        try:
            yield
        finally:  # a command that failed before it wrote anything leaves no folder behind
            place = file.parent
            if is_new and place.is_dir() and all(entry.name.startswith(LOCK_FILE) for entry in place.iterdir()):
                shutil.rmtree(place)
