"""Files that are written completely or not at all, and errors that name the file that cannot be read."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bigrec_hf.common.errors import BigrecError

HOST = re.sub(r"\W", "-", platform.node())
TEMPORARY = re.compile(rf"\..+\.{re.escape(HOST)}\.(\d+)\.tmp")  # written here, by the process of this number
STAGE_OF = {  # the stage that writes a file, for the remedy of an error
    "adapter_config.json": "sft",
    "bigrec.json": "publish",
    "catalog.parquet": "ground",
    "facts.json": "prepare",
    "fingerprint.json": "ground",
    "generate.json": "generate",
    "generations.parquet": "generate",
    "keywords.parquet": "keywords",
    "manifest.json": "run",
    "per_example.parquet": "score",
    "rankings.parquet": "ground",
    "results.json": "score",
    "training.json": "sft",
}


def write_atomically(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Call `write(temporary path)` and move the result into place: readers see the complete file or none."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{HOST}.{os.getpid()}.tmp")
    try:
        write(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Write a value as JSON, completely or not at all."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_table(table: pa.Table, path: str | Path) -> None:
    """Write a table as parquet, completely or not at all."""
    write_atomically(path, lambda temporary: pq.write_table(table, temporary))


def write_again(path: str | Path) -> str:
    """The remedy for a file that is not what it should be: the stage that writes it."""
    stage = STAGE_OF.get(Path(path).name)
    return f"remove it and run {f'`bigrec-hf {stage}`' if stage else 'the stage that writes it'} again"


@contextlib.contextmanager
def readable(path: str | Path, remedy: str | None = None) -> Iterator[None]:
    """Turn whatever a library raises about the content of `path` into a BigrecError that names the file and `remedy`.

    The default remedy is to write the file again with the stage that made it. A lack of memory, a full disk, a package
    that is not installed and a BigrecError pass unchanged.
    """
    try:
        yield
    except (BigrecError, MemoryError, ImportError):
        raise
    except BaseException as error:
        kind = type(error).__name__
        if not isinstance(error, Exception) and kind != "PanicException":  # of polars, for a damaged file
            raise
        if kind == "OutOfMemoryError" or (isinstance(error, OSError) and error.errno == errno.ENOSPC):
            raise
        reason = f"{kind}: {' '.join(str(error).split())}"[:300]
        raise BigrecError(f"{path} is damaged or of another kind ({reason}): {remedy or write_again(path)}") from error


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in `path`, or an empty one if there is no such file. Raises BigrecError for anything else."""
    path = Path(path)
    if not path.is_file():
        return {}
    with readable(path):
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict):
            raise ValueError(f"a JSON {type(value).__name__} instead of an object")
        return value


def read_json_file(path: Path) -> Any:
    """The content of a UTF-8 JSON file, with or without a byte order mark. Raises BigrecError naming file and line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        if not text.strip():
            raise BigrecError(f"{path}: the file is empty: recreate or remove it")
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise BigrecError(f"{path}:{error.lineno}: not valid JSON ({error.msg}): recreate or remove it") from error
    except UnicodeDecodeError as error:
        raise BigrecError(f"{path}: not UTF-8 (byte {error.start}): save it as UTF-8") from error
    except BigrecError:
        raise
    except (RecursionError, ValueError) as error:
        raise BigrecError(f"{path}: cannot be read as JSON ({error}): recreate or remove it") from error


def check_characters(text: str, place: str) -> None:
    """Raise BigrecError for a text with half a surrogate pair (JSON can spell it), which no file could hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        raise BigrecError(f"{place} holds {half}, half of a character: correct that text") from error


@contextlib.contextmanager
def whole_records(place: str | Path, remedy: str) -> Iterator[None]:
    """Turn what a value raises that is missing in the records of `place`, or of another kind, into a BigrecError."""
    try:
        yield
    except BigrecError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        raise BigrecError(f"the records of {place} are damaged ({reason}): {remedy}") from error


def read_record(path: str | Path) -> dict[str, Any]:
    """`read_json` for the record of finished work: a damaged one counts as none, so that the work is done again."""
    try:
        return read_json(path)
    except BigrecError as error:
        print(f"{error}; taken as missing", flush=True)
        return {}


def read_table(
    path: str | Path, columns: Sequence[str] | None = None, *, remedy: str | None = None, **options: Any
) -> pa.Table:
    """The `columns` (default: all) of a parquet file. Raises BigrecError with the `remedy` of `readable` for a damaged
    file or a missing column."""
    with readable(path, remedy):
        missing = [name for name in columns or () if name not in pq.read_schema(path).names]
        if missing:
            raise BigrecError(f"{path} lacks the column {missing[0]!r}: {remedy or write_again(path)}")
        return pq.read_table(path, columns=None if columns is None else list(columns), **options)


def is_running(pid: int) -> bool:
    """Whether another process of this machine has this number."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return pid != os.getpid()


@contextlib.contextmanager
def temporary_folder() -> Iterator[Path]:
    """An empty folder in the system's place for temporary files (TMPDIR), removed at the end; those that killed
    processes of this machine have left are removed first."""
    place = Path(tempfile.gettempdir())
    for left in place.glob(f"bigrec-hf-{HOST}-*"):
        pid = left.name.removeprefix(f"bigrec-hf-{HOST}-").partition("-")[0]
        if pid.isdigit() and int(pid) != os.getpid() and not is_running(int(pid)):
            shutil.rmtree(left, ignore_errors=True)  # refuses a link, and what belongs to somebody else
    with tempfile.TemporaryDirectory(prefix=f"bigrec-hf-{HOST}-{os.getpid()}-") as folder:
        yield Path(folder)


def remove_leftovers(folder: str | Path) -> None:
    """Remove the temporary files that processes killed on this machine have left anywhere in `folder`."""
    for place, _, names in os.walk(folder):
        for name in names:
            found = TEMPORARY.fullmatch(name)
            if found and not is_running(int(found[1])):
                (Path(place) / name).unlink(missing_ok=True)
