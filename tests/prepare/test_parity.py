"""Prepare, row for row, against the independent implementation in prepare_rowwise, on made-up files full of ties."""

from __future__ import annotations

import csv
import json
import os
import tempfile
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.prepare.stage import prepare_dataset
from tests.helpers import prepare_rowwise as rowwise

ODD_TITLES = [
    "Toy Story (1995)",
    "Toy Story (1995)",  # a duplicate
    '"Great Performances" Cats (1998)',
    "Matrix, The (1999)",
    "Star Wars: Episode IV (1977)",
    "Alien::Resurrection (1997)",
    "WALL·E (2008)",
    "Misérables, Les (1995)",
    "line\u0085break (2001)",
    "\u2028separator",
    " leading space",
    'trailing quote"',
    'a", "b',
    "back\\slash {0} %s \\n",
    "日本語のタイトル",
    "None",
    "nan",
    "😀",
    "tab\there",
]
AMAZON_TITLES = [*ODD_TITLES, "", "x", '<span id="a">', "&quot;Q&quot; &amp; A", '"', "w " * 25, " &amp;quot; "]
DAY = 86_400
quick = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def check(folder: Path, source: str, raw: Path, preset: str, catalog, splits, domain: str, **options) -> None:
    """Prepare, then compare items, examples and the five exported files."""
    prepared, exported = folder / "prepared", folder / "json"
    prepare_dataset(source, raw, prepared, preset=preset, export_reference_json=str(exported), **options)
    items = pl.read_parquet(prepared / "data/items/train.parquet")
    assert list(zip(items["item_id"], items["title"], strict=True)) == catalog
    counts = [0] * len(catalog)
    for _, _, _, _, target, _, _ in splits["train"]:
        counts[target] += 1
    assert items["train_count"].to_list() == counts
    for split, expected in splits.items():
        rows = pl.read_parquet(prepared / f"data/default/{split}.parquet").rows()
        assert rows == [
            (f"{user}:{position}", user, history, ratings, target, rating, time)
            for user, position, history, ratings, target, rating, time in expected
        ]
    expected_files = rowwise.reference_files(catalog, splits, domain, nan_quirk=preset == "bigrec-game")
    for name, records in expected_files.items():
        text = (exported / name).read_text(encoding="utf-8")
        assert json.loads(text) == records
        if len(records) < 1000:  # indenting is slow in Python
            assert text == json.dumps(records, indent=4)
    sampled = pl.read_parquet(prepared / "data/text/test.parquet")
    if preset != "bigrec-game":
        assert sampled.drop("example_id").to_dicts() == expected_files["test_5000.json"]


def expect_no_examples(folder: Path, source: str, raw: Path, preset: str, **options) -> None:
    with pytest.raises(BigrecError, match=r"has enough items|is left after dropping"):
        prepare_dataset(source, raw, folder / "prepared", preset=preset, **options)
    assert not (folder / "prepared").exists()


@st.composite
def movielens_files(draw):
    titles = draw(st.lists(st.sampled_from(ODD_TITLES), min_size=1, max_size=12))
    ids = draw(st.permutations(range(1, len(titles) + 1)))
    movies = "".join(f"{item}::{title}::Drama|Comedy\n" for item, title in zip(ids, titles, strict=True))
    entry = st.tuples(
        st.sampled_from(["1", "2", "30", "x7"]), st.sampled_from(ids), st.integers(1, 10), st.integers(0, 6)
    )
    entries = draw(st.one_of(st.lists(entry, min_size=45, max_size=70), st.lists(entry, min_size=1, max_size=20)))
    # whole and half ratings are spelled as in the 10M file
    ratings = "".join(f"{user}::{item}::{half / 2:g}::{time}\n" for user, item, half, time in entries)
    return ratings, movies


@pytest.mark.parametrize("preset", ["bigrec-movie", "bigrec-game", "leave-one-out"])
@quick
@given(files=movielens_files())
def test_movielens_equals_the_row_by_row_protocol(preset, files):
    ratings, movies = files
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "ratings.dat").write_text(ratings, encoding="utf-8", newline="")
        (folder / "movies.dat").write_text(movies, encoding="utf-8", newline="")
        catalog, interactions = rowwise.movielens(ratings, movies)
        splits = rowwise.examples(catalog, interactions, preset)
        if any(splits.values()):
            check(folder, "movielens", folder, preset, catalog, splits, "movie")
        else:
            expect_no_examples(folder, "movielens", folder, preset)


