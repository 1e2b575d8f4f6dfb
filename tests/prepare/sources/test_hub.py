"""Interactions from frames and from data sets that `datasets` reads; nothing is fetched from a network."""

from __future__ import annotations

import json

import polars as pl
import pyarrow as pa
import pytest

from bigrec_hf import cli, prepare_frame
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.prepare.sources import hub
from bigrec_hf.prepare.stage import prepare_dataset

BOOKS = pl.DataFrame({"isbn": [7, 8, 9], "title": ["Emma", "Dracula", "Ulysses"]})
LOANS = pl.DataFrame(
    {
        "reader": ["a", "b", "a", "b", "a", "b"],
        "isbn": [7, 8, 8, 9, 9, 7],
        "when": [f"2024-0{month}-01" for month in (1, 2, 3, 4, 5, 6)],
    }
)


def tables(prepared):
    return {
        split: pl.read_parquet(prepared / f"data/default/{split}.parquet").drop("rating", "history_ratings")
        for split in ("train", "validation", "test")
    }


@pytest.fixture
def expected(tmp_path):
    LOANS.write_csv(tmp_path / "loans.csv")
    BOOKS.write_csv(tmp_path / "books.csv")
    files = {"ratings_file": str(tmp_path / "loans.csv"), "items_file": str(tmp_path / "books.csv")}
    return tables(prepare_dataset("tabular", None, tmp_path / "csv", user_column="reader", **files))


@pytest.mark.parametrize("kind", ["polars", "lazy", "pandas", "arrow", "dates"])
def test_frames_of_any_library_give_the_set_of_the_same_file(tmp_path, expected, kind):
    convert = {
        "polars": lambda frame: frame,
        "lazy": lambda frame: frame.lazy(),
        "pandas": lambda frame: frame.to_pandas(),
        "arrow": lambda frame: frame.to_arrow(),
        "dates": lambda frame: frame.with_columns(pl.col("^when$").str.to_date()),
    }[kind]
    options = {"user_column": "reader", "noun": "books"}
    prepared = prepare_frame(convert(LOANS), tmp_path / "set", convert(BOOKS), **options)
    for split, table in tables(prepared).items():
        assert table.equals(expected[split])
    facts = json.loads((prepared / "facts.json").read_text())
    assert (facts["name"], facts["noun"], facts["preset"]) == ("interactions", "books", "leave-one-out")
    written = (prepared / "facts.json").stat().st_mtime_ns
    prepare_frame(convert(LOANS), tmp_path / "set", convert(BOOKS), **options)
    assert (prepared / "facts.json").stat().st_mtime_ns == written  # kept


def test_titles_in_the_frame_itself_and_what_is_no_frame(tmp_path):
    joined = LOANS.join(BOOKS, on="isbn").drop("isbn")
    prepared = prepare_frame(joined, tmp_path / "set", user_column="reader")
    assert pl.read_parquet(prepared / "data/items/train.parquet")["title"].sort().to_list() == sorted(BOOKS["title"])
    with pytest.raises(BigrecError, match="cannot read interactions from list"):
        prepare_frame([1], tmp_path / "x")


@pytest.fixture
def library(tmp_path):
    """A local data set with two configurations, and interactions in two splits."""
    folder = tmp_path / "library"
    for config in ("loans", "books"):
        (folder / config).mkdir(parents=True)
    LOANS[:4].with_columns(review=pl.lit("long")).write_csv(folder / "loans/train.csv")
    LOANS[4:].with_columns(review=pl.lit("long")).write_csv(folder / "loans/test.csv")
    BOOKS.write_csv(folder / "books/train.csv")
    configs = "".join(
        f"- config_name: {config}\n  data_files:\n"
        + "".join(f"  - {{split: {split}, path: {config}/{split}.csv}}\n" for split in splits)
        for config, splits in (("loans", ("train", "test")), ("books", ("train",)))
    )
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    return folder


