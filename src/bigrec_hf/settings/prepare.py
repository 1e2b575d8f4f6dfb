"""Settings of raw files and prepared data."""

from __future__ import annotations

from dataclasses import dataclass

from bigrec_hf.settings.field import setting

SOURCES = ("movielens", "amazon", "tabular", "sequences", "windows", "reference-json", "hub")


@dataclass(frozen=True)
class PrepareSettings:
    """From raw files to a prepared data set."""

    source: str | None = setting(
        None,
        "kind of raw files: movielens; amazon; tabular = any table of interactions; sequences = lines of "
        "`user<TAB>item ids`, oldest first; windows = histories and targets, already split, as D3, ReRe and MiniOneRec "
        "publish them; reference-json = BIGRec's train, valid and test.json; hub = the interactions of any data set on "
        "the Hub",
        choices=SOURCES,
    )
    raw_dir: str | None = setting(None, "folder of the raw files, which are found by their usual names")
    hub_dataset: str | None = setting(
        None,
        "data set to read: Hub id, `@revision` allowed, or a folder that `datasets` reads (source: hub)",
        hub="dataset",
    )
    hub_config: str | None = setting(None, "its configuration of interactions (source: hub; default: its only one)")
    hub_items: str | None = setting(
        None, "its configuration of items with their titles (source: hub; default: titles are beside the interactions)"
    )
    preset: str | None = setting(
        None,
        "protocol that makes examples and splits (default: leave-one-out for tabular, hub and sequences, which "
        "needs no times; bigrec-movie for movielens and amazon; windows and reference-json come split)",
        choices=("bigrec-movie", "bigrec-game", "leave-one-out", "d3"),
    )
    prepared_dir: str | None = setting(None, "folder to write the prepared data set to")
    overwrite_prepared: bool = setting(
        False,
        "replace a prepared set of other files or settings in that folder; without it, `prepare` lists what differs "
        "and stops",
    )
    encoding: str | None = setting(None, "text encoding of the raw files (default: the format's own)")
    ratings_file: str | None = setting(None, "file of interactions (default: found in raw_dir by its usual name)")
    items_file: str | None = setting(None, "file of items (default: found in raw_dir by its usual name)")
    download: str | None = setting(
        None,
        "MovieLens archive to download from GroupLens into raw_dir first",
        choices=("ml-latest-small", "1m", "10m", "32m"),
    )
    export_reference_json: str | None = setting(
        None, "also write train, valid, test, valid_5000, test_5000.json in the reference's format to this folder"
    )
    dataset_name: str | None = setting(
        None, "name of the data set on its card (default: that of raw_dir or ratings_file)"
    )
    noun: str | None = setting(None, "what is recommended, plural, e.g. movies (default depends on source and preset)")
    noun_singular: str | None = setting(None, "singular of the noun (default: without the final s)")
    verb: str | None = setting(
        None, "what users did with it, past tense, e.g. watched (default depends on source and preset)"
    )
    window: int = setting(0, "maximum number of history items per example; 0 = 10, as in all presets", least=0)
    min_history: int = setting(
        0,
        "minimum number of history items per example; 0 = that of the preset (the window for bigrec-*, else 1)",
        least=0,
    )
    min_rating: float = setting(0.0, "keep interactions with at least this rating; 0 = keep all", least=0)
    date_from: str | None = setting(
        None, "keep interactions from this UTC date or time on, e.g. 2017-10-01 (d3: 2017-10-01)"
    )
    date_to: str | None = setting(None, "keep interactions up to this UTC instant, inclusive (d3: 2018-11-01)")
    k_core: int = setting(
        0, "repeatedly drop users and items with fewer interactions; 0 = that of the preset, 1 = never", least=0
    )
    min_items: int = setting(
        10_000,
        "start the date window a year earlier while fewer items remain, but not before 1996; 0 = never (preset: d3)",
        least=0,
    )
    train_fraction: float = setting(
        0.8, "fraction of the examples, by time, for training (not for leave-one-out)", above=0, most=1
    )
    validation_fraction: float = setting(
        0.1, "fraction for validation, after those for training; the rest is the test split", least=0, below=1
    )
    validation_count: int = setting(
        0, "instead of fractions: this many examples, the last ones by time before those of test_count", least=0
    )
    test_count: int = setting(0, "instead of fractions: this many examples, the last ones by time", least=0)
    validation_from: str | None = setting(
        None, "instead of fractions: UTC date or time of the first validation target; those before are for training"
    )
    test_from: str | None = setting(None, "instead of fractions: UTC date or time of the first test target")
    drop_untitled: bool = setting(
        False, "drop and count interactions whose item has no title (always so for amazon); false = an error"
    )
    short_users: bool = setting(
        False,
        "accept a table most of whose users have too few items for an example; false = an error, as such a table often "
        "is something else (sources: tabular, hub)",
    )
    text_sample: int = setting(
        1024, "training examples in the text configuration (shuffled with seed 0); 0 = all", least=0
    )
    user_column: str | None = setting(
        None, "column of the user id (sources: tabular, hub; default: user_id, userId, user, reviewerID and the like)"
    )
    item_column: str | None = setting(
        None,
        "column of the item id, in both files (sources: tabular, hub; default: item_id, item, asin, movieId, isbn and "
        "the like; the title, where there are only titles)",
    )
    title_column: str | None = setting(
        None, "column of the item title, in either file (sources: tabular, hub; default: title, name and the like)"
    )
    rating_column: str | None = setting(
        None,
        "column of the rating (sources: tabular, hub; default: rating, stars, overall and the like, if there is one)",
    )
    timestamp_column: str | None = setting(
        None,
        "column of the time, numbers or ISO dates (sources: tabular, hub; default: timestamp, time, when, date and the "
        "like, if there is one; else the order of the rows counts)",
    )
    timestamp_unit: str | None = setting(
        None,
        "unit of a numeric time since 1970 UTC (sources: tabular, hub, windows; default: told by their size)",
        choices=("s", "ms", "us", "ns"),
    )
    separator: str | None = setting(
        None, "column separator (sources: tabular, hub; default: comma for .csv, tab for other text files)"
    )


@dataclass(frozen=True)
class DataSettings:
    """The prepared data set, or the reference's JSON files, that a stage reads."""

    dataset: list[str] = setting(
        [],
        "prepared data sets: folder or Hub id, `@revision` allowed; several are concatenated for training",
        hub="dataset",
    )
    train_json: list[str] = setting([], "the reference's JSON files for training, instead of --dataset")
    validation_json: list[str] = setting([], "the reference's JSON files for validation")
    test_json: list[str] = setting([], "the reference's JSON files for generation and scoring")
    catalog: str | None = setting(
        None,
        "catalog: prepared data set (folder or Hub id), movies.dat, id2name.txt or CSV (default: the data set's items)",
        hub="dataset",
    )
    split: str = setting("test", "split for generation and scoring", choices=("train", "validation", "test"))
    eval_sample: int = setting(5000, "examples sampled from the split as in the reference (seed 42); 0 = all", least=0)
