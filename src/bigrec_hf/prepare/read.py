"""The files that a source needs, and the reader for them. Settings are unpacked here; readers take plain values."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import temporary_folder
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.prepare import reference_json, windows
from bigrec_hf.prepare.protocols import d3_titles, long_titles
from bigrec_hf.prepare.ready import ReadySet
from bigrec_hf.prepare.sources import amazon, hub, movielens, sequences, tabular
from bigrec_hf.prepare.sources.archives import download_movielens
from bigrec_hf.prepare.sources.base import RawData
from bigrec_hf.prepare.sources.columns import ColumnNames
from bigrec_hf.settings import PrepareSettings
from bigrec_hf.settings.prepare import SOURCES

TABLES = ("tabular", "hub")  # sources whose columns have names of the user's own


def source_files(settings: PrepareSettings) -> dict[str, Path]:
    """Role (`ratings`, `items`, or a split) -> existing file, as set or by the source's naming conventions.

    Raises BigrecError if a file is missing.
    """
    folder = Path(settings.raw_dir) if settings.raw_dir else None
    ratings = Path(settings.ratings_file) if settings.ratings_file else None
    items = Path(settings.items_file) if settings.items_file else None
    for file in (ratings, items):
        if file is not None and not file.is_file():
            raise BigrecError(f"{file}: no such file: check --ratings_file and --items_file")
    if settings.source == "movielens":
        return movielens.find_movielens_files(folder, ratings, items)
    if settings.source == "amazon":
        return amazon.find_amazon_files(folder, ratings, items)
    if settings.source == "sequences":
        return sequences.find_sequence_files(folder, ratings, items)
    if settings.source in TABLES:
        return tabular.find_tabular_files(folder, ratings, items)
    if settings.source == "reference-json":
        return reference_json.find_reference_files(folder, items)
    if settings.source == "windows":
        return windows.find_window_files(folder, items)
    raise BigrecError(f"unknown source {settings.source!r}: choose from {', '.join(SOURCES)}")


def read_source(settings: PrepareSettings, files: dict[str, Path]) -> RawData:
    """Read the files of a source of interactions. Raises BigrecError naming file, line and remedy."""
    encoding, drop = settings.encoding, settings.drop_untitled
    is_d3 = settings.preset == "d3"
    if settings.source == "amazon":
        rule = d3_titles if is_d3 else long_titles
        return amazon.load_amazon(files["ratings"], files["items"], rule, encoding)
    if settings.source == "movielens":
        raw = movielens.load_movielens(files["ratings"], files["items"], encoding, drop)
    elif settings.source == "sequences":
        raw = sequences.load_sequences(files["ratings"], files["items"], encoding, drop)
    else:
        raw = tabular.load_tabular(
            files["ratings"],
            files.get("items"),
            named=column_names(settings),
            timestamp_unit=settings.timestamp_unit,
            separator=settings.separator,
            encoding=encoding,
            drop_untitled=drop,
        )
    return with_d3_titles(raw) if is_d3 else raw


def column_names(settings: PrepareSettings) -> ColumnNames:
    """The columns that the settings name."""
    s = settings
    return ColumnNames(s.user_column, s.item_column, s.title_column, s.rating_column, s.timestamp_column)


@contextlib.contextmanager
def downloaded(settings: PrepareSettings) -> Iterator[PrepareSettings]:
    """The settings with the files that are to be read, fetched first where they are elsewhere: MovieLens archives into
    `raw_dir`, a data set of the Hub into it or, without one, into a folder that is removed afterwards."""
    if settings.download:
        yield replace(settings, raw_dir=str(download_movielens(settings.download, settings.raw_dir)))
    elif settings.source == "hub":
        if not settings.hub_dataset:
            raise BigrecError("no data set named: give its Hub id or folder with --dataset (hub_dataset in a recipe)")
        with temporary_folder() as temporary:
            folder = Path(settings.raw_dir or temporary)
            names, configs = column_names(settings), (settings.hub_config, settings.hub_items)
            files = hub.fetch_tables(settings.hub_dataset, folder, names, *configs)
            items = settings.items_file or (str(files["items"]) if "items" in files else None)
            yield replace(settings, ratings_file=str(files["ratings"]), items_file=items)
    else:
        yield settings


def read_ready(settings: PrepareSettings, files: dict[str, Path]) -> ReadySet | None:
    """The examples of a source that comes split; None for a source of interactions."""
    if settings.source == "reference-json":
        return reference_json.load_reference_json(files, settings.encoding, settings.drop_untitled)
    if settings.source == "windows":
        return windows.load_windows(files, settings.encoding, settings.timestamp_unit)
    return None


def with_d3_titles(raw: RawData) -> RawData:
    """Titles cleaned by the d3 rule; interactions with items whose title it rejects are dropped and counted."""
    import polars as pl

    titles = d3_titles(pl.Series(raw.catalog.titles, dtype=pl.String))
    keep = ~titles.is_null().to_numpy()[raw.rows]
    return replace(
        raw,
        catalog=Catalog(raw.catalog.item_ids, titles.fill_null("").to_list()),
        users=raw.users[keep],
        rows=raw.rows[keep],
        ratings=None if raw.ratings is None else raw.ratings[keep],
        times=None if raw.times is None else raw.times[keep],
        dropped=raw.dropped | {"title refused by d3": int(np.count_nonzero(~keep))},
    )
