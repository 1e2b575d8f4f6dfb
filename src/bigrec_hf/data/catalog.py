"""The catalog: item ids and titles in row order, and readers for every supported catalog file.

Text is split at line feeds only. Other line separators (such as U+0085) occur inside real titles once a UTF-8 file is
read as latin-1; `str.splitlines` would break such a title in two and shift every later row.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from bigrec_hf.common.columns import Columns
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_table, readable
from bigrec_hf.common.hub_names import fetch_file, is_hub_id
from bigrec_hf.metrics.ndcg_hr.titles import clean_title

ITEMS_FILE = "data/items/train.parquet"  # in a prepared set
YEAR = re.compile(r"[12]\d{3}")


@dataclass(frozen=True)
class Catalog:
    """Items in row order: row `i` holds `item_ids[i]` and `titles[i]`, as the source spells them."""

    item_ids: list[str]
    titles: list[str]

    def __len__(self) -> int:
        """Number of items."""
        return len(self.titles)

    @cached_property
    def rows_by_title(self) -> dict[str, list[int]]:
        """Clean title (outer spaces and quotes stripped) -> rows, ascending; several if titles repeat."""
        rows: dict[str, list[int]] = {}
        for row, title in enumerate(self.titles):
            rows.setdefault(clean_title(title), []).append(row)
        return rows


class CatalogLine(NamedTuple):
    """One catalog entry; `line` is its 1-based line number in the file."""

    item_id: str
    title: str
    line: int


def load_catalog(path: str | Path, encoding: str | None = None) -> Catalog:
    """Read a catalog from a prepared set (folder, its items parquet, or Hub id, `@revision` allowed) or a single file.

    Files: `movies.dat` (`id::title::genres`), `u.item`, `id2name.txt` (`title<TAB>row`), any other `.txt` or `.tsv` of
    `title<TAB>id` or `semantic id<TAB>title<TAB>id`, `movies.csv`, and the typed tab-separated `.item`. `encoding`
    overrides the format's default. Raises BigrecError naming file, line and remedy.
    """
    local = Path(path)
    if local.is_dir():
        if (local / ITEMS_FILE).is_file():
            return read_items_parquet(local / ITEMS_FILE)
        return read_catalog_file(find_items_file(local), encoding)
    if local.is_file():
        return read_items_parquet(local) if local.suffix == ".parquet" else read_catalog_file(local, encoding)
    name = str(path)
    if not is_hub_id(name):
        raise BigrecError(
            f"no catalog at {name}: give a prepared set (folder or Hub id), movies.dat, id2name.txt or a CSV file"
        )
    items = fetch_file(name, ITEMS_FILE, "dataset")
    if items is None:
        raise BigrecError(f"no catalog at {name}: this data set on the Hub is not a prepared set (no {ITEMS_FILE})")
    return read_items_parquet(items)


def read_items_parquet(path: Path) -> Catalog:
    """Read the items config of a prepared set; rows must be 0..n-1 in order."""
    remedy = "these are not the items of a prepared set: prepare it again"
    with readable(path, remedy):
        table = read_table(path, [Columns.ROW, Columns.ITEM_ID, Columns.TITLE], remedy=remedy)
        rows, ids, titles = (table[name].to_pylist() for name in (Columns.ROW, Columns.ITEM_ID, Columns.TITLE))
        if not all(isinstance(text, str) for text in (*ids, *titles)):
            raise ValueError("an id or title is not a text")
    if rows != list(range(len(rows))):
        raise BigrecError(f"{path}: rows are not 0..{len(rows) - 1} in order: prepare the set again")
    return Catalog(ids, titles)


def find_items_file(folder: Path) -> Path:
    """The only catalog file in a raw folder, recognized by MovieLens's, RecBole's and the reference's file names."""
    for name in ("movies.dat", "u.item", "movies.csv", "id2name.txt", "info.txt", "items.txt", "items.tsv"):
        if (folder / name).is_file():
            return folder / name
    typed = sorted(folder.glob("*.item"))
    if len(typed) == 1:
        return typed[0]
    names = "none of movies.dat, u.item, movies.csv, id2name.txt, info.txt, items.txt, items.tsv, *.item"
    found = ", ".join(file.name for file in typed) or names
    raise BigrecError(f"{folder}: expected one items file, found {found}: give the path of the file itself")


