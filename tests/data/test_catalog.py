"""Catalog files: every format by hand, then the traps (line ends, colons, duplicates), then the faults."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog, load_catalog


def write(folder, name, text, encoding="utf-8"):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


FORMATS = {
    "movies.dat": "10::Toy Story (1995)::Drama\n7::Star Wars: Episode IV (1977)::War|Sci-Fi\n3::A::B (1)::None\n",
    "movies.csv": (
        "movieId,title,genres\r\n10,Toy Story (1995),Drama\r\n7,Star Wars: Episode IV (1977),War\r\n"
        '3,"A::B ""1""",X\r\n'
    ),
    "u.item": "".join(
        f"{item}|{title}|01-Jan-1995||http://x|" + "|".join("0" * 19) + "\n"
        for item, title in (("10", "Toy Story (1995)"), ("7", "Star Wars: Episode IV (1977)"), ("3", "Misérables"))
    ),
    "x.item": (
        "item_id:token\tmovie_title:token_seq\trelease_year:token\n"
        "10\tToy Story\t1995\n7\tStar Wars: Episode IV\t1977\n3\tUn\tV\n"
    ),
    "Games.item": "item_id:token\ttitle:token_seq\n10\tToy Story (1995)\n7\tStar Wars: Episode IV (1977)\n3\t Zelda\n",
    "id2name.txt": " leading\t2\nToy Story (1995)\t0\nStar Wars: Episode IV (1977)\t1\n",
}
THIRD = {"movies.dat": "A::B (1)", "movies.csv": 'A::B "1"', "u.item": "Misérables", "x.item": "Un"}
THIRD |= {"Games.item": " Zelda", "id2name.txt": " leading"}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_ids_and_titles_in_row_order(tmp_path, name):
    path = write(tmp_path, name, FORMATS[name], "latin-1" if name == "u.item" else "utf-8")
    catalog = load_catalog(path)
    assert catalog.titles == ["Toy Story (1995)", "Star Wars: Episode IV (1977)", THIRD[name]]
    assert catalog.item_ids == (["0", "1", "2"] if name == "id2name.txt" else ["10", "7", "3"])
    assert len(catalog) == 3
    if name != "id2name.txt":
        assert load_catalog(tmp_path) == catalog  # the folder holds one catalog file


def test_lines_end_at_line_feeds_only(tmp_path):
    # under latin-1 the UTF-8 bytes of a title may hold U+0085, which str.splitlines takes for a line end
    path = write(tmp_path, "movies.dat", "1::Å\u0085 (1)::X\n2::B\u2028C\x0b\x1cD::X\n")
    assert load_catalog(path).titles == ["Å\u0085 (1)", "B\u2028C\x0b\x1cD"]
    assert load_catalog(path, encoding="latin-1").titles[0] == "Ã\u0085Â\u0085 (1)"
    assert len(load_catalog(path, encoding="latin-1")) == 2


def test_rows_by_title_ignores_outer_quotes_and_spaces():
    catalog = Catalog(["a", "b", "c"], ['"Zelda"', "Mario", " Zelda "])
    assert catalog.rows_by_title == {"Zelda": [0, 2], "Mario": [1]}
    assert catalog.rows_by_title is catalog.rows_by_title


def test_movielens_1m_is_latin_1_and_10m_utf_8(tmp_path):
    line = "1::Misérables, Les (1995)::Drama\n"
    write(tmp_path, "one/users.dat", "1::F::1::10::48067\n")
    assert load_catalog(write(tmp_path, "one/movies.dat", line, "latin-1")).titles == ["Misérables, Les (1995)"]
    assert load_catalog(write(tmp_path, "ml-1m/movies.dat", line, "latin-1")).titles == ["Misérables, Les (1995)"]
    assert load_catalog(write(tmp_path, "ten/movies.dat", line)).titles == ["Misérables, Les (1995)"]
    with pytest.raises(BigrecError, match=r"movies.dat:1: byte 0xe9 is not valid utf-8.*--encoding latin-1"):
        load_catalog(write(tmp_path, "other/movies.dat", line, "latin-1"))


def test_a_byte_order_mark_and_empty_lines_at_the_end_do_not_count(tmp_path):
    assert load_catalog(write(tmp_path, "movies.dat", "\ufeff1::A (1)::X\r\n2::B (2)::X\r\n\r\n\n")).item_ids == [
        "1",
        "2",
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("movies.dat", "", "movies.dat: the file is empty"),
        ("movies.dat", "1::A::X\n2:B:X\n", "movies.dat:2: expected id::title::genres"),
        ("movies.dat", "1::A::X\n1::B::X\n", "movies.dat:2: item id '1' already occurs in line 1"),
        ("movies.dat", "1::A::X\n2::::X\n", "movies.dat:2: item '2' has no title"),
        ("movies.dat", '1::A::X\n2::" "::X\n', "movies.dat:2: item '2' has no title"),
        ("movies.csv", "id,name\n1,A\n", "movies.csv:1: expected the columns movieId"),
        ("movies.csv", "movieId,title\n1,A\n2\n", "movies.csv:3: expected 2 fields, found 1"),
        ("movies.csv", 'movieId,title\n1,"A\n', "movies.csv:2: unexpected end of data"),
        ("u.item", "1|A|x\n", "u.item:1: expected 24 fields"),
        ("x.item", "item_id:token\tyear:token\n1\t2\n", "x.item:1: expected the columns item_id and title"),
        ("x.item", "item_id:token\ttitle:token_seq\n1\tA\tB\n", "x.item:2: expected 2 fields"),
        ("id2name.txt", "A\t0\nB\n", "id2name.txt:2: expected title<TAB>row"),
        ("id2name.txt", "A\t0\nB\t0\n", "id2name.txt:2: row 0 already occurs in line 1"),
        ("id2name.txt", "A\t0\nB\t5\n", "id2name.txt:2: row 5 in a file of 2 lines"),
        ("movies.xml", "<a/>", "not a known catalog file"),
        ("items.parquet", "no parquet", "not the items of a prepared set"),
    ],
)
def test_faults_name_file_line_and_remedy(tmp_path, name, text, message):
    with pytest.raises(BigrecError, match=message.replace("|", r"\|")):
        load_catalog(write(tmp_path, name, text))


def test_unknown_encoding_missing_path_and_ambiguous_folder(tmp_path):
    path = write(tmp_path, "a.item", FORMATS["Games.item"])
    with pytest.raises(BigrecError, match="unknown encoding 'klingon'"):
        load_catalog(path, encoding="klingon")
    with pytest.raises(BigrecError, match="no catalog at"):
        load_catalog(tmp_path / "none.dat")
    write(tmp_path, "b.item", FORMATS["Games.item"])
    with pytest.raises(BigrecError, match=r"found a\.item, b\.item: give the path of the file itself"):
        load_catalog(tmp_path)


def test_a_hub_id_is_read_from_its_items_file_at_the_named_revision(tmp_path, monkeypatch):
    commit = "c" * 40
    folder = tmp_path / "datasets--user--set" / "snapshots" / commit / "data" / "items"
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"row": [0], "item_id": ["7"], "title": ["A"]}), folder / "train.parquet")
    (tmp_path / "datasets--user--set" / "refs").mkdir()
    (tmp_path / "datasets--user--set" / "refs" / "v1").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_catalog("user/set@v1") == Catalog(["7"], ["A"])
    with pytest.raises(BigrecError, match="'user/set@v2' is not in the cache, and HF_HUB_OFFLINE=1"):
        load_catalog("user/set@v2")
