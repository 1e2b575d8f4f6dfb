"""Columns of numbers and times: their unit told by their size, and the years that this gives."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.prepare.sources.base import whole_times

UNITS = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}  # per second
YEARS = (1990, 2100)  # of a plausible interaction: after the first, before the second


def _year(seconds: int) -> int | None:
    """The UTC year, None outside the calendar."""
    try:
        return datetime.fromtimestamp(seconds, UTC).year
    except (OverflowError, ValueError, OSError):
        return None


def time_divisor(times: np.ndarray, unit: str | None, name: str, place: str) -> int:
    """How many units of `times` (n,) int64 make a second: as `unit` says, else the unit that gives plausible years.

    Of several units the coarsest is taken (they differ by 1000, the years' range by far less). Raises BigrecError if no
    unit gives years inside YEARS; a `unit` that is given is taken as it is.
    """
    if unit is not None or not len(times):
        return UNITS[unit or "s"]
    first, last = int(times.min()), int(times.max())
    for divisor in UNITS.values():
        years = _year(first // divisor), _year(last // divisor)
        if all(year is not None and YEARS[0] <= year < YEARS[1] for year in years):
            return divisor
    raise BigrecError(
        f"{place}: {name} runs from {first} to {last}: in no unit (s, ms, us, ns) are these times between {YEARS[0]} "
        f"and {YEARS[1]}: name another column, or give the unit if it is right, e.g. --timestamp_unit s"
    )


def years_text(times: np.ndarray, divisor: int) -> str:
    """`1996 to 2018`: the years of the first and the last time."""
    return f"{_year(int(times.min()) // divisor)} to {_year(int(times.max()) // divisor)}"


def place_of(path: Path, first_line: int | None, at: int) -> str:
    """`file:line` of a row; `file: row n` if the file has no lines (`first_line` None)."""
    return f"{path}:{at + first_line}" if first_line else f"{path}: row {at}"


NO_NUMBER = ("not a number", "fix or remove the line")
NO_TIME = (  # what is wrong with a value, and the remedy
    "neither a number nor an ISO date such as 2024-01-31",
    "write all times so, or name another column with --timestamp_column",
)


def numbers_of(
    values: pl.Series, path: Path, first_line: int | None, problem: tuple[str, str] = NO_NUMBER
) -> np.ndarray:
    """(n,) float64. Raises BigrecError naming the first value that is not a finite number; `problem`: its words."""
    numbers = values.cast(pl.Float64, strict=False)
    bad = (numbers.is_null() | ~numbers.is_finite().fill_null(False)).to_numpy()
    if bad.any():
        at = int(np.argmax(bad))
        raise BigrecError(
            f"{place_of(path, first_line, at)}: {values.name} is {values[at]!r}, {problem[0]}: {problem[1]}"
        )
    return numbers.to_numpy()


ISO = ("%Y-%m-%d %H:%M:%S%.f", "%Y-%m-%d %H:%M", "%Y-%m-%d")  # tried in this order; UTC
ISO_WITH_ZONE = ("%Y-%m-%d %H:%M:%S%.f%:z", "%Y-%m-%d %H:%M%:z")


def iso_moments(values: pl.Series) -> pl.Series:
    """(n,) Datetime("ms") in UTC of ISO dates and times as text, null for other texts."""
    text = values.str.replace("T", " ", literal=True).str.strip_suffix("Z")
    moments = pl.Series(values.name, [None] * len(text), dtype=pl.Datetime("ms"))
    for form in (*ISO, *ISO_WITH_ZONE):
        if moments.null_count():
            read = text.str.to_datetime(form, time_unit="ms", strict=False)
            moments = moments.fill_null(read.dt.replace_time_zone(None))
    return moments


def times_of(values: pl.Series, unit: str | None, path: Path, first_line: int | None) -> tuple[np.ndarray, int]:
    """(n,) int64 and how many of its units make a second, from numbers, ISO dates or times (UTC unless they name a
    zone), or temporal columns. Raises BigrecError naming the line of a value that is none of these, and as
    `time_divisor`."""
    if values.dtype == pl.String and values[0].count("-") > 1:
        moments = iso_moments(values)
        if moments.null_count():
            at = int(moments.is_null().arg_max() or 0)
            raise BigrecError(
                f"{place_of(path, first_line, at)}: {values.name} is {values[at]!r}, not an ISO date or time in UTC: "
                "fix the line"
            )
        values = moments
    if values.dtype.is_temporal():
        return values.cast(pl.Datetime("ms")).dt.timestamp("ms").to_numpy() // 1000, 1
    times = whole_times(numbers_of(values, path, first_line, NO_TIME), values.name, path, first_line)
    return times, time_divisor(times, unit, values.name, str(path))
