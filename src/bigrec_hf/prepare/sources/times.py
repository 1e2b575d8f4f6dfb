"""Times as numbers: their unit told by their size, and the years that this gives."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from bigrec_hf.common.errors import BigrecError

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
