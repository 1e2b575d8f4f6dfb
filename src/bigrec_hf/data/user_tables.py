"""Tables that users bring: the usual names of their columns, and frames of any library."""

from __future__ import annotations

import re
from typing import Any

import polars as pl

from bigrec_hf.common.errors import BigrecError

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
    """A pandas, polars or Arrow table as polars. Raises BigrecError for anything else."""
    if isinstance(frame, pl.DataFrame):
        return frame
    if isinstance(frame, pl.LazyFrame):
        return frame.collect()
    try:
        made = pl.from_pandas(frame) if type(frame).__module__.startswith("pandas") else pl.from_arrow(frame)
    except (TypeError, ValueError, pl.exceptions.PolarsError) as error:
        raise BigrecError(f"cannot read {what} from {type(frame).__name__}: give a pandas or polars frame") from error
    if not isinstance(made, pl.DataFrame):
        raise BigrecError(f"cannot read {what} from {type(frame).__name__}: give a pandas or polars frame")
    return made