def read_catalog_file(path: Path, encoding: str | None = None) -> Catalog:
    """Read one items file; duplicate ids and items without a title are errors."""
    items = read_catalog_lines(path, encoding)
    first_line: dict[str, int] = {}
    for item in items:
        if item.item_id in first_line:
            raise BigrecError(
                f"{path}:{item.line}: item id {item.item_id!r} already occurs in line {first_line[item.item_id]}: "
                "remove one of the two"
            )
        first_line[item.item_id] = item.line
        if not clean_title(item.title):  # spaces and quotes alone do not make a title
            raise BigrecError(f"{path}:{item.line}: item {item.item_id!r} has no title: give it one or remove the line")
    return Catalog([item.item_id for item in items], [item.title for item in items])


def read_catalog_lines(path: Path, encoding: str | None = None) -> list[CatalogLine]:
    """Parse one items file into items in row order; its name tells the format."""
    if path.name == "u.item":
        return _read_pipes(path, encoding or "latin-1")
    if path.suffix == ".dat":
        return _read_double_colons(path, encoding or dat_encoding(path))
    if path.suffix == ".item":
        return _read_typed(path, encoding or "utf-8")
    if path.suffix == ".csv":
        return _read_movies_csv(path, encoding or "utf-8")
    if path.suffix in {".txt", ".tsv"}:
        return _read_title_ids(path, encoding or "utf-8")
    raise BigrecError(f"{path}: not a known catalog file: expected .dat, .item, .csv, id2name.txt or a prepared set")


def dat_encoding(path: Path) -> str:
    """Encoding of a `.dat` file: MovieLens-1M (recognized by its `users.dat` or folder name) is latin-1, 10M UTF-8."""
    is_1m = (path.parent / "users.dat").is_file() or path.resolve().parent.name == "ml-1m"
    return "latin-1" if is_1m else "utf-8"


