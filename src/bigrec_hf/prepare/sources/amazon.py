"""Amazon reviews and metadata of 2014, 2018 (`reviewerID`, `asin`, seconds) and 2023 (`parent_asin`, milliseconds).

A metadata record needs a usable title, and a later record of an item replaces an earlier one; reviews of an item
without a title, and reviews without rating or time, are dropped and counted (reference: BIGRec's game data). Spaces and
quotes alone are not a title (our rule: the reference keeps two spaces, and all such items would share one title).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.prepare.sources.base import (
    RawData,
    encode_items,
    encode_users,
    find_file,
    require_folder,
    whole_times,
    with_title,
)
from bigrec_hf.prepare.sources.json_lines import first_object, read_json_lines

ENDINGS = (".json", ".json.gz", ".jsonl", ".jsonl.gz")


def find_amazon_files(raw_dir: Path | None, ratings: Path | None, items: Path | None) -> dict[str, Path]:
    """`meta_NAME.json` and the reviews beside it: `NAME_5.json`, `reviews_NAME_5.json`, `NAME.jsonl`; plain or gz."""
    if items is None:
        meta = tuple(f"meta_*{ending}" for ending in ENDINGS)
        items = find_file(require_folder(raw_dir), meta, "metadata file", "--items_file")
    if ratings is None:
        category = items.name.removeprefix("meta_").partition(".")[0]
        stems = (f"{category}_5", f"reviews_{category}_5", category, f"reviews_{category}")
        names = tuple(stem + ending for stem in stems for ending in ENDINGS)
        ratings = find_file(raw_dir or items.parent, names, "reviews file", "--ratings_file")
    return {"ratings": ratings, "items": items}


def load_amazon(
    ratings: Path, items: Path, title_rule: Callable[[pl.Series], pl.Series], encoding: str | None = None
) -> RawData:
    """Read reviews and metadata. `title_rule` maps raw titles to the titles to use, null for records to leave out.

    Raises BigrecError for a line that is not an object or lacks a user or item id, and if no record has a title.
    """
    first = first_object(ratings, encoding)
    if "reviewerID" in first:
        user, item, rating, time, divisor = "reviewerID", "asin", "overall", "unixReviewTime", 1
    elif "user_id" in first and "parent_asin" in first:
        user, item, rating, time, divisor = "user_id", "parent_asin", "rating", "timestamp", 1000
    else:
        raise BigrecError(
            f"{ratings}:1: expected the fields reviewerID and asin (2014, 2018) or user_id and parent_asin (2023), "
            f"found {', '.join(first)}: check --ratings_file"
        )
    catalog, notes = read_metadata(items, item, title_rule, encoding)
    fields = {user: pl.String, item: pl.String, rating: pl.Float64, time: pl.Float64}
    frame = read_json_lines(ratings, fields, required=(user, item), encoding=encoding)
    n_raw = frame.height
    rows = encode_items(frame[item], catalog)
    untitled = rows < 0
    incomplete = ~untitled & (frame[rating].is_null() | frame[time].is_null()).to_numpy()
    keep = ~(untitled | incomplete)
    times = whole_times(frame[time].fill_null(0).to_numpy(), time, ratings, None)[keep]
    frame = frame.filter(keep)
    user_ids, users = encode_users(frame[user])
    is_games = "video_games" in items.name.lower()
    return RawData(
        catalog=catalog,
        user_ids=user_ids,
        users=users,
        rows=rows[keep],
        ratings=frame[rating].cast(pl.Float32).to_numpy(),
        times=times,
        raw_rows=n_raw,
        files=[ratings, items],
        time_divisor=divisor,
        whole_catalog=False,
        dropped={
            "item without a title": int(untitled.sum()),
            f"review without {rating} or {time}": int(incomplete.sum()),
        },
        facts={
            **({"noun": "video games", "noun_singular": "video game", "verb": "played"} if is_games else {}),
            "encoding": encoding or "utf-8",
            "notes": notes,
            "licence": {
                "name": "Amazon review data (McAuley lab, UCSD): for research; no licence is stated",
                "redistribution": "unknown",
                "url": "https://amazon-reviews-2023.github.io/"
                if divisor > 1
                else "https://nijianmo.github.io/amazon/",
            },
        },
    )


def read_metadata(
    path: Path, item: str, title_rule: Callable[[pl.Series], pl.Series], encoding: str | None = None
) -> tuple[Catalog, dict[str, int]]:
    """Metadata -> catalog of all items with a usable title (the last record of each), and counts of the others."""
    frame = read_json_lines(path, {item: pl.String, "title": pl.String}, required=(item,), encoding=encoding)
    titled = with_title(frame.with_columns(title_rule(frame["title"]).alias("title")), "title")
    if titled.height == 0:
        raise BigrecError(f"{path}: none of {frame.height} records has a usable title: check --items_file")
    last = titled.unique(item, keep="last", maintain_order=True)
    notes = {
        "metadata records": frame.height,
        "metadata records without a usable title": frame.height - titled.height,
        "metadata records replaced by a later one": titled.height - last.height,
    }
    return Catalog(last[item].to_list(), last["title"].to_list()), notes
