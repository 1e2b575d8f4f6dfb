"""Titles: how two are compared, and reading a catalog's from a file."""

from pathlib import Path


def clean_title(title: str) -> str:
    """The title without outer white space, surrounding double quotes, and white space within those.

    The reference strips `.strip().strip('"')`; the last strip is ours: a catalog title that begins with a space (342 of
    the game catalog's do) would otherwise not match the same title in quotes, as targets and answers are written.
    """
    return title.strip().strip('"').strip()


def read_titles(path: str | Path) -> list[str]:
    """Titles in catalog order from a UTF-8 file: `movies.dat` (`id::title::genres`), `id2name.txt` (`title<TAB>row`,
    rows 0..n-1), parquet with a `title` column, else one title a line; or from the folder of a prepared set.

    Lines end at line feeds only (titles may hold other separators). Raises ValueError naming file and line.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "data/items/train.parquet"
    if not path.is_file():
        raise ValueError(f"catalog {str(path)!r} does not exist: give a list of titles or a file that holds them")
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return pq.read_table(path, columns=["title"])["title"].to_pylist()
    lines = [line.removesuffix("\r") for line in path.read_text(encoding="utf-8").split("\n")]
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
    return lines
