"""Delimited text into typed polars columns, fast; if that fails, a search for the first bad line."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path

import polars as pl

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import check_line_ends, read_text

STRING, FLOAT = pl.String, pl.Float64
ID = pl.Categorical  # text with few distinct values: 4 bytes per field instead of 16 or more
UTF8 = {"utf-8", "utf8"}


def read_delimited(
    path: Path,
    separator: str,
    columns: Mapping[str, type[pl.DataType]],
    kept: list[str],
    *,
    header: bool,
    quotes: bool = False,
    encoding: str = "utf-8",
    optional: list[str] | None = None,
) -> pl.DataFrame:
    """Read the columns `kept` out of `columns` (name -> STRING, ID, FLOAT; Boolean for one that must be empty).

    `optional`: the columns to return instead of `kept`; those not in `kept` may be null. Kept fields must not be empty,
    kept FLOAT fields must be finite. Raises BigrecError naming file, line and remedy.
    """
    try:
        # other encodings than UTF-8 are decoded here, strictly: polars would silently replace bad bytes
        source = path if encoding.lower() in UTF8 else io.BytesIO(read_text(path, encoding).encode())
        if path.stat().st_size == 0:
            raise BigrecError(f"{path}: the file is empty: replace it")
        frame = pl.read_csv(
            source,
            separator=separator,
            has_header=False,
            skip_lines=int(header),
            quote_char='"' if quotes else None,
            schema=columns,
        )
    except OSError as error:
        raise BigrecError(f"{path}: cannot be read ({error.strerror or error})") from error
    except pl.exceptions.PolarsError as error:
        raise _bad_line(path, separator, columns, kept, header, quotes, encoding, str(error)) from error
    while frame.height and all(value is None for value in frame.row(-1)):
        frame = frame.head(-1)  # empty lines at the end of the file
    if frame.height == 0:
        raise BigrecError(f"{path}: the file contains no data lines: replace it")
    blank = [name for name, kind in columns.items() if kind == pl.Boolean]
    wrong = any(frame[name].null_count() for name in kept)
    wrong |= any(frame[name].null_count() < frame.height for name in blank)
    wrong |= any(not frame[name].is_finite().all() for name in kept if columns[name] == FLOAT)
    if wrong:
        raise _bad_line(path, separator, columns, kept, header, quotes, encoding, "a field is missing")
    return frame.select(optional or kept)


def _bad_line(
    path: Path,
    separator: str,
    columns: Mapping[str, type[pl.DataType]],
    kept: list[str],
    header: bool,
    quotes: bool,
    encoding: str,
    reason: str,
) -> BigrecError:
    """The error that names the first malformed line; slow, as it runs only after reading has failed."""
    text = read_text(path, encoding)  # raises BigrecError for bad bytes and an empty file
    if quotes:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        records = ((reader.line_num, fields) for fields in reader)
    else:
        records = ((n, line.split(separator)) for n, line in enumerate(text.split("\n"), start=1))
    n_lines = text.rstrip().count("\n") + 1
    names = list(columns)
    number = 0
    try:
        for number, fields in records:
            if (header and number == 1) or number > n_lines:
                continue
            problem = _problem([field.removesuffix("\r") for field in fields], names, columns, kept)
            if problem:
                return BigrecError(f"{path}:{number}: {problem}: fix or remove the line")
    except csv.Error as error:  # such as a field of more than 128 KiB
        return BigrecError(f"{path}:{number + 1}: {error}: fix or remove the line")
    return BigrecError(f"{path}: cannot be read as delimited text ({reason.splitlines()[0]}): fix the file")


def _problem(
    fields: list[str], names: list[str], columns: Mapping[str, type[pl.DataType]], kept: list[str]
) -> str | None:
    if len(fields) != len(names):
        return f"expected {len(names)} fields ({', '.join(names)}), found {len(fields)}"
    for name, value in zip(names, fields, strict=True):
        if columns[name] == pl.Boolean and value:
            return f"expected `::` between fields, found {value!r} inside"
        if name in kept and not value:
            return f"the field {name} is empty"
        if name in kept and columns[name] == FLOAT and not _is_number(value):
            return f"{name} is {value!r}, not a number"
    return None


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value)) and value == value.strip() and "_" not in value
    except ValueError:
        return False


def read_header(path: Path, separator: str, encoding: str = "utf-8") -> list[str]:
    """Column names in the first line of a delimited file, unquoted. Raises BigrecError if there is none."""
    if encoding.lower() in UTF8:
        try:
            with path.open("rb") as file:
                first = file.readline().decode()
        except (OSError, UnicodeDecodeError) as error:
            raise BigrecError(f"{path}:1: the header cannot be read ({error}): give the file's --encoding") from error
    else:
        first = read_text(path, encoding).partition("\n")[0]
    check_line_ends(first, path)
    try:
        names = next(csv.reader([first.removeprefix("\ufeff").rstrip("\r\n")], delimiter=separator), [])
    except csv.Error as error:
        raise BigrecError(f"{path}:1: {error}: fix the header") from error
    if not any(names):
        raise BigrecError(f"{path}: the file is empty or has no header: replace it")
    return names
