"""Item scores: round trip, rows matched by id, every kind of file, every fault."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import save_file

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog, catalog_sha256
from bigrec_hf.data.item_scores import read_facts, read_scores, write_scores

CATALOG = Catalog(["a", "b", "c"], ["A", "B", "Ç"])
IDS = ["u:1", "u:2", "v:1", "ü:9"]
SCORES = np.arange(12, dtype=np.float32).reshape(4, 3)


def write_kind(folder, kind, scores=SCORES, ids=IDS, sha=None):
    path = folder / f"scores.{kind}"
    if kind == "safetensors":
        write_scores(path, scores, ids, CATALOG)
    elif kind == "npy":
        np.save(path, scores)
        content = ids if sha is None else {"example_ids": ids, "catalog_sha256": sha}
        (folder / "scores.ids.json").write_text(json.dumps(content))
    else:
        table = pa.table({"example_id": ids, "scores": [list(map(float, row)) for row in scores]})
        pq.write_table(table.replace_schema_metadata({"catalog_sha256": sha} if sha else None), path)
    return path


@pytest.mark.parametrize("kind", ["safetensors", "npy", "parquet"])
def test_rows_come_by_id_in_the_order_asked_for(tmp_path, kind):
    path = write_kind(tmp_path, kind)
    same = read_scores(path, IDS, CATALOG)
    assert same.dtype == np.float32 and np.array_equal(same, SCORES)
    assert np.array_equal(read_scores(path, ["ü:9", "u:2"], CATALOG), SCORES[[3, 1]])
    assert np.array_equal(read_scores(path, IDS[::-1], CATALOG), SCORES[::-1])
    assert np.array_equal(read_scores(path, IDS[:2], CATALOG), SCORES[:2])


def test_fixed_size_lists_and_slices(tmp_path):
    lists = pa.FixedSizeListArray.from_arrays(pa.array(SCORES.ravel()), 3)
    table = pa.table({"example_id": IDS, "scores": lists})
    pq.write_table(table.slice(1), tmp_path / "s.parquet")
    assert np.array_equal(read_scores(tmp_path / "s.parquet", ["v:1"], CATALOG), SCORES[2:3])


def test_float64_and_integers_are_taken_as_float32(tmp_path):
    path = write_kind(tmp_path, "npy", scores=SCORES.astype(np.int64))
    assert read_scores(path, IDS, CATALOG).dtype == np.float32


def test_facts(tmp_path):
    write_scores(tmp_path / "s.safetensors", SCORES, IDS, CATALOG, model="sasrec", epochs=3)
    assert read_facts(tmp_path / "s.safetensors") == {"model": "sasrec", "epochs": 3}
    assert read_facts(tmp_path / "s.npy") == {}


@pytest.mark.parametrize("kind", ["safetensors", "npy", "parquet"])
def test_a_missing_id(tmp_path, kind):
    with pytest.raises(BigrecError, match=r"no scores for the example 'x' \(1 of 2 are missing\): score exactly these"):
        read_scores(write_kind(tmp_path, kind), ["u:1", "x"], CATALOG)


@pytest.mark.parametrize("kind", ["npy", "parquet"])
def test_an_id_with_two_rows(tmp_path, kind):
    with pytest.raises(BigrecError, match="'u:1' has two rows"):
        read_scores(write_kind(tmp_path, kind, ids=["u:1", "u:2", "u:1", "w"]), ["u:2"], CATALOG)


@pytest.mark.parametrize("kind", ["safetensors", "npy", "parquet"])
def test_another_catalog(tmp_path, kind):
    path = write_kind(tmp_path, kind, sha=catalog_sha256(CATALOG))
    assert len(read_scores(path, IDS, CATALOG)) == 4
    with pytest.raises(BigrecError, match="made with another catalog"):
        read_scores(path, IDS, Catalog(["a", "b", "c"], ["A", "Ç", "B"]))
    with pytest.raises(BigrecError, match="3 scores per example, but the catalog has 2 items"):
        read_scores(path, IDS, Catalog(["a", "b"], ["A", "B"]))


@pytest.mark.parametrize("kind", ["npy", "parquet"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_when_read(tmp_path, kind, bad):
    scores = SCORES.copy()
    scores[2, 1] = bad
    path = write_kind(tmp_path, kind, scores=scores)
    assert len(read_scores(path, IDS[:2], CATALOG)) == 2  # the bad row is not asked for
    with pytest.raises(BigrecError, match=r"item row 1 for the example 'v:1' is -?(nan|inf)"):
        read_scores(path, IDS, CATALOG)


def test_a_double_beyond_float32(tmp_path):
    with pytest.raises(BigrecError, match="finite float32"):
        read_scores(write_kind(tmp_path, "npy", scores=(SCORES + 1.0).astype(np.float64) * 1e300), IDS, CATALOG)


@pytest.mark.parametrize(
    ("scores", "ids", "name", "message"),
    [
        (SCORES[:3], IDS, "s.safetensors", r"shape \(3, 3\) for 4 example ids"),
        (SCORES[0], IDS, "s.safetensors", r"shape \(3,\)"),
        (SCORES[:, :2], IDS, "s.safetensors", "2 scores per example"),
        (SCORES, ["a", "b", "b", "c"], "s.safetensors", "'b' has two rows"),
        (SCORES * np.nan, IDS, "s.safetensors", "'u:1' is nan"),
        (SCORES, IDS, "s.npy", "the name must end in .safetensors"),
    ],
)
def test_writing_refuses(tmp_path, scores, ids, name, message):
    with pytest.raises(BigrecError, match=message):
        write_scores(tmp_path / name, scores, ids, CATALOG)
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_none(tmp_path):
    with pytest.raises(BigrecError, match="does not exist"):
        read_scores(tmp_path / "s.npy", IDS, CATALOG)
    with pytest.raises(BigrecError, match="not a file of item scores"):
        read_scores(tmp_path / "s.csv", IDS, CATALOG)
    np.save(tmp_path / "s.npy", SCORES)
    with pytest.raises(BigrecError, match="does not say which example a row belongs to"):
        read_scores(tmp_path / "s.npy", IDS, CATALOG)
    (tmp_path / "s.ids.json").write_text("{")
    with pytest.raises(BigrecError, match="cannot be read"):
        read_scores(tmp_path / "s.npy", IDS, CATALOG)
    (tmp_path / "s.ids.json").write_text('{"ids": []}')
    with pytest.raises(BigrecError, match="JSON list of example ids"):
        read_scores(tmp_path / "s.npy", IDS, CATALOG)
    (tmp_path / "s.safetensors").write_bytes(b"no")
    with pytest.raises(BigrecError, match="not a safetensors file"):
        read_scores(tmp_path / "s.safetensors", IDS, CATALOG)
    save_file({"scores": SCORES}, tmp_path / "t.safetensors")
    with pytest.raises(BigrecError, match="lacks example_ids"):
        read_scores(tmp_path / "t.safetensors", IDS, CATALOG)
    save_file({"other": SCORES}, tmp_path / "t.safetensors", metadata={"example_ids": "[]", "catalog_sha256": ""})
    with pytest.raises(BigrecError, match="lacks the tensor scores"):
        read_scores(tmp_path / "t.safetensors", IDS, CATALOG)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"example_id": ["a"]}, "lacks the column 'scores'"),
        ({"example_id": ["a"], "scores": [1.0]}, "holds double"),
        ({"example_id": ["a", "b"], "scores": [[1.0, 2.0, 3.0], [1.0]]}, "same length in every row"),
        ({"example_id": ["a", "b"], "scores": [[1.0, 2.0, 3.0], None]}, "same length in every row"),
        ({"example_id": ["a"], "scores": [[1.0, None, 3.0]]}, "without nulls"),
    ],
)
def test_parquet_that_does_not_fit(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    with pytest.raises(BigrecError, match=message):
        read_scores(tmp_path / "s.parquet", ["a"], CATALOG)