def test_a_data_set_is_read_with_column_flags(tmp_path, library, expected, monkeypatch, capsys):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    command = ["prepare", "--source", "hub", "--dataset", str(library), "--hub_config", "loans", "--hub_items", "books"]
    assert cli.main([*command, "--output_dir", str(tmp_path / "set")]) == 2
    assert "no column for the user among reader, isbn, when, review: give --user_column NAME" in (
        capsys.readouterr().err
    )
    assert cli.main([*command, "--user_column", "reader", "--output_dir", str(tmp_path / "set"), "--debug"]) == 0
    for split, table in tables(tmp_path / "set").items():
        assert table.equals(expected[split])
    facts = json.loads((tmp_path / "set/facts.json").read_text())
    assert (facts["name"], facts["source"]) == ("library", "hub")
    assert str(tmp_path) not in json.dumps(facts["sha256"])


def test_another_folder_of_the_same_name_is_not_taken_from_a_cache(tmp_path, library, expected):
    options = {"hub_config": "loans", "hub_items": "books", "user_column": "reader"}
    prepare_dataset("hub", None, tmp_path / "one", hub_dataset=str(library), **options)
    BOOKS.with_columns(title=pl.lit("New ") + pl.col("title")).write_csv(library / "books/train.csv")
    with pytest.raises(BigrecError, match=r"holds another prepared set \(items.parquet has other content\)"):
        prepare_dataset("hub", None, tmp_path / "one", hub_dataset=str(library), **options)
    options["overwrite_prepared"] = True
    prepared = prepare_dataset("hub", None, tmp_path / "one", hub_dataset=str(library), **options)
    titles = pl.read_parquet(prepared / "data/items/train.parquet")["title"].to_list()
    assert titles == ["New Emma", "New Dracula", "New Ulysses"]


def test_a_name_on_the_hub_is_loaded_at_its_revision(tmp_path, expected, monkeypatch):
    from datasets import Dataset, DatasetDict

    asked = []

    def load(path, config, *, revision, cache_dir, features):
        asked.append((path, config, revision, cache_dir or features))
        frame = LOANS if config is None else BOOKS
        return DatasetDict({"train": Dataset(pa.table(frame.to_arrow()))})

    monkeypatch.setattr("datasets.load_dataset", load)
    files = hub.fetch_tables("user/loans@abc", tmp_path / "raw", hub.ColumnNames(user="reader"), None, "books")
    assert asked == [("user/loans", None, "abc", None), ("user/loans", "books", "abc", None)]
    assert pl.read_parquet(files["ratings"]).columns == ["reader", "isbn", "when"]


def test_what_cannot_be_loaded_is_one_line(tmp_path, library):
    for options, message in (
        ({}, "no data set named: .*--dataset"),
        ({"hub_dataset": str(library)}, "cannot be loaded as a data set .*--hub_config"),
        ({"hub_dataset": str(tmp_path / "none")}, "none' cannot be loaded as a data set"),
        ({"hub_dataset": str(library), "hub_config": "x"}, "configuration 'x' of .* cannot be loaded"),
    ):
        with pytest.raises(BigrecError, match=message) as caught:
            prepare_dataset("hub", None, tmp_path / "set", **options)
        assert "\n" not in str(caught.value)


def test_ids_in_csv_files_keep_their_zeros(tmp_path):
    """007 and 7 are two items, and 01 and 1 two users."""
    folder = tmp_path / "loans-with-zeros"
    folder.mkdir()
    rows = [
        f"{user},{item},Book {item},2024-{month:02}-01"
        for user in ("01", "1")
        for month, item in enumerate(("007", "7", "08"), start=1)
    ]
    (folder / "loans.csv").write_text("\n".join(["user,isbn,title,date", *rows]) + "\n")
    prepared = prepare_dataset("hub", None, tmp_path / "set", hub_dataset=str(folder))
    assert pl.read_parquet(prepared / "data/items/train.parquet")["item_id"].to_list() == ["007", "7", "08"]
    assert pl.read_parquet(prepared / "data/interactions/train.parquet")["user_id"].unique().sort().to_list() == [
        "01",
        "1",
    ]
    same = prepare_dataset("tabular", None, tmp_path / "csv", ratings_file=str(folder / "loans.csv"))
    for split, table in tables(prepared).items():
        assert table.equals(tables(same)[split])
