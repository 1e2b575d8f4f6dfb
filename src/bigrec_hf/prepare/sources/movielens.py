"""MovieLens in its file formats: `.dat` (1M, 10M), `u.data` (100K), CSV (latest, 20M-32M), and RecBole's `.inter`.

The catalog is the whole items file, row = line, rated or not (reference: Bi-Step-Rec, MovieLens-10M).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import dat_encoding, find_items_file, read_catalog_file
from bigrec_hf.prepare.sources.base import (
    RawData,
    encode_items,
    encode_users,
    find_file,
    require_folder,
    untitled_mask,
    whole_times,
)
from bigrec_hf.prepare.sources.delimited import FLOAT, ID, STRING, read_delimited, read_header

USER, ITEM, RATING, TIME = "user", "item", "rating", "timestamp"
RATINGS_OF = {"movies.dat": "ratings.dat", "u.item": "u.data", "movies.csv": "ratings.csv"}
CSV_NAMES = {"userId": USER, "movieId": ITEM, "rating": RATING, "timestamp": TIME}
TYPED_NAMES = {"user_id": USER, "item_id": ITEM, "rating": RATING, "timestamp": TIME}


def find_movielens_files(raw_dir: Path | None, ratings: Path | None, items: Path | None) -> dict[str, Path]:
    """The items file and the ratings file next to it, unless given explicitly."""
    if items is None:
        items = find_items_file(require_folder(raw_dir))
    if ratings is None:
        pattern = RATINGS_OF.get(items.name, "*.inter")
        ratings = find_file(raw_dir or items.parent, (pattern,), "ratings file", "--ratings_file")
    return {"ratings": ratings, "items": items}


def load_movielens(ratings: Path, items: Path, encoding: str | None = None, drop_untitled: bool = False) -> RawData:
    """Read one MovieLens data set; the file names tell the format.

    `encoding` overrides the format's default for both files. Raises BigrecError for a malformed line, a repeated item
    id, or a rating of an item without a title (unless `drop_untitled`).
    """
    catalog = read_catalog_file(items, encoding)
    frame, first_line = read_ratings(ratings, encoding or "utf-8")
    times = whole_times(frame[TIME].to_numpy(), TIME, ratings, first_line) if TIME in frame.columns else None
    rows = encode_items(frame[ITEM], catalog)
    missing = untitled_mask(rows, frame[ITEM], ratings, first_line, drop_untitled)
    n_raw = frame.height
    if missing.any():
        frame, rows = frame.filter(~missing), rows[~missing]
        times = None if times is None else times[~missing]
    user_ids, users = encode_users(frame[USER])
    return RawData(
        catalog=catalog,
        user_ids=user_ids,
        users=users,
        rows=rows,
        ratings=frame[RATING].cast(pl.Float32).to_numpy() if RATING in frame.columns else None,
        times=times,
        raw_rows=n_raw,
        files=[ratings, items],
        dropped={"item without a title": int(missing.sum())},
        facts={
            "noun": "movies",
            "noun_singular": "movie",
            "verb": "watched",
            "encoding": encoding or _own_encoding(items),
            "licence": movielens_licence(ratings),
        },
    )


def _own_encoding(items: Path) -> str:
    if items.name == "u.item":
        return "latin-1"
    return dat_encoding(items) if items.suffix == ".dat" else "utf-8"


def read_ratings(path: Path, encoding: str = "utf-8") -> tuple[pl.DataFrame, int]:
    """Ratings in file order (user, item: Categorical; rating, timestamp in seconds: Float64), and their first line.

    Raises BigrecError naming file and line.
    """
    columns: dict[str, type[pl.DataType]]
    if path.suffix == ".dat":
        # one-character separators parse ten times as fast; every second column of `1::2::3` is then empty
        columns = {USER: ID, "_1": pl.Boolean, ITEM: ID, "_2": pl.Boolean, RATING: FLOAT, "_3": pl.Boolean}
        columns[TIME] = FLOAT
        frame = read_delimited(path, ":", columns, [USER, ITEM, RATING, TIME], header=False, encoding=encoding)
        return frame, 1
    if path.name == "u.data":
        columns = {USER: ID, ITEM: ID, RATING: FLOAT, TIME: FLOAT}
        return read_delimited(path, "\t", columns, list(columns), header=False, encoding=encoding), 1
    typed = path.suffix == ".inter"
    separator, known = ("\t", TYPED_NAMES) if typed else (",", CSV_NAMES)
    header = [name.partition(":")[0] if typed else name for name in read_header(path, separator, encoding)]
    names = [known.get(name, f"_{name}") for name in header]
    needed = (USER, ITEM) if typed else (USER, ITEM, RATING, TIME)
    missing = [source for source, name in known.items() if name in needed and name not in names]
    if missing:
        raise BigrecError(f"{path}:1: the column {missing[0]} is missing, found {', '.join(header)}: fix the header")
    kinds: dict[str, type[pl.DataType]] = {USER: ID, ITEM: ID, RATING: FLOAT, TIME: FLOAT}
    columns = {name: kinds.get(name, STRING) for name in names}
    kept = [name for name in (USER, ITEM, RATING, TIME) if name in names]
    return read_delimited(path, separator, columns, kept, header=True, quotes=not typed, encoding=encoding), 2


def movielens_licence(ratings: Path) -> dict[str, str]:
    """Terms by file format: 100K, 1M and 10M forbid redistribution, the CSV releases allow it under the same terms.

    Source: the README that GroupLens puts into each archive.
    """
    url = "https://grouplens.org/datasets/movielens/"
    if ratings.suffix == ".csv":
        redistribution = "same terms"
    elif ratings.suffix == ".dat" or ratings.name == "u.data" or ratings.name == "ml-100k.inter":
        redistribution = "forbidden"
    else:
        redistribution = "unknown"
    name = "MovieLens: research use, not commercial, with acknowledgement; "
    name += {
        "same terms": "redistribution under the same terms",
        "forbidden": "no redistribution without separate permission",
        "unknown": "see the README of the archive",
    }[redistribution]
    return {"name": name, "redistribution": redistribution, "url": url}
