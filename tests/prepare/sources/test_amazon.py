"""Amazon reviews and metadata: editions, drops, Python-literal lines, gz, faults."""

from __future__ import annotations

import gzip
import json

import pytest

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.prepare.protocols import long_titles
from bigrec_hf.prepare.sources import json_lines
from bigrec_hf.prepare.sources.amazon import find_amazon_files, load_amazon

META = [
    {"asin": "B1", "title": "Zelda", "price": "$1"},
    {"asin": "B2", "title": "x"},
    {"asin": "B3"},
    {"asin": "B4", "title": "Old"},
    {"asin": "B4", "title": "New & <b>", "also": ["B1"]},
    {"asin": "B4", "title": ""},
]
REVIEWS = [
    {"overall": 5.0, "reviewerID": "A2", "asin": "B4", "unixReviewTime": 86400, "style": {"Format": "x"}},
    {"overall": 4, "reviewerID": "A1", "asin": "B1", "unixReviewTime": 0},
    {"overall": 4.0, "reviewerID": "A1", "asin": "B2", "unixReviewTime": 0},
    {"overall": 4.0, "reviewerID": "A1", "asin": "nowhere", "unixReviewTime": 0},
    {"reviewerID": "A3", "asin": "B1", "unixReviewTime": 0},
    {"overall": 3.0, "reviewerID": "A3", "asin": "B1"},
    {"overall": 1.0, "reviewerID": "A2", "asin": "B1", "unixReviewTime": None},
]


def dump(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def write(path, text):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)


def load(folder, **options):
    files = find_amazon_files(folder, None, None)
    return load_amazon(files["ratings"], files["items"], long_titles, **options)


@pytest.mark.parametrize(
    "names", [("Games_5.json", "meta_Games.json"), ("reviews_Games_5.json.gz", "meta_Games.json.gz")]
)
@pytest.mark.parametrize("literal", [False, True])
def test_titles_count_the_last_one_wins_and_incomplete_reviews_go(tmp_path, names, literal):
    write(tmp_path / names[0], dump(REVIEWS))
    write(tmp_path / names[1], "".join(f"{record!r}\n" for record in META) if literal else dump(META))
    raw = load(tmp_path)
    titles = dict(zip(raw.catalog.item_ids, raw.catalog.titles, strict=True))
    assert titles == {"B1": "Zelda", "B4": "New & <b>"}
    assert [raw.catalog.item_ids[row] for row in raw.rows] == ["B4", "B1"]
    assert raw.user_ids.to_list() == ["A2", "A1"]
    assert raw.ratings.tolist() == [5.0, 4.0]
    assert raw.times.tolist() == [86400, 0]
    assert raw.raw_rows == 7
    assert raw.dropped == {"item without a title": 2, "review without overall or unixReviewTime": 3}
    assert raw.facts["notes"] == {
        "metadata records": 6,
        "metadata records without a usable title": 3,
        "metadata records replaced by a later one": 1,
    }
    assert not raw.whole_catalog
    assert "noun" not in raw.facts


def test_2023_has_parent_ids_and_milliseconds(tmp_path):
    write(tmp_path / "meta_Video_Games.jsonl", dump([{"parent_asin": "P1", "title": "Zelda"}]))
    review = {"rating": 5.0, "title": "Great!", "user_id": "U", "asin": "B1", "parent_asin": "P1", "timestamp": 1999}
    write(tmp_path / "Video_Games.jsonl", dump([review]))
    raw = load(tmp_path)
    assert (raw.times.tolist(), raw.time_divisor) == ([1999], 1000)
    assert raw.catalog.titles == ["Zelda"]
    assert raw.facts["noun"] == "video games"


def test_spaces_and_quotes_are_no_title(tmp_path):
    write(tmp_path / "meta_Games.json", dump([{"asin": "B1", "title": "Zelda"}, {"asin": "B2", "title": ' " " '}]))
    reviews = [{"reviewerID": "A", "asin": item, "overall": 5, "unixReviewTime": 1} for item in ("B1", "B2")]
    write(tmp_path / "Games_5.json", dump(reviews))
    raw = load(tmp_path)
    assert raw.catalog.titles == ["Zelda"]
    assert raw.dropped["item without a title"] == 1


def test_a_time_that_no_whole_number_holds(tmp_path):
    write(tmp_path / "meta_Games.json", dump([{"asin": "B1", "title": "Zelda"}]))
    reviews = [{"reviewerID": "A", "asin": "B1", "overall": 5, "unixReviewTime": time} for time in (1, None, 1e300)]
    write(tmp_path / "Games_5.json", dump(reviews))
    with pytest.raises(BigrecError, match=r"Games_5.json: row 2: unixReviewTime is 1e\+300, not a time since 1970"):
        load(tmp_path)


