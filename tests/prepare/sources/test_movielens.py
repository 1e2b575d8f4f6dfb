"""MovieLens in all its shapes: the same ratings in each give the same arrays; every fault names file and line."""

from __future__ import annotations

import numpy as np
import pytest

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.prepare.sources.movielens import find_movielens_files, load_movielens

MOVIES = [("10", "Toy Story (1995)"), ("7", "Misérables, Les (1995)"), ("3", 'Odd "One", The (2001)')]
RATINGS = [("9", "7", "3.5", "100"), ("9", "10", "4", "99"), ("2", "7", "0.5", "99"), ("9", "3", "5", "101")]


def write(folder, name, text, encoding="utf-8"):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(text.encode(encoding))


def lines(rows, separator):
    return "".join(separator.join(row) + "\n" for row in rows)


def ml_10m(folder):
    write(folder, "movies.dat", "".join(f"{i}::{t}::Drama\n" for i, t in MOVIES))
    write(folder, "ratings.dat", lines(RATINGS, "::"))


def ml_1m(folder):
    write(folder, "users.dat", "9::F::1::10::48067\n")
    write(folder, "movies.dat", "".join(f"{i}::{t}::Drama\n" for i, t in MOVIES), "latin-1")
    write(folder, "ratings.dat", lines(RATINGS, "::"))


def ml_100k(folder):
    write(folder, "u.item", "".join(f"{i}|{t}|1995|||{'|'.join('0' * 19)}\n" for i, t in MOVIES), "latin-1")
    write(folder, "u.data", lines(RATINGS, "\t"))


def ml_latest(folder):
    quoted = "".join('{},"{}",Drama\r\n'.format(i, t.replace('"', '""')) for i, t in MOVIES)
    write(folder, "movies.csv", "movieId,title,genres\r\n" + quoted)
    write(folder, "ratings.csv", "userId,movieId,rating,timestamp\r\n" + lines(RATINGS, ",").replace("\n", "\r\n"))


def recbole(folder):
    typed = [(i, t.rpartition(" (")[0], t[-5:-1]) for i, t in MOVIES]
    write(folder, "x.item", "item_id:token\tmovie_title:token_seq\trelease_year:token\n" + lines(typed, "\t"))
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    write(folder, "x.inter", header + lines(RATINGS, "\t"))


SHAPES = [ml_10m, ml_1m, ml_100k, ml_latest, recbole]


def load(folder, **options):
    files = find_movielens_files(folder, None, None)
    return load_movielens(files["ratings"], files["items"], **options)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_gives_the_same_data(shape, tmp_path):
    shape(tmp_path)
    raw = load(tmp_path)
    assert raw.catalog.item_ids == [item for item, _ in MOVIES]
    assert raw.catalog.titles == [title for _, title in MOVIES]
    assert raw.user_ids.to_list() == ["9", "2"]
    assert raw.users.tolist() == [0, 0, 1, 0]
    assert raw.rows.tolist() == [1, 0, 1, 2]
    assert raw.ratings.tolist() == [3.5, 4.0, 0.5, 5.0]
    assert raw.times.tolist() == [100, 99, 99, 101]
    assert (raw.users.dtype, raw.rows.dtype, raw.ratings.dtype, raw.times.dtype) == (
        "uint32",
        "int32",
        "float32",
        "int64",
    )
    assert raw.facts["encoding"] == ("latin-1" if shape in (ml_1m, ml_100k) else "utf-8")
    forbidden = shape in (ml_1m, ml_10m, ml_100k)
    expected = "forbidden" if forbidden else "same terms" if shape is ml_latest else "unknown"
    assert raw.facts["licence"]["redistribution"] == expected


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.5", "good", "rating is 'good', not a number"),
        ("0.5", "nan", "rating is 'nan', not a number"),
        ("2{s}7{s}0.5", "2{s}7", "fields"),
        ("2{s}7{s}0.5", "2{s}7{s}0.5{s}8", "expected . fields"),
        ("2{s}7{s}0.5", "{s}7{s}0.5", "the field user is empty"),
        ("2{s}7{s}0.5", "2{s}77{s}0.5", "item '77' has no title .1 such interactions.: add it"),
    ],
)
def test_a_malformed_rating_names_file_and_line(shape, old, new, message, tmp_path):
    shape(tmp_path)
    path = find_movielens_files(tmp_path, None, None)["ratings"]
    separator = {".dat": "::", ".csv": ","}.get(path.suffix, "\t")
    text = path.read_bytes().decode()
    old, new = old.replace("{s}", separator), new.replace("{s}", separator)
    assert text.count(old) == 1
    path.write_bytes(text.replace(old, new).encode())
    line = 4 if path.suffix in (".csv", ".inter") else 3
    with pytest.raises(BigrecError, match=f"{path.name}:{line}: .*{message}"):
        load(tmp_path)


