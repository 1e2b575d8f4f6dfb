"""Titles: how they are compared, and how a catalog's titles are read from a file."""

import csv
import io
from pathlib import Path


def clean_title(title: str) -> str:
    """Return the title without outer white space, surrounding double quotes, and white space within those.

    The reference strips `.strip().strip('"')`; the last strip is ours: a catalog title that begins with a space (342 of
    the game catalog's do) would otherwise not match the same title in quotes, as targets and answers are written.
    """
    return title.strip().strip('"').strip()


def read_titles(path: str | Path) -> list[str]:
    """Titles in catalog order from a UTF-8 file: `movies.dat` (`id::title::genres`), `id2name.txt` (`title<TAB>row`,
    rows 0..n-1), parquet or CSV with a `title` column, any other `.txt` (or no suffix) with one title per line; or
    from the folder of a prepared set.

    Lines end at line feeds only (titles may hold other separators). Raises ValueError naming file and line.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "data/items/train.parquet"
    if not path.is_file():
        raise ValueError(f"catalog {str(path)!r} does not exist: give a list of titles or a file of titles")
    if path.suffix == ".parquet":
        return _parquet_titles(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 (byte {error.start}): save it as UTF-8, or give a list of titles"
        ) from error
    if path.suffix == ".csv":
        return _csv_titles(path, text)
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    lines = lines[:-1] if lines and not lines[-1] else lines
    if path.suffix == ".dat":
        fields = [line.split("::") for line in lines]
        wrong = next((number for number, field in enumerate(fields, 1) if len(field) < 3), None)
        if wrong is not None:
            raise ValueError(f"{path}:{wrong}: expected id::title::genres: repair the line")
        return ["::".join(field[1:-1]) for field in fields]
    if path.name.endswith("id2name.txt"):
        titles: dict[int, str] = {}
        for number, line in enumerate(lines, 1):
            title, _, row = line.rpartition("\t")
            if not row.isdecimal() or int(row) in titles or int(row) >= len(lines):
                raise ValueError(f"{path}:{number}: expected title<TAB>row, each row of 0..{len(lines) - 1} once")
            titles[int(row)] = title
        return [titles[row] for row in range(len(titles))]
    if path.suffix not in ("", ".txt"):
        raise ValueError(
            f"{path}: unknown kind of catalog file: give movies.dat, id2name.txt, parquet or CSV with a column title, "
            "a .txt with one title per line, or a list of titles"
        )
    return lines


def _parquet_titles(path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        titles = pq.read_table(path, columns=["title"])["title"].to_pylist() if "title" in names else []
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} is not a parquet file: write it again") from error
    if "title" not in names:
        raise ValueError(
            f"{path} has no column 'title', it has {', '.join(names)}: rename one, or give a list of titles"
        )
    return titles


def _csv_titles(path: Path, text: str) -> list[str]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    titles = []
    try:
        names = reader.fieldnames or []
        if "title" not in names:
            raise ValueError(f"{path}:1: no column 'title' among {', '.join(names)}: name it in the header")
        for row in reader:
            if row["title"] is None:
                raise ValueError(f"{path}:{reader.line_num}: the field title is missing: repair the line")
            titles.append(row["title"])
    except csv.Error as error:
        raise ValueError(f"{path}:{reader.reader.line_num}: {error}: repair the quotes") from error
    return titles