def test_python_literals_are_parsed_never_run(tmp_path):
    write(tmp_path / "Games_5.json", dump(REVIEWS))
    write(tmp_path / "meta_Games.json", "{'asin': 'B1', 'title': __import__('os').getcwd()}\n")
    with pytest.raises(BigrecError, match=r"meta_Games.json:1: not a JSON object"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("Games_5.json", "{broken", r"Games_5.json:8: not a JSON object: '\{broken'"),
        ("Games_5.json", "[1, 2]", r"Games_5.json:8: not a JSON object"),
        ("Games_5.json", '{"asin": "B1", "overall": 1}', "Games_5.json:8: the field reviewerID is missing"),
        ("Games_5.json", '{"asin": "B1", "reviewerID": "A", "overall": "good"}', "overall is 'good', not a number"),
        ("meta_Games.json", '{"title": "No id"}', "meta_Games.json:7: the field asin is missing"),
        ("meta_Games.json", "(" * 5000, "meta_Games.json:7: not a JSON object"),
    ],
)
def test_a_malformed_line_names_file_and_line(tmp_path, name, line, message):
    write(tmp_path / "Games_5.json", dump(REVIEWS) + (line + "\n") * (name == "Games_5.json"))
    write(tmp_path / "meta_Games.json", dump(META) + (line + "\n") * (name == "meta_Games.json"))
    with pytest.raises(BigrecError, match=message):
        load(tmp_path)


def test_lines_are_counted_across_chunks_and_empty_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "CHUNK_BYTES", 64)
    monkeypatch.setattr(json_lines._chunks, "__defaults__", (64,))
    write(tmp_path / "meta_Games.json", dump(META))
    write(tmp_path / "Games_5.json", "\n" + dump(REVIEWS))
    assert load(tmp_path).raw_rows == 7
    write(tmp_path / "Games_5.json", "\n" + dump(REVIEWS) + "\n" + '{"asin": "B1"}\n')
    with pytest.raises(BigrecError, match=r"Games_5.json:10: the field reviewerID is missing"):
        load(tmp_path)


def test_strings_for_numbers_bad_bytes_and_other_encodings(tmp_path):
    write(tmp_path / "meta_Games.json", dump(META))
    write(tmp_path / "Games_5.json", '{"overall": "5.0", "reviewerID": "A", "asin": "B1", "unixReviewTime": "7"}\n')
    assert load(tmp_path).times.tolist() == [7]
    (tmp_path / "meta_Games.json").write_bytes(b'{"asin": "B1", "title": "Ok\xe9"}\n')
    with pytest.raises(BigrecError, match=r"meta_Games.json:1: byte 0xe9 is not valid utf-8.*--encoding latin-1"):
        load(tmp_path)
    assert load(tmp_path, encoding="latin-1").catalog.titles == ["Oké"]


def test_half_a_surrogate_pair_becomes_the_replacement_character(tmp_path):
    write(tmp_path / "Games_5.json", dump(REVIEWS))
    write(
        tmp_path / "meta_Games.json",
        '{"asin": "B1", "title": "a\\ud83d"}\n{"asin": "B4", "title": "\\ud83d\\ude00!"}\n',
    )
    assert load(tmp_path).catalog.titles == ["a\ufffd", "😀!"]


def test_what_is_not_amazon_data(tmp_path):
    write(tmp_path / "meta_Games.json", dump(META))
    with pytest.raises(BigrecError, match="expected one reviews file"):
        load(tmp_path)
    write(tmp_path / "Games_5.json", '{"user": 1}\n')
    with pytest.raises(BigrecError, match="expected the fields reviewerID and asin"):
        load(tmp_path)
    write(tmp_path / "Games_5.json", "")
    with pytest.raises(BigrecError, match="the file is empty"):
        load(tmp_path)
    write(tmp_path / "Games_5.json", dump(REVIEWS))
    write(tmp_path / "meta_Games.json", '{"asin": "B1"}\n')
    with pytest.raises(BigrecError, match="none of 1 records has a usable title"):
        load(tmp_path)
    (tmp_path / "meta_Games.json").unlink()
    (tmp_path / "meta_Games.json.gz").write_bytes(gzip.compress(dump(META).encode())[:-12])
    with pytest.raises(BigrecError, match="ends too early"):
        load(tmp_path)
