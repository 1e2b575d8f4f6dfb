"""The small inputs that are attacked, made on the spot."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl

from tests.helpers.tiny import TITLES, write_raw_movies, write_tiny_json


def raw_sources(folder: Path) -> dict[str, Path]:
    """Raw files of several sources, each in a folder named after it."""
    movies = write_raw_movies(folder / "movielens")
    ratings = pl.read_csv(movies / "ratings.csv").rename({"userId": "user_id", "movieId": "item_id"})
    items = pl.DataFrame({"item_id": range(1, len(TITLES) + 1), "title": TITLES})
    (folder / "tabular").mkdir()
    ratings.write_parquet(folder / "tabular/interactions.parquet")
    items.write_csv(folder / "tabular/items.csv")
    (folder / "amazon").mkdir()
    reviews = [
        {"reviewerID": f"u{user}", "asin": str(item), "overall": rating, "unixReviewTime": time}
        for user, item, rating, time in ratings.iter_rows()
    ]
    metadata = [{"asin": str(i + 1), "title": f"{title}, a title that is long"} for i, title in enumerate(TITLES)]
    (folder / "amazon/Toys_5.json").write_text("".join(json.dumps(line) + "\n" for line in reviews))
    lines = "".join(json.dumps(line) + "\n" for line in metadata).encode()
    (folder / "amazon/meta_Toys.json.gz").write_bytes(gzip.compress(lines, mtime=0))
    (folder / "reference-json").mkdir()
    write_tiny_json(folder / "reference-json/train.json", 9)
    (folder / "sequences").mkdir()
    users = ratings.sort("user_id", "timestamp").group_by("user_id", maintain_order=True).agg("item_id")
    lines_of = [f"{user}\t{' '.join(map(str, rows))}" for user, rows in users.iter_rows()]
    (folder / "sequences/sequences.tsv").write_text("\n".join(lines_of) + "\n")
    items.rename({"item_id": "movieId"}).write_csv(folder / "sequences/movies.csv")
    return {place.name: place for place in folder.iterdir() if place.is_dir()}
