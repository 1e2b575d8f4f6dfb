"""Damaged raw files of every kind end with one line that names the file and what to do; nothing is written."""

from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import load_catalog
from bigrec_hf.data.examples import load_json_examples
from bigrec_hf.data.item_scores import read_scores
from bigrec_hf.prepare.stage import prepare_dataset

LONG = "x" * 200_000  # csv refuses fields of more than 128 KiB
DEEP = "[" * 100_000
ROWS = [f"u{i % 5},i{i % 7},Title {i % 7},{i}" for i in range(200)]
CSV = "\n".join(["user_id,item_id,title,timestamp", *ROWS]) + "\n"
REVIEWS = "".join(
    json.dumps({"reviewerID": f"u{i}", "asin": "a", "overall": 5, "unixReviewTime": i}) + "\n" for i in range(99)
)
META = json.dumps({"asin": "a", "title": "A title that is long enough"}) + "\n"
RECORD = {"instruction": "i", "input": 'The user has watched the following movies before: "A", "B"', "output": '"C"'}


def parquet(**changes):
    table = pa.table(
        {"user_id": ["a", "b"] * 500, "item_id": list(map(str, range(1000))), "title": ["t"] * 1000, **changes}
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def flipped(data, at):
    """Sixty bytes replaced, from a share of the file on."""
    start = int(len(data) * at)
    return data[:start] + b"\xa5" * 60 + data[start + 60 :]


CASES = {
    "parquet empty": ("tabular", {"interactions.parquet": b""}),
    "parquet cut": ("tabular", {"interactions.parquet": parquet()[:-20]}),
    "parquet footer": ("tabular", {"interactions.parquet": flipped(parquet(), 0.95)}),
    "parquet start": ("tabular", {"interactions.parquet": flipped(parquet(), 0.02)}),
    "parquet is text": ("tabular", {"interactions.parquet": CSV.encode()}),
    "csv CR": ("tabular", {"interactions.csv": CSV.replace("\n", "\r").encode()}),
    "csv CR latin-1": ("tabular", {"interactions.csv": CSV.replace("\n", "\r").encode()}, {"encoding": "latin-1"}),
    "csv long field": ("tabular", {"interactions.csv": (CSV + f'u,"{LONG}",t,1\nu,i\n').encode()}),
    "csv long header": ("tabular", {"interactions.csv": f"{LONG},{LONG}\n1,2\n".encode()}),
    "csv surrogates": (
        "tabular",
        {"interactions.csv": CSV.replace("Title", "\\ud800").encode()},
        {"encoding": "unicode_escape"},
    ),
    "csv open quote": ("tabular", {"interactions.csv": (CSV + 'u,i,"t\n').encode()}),
    "csv zeros": ("tabular", {"interactions.csv": b"\0" * 5000}),
    "dat CR": ("movielens", {"movies.dat": b"1::A::x\r2::B::y\r", "ratings.dat": b"1::1::3::4\r1::2::3::5\r"}),
    "items long field": (
        "movielens",
        {
            "movies.csv": f"movieId,title\n1,{LONG}\n".encode(),
            "ratings.csv": b"userId,movieId,rating,timestamp\n1,1,1,1\n",
        },
    ),
    "gz cut": (
        "amazon",
        {"meta_Toys.json.gz": gzip.compress(META.encode() * 9)[:-12], "Toys_5.json": REVIEWS.encode()},
    ),
    "gz bytes": (
        "amazon",
        {"meta_Toys.json": META.encode(), "Toys_5.json.gz": flipped(gzip.compress(REVIEWS.encode()), 0.4)},
    ),
    "gz is text": ("amazon", {"meta_Toys.json.gz": META.encode(), "Toys_5.json": REVIEWS.encode()}),
    "gz checksum": (
        "amazon",
        {"meta_Toys.json.gz": gzip.compress(META.encode())[:-8] + b"\1" * 8, "Toys_5.json": REVIEWS.encode()},
    ),
    "json deep": ("amazon", {"meta_Toys.json": (META + DEEP + "\n").encode(), "Toys_5.json": REVIEWS.encode()}),
    "json deep value": (
        "amazon",
        {"meta_Toys.json": ('{"asin": "a", "title": ' + DEEP + "\n").encode(), "Toys_5.json": REVIEWS.encode()},
    ),
    "reference deep": ("reference-json", {"train.json": DEEP.encode()}),
    "reference surrogate": ("reference-json", {"train.json": json.dumps([{**RECORD, "output": '"\ud800"'}]).encode()}),
    "reference number": ("reference-json", {"train.json": b"[" + b"9" * 5000 + b"]"}),
    "reference cut": ("reference-json", {"train.json": json.dumps([RECORD] * 3).encode()[:-30]}),
}


@pytest.mark.parametrize("name", CASES)
def test_damaged_raw_files(tmp_path, name, capfd):
    source, files, *options = CASES[name]
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    with pytest.raises(BigrecError) as caught:
        prepare_dataset(source, tmp_path, tmp_path / "out", **(options[0] if options else {}))
    message = str(caught.value)
    assert any(str(tmp_path / file) in message for file in files) and "\n" not in message and ": " in message
    assert {file.name for file in tmp_path.iterdir()} == set(files)
    flags = [part for key, value in (options[0] if options else {}).items() for part in (f"--{key}", value)]
    capfd.readouterr()
    arguments = ["--source", source, "--raw_dir", str(tmp_path), "--output_dir", str(tmp_path / "out"), *flags]
    assert cli.main(["prepare", *arguments]) == 2
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("content", [b"", b"PAR1", flipped(parquet(), 0.1), parquet()[:-9], parquet(), DEEP.encode()])
@pytest.mark.parametrize("suffix", [".parquet", ".npy", ".safetensors"])
def test_damaged_catalogs_and_scores(tmp_path, content, suffix):
    file = tmp_path / f"x{suffix}"
    file.write_bytes(content)
    (tmp_path / "x.ids.json").write_bytes(content if suffix == ".npy" else b"[]")
    with pytest.raises(BigrecError, match="x"):
        read_scores(file, ["e"], None)
    if suffix == ".parquet":
        with pytest.raises(BigrecError, match=r"x\.parquet"):
            load_catalog(file)


@pytest.mark.parametrize(
    "text", [DEEP, "[" + "9" * 5000 + "]", json.dumps([{**RECORD, "input": "\udfff"}]), "[1", '["\\']
)
def test_damaged_json_examples(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(BigrecError, match=r"a\.json"):
        load_json_examples(str(tmp_path / "a.json"))
