"""Tables that users bring: the usual names of their columns, files of any kind, and frames of any library."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from typing import Any

import polars as pl
import polars.selectors as cs

from bigrec_hf.common.errors import BigrecError

TABLES = (".csv", ".tsv", ".jsonl", ".parquet")  # endings of the files that are read

# usual names as `plain` writes them, likeliest first
USERS = ("user", "userid", "users", "reviewerid", "customer", "customerid", "member", "account", "visitorid", "uid")
TITLES = (
    *("title", "titles", "historytitles", "itemtitle", "movietitle", "filmtitle", "booktitle", "gametitle"),
    *("songtitle", "tracktitle", "producttitle", "productname", "itemname", "name"),
)
ITEMS = (
    *("history", "items", "item", "itemid", "movie", "movieid", "film", "filmid", "book", "bookid"),
    *(
        "isbn",
        "asin",
        "parentasin",
        "product",
        "productid",
        "game",
        "gameid",
        "song",
        "songid",
        "track",
        "trackid",
        "article",
        "articleid",
        "news",
    ),
)
RATINGS = ("rating", "ratings", "stars", "starrating", "score", "overall")
TIMES = (
    *("timestamp", "time", "when", "date", "datetime", "unixreviewtime", "reviewtime", "createdat", "eventtime"),
    *("ts", "ratingtimestamp", "ratedat", "readat", "watchedat", "playedat", "boughtat"),
)


def plain(name: str) -> str:
    """A column's name in small letters and digits only: `User ID`, `user_id` and `userId` are the same."""
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def as_polars(frame: Any, what: str = "histories") -> pl.DataFrame:
    """A pandas, polars or Arrow table as polars, NaN as missing. Raises BigrecError for anything else, and for a column
    that mixes types."""
    if isinstance(frame, pl.DataFrame):
        return without_nan(frame)
    if isinstance(frame, pl.LazyFrame):
        return without_nan(frame.collect())
    is_pandas = type(frame).__module__.startswith("pandas")
    try:
        made = pl.from_pandas(frame) if is_pandas else pl.from_arrow(frame)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        if is_pandas:
            reason = " ".join(str(error).split())[:120]
            raise BigrecError(f"cannot read {what} ({reason}): give each column one type, ids as text") from error
        raise BigrecError(f"cannot read {what} from {type(frame).__name__}: give a pandas or polars frame") from error
    if not isinstance(made, pl.DataFrame):
        raise BigrecError(f"cannot read {what} from {type(frame).__name__}: give a pandas or polars frame")
    return without_nan(made)


def without_nan(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with null for NaN, which pandas writes for a missing value."""
    return frame.with_columns(cs.float().fill_nan(None))


def as_text(values: pl.Series) -> pl.Series:
    """Ids or titles as text; whole numbers stored as floats, as pandas does in a column with gaps, without `.0`."""
    if values.dtype.is_float() and (values.is_null() | (values == values.round())).all():
        values = values.cast(pl.Int64, strict=False)
    return values.cast(pl.String)


def read_user_table(path: Path, what: str = "the table") -> pl.DataFrame:
    """A table of any of TABLES; of delimited text every column is text. `what` is in it, for the error of a missing
    file. Raises BigrecError naming the file, and the line that does not fit the header."""
    if path.suffix not in TABLES:
        raise BigrecError(f"{path} is not a table: give {', '.join(TABLES)}")
    if not path.is_file():
        raise BigrecError(f"{path} does not exist: give a file of {what}")
    separator = "\t" if path.suffix == ".tsv" else ","
    try:
        if path.suffix == ".parquet":
            frame = without_nan(pl.read_parquet(path))
        elif path.suffix == ".jsonl":
            frame = pl.read_ndjson(path)
        else:
            frame = pl.read_csv(path, separator=separator, infer_schema=False)
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        if "utf-8" in str(error):
            raise BigrecError(f"{path} is not UTF-8: save it as UTF-8") from error
        reason = " ".join(str(error).split())[:200]
        if path.suffix in (".csv", ".tsv"):
            reason = _ragged_line(path, separator) or reason
        raise BigrecError(f"{path} cannot be read as {path.suffix[1:]} ({reason}): fix the file") from error
    name = frame.columns[0] if len(frame.columns) == 1 else ""
    other = next((sign for sign in ";\t,|" if path.suffix in (".csv", ".tsv") and sign in name), None)
    if other is not None:
        wanted = "tabs" if separator == "\t" else "commas"
        raise BigrecError(f"{path}: the header is one field, {name!r}: separate the columns by {wanted}, not {other!r}")
    return frame


def _ragged_line(path: Path, separator: str) -> str | None:
    """What is wrong with the first line that has more fields than the header; None if no line has."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter=separator)
        n = len(next(reader, []))
        longer = next((fields for fields in reader if len(fields) > n), None)
        return f"line {reader.line_num} has {len(longer)} fields, the header {n}" if longer else None
