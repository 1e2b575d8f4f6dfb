"""Settings: raw files and prepared data."""

from __future__ import annotations

from dataclasses import dataclass

from bigrec_hf.settings.field import setting


@dataclass(frozen=True)
class PrepareSettings:
    """From raw files to a prepared data set."""

    source: str | None = setting(
        None,
        "kind of raw files",
        choices=("movielens", "amazon", "tabular", "sequences", "reference-json"),
    )
    raw_dir: str | None = setting(None, "folder of the raw files; names are found by the source's own conventions")
    preset: str = setting(
        "bigrec-movie",
        "protocol of examples and splits",
        choices=("bigrec-movie", "bigrec-game", "leave-one-out", "d3"),
    )
    prepared_dir: str | None = setting(None, "folder to write the prepared data set to")
    encoding: str | None = setting(None, "text encoding of the raw files (default: the format's own)")
    ratings_file: str | None = setting(None, "interactions file (default: found in raw_dir by its usual name)")
    items_file: str | None = setting(None, "items file (default: found in raw_dir by its usual name)")
    download: str | None = setting(
        None,
        "MovieLens archive to fetch from GroupLens into raw_dir first",
        choices=("ml-latest-small", "1m", "10m", "32m"),
    )
    export_reference_json: str | None = setting(
        None, "also write train, valid, test, valid_5000, test_5000.json in the reference's format to this folder"
    )
    dataset_name: str | None = setting(None, "name of the data set on its card (default: name of raw_dir)")
    noun: str | None = setting(None, "what is recommended, plural, e.g. movies (default: by source and preset)")
    noun_singular: str | None = setting(None, "singular of the noun (default: without its s)")
    verb: str | None = setting(None, "what users did with it, e.g. watched (default: by source and preset)")
    window: int = setting(0, "history items of an example, at most; 0 = 10, as all presets", least=0)
    min_history: int = setting(
        0, "history items an example needs, at least; 0 = the preset's (the window for bigrec-*, else 1)", least=0
    )
    min_rating: float = setting(0.0, "keep interactions rated at least this; 0 = keep all", least=0)
    date_from: str | None = setting(
        None, "keep interactions from this UTC date or time on, e.g. 2017-10-01 (d3: 2017-10-01)"
    )
    date_to: str | None = setting(None, "keep interactions up to this UTC instant, inclusive (d3: 2018-11-01)")
    k_core: int = setting(
        0, "drop users and items with fewer interactions, repeatedly; 0 = the preset's, 1 = no", least=0
    )
    min_items: int = setting(
        10_000,
        "d3: start the date window a year earlier while fewer items remain (not before 1996); 0 = never",
        least=0,
    )
    train_fraction: float = setting(
        0.8, "share of the examples, by time, for training (not for leave-one-out)", above=0, most=1
    )
    validation_fraction: float = setting(
        0.1, "share for validation, after training; the rest is the test split", least=0, below=1
    )
    drop_untitled: bool = setting(
        False, "drop interactions whose item has no title, counted (amazon always does); false = an error"
    )
    text_sample: int = setting(
        1024, "training examples written out in the text config (shuffle seed 0); 0 = all", least=0
    )
    user_column: str = setting("user_id", "tabular: column of the user")
    item_column: str = setting("item_id", "tabular: column of the item id, in both files")
    title_column: str = setting("title", "tabular: column of the item title, in either file")
    rating_column: str | None = setting(None, "tabular: column of the rating (default: `rating` where it exists)")
    timestamp_column: str | None = setting(None, "tabular: column of the time (default: `timestamp` where it exists)")
    timestamp_unit: str = setting("s", "tabular: unit of a numeric time since 1970 UTC", choices=("s", "ms"))
    separator: str | None = setting(None, "tabular: column separator (default: comma for .csv, tab for other text)")


@dataclass(frozen=True)
class DataSettings:
    """Which prepared data set, or which of the reference's JSON files, a stage reads."""

    dataset: list[str] = setting(
        [],
        "prepared data set(s): folder or Hub id, `@revision` allowed; several are concatenated for training",
        hub="dataset",
    )
    train_json: list[str] = setting([], "the reference's JSON file(s) for training, instead of --dataset")
    validation_json: list[str] = setting([], "the reference's JSON file(s) for validation")
    test_json: list[str] = setting([], "the reference's JSON file(s) for generation and scoring")
    catalog: str | None = setting(
        None,
        "catalog: prepared set (folder or Hub id), movies.dat, id2name.txt or CSV (default: the data set's own items)",
        hub="dataset",
    )
    split: str = setting("test", "split that generation and scoring use", choices=("train", "validation", "test"))
    eval_sample: int = setting(5000, "examples drawn from the split as the reference does (seed 42); 0 = all", least=0)