@st.composite
def amazon_files(draw, first_day=0, last_day=5, n_ids=6, max_reviews=50):
    ids = [f"B{i}" for i in range(n_ids)]
    record = st.fixed_dictionaries(
        {"asin": st.sampled_from(ids)}, optional={"title": st.sampled_from(AMAZON_TITLES), "price": st.just("$1.00")}
    )
    records = [{"asin": item, "title": f"Game {item}"} for item in ids[:3]] + draw(st.lists(record, max_size=10))
    as_literal = draw(st.lists(st.booleans(), min_size=len(records), max_size=len(records)))
    metadata = "".join(
        (repr(r) if literal else json.dumps(r)) + "\n" for r, literal in zip(records, as_literal, strict=True)
    )
    review = st.fixed_dictionaries(
        {"reviewerID": st.sampled_from(["A1", "A2", "A3"]), "asin": st.sampled_from([*ids, "unknown"])},
        optional={
            "overall": st.sampled_from([1.0, 3.0, 5.0]),
            "unixReviewTime": st.integers(first_day, last_day).map(lambda day: day * DAY),
        },
    )
    complete = st.fixed_dictionaries(
        {
            "reviewerID": st.sampled_from(["A1", "A2", "A3"]),
            "asin": st.sampled_from(ids),
            "overall": st.sampled_from([1.0, 3.0, 5.0]),
            "unixReviewTime": st.integers(first_day, last_day).map(lambda day: day * DAY),
        }
    )
    some = st.one_of(complete, complete, review)
    many = st.lists(some, min_size=max_reviews - 20, max_size=max_reviews)
    reviews = draw(st.one_of(many, many, st.lists(some, min_size=1, max_size=12)))
    return "".join(json.dumps(r) + "\n" for r in reviews), metadata


@pytest.mark.parametrize("preset", ["bigrec-game", "bigrec-movie", "leave-one-out"])
@quick
@given(files=amazon_files())
def test_amazon_equals_the_row_by_row_protocol(preset, files):
    reviews, metadata = files
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "Video_Games_5.json").write_text(reviews, encoding="utf-8", newline="")
        (folder / "meta_Video_Games.json").write_text(metadata, encoding="utf-8", newline="")
        titles, kept, drops = rowwise.amazon(reviews, metadata)
        catalog = [(item, titles[item]) for item in rowwise.order_of_first(entry[1] for entry in kept)]
        splits = rowwise.examples(catalog, kept, preset)
        if not any(splits.values()):
            expect_no_examples(folder, "amazon", folder, preset)
            return
        check(folder, "amazon", folder, preset, catalog, splits, "game")
        facts = json.loads((folder / "prepared/facts.json").read_text())
        dropped = facts["interactions"]["dropped"]
        assert dropped.get("item without a title", 0) == drops[0]
        assert dropped.get("review without overall or unixReviewTime", 0) == drops[1]


WINDOW_FIRST, WINDOW_LAST = 17_440, 17_836 + 2  # days since 1970 of 2017-10-01 and 2018-11-01


@quick
@given(files=amazon_files(WINDOW_FIRST - 500, WINDOW_LAST, n_ids=4, max_reviews=60), min_items=st.integers(0, 4))
def test_d3_equals_the_row_by_row_protocol(files, min_items):
    reviews, metadata = files
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "Video_Games_5.json").write_text(reviews, encoding="utf-8", newline="")
        (folder / "meta_Video_Games.json").write_text(metadata, encoding="utf-8", newline="")
        titles, kept, _ = rowwise.amazon(reviews, metadata, d3=True)
        kept = rowwise.d3_filter(kept, min_items)
        catalog = rowwise.d3_catalog(titles, kept)
        splits = rowwise.examples(catalog, kept, "d3")
        if any(splits.values()):
            check(folder, "amazon", folder, "d3", catalog, splits, "game", min_items=min_items)
        else:
            expect_no_examples(folder, "amazon", folder, "d3", min_items=min_items)


DATA = Path(os.environ.get("BIGREC_HF_DATA", "none"))


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_dir(), reason="BIGREC_HF_DATA is not set to the folder of the real data")
@pytest.mark.parametrize("preset", ["bigrec-movie", "leave-one-out"])
def test_real_ratings_equal_the_row_by_row_protocol(preset, tmp_path):
    folder = DATA / "ml-latest-small"
    with (folder / "movies.csv").open(encoding="utf-8", newline="") as file:
        catalog = [(row["movieId"], row["title"]) for row in csv.DictReader(file)]
    with (folder / "ratings.csv").open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file)
        interactions = [(r["userId"], r["movieId"], float(r["rating"]), int(r["timestamp"])) for r in rows]
    splits = rowwise.examples(catalog, interactions, preset)
    check(tmp_path, "movielens", folder, preset, catalog, splits, "movie")


def test_the_parity_export_takes_pandas_missing_words_for_nan():
    from pandas._libs.parsers import STR_NA_VALUES

    from bigrec_hf.prepare.reference_json import PANDAS_MISSING

    assert STR_NA_VALUES - {""} == PANDAS_MISSING
