"""Which files a source needs, and which reader reads them: settings are unpacked here, readers take values."""

from __future__ import annotations

from pathlib import Path

from bigrec_hf.errors import BigrecError
from bigrec_hf.settings import PrepareSettings
from bigrec_hf.sources import RawData, movielens


def source_files(settings: PrepareSettings) -> dict[str, Path]:
    """Role (`ratings`, `items`, or a split) -> existing file, found by the source's conventions or as set."""
    folder = Path(settings.raw_dir) if settings.raw_dir else None
    ratings = Path(settings.ratings_file) if settings.ratings_file else None
    items = Path(settings.items_file) if settings.items_file else None
    if settings.source == "movielens":
        files = movielens.find_movielens_files(folder, ratings, items)
    else:
        raise BigrecError(
            f"unknown source {settings.source!r}: choose movielens, amazon, tabular, sequences, reference-json"
        )
    for file in files.values():
        if not file.is_file():
            raise BigrecError(f"{file}: no such file: check --raw_dir, --ratings_file and --items_file")
    return files


def read_source(settings: PrepareSettings, files: dict[str, Path]) -> RawData:
    """Read the files of one source. Raises BigrecError naming file, line and remedy."""
    return movielens.load_movielens(files["ratings"], files["items"], settings.encoding, settings.drop_untitled)
