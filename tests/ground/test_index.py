"""The catalog index: built, reused, refused, rebuilt, resumed."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file, save_file

import bigrec_hf.ground.index as index_module
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.ground.index import build_index, load_index
from bigrec_hf.models.encoder import encoder_fingerprint, lazy_encode
from tests.helpers.encoders import one_by_one, save_lm, save_sentence_model

CATALOG = Catalog(["10", "11", "12", "13"], ["a b", "c d e", '"a b"', " f"])
ENCODER = {"encoder": "toy", "revision": "1", "kind": "last-token", "dtype": "float32"}


class Counter:
    """An encoder of two dimensions that counts what it is asked."""

    def __init__(self):
        self.seen = []

    def __call__(self, texts):
        self.seen.extend(texts)
        return np.array([[len(text), text.count("a")] for text in texts], np.float32)


def test_build_then_read_back(tmp_path):
    encode = Counter()
    index = build_index(tmp_path, CATALOG, encode, ENCODER, progress=False)
    assert encode.seen == ["a b", "c d e", "f"]  # bare titles, each once
    assert index.embeddings.tolist() == [[3, 1], [5, 0], [3, 1], [1, 0]] and index.embeddings.dtype == np.float32
    assert (index.catalog.item_ids, index.catalog.titles) == (CATALOG.item_ids, CATALOG.titles)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "catalog.parquet",
        "embeddings.safetensors",
        "fingerprint.json",
    ]
    facts = json.loads((tmp_path / "fingerprint.json").read_text())
    assert (facts["n_items"], facts["dim"], facts["template"], facts["encoder"]) == (4, 2, "bare title", "toy")
    assert load_file(tmp_path / "embeddings.safetensors")["embeddings"].shape == (4, 2)


def test_reused_where_nothing_changed(tmp_path):
    build_index(tmp_path, CATALOG, Counter(), ENCODER, progress=False)
    encode = Counter()
    build_index(tmp_path, CATALOG, encode, ENCODER, progress=False)
    assert encode.seen == []


@pytest.mark.parametrize(
    ("catalog", "encoder", "field"),
    [
        (CATALOG, {**ENCODER, "revision": "2"}, "revision"),
        (CATALOG, {**ENCODER, "dtype": "bfloat16"}, "dtype"),
        (CATALOG, {**ENCODER, "encoder": "other"}, "encoder"),
        (Catalog(["10"], ["a b"]), ENCODER, "catalog_sha256"),
    ],
)
def test_anything_else_is_refused_or_rebuilt_by_its_owner(tmp_path, catalog, encoder, field):
    build_index(tmp_path, CATALOG, Counter(), ENCODER, progress=False)
    with pytest.raises(BigrecError, match=rf"has {field} .* name another --index_dir"):
        build_index(tmp_path, catalog, Counter(), encoder, owned=False, progress=False)
    assert len(load_index(tmp_path)) == 4  # untouched
    encode = Counter()
    assert len(build_index(tmp_path, catalog, encode, encoder, progress=False)) == len(catalog)
    assert encode.seen


def test_a_kill_loses_one_part_at_most(tmp_path, monkeypatch):
    monkeypatch.setattr(index_module, "PART_TITLES", 1)
    asked = []

    def killed(texts):
        asked.extend(texts)
        if len(asked) == 3:
            raise KeyboardInterrupt
        return Counter()(texts)

    with pytest.raises(KeyboardInterrupt):
        build_index(tmp_path, CATALOG, killed, ENCODER, progress=False)
    with pytest.raises(BigrecError, match="holds no complete index"):
        load_index(tmp_path)
    encode = Counter()
    index = build_index(tmp_path, CATALOG, encode, ENCODER, progress=False)
    assert encode.seen == ["f"]
    assert index.embeddings.tolist() == [[3, 1], [5, 0], [3, 1], [1, 0]]
    assert not (tmp_path / index_module.PARTS_FOLDER).exists()


def test_faults(tmp_path):
    with pytest.raises(BigrecError, match="catalog is empty"):
        build_index(tmp_path / "empty", Catalog([], []), Counter(), ENCODER)
    with pytest.raises(BigrecError, match="NaN or infinity for 'c d e'"):
        build_index(
            tmp_path / "nan", CATALOG, lambda texts: [[np.nan if "c" in text else 1.0] for text in texts], ENCODER
        )
    index = build_index(tmp_path / "damaged", CATALOG, Counter(), ENCODER, progress=False)
    file = tmp_path / "damaged" / "fingerprint.json"
    file.write_text(json.dumps({**index.fingerprint, "dim": 3}))
    with pytest.raises(BigrecError, match="is damaged"):
        load_index(tmp_path / "damaged")


def rewrite(folder, change):
    """Change the embeddings on disk."""
    save_file({"embeddings": change(load_file(folder / "embeddings.safetensors")["embeddings"])}, folder / "e")
    (folder / "e").replace(folder / "embeddings.safetensors")


def truncate(file):
    file.write_bytes(file.read_bytes()[:-9])


def other_titles(folder):
    table = pq.read_table(folder / "catalog.parquet")
    titles = pa.array(["x", *table["title"].to_pylist()[1:]])
    pq.write_table(table.set_column(2, "title", titles), folder / "catalog.parquet")


DAMAGES = {
    "other numbers": (lambda f: rewrite(f, lambda e: e + 1), "embeddings.safetensors was changed"),
    "rows swapped": (lambda f: rewrite(f, lambda e: e[::-1]), "embeddings.safetensors was changed"),
    "another type": (lambda f: rewrite(f, lambda e: e.astype(np.float64)), "are float64, not float32"),
    "another shape": (lambda f: rewrite(f, lambda e: e[:, :1]), r"its fingerprint says \(4, 2\)"),
    "embeddings cut": (lambda f: truncate(f / "embeddings.safetensors"), "embeddings.safetensors is damaged"),
    "embeddings lost": (lambda f: (f / "embeddings.safetensors").unlink(), "lost its embeddings.safetensors"),
    "other titles": (other_titles, "catalog.parquet holds another catalog"),
    "catalog cut": (lambda f: truncate(f / "catalog.parquet"), "catalog.parquet is damaged"),
    "fingerprint cut": (lambda f: truncate(f / "fingerprint.json"), "fingerprint.json is damaged"),
    "no object": (lambda f: (f / "fingerprint.json").write_text("[]"), "fingerprint.json is damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_index_is_refused_and_built_again_by_its_owner(tmp_path, name):
    damage, message = DAMAGES[name]
    built = build_index(tmp_path / "index", CATALOG, Counter(), ENCODER, progress=False)
    damage(tmp_path / "index")
    shutil.copytree(tmp_path / "index", tmp_path / "copy")
    with pytest.raises(BigrecError, match=message):
        load_index(tmp_path / "index")
    with pytest.raises(BigrecError, match=message):
        build_index(tmp_path / "index", CATALOG, Counter(), ENCODER, owned=False, progress=False)
    assert [f.read_bytes() for f in sorted((tmp_path / "index").iterdir())] == [
        f.read_bytes() for f in sorted((tmp_path / "copy").iterdir())
    ]
    again = build_index(tmp_path / "index", CATALOG, Counter(), ENCODER, progress=False)
    assert (again.embeddings == built.embeddings).all() and again.catalog == built.catalog
    assert load_index(tmp_path / "index").fingerprint == built.fingerprint


def test_an_index_of_an_earlier_release_is_checked_as_far_as_it_can_be(tmp_path):
    build_index(tmp_path, CATALOG, Counter(), ENCODER, progress=False)
    facts = json.loads((tmp_path / "fingerprint.json").read_text())
    (tmp_path / "fingerprint.json").write_text(json.dumps({**facts, "embeddings_sha256": None}))
    assert len(load_index(tmp_path)) == 4
    rewrite(tmp_path, lambda e: e + np.float32(np.inf))
    with pytest.raises(BigrecError, match=r"the embedding of .* is not finite"):
        load_index(tmp_path)


@pytest.mark.parametrize("owned", [True, False])
def test_foreign_files_are_left_alone(tmp_path, owned):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/letters.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, message in (("folder", "not an index .it holds 'letters.txt'.*--index_dir"), ("file", "file is a file")):
        with pytest.raises(BigrecError, match=message):
            build_index(tmp_path / name, CATALOG, Counter(), ENCODER, owned=owned, progress=False)
    assert [f.name for f in (tmp_path / "folder").iterdir()] == ["letters.txt"]
    (tmp_path / "empty").mkdir()
    assert len(build_index(tmp_path / "empty", CATALOG, Counter(), ENCODER, owned=owned, progress=False)) == 4


def test_an_index_that_lost_its_fingerprint_is_built_again(tmp_path):
    build_index(tmp_path, CATALOG, Counter(), ENCODER, progress=False)
    (tmp_path / "fingerprint.json").unlink()  # as a kill between the last two moves leaves it
    (tmp_path / ".fingerprint.json.tmp").write_text("{}")
    assert len(build_index(tmp_path, CATALOG, Counter(), ENCODER, progress=False)) == 4


def test_a_local_model_is_known_by_its_content(tmp_path):
    first = encoder_fingerprint(save_lm(tmp_path / "a"))
    moved = encoder_fingerprint(save_lm(tmp_path / "b"))
    other = encoder_fingerprint(save_lm(tmp_path / "c", bos=False))
    assert first["revision"] == moved["revision"] != other["revision"]
    assert first["kind"] == "last-token" and first["revision"].startswith("sha256:")
    build_index(tmp_path / "index", CATALOG, Counter(), first, progress=False)
    load_index(tmp_path / "index", moved)  # the same model in another place
    with pytest.raises(BigrecError, match="has encoder"):
        load_index(tmp_path / "index", other)


def test_fingerprint_of_other_encoders(tmp_path):
    assert encoder_fingerprint(save_sentence_model(tmp_path))["kind"] == "sentence-transformers"
    (tmp_path / "empty").mkdir()
    for name, message in (("/no/such", "does not exist"), (str(tmp_path / "empty"), "contains no model")):
        with pytest.raises(BigrecError, match=message):
            encoder_fingerprint(name)


def test_a_hub_name_that_is_not_cached(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BigrecError, match="not in the cache, and HF_HUB_OFFLINE=1"):
        encoder_fingerprint("nobody/nothing")


def test_with_a_language_model(tmp_path):
    path = save_lm(tmp_path / "lm")
    index = build_index(tmp_path / "index", CATALOG, lazy_encode(path), encoder_fingerprint(path), progress=False)
    np.testing.assert_allclose(index.embeddings, one_by_one(path, ["a b", "c d e", "a b", "f"]), atol=2e-5)