def test_text_between_the_colons_is_an_error(tmp_path):
    ml_10m(tmp_path)
    write(tmp_path, "ratings.dat", "9::7::3::100\n9:x:7::3::100\n")
    with pytest.raises(BigrecError, match=r"ratings.dat:2: expected `::` between fields, found 'x' inside"):
        load(tmp_path)


def test_a_file_cut_in_the_middle_of_a_line(tmp_path):
    ml_10m(tmp_path)
    write(tmp_path, "ratings.dat", "9::7::3::100\n9::10::4")
    with pytest.raises(BigrecError, match=r"ratings.dat:2: expected 7 fields|ratings.dat:2: expected"):
        load(tmp_path)


def test_ratings_without_a_title_are_dropped_on_request_and_counted(tmp_path):
    ml_10m(tmp_path)
    write(tmp_path, "ratings.dat", lines([*RATINGS, ("5", "99", "1", "1")], "::"))
    raw = load(tmp_path, drop_untitled=True)
    assert (raw.raw_rows, raw.dropped, len(raw.rows)) == (5, {"item without a title": 1}, 4)
    assert raw.user_ids.to_list() == ["9", "2"]


def test_non_utf_8_bytes_name_the_line_and_encoding_overrides(tmp_path):
    ml_latest(tmp_path)
    text = (tmp_path / "movies.csv").read_text(encoding="utf-8")
    write(tmp_path, "movies.csv", text, "latin-1")
    with pytest.raises(BigrecError, match=r"movies.csv:3: byte 0xe9 is not valid utf-8.*--encoding latin-1"):
        load(tmp_path)
    assert load(tmp_path, encoding="latin-1").catalog.titles[1] == "Misérables, Les (1995)"
    write(tmp_path, "ratings.csv", "userId,movieId,rating,timestamp\n\xff,7,3,1\n", "latin-1")
    write(tmp_path, "movies.csv", text)
    with pytest.raises(BigrecError, match=r"ratings.csv:2: byte 0xff is not valid utf-8"):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", "userId,movieId,rating,timestamp\n", "userId,movieId,rating\n1,2,3\n"])
def test_empty_files_and_missing_columns(tmp_path, text):
    ml_latest(tmp_path)
    write(tmp_path, "ratings.csv", text)
    with pytest.raises(BigrecError, match=r"ratings\.csv.*(empty|no data lines|column timestamp is missing)"):
        load(tmp_path)


def test_files_are_found_or_the_error_says_what_is_missing(tmp_path):
    with pytest.raises(BigrecError, match="raw_dir is not set"):
        find_movielens_files(None, None, None)
    with pytest.raises(BigrecError, match="no such folder"):
        find_movielens_files(tmp_path / "none", None, None)
    write(tmp_path, "movies.dat", "1::A (1)::X\n")
    with pytest.raises(BigrecError, match=r"expected one ratings file \(ratings\.dat\), found none"):
        find_movielens_files(tmp_path, None, None)


def test_empty_lines_at_the_end_do_not_count(tmp_path):
    ml_10m(tmp_path)
    write(tmp_path, "ratings.dat", lines(RATINGS, "::") + "\n\n")
    assert load(tmp_path).raw_rows == 4


@pytest.mark.parametrize("time", ["1e300", "-9.3e18", "9223372036854775808"])
def test_a_time_that_no_whole_number_holds_names_the_line(tmp_path, time):
    ml_10m(tmp_path)
    write(tmp_path, "ratings.dat", f"9::7::3::100\n9::10::4::{time}\n")
    with pytest.raises(BigrecError, match=r"ratings.dat:2: timestamp is .*, not a time since 1970 \(1 such\)"):
        load(tmp_path)


def test_fractional_times_are_floored(tmp_path):
    recbole(tmp_path)
    header = "user_id:token\titem_id:token\ttimestamp:float\n"
    write(tmp_path, "x.inter", header + "1\t7\t99.9\n1\t3\t1e2\n")
    raw = load(tmp_path)
    assert raw.ratings is None
    np.testing.assert_array_equal(raw.times, [99, 100])
