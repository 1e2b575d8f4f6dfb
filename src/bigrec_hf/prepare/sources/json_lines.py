"""JSON lines, plain or gzipped, into typed columns: by polars in chunks, line by line only for chunks that need it.

The slow path also reads the single-quoted metadata lines of Amazon 2014, which are Python literals: `ast.literal_eval`
parses them without executing anything.
"""

from __future__ import annotations

import ast
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from bigrec_hf.common.errors import BigrecError

CHUNK_BYTES = 64 * 2**20
HALF_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])")


def read_json_lines(
    path: Path, fields: dict[str, type[pl.DataType]], required: tuple[str, ...] = (), encoding: str | None = None
) -> pl.DataFrame:
    """One row per non-empty line, in file order; `fields` (name -> String or Float64) that a line lacks are null.

    Raises BigrecError naming file and line for a line that is not a JSON object, a field of another type, or a missing
    `required` field.
    """
    parts, first_line = [], 1
    for chunk in _chunks(path):
        data = _to_utf8(chunk, path, first_line, encoding)
        try:
            # polars would read half a surrogate pair as U+0000
            part = None if HALF_PAIR.search(data) else pl.read_ndjson(io.BytesIO(data), schema=fields)
        except pl.exceptions.PolarsError:
            part = None
        if part is None:
            part = _parse_slowly(data, path, first_line, fields)
        for name in required:
            if part[name].null_count():
                at = int(part[name].is_null().arg_max() or 0)
                line = _line_of(data, at) + first_line
                raise BigrecError(f"{path}:{line}: the field {name} is missing: fix or remove the line")
        parts.append(part)
        first_line += chunk.count(b"\n")
    frame = pl.concat(parts) if parts else pl.DataFrame(schema=fields)
    if frame.height == 0:
        raise BigrecError(f"{path}: the file is empty: replace it")
    return frame


def first_object(path: Path, encoding: str | None = None) -> dict[str, Any]:
    """The first non-empty line, parsed; it tells a data set's editions apart. Raises BigrecError for an empty file."""
    for chunk in _chunks(path, 1):
        line = _to_utf8(chunk, path, 1, encoding).decode("utf-8", "replace").strip()
        if line.startswith("["):
            raise BigrecError(f"{path}:1: the file holds a JSON array: write one object per line instead")
        if line:
            return parse_line(line, path, 1)
    raise BigrecError(f"{path}: the file is empty: replace it")


def parse_line(line: str, path: Path, number: int) -> dict[str, Any]:
    """Parse one line as JSON, or else as a Python literal. Raises BigrecError for anything but an object."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(line)
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
            raise BigrecError(f"{path}:{number}: not a JSON object: {line[:60]!r}: fix or remove the line") from error
    if not isinstance(value, dict):
        raise BigrecError(f"{path}:{number}: not a JSON object: {line[:60]!r}: fix or remove the line")
    return value


def _chunks(path: Path, size: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Parts of about `size` bytes, each ending with a line feed (except possibly the last)."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            while part := file.read(size):
                yield part if part.endswith(b"\n") else part + file.readline()
    except EOFError as error:
        raise BigrecError(f"{path}: the gzip file ends too early: copy or download it again") from error
    except (OSError, zlib.error) as error:
        raise BigrecError(f"{path}: cannot be read ({error}): copy or download it again") from error


def _to_utf8(chunk: bytes, path: Path, first_line: int, encoding: str | None) -> bytes:
    try:
        text = chunk.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        line = first_line + chunk.count(b"\n", 0, error.start)
        raise BigrecError(
            f"{path}:{line}: byte 0x{chunk[error.start]:02x} is not valid {encoding or 'utf-8'}: "
            "fix the file or give its encoding, e.g. --encoding latin-1"
        ) from error
    except LookupError as error:
        raise BigrecError(
            f"unknown encoding {encoding!r}: give a Python codec name such as utf-8 or latin-1"
        ) from error
    return text.removeprefix("\ufeff").encode() if encoding or first_line == 1 else chunk


def _parse_slowly(data: bytes, path: Path, first_line: int, fields: dict[str, type[pl.DataType]]) -> pl.DataFrame:
    columns: dict[str, list[Any]] = {name: [] for name in fields}
    for number, line in enumerate(data.decode().split("\n"), start=first_line):
        if not line.strip():
            continue
        record = parse_line(line, path, number)
        for name, kind in fields.items():
            columns[name].append(_value(record.get(name), kind, name, path, number))
    return pl.DataFrame(columns, schema=fields)


def _value(value: Any, kind: type[pl.DataType], name: str, path: Path, number: int) -> str | float | None:
    if value is None:
        return None
    if kind == pl.String:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # lone surrogates cannot be stored
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise BigrecError(f"{path}:{number}: {name} is {value!r}, not a number: fix or remove the line") from error


def _line_of(data: bytes, index: int) -> int:
    """0-based line of the `index`-th non-empty line."""
    filled = (n for n, line in enumerate(data.split(b"\n")) if line.strip())
    return next(n for i, n in enumerate(filled) if i == index)
