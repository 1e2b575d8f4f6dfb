"""Readers of raw files. Each returns `RawData`: the catalog and the interactions in file order.

One module per kind of source; presets, histories and splits are unknown here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.metrics.ndcg_hr.titles import clean_title

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class RawData:
    """The content of a source; only what the source's own rules exclude has been dropped.

    Interactions are parallel arrays of n entries in file order. `users` are codes 0, 1, ... in order of first
    appearance, `rows` are catalog rows, `times` are in units of `1 / time_divisor` seconds since 1970 UTC.
    """

    catalog: Catalog
    user_ids: pl.Series  # (n_users,) string, by user code
    users: np.ndarray  # (n,) uint32
    rows: np.ndarray  # (n,) int32
    ratings: np.ndarray | None  # (n,) float32
    times: np.ndarray | None  # (n,) int64
    raw_rows: int  # interactions in the file, including dropped ones
    files: list[Path]
    time_divisor: int = 1
    whole_catalog: bool = True  # False: only items with a kept interaction belong to the catalog
    dropped: dict[str, int] = field(default_factory=dict)  # reason -> interactions
    facts: dict[str, object] = field(default_factory=dict)  # licence, encoding, noun and verb if the source knows them


def encode_users(users: pl.Series) -> tuple[pl.Series, np.ndarray]:
    """User strings or categories -> (ids in order of first appearance, (n,) uint32 codes)."""
    import polars as pl

    ids = users.unique(maintain_order=True).cast(pl.String)
    return ids, users.cast(pl.Enum(ids)).to_physical().cast(pl.UInt32).to_numpy()


def encode_items(items: pl.Series, catalog: Catalog) -> np.ndarray:
    """Item ids -> (n,) int32 catalog rows, -1 if the id is not in the catalog."""
    import polars as pl

    rows = items.cast(pl.Enum(catalog.item_ids), strict=False).to_physical()
    return rows.cast(pl.Int32).fill_null(-1).to_numpy()


def with_title(frame: pl.DataFrame, column: str) -> pl.DataFrame:
    """The rows whose title is more than spaces and quotes, which would all become the same empty title."""
    import polars as pl

    blank = [title for title in frame[column].unique() if title is None or not clean_title(title)]
    return frame.filter(pl.col(column).is_not_null() & ~pl.col(column).is_in(blank))


def whole_times(times: np.ndarray, name: str, file: Path, first_line: int | None) -> np.ndarray:
    """(n,) float64 times -> int64, rounded down. Raises BigrecError for a time out of int64's range.

    `first_line` is the line number of the first time; None if the file has no lines.
    """
    wrong = ~(np.abs(times) < 2.0**63)  # NaN is wrong too
    if wrong.any():
        at = int(np.argmax(wrong))
        place = f"{file}: row {at}" if first_line is None else f"{file}:{at + first_line}"
        raise BigrecError(
            f"{place}: {name} is {float(times[at])!r}, not a time since 1970 ({int(wrong.sum())} such): fix or remove "
            "the line"
        )
    return np.floor(times).astype(np.int64)


def untitled_mask(
    rows: np.ndarray, item_ids: pl.Series, file: Path, lines: int | np.ndarray | None, drop_untitled: bool
) -> np.ndarray:
    """(n,) bool: interactions whose item has no title. Raises BigrecError at the first one unless `drop_untitled`.

    `lines`: line number of every interaction; or of the first one if each has its own line; or None (no lines).
    """
    missing = rows < 0
    if missing.any() and not drop_untitled:
        at = int(np.argmax(missing))
        if lines is None:
            place = f"{file}: interaction {at + 1}"
        else:
            place = f"{file}:{lines + at if isinstance(lines, int) else lines[at]}"
        raise BigrecError(
            f"{place}: item {item_ids[at]!r} has no title ({int(missing.sum())} such interactions): "
            "add it to the items file, or drop them with --drop_untitled true"
        )
    return missing


def require_folder(folder: Path | None) -> Path:
    """The folder itself. Raises BigrecError if it is not set or does not exist."""
    if folder is None:
        raise BigrecError("raw_dir is not set: give the folder of the raw files as --raw_dir")
    if not folder.is_dir():
        raise BigrecError(f"{folder}: no such folder: give the folder of the raw files as --raw_dir")
    return folder


def find_file(folder: Path, names: tuple[str, ...], what: str, remedy: str) -> Path:
    """The only file in `folder` that matches one of the patterns `names`. Raises BigrecError for none or several."""
    require_folder(folder)
    found = sorted({file for name in names for file in folder.glob(name) if file.is_file()})
    if len(found) != 1:
        listed = ", ".join(file.name for file in found) or "none"
        raise BigrecError(
            f"{folder}: expected one {what} ({' or '.join(names)}), found {listed}: give it with {remedy}"
        )
    return found[0]