def read_text(path: Path, encoding: str) -> str:
    """Decode a whole file strictly, without byte order mark. Raises BigrecError naming the first bad byte's line."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise BigrecError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BigrecError(
            f"{path}:{line}: byte 0x{data[error.start]:02x} is not valid {encoding}: "
            "fix the file or give its encoding, e.g. --encoding latin-1 (for prepare and evaluate)"
        ) from error
    except LookupError as error:
        raise BigrecError(
            f"unknown encoding {encoding!r}: give a Python codec name such as utf-8 or latin-1"
        ) from error
    text = text.removeprefix("\ufeff")
    if not text.strip():
        raise BigrecError(f"{path}: the file is empty: replace it")
    check_line_ends(text, path)
    return text


def check_line_ends(text: str, path: Path) -> None:
    """Raise BigrecError for a text whose lines end in carriage returns alone: it would be taken for one line."""
    if "\n" not in text and "\r" in text.rstrip("\r"):
        raise BigrecError(f"{path}: its lines end in carriage returns (CR) alone: convert them to line feeds")


def read_lines(path: Path, encoding: str) -> list[str]:
    """Lines of a text file, split at line feeds only, without trailing carriage returns or empty lines at the end."""
    lines = [line.removesuffix("\r") for line in read_text(path, encoding).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _read_double_colons(path: Path, encoding: str) -> list[CatalogLine]:
    """`id::title::genres`; the title is all between the first and the last separator, and may contain `::`."""
    items = []
    for number, line in enumerate(read_lines(path, encoding), start=1):
        item_id, first, rest = line.partition("::")
        title, last, _ = rest.rpartition("::")
        if not (item_id and first and last):
            raise BigrecError(f"{path}:{number}: expected id::title::genres, found {line[:80]!r}: fix the line")
        items.append(CatalogLine(item_id, title, number))
    return items


def _read_pipes(path: Path, encoding: str) -> list[CatalogLine]:
    """MovieLens-100K: `id|title|date|video date|url|19 genre flags`."""
    items = []
    for number, line in enumerate(read_lines(path, encoding), start=1):
        fields = line.split("|")
        if len(fields) != 24 or not fields[0]:
            raise BigrecError(f"{path}:{number}: expected 24 fields separated by |, found {len(fields)}: fix the line")
        items.append(CatalogLine(fields[0], fields[1], number))
    return items


def _read_typed(path: Path, encoding: str) -> list[CatalogLine]:
    """RecBole's `.item`: a typed header (`item_id:token<TAB>movie_title:token_seq<TAB>release_year:token...`).

    A four-digit `release_year` is appended to the title, `Toy Story` + `1995` -> `Toy Story (1995)`; without one (the
    year is missing, or `V` as in one line of ml-100k) the title is kept as it is.
    """
    header, *lines = read_lines(path, encoding)
    names = [field.partition(":")[0] for field in header.split("\t")]
    title_columns = [name for name in names if name == "title" or name.endswith("_title")]
    if "item_id" not in names or len(title_columns) != 1:
        raise BigrecError(f"{path}:1: expected the columns item_id and title (or ..._title), found {', '.join(names)}")
    id_at, title_at = names.index("item_id"), names.index(title_columns[0])
    year_at = names.index("release_year") if "release_year" in names else None
    items = []
    for number, line in enumerate(lines, start=2):
        fields = line.split("\t")
        if len(fields) != len(names) or not fields[id_at]:
            raise BigrecError(
                f"{path}:{number}: expected {len(names)} fields separated by tabs, found {len(fields)}: fix the line"
            )
        title = fields[title_at]
        if title and year_at is not None and YEAR.fullmatch(fields[year_at]):
            title = f"{title} ({fields[year_at]})"
        items.append(CatalogLine(fields[id_at], title, number))
    return items


def _read_movies_csv(path: Path, encoding: str) -> list[CatalogLine]:
    """MovieLens `movies.csv`, or any CSV with an id column (`movieId` or `item_id`) and a `title` column."""
    reader = csv.reader(io.StringIO(read_text(path, encoding), newline=""), strict=True)
    items = []
    try:
        header = next(reader)
        id_name = next((name for name in ("movieId", Columns.ITEM_ID) if name in header), None)
        if id_name is None or "title" not in header:
            raise BigrecError(
                f"{path}:1: expected the columns movieId (or item_id) and title, found {', '.join(header)}"
            )
        id_at, title_at = header.index(id_name), header.index("title")
        for fields in reader:
            if not fields:
                continue
            if len(fields) != len(header) or not fields[id_at]:
                raise BigrecError(
                    f"{path}:{reader.line_num}: expected {len(header)} fields, found {len(fields)}: fix the line"
                )
            items.append(CatalogLine(fields[id_at], fields[title_at], reader.line_num))
    except csv.Error as error:
        raise BigrecError(f"{path}:{reader.line_num}: {error}: fix the quotes, or shorten the field") from error
    return items


def _read_title_ids(path: Path, encoding: str) -> list[CatalogLine]:
    """`title<TAB>id`, leading spaces of titles kept, or on every line `semantic id<TAB>title<TAB>id`.

    Ids 0..n-1, each once, are rows. Otherwise the lines' order is that of the rows, and the ids are any text; in the
    reference's `id2name.txt` that is an error.
    """
    lines = read_lines(path, encoding)
    has_semantic_ids = all(line.count("\t") == 2 for line in lines)
    only_rows = path.name.endswith("id2name.txt")
    items: list[CatalogLine] = []
    for number, line in enumerate(lines, start=1):
        title, tab, item_id = (line.partition("\t")[2] if has_semantic_ids else line).rpartition("\t")
        if not (tab and item_id) or (only_rows and not (item_id.isascii() and item_id.isdigit())):
            expected = "title<TAB>row" if only_rows else "title<TAB>id"
            raise BigrecError(f"{path}:{number}: expected {expected}, found {line[:80]!r}: fix the line")
        items.append(CatalogLine(item_id, title, number))
    by_row: dict[str, CatalogLine] = {}
    for item in items if only_rows else ():
        row, place = item.item_id, f"{path}:{item.line}"
        if int(row) >= len(lines):
            raise BigrecError(f"{place}: row {row} in a file of {len(lines)} lines: rows must be 0..{len(lines) - 1}")
        if row in by_row:
            raise BigrecError(f"{place}: row {row} already occurs in line {by_row[row].line}: rows must be unique")
        by_row[row] = item
    if {item.item_id for item in items} == set(map(str, range(len(items)))):
        items.sort(key=lambda item: int(item.item_id))
    return items


def semantic_ids(path: str | None, encoding: str | None = None) -> list[str] | None:
    """The semantic ids of an info file (`semantic id<TAB>title<TAB>id`) by row; None for any other catalog."""
    if path is None or Path(path).suffix not in {".txt", ".tsv"} or not Path(path).is_file():
        return None
    lines = read_lines(Path(path), encoding or "utf-8")
    if any(line.count("\t") != 2 for line in lines):
        return None
    items = _read_title_ids(Path(path), encoding or "utf-8")
    return [lines[item.line - 1].partition("\t")[0].strip() for item in items]


def catalog_sha256(catalog: Catalog) -> str:
    """sha256 over ids and titles, in row order."""
    text = json.dumps([catalog.item_ids, catalog.titles], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def catalog_source(catalog: str | None, dataset: Sequence[str]) -> str:
    """Where to read the catalog: the `catalog` setting, else the items of the first data set.

    Raises BigrecError if neither is given.
    """
    source = catalog or (dataset[0] if dataset else None)
    if source is None:
        raise BigrecError("no catalog given: give one with --catalog (prepared set, movies.dat, id2name.txt or CSV)")
    return source
