"""The evaluate module as a user meets it: loaded by path, three configs, options, faults; and its folder alone."""

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import bigrec_hf.metrics.ndcg_hr.ndcg_hr as module
import evaluate
import numpy as np
import pytest
import torch
from bigrec_hf.metrics.ndcg_hr.ndcg_hr import ranks_of_lists
from bigrec_hf.metrics.ndcg_hr.titles import clean_title, read_titles
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.encoders import save_lm, save_sentence_model

FOLDER = Path(__file__).parents[2] / "metrics" / "ndcg_hr"
CATALOG = ["a b", "c d e", "a b", "f"]


@pytest.fixture(scope="module", autouse=True)
def modules_cache(tmp_path_factory):
    """evaluate copies the module into its cache: one of our own, so that stale copies cannot answer."""
    patch = pytest.MonkeyPatch()
    patch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path_factory.mktemp("metrics")))
    patch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
    yield
    patch.undo()


def load(config_name=None):
    return evaluate.load(str(FOLDER), config_name=config_name)


def letters(texts):
    """An encoder: how often each of a..f occurs."""
    return np.array([[text.count(letter) for letter in "abcdef"] for text in texts], np.float32)


def test_short_lists_are_misses_and_ids_may_be_texts():
    for lists, references in (
        ([[3], [1, 2, 5], []], [4, 5, 1]),
        ([["1"], ["a", "2", "B07"], []], ["2", "B07", "a"]),
    ):
        scores = load("rankings").compute(predictions=lists, references=references, ks=[1, 3])
        assert scores == {"ndcg@1": 0.0, "ndcg@3": pytest.approx(0.5 / 3), "hr@1": 0.0, "hr@3": pytest.approx(1 / 3)}
    scores = load("rankings").compute(predictions=[[3, 1], [2]], references=[1, 1], ks=[2, 50])
    assert (scores["hr@2"], scores["hr@50"]) == (0.5, 0.5)  # no list is as long as 50


def test_known_vectors_of_the_catalog_and_an_encoder_that_is_loaded_once(tmp_path, monkeypatch):
    from bigrec_hf.metrics.ndcg_hr.encoders import load_encoder

    path, titles = save_lm(tmp_path), ["a b", "c d e", "f"]
    texts = {"predictions": ["c d", "f", ""], "references": ["c d e", "f", "a b"], "ks": [1, 2]}
    expected = load("titles").compute(catalog=titles, encoder=path, **texts)
    vectors = load_encoder(path, device="cpu").encode(titles)
    metric, loaded = load("titles"), []
    module = sys.modules[type(metric).__module__]
    monkeypatch.setattr(module, "load_encoder", lambda name: loaded.append(name) or load_encoder(name, device="cpu"))
    for _ in range(2):
        assert metric.compute(catalog=titles, encoder=path, item_embeddings=vectors, **texts) == expected
    assert loaded == [path]
    with pytest.raises(ValueError, match="2 vectors for 3 titles"):
        metric.compute(catalog=titles, encoder=path, item_embeddings=vectors[:2], **texts)
    with pytest.raises(ValueError, match="3 dimensions, the encoder 16"):
        metric.compute(catalog=titles, encoder=path, item_embeddings=vectors[:, :3], **texts)


def test_rankings_hand_computed():
    scores = load("rankings").compute(predictions=[[3, 1, 2], [2, 3, 1], [7, 8, 9]], references=[1, 2, 5], ks=[1, 3])
    assert scores == {
        "ndcg@1": pytest.approx(1 / 3),
        "ndcg@3": pytest.approx((1 / math.log2(3) + 1) / 3),
        "hr@1": pytest.approx(1 / 3),
        "hr@3": pytest.approx(2 / 3),
    }


def test_embeddings_hand_computed():
    metric = load("embeddings")
    items = np.array([[0, 0], [1, 0], [3, 0], [1, 0]], np.float32)
    inputs = {"predictions": [[1, 0], [3, 0.1]], "references": [3, 1], "item_embeddings": items, "ks": [1, 2]}
    # row 3 equals row 1, which stands first: best counts the target at row 1
    assert metric.compute(**inputs)["hr@1"] == 0.5
    assert metric.compute(**inputs, duplicates="exact")["hr@1"] == 0.0
    assert metric.compute(**inputs, duplicates="exact")["hr@2"] == 1.0


def test_titles_with_a_function_as_encoder():
    metric = load()
    inputs = {"predictions": ['"a b"', "c", ""], "references": ["a b", "f", " c d e "], "catalog": CATALOG}
    scores = metric.compute(**inputs, encoder=letters, ks=[1, 2, 4])
    # "a b": rank 0. "c" = (0,0,1,0,0,0): f at sqrt(2), both "a b" at sqrt(3), "c d e" at sqrt(2), earlier. "": a miss
    assert [scores["hr@1"], scores["hr@2"], scores["hr@4"]] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    assert metric.compute(**inputs, encoder=letters, ks=[2], drop_empty=True)["hr@2"] == 1.0


@pytest.mark.parametrize("kind", ["lm", "sentence"])
def test_titles_with_a_model(tmp_path, kind):
    encoder = save_lm(tmp_path) if kind == "lm" else save_sentence_model(tmp_path)
    scores = load("titles").compute(
        predictions=["c d e", "f"], references=['"c d e"', "f"], catalog=CATALOG, encoder=encoder, ks=[1]
    )
    assert scores == {"ndcg@1": 1.0, "hr@1": 1.0}


def test_added_one_by_one_and_in_batches():
    metric = load("rankings")
    metric.add(prediction=[1, 2], reference=1)
    metric.add_batch(predictions=[[1, 2], [2, 1]], references=[3, 2])
    assert metric.compute(ks=[1])["hr@1"] == pytest.approx(2 / 3)


def test_an_empty_list_is_a_miss_or_dropped():
    metric = load("rankings")
    inputs = {"predictions": [[1, 2], []], "references": [1, 1], "ks": [2]}
    assert metric.compute(**inputs)["hr@2"] == 0.5
    assert metric.compute(**inputs, drop_empty=True)["hr@2"] == 1.0


def test_bootstrap_adds_intervals():
    scores = load("rankings").compute(predictions=[[1], [2]] * 50, references=[1] * 100, ks=[1], bootstrap=200)
    assert set(scores) == {f"{name}@1{end}" for name in ("ndcg", "hr") for end in ("", "_low", "_high")}
    assert scores["hr@1_low"] < 0.5 < scores["hr@1_high"]


def test_the_packages_own_class_is_the_loaded_one():
    """`bigrec_hf.metrics.ndcg_hr` and `evaluate.load` share one file."""
    for config_name, inputs in (
        ("rankings", {"predictions": [[1, 2], []], "references": [2, 1], "bootstrap": 20}),
        ("embeddings", {"predictions": [[0.9], [0.2]], "references": [1, 1], "item_embeddings": [[0], [1], [1]]}),
        (None, {"predictions": ["a", ""], "references": ["f", "f"], "catalog": CATALOG, "encoder": letters}),
    ):
        inputs |= {"ks": [1, 2], "drop_empty": True}
        assert module.NdcgHr(config_name=config_name).compute(**inputs) == load(config_name).compute(**inputs)


NAN = float("nan")
FAULTS = [
    ("rankings", {"predictions": [], "references": []}, "predictions is empty"),
    ("rankings", {"predictions": [[1]], "references": [1, 2]}, r"Mismatch in the number of predictions \(1\)"),
    ("rankings", {"predictions": [["a"], [1]], "references": ["a", "b"], "ks": [1]}, "prediction 1 is not a list"),
    ("rankings", {"predictions": [["a"]], "references": [1], "ks": [1]}, "prediction 0 is not a list"),
    ("rankings", {"predictions": [[1, 2]], "references": [1], "ks": [0]}, r"ks=\[0\]"),
    ("rankings", {"predictions": [[1]], "references": [1], "ks": [1], "catalog": ["a"]}, "'catalog' is not an input"),
    ("rankings", {"predictions": [[1]], "references": [1], "ks": [1], "duplicates": "no"}, "duplicates='no'"),
    ("rankings", {"predictions": [[]], "references": [1], "ks": [1], "drop_empty": True}, "leaves nothing to score"),
    ("rankings", {"predictions": [[1]], "references": [None], "ks": [1]}, "reference 0 is missing"),
    ("embeddings", {"predictions": [[1, 0]], "references": [0]}, "needs item_embeddings="),
    ("embeddings", {"predictions": [[NAN, 0]], "references": [0], "item_embeddings": np.eye(2), "ks": [1]}, "NaN"),
    ("embeddings", {"predictions": [[1, 0]], "references": [0], "item_embeddings": [[1, NAN]], "ks": [1]}, "NaN"),
    ("embeddings", {"predictions": [[1, 0]], "references": [2], "item_embeddings": np.eye(2), "ks": [1]}, "row 2"),
    ("embeddings", {"predictions": [[1, 0]], "references": [-1], "item_embeddings": np.eye(2), "ks": [1]}, "row -1"),
    ("embeddings", {"predictions": [[1], [1, 2]], "references": [0, 0], "item_embeddings": np.eye(2)}, r"\[1, 2\]"),
    ("embeddings", {"predictions": [[1]], "references": [0], "item_embeddings": np.eye(2), "ks": [1]}, "dimensions"),
    ("embeddings", {"predictions": [[1, 0]], "references": [0], "item_embeddings": np.eye(2), "ks": [3]}, "K=3"),
    ("titles", {"predictions": ["a"], "references": ["a"]}, "needs catalog="),
    ("titles", {"predictions": ["a"], "references": ["a"], "catalog": ["a"]}, "needs encoder="),
    ("titles", {"predictions": ["a"], "references": ["zz"], "catalog": CATALOG, "encoder": letters, "ks": [1]}, "'zz'"),
    ("titles", {"predictions": ["a"], "references": ["a"], "catalog": [], "encoder": letters}, "catalog is empty"),
    ("titles", {"predictions": ["a"], "references": ["f"], "catalog": CATALOG, "encoder": letters}, "K=50 is larger"),
    (
        "rankings",
        {"predictions": [[1.5, 2]], "references": [1], "ks": [1]},
        "prediction 0 is not a list of whole numbers",
    ),
    ("rankings", {"predictions": [[1], ["2"]], "references": [1, 2], "ks": [1]}, "prediction 1 is not a list of whole"),
    ("rankings", {"predictions": [[1, None]], "references": [1], "ks": [1]}, "prediction 0 is not a list of whole"),
    ("rankings", {"predictions": [1], "references": [1], "ks": [1]}, "prediction 0 is not a list of whole numbers"),
    (
        "rankings",
        {"predictions": [[2**70]], "references": [1], "ks": [1]},
        "prediction 0 is not a list of whole numbers",
    ),
    (
        "rankings",
        {"predictions": [[1, [2]]], "references": [1], "ks": [1]},
        "prediction 0 is not a list of whole numbers",
    ),
    ("rankings", {"predictions": [[1]], "references": [1.5], "ks": [1]}, "reference 0 is 1.5, not a whole number"),
    ("rankings", {"references": [1], "ks": [1]}, "predictions is missing"),
    ("rankings", {"predictions": [[1]], "ks": [1]}, "references is missing"),
    (
        "embeddings",
        {"predictions": [[1]], "references": [0], "item_embeddings": [], "ks": [1]},
        "item_embeddings is empty",
    ),
    (
        "embeddings",
        {"predictions": [None], "references": [0], "item_embeddings": [[1]], "ks": [1]},
        "0 is not a vector",
    ),
    (
        "embeddings",
        {"predictions": [["a"]], "references": [0], "item_embeddings": [[1]], "ks": [1]},
        "0 is not a vector",
    ),
    (
        "embeddings",
        {"predictions": [[1]], "references": [0.5], "item_embeddings": [[1]], "ks": [1]},
        "reference 0 is 0.5",
    ),
    (
        "titles",
        {"predictions": [None], "references": ["f"], "catalog": CATALOG, "encoder": letters},
        "prediction 0 is None",
    ),
    (
        "titles",
        {"predictions": ["a", 5], "references": ["f"] * 2, "catalog": CATALOG, "encoder": letters},
        "prediction 1 is 5",
    ),
    (
        "titles",
        {"predictions": ["a"], "references": ["f"], "catalog": ["f", None], "encoder": letters},
        "row 1 is None",
    ),
    (
        "titles",
        {"predictions": ["a"], "references": ["f"], "catalog": CATALOG, "encoder": lambda t: letters(t)[:2], "ks": [1]},
        r"shape \(2, 6\) for 5 texts",
    ),
    (
        "titles",
        {"predictions": ["a"], "references": ["f"], "catalog": "/no/such/file", "encoder": letters},
        "not exist",
    ),
]


@pytest.mark.parametrize(("config_name", "inputs", "message"), FAULTS)
def test_clear_errors(config_name, inputs, message):
    metric = module.NdcgHr(config_name=config_name)
    with pytest.raises(ValueError, match=message) as caught:
        metric.compute(**inputs)
    assert "\n" not in str(caught.value)
    assert load("rankings").compute(predictions=[[1]], references=[1], ks=[1])["hr@1"] == 1.0  # still usable


def test_an_unknown_config():
    with pytest.raises(ValueError, match="config_name='beams' is unknown"):
        load("beams")


def test_every_sibling_is_imported_by_the_module_itself():
    """evaluate.load copies only what ndcg_hr.py imports, one import a line without a comment behind it."""
    text = (FOLDER / "ndcg_hr.py").read_text()
    imported = set(re.findall(r"^from \.(\w+) import [^#\n]*$", text, flags=re.MULTILINE))
    siblings = {file.stem for file in FOLDER.glob("*.py")} - {"__init__", "app", "ndcg_hr"}
    assert imported == siblings
    for file in FOLDER.glob("*.py"):
        assert "import bigrec_hf" not in file.read_text() and "from bigrec_hf" not in file.read_text()


def test_the_readme_example_is_true():
    scores = load("rankings").compute(predictions=[[3, 1, 2], [2, 3, 1]], references=[1, 2], ks=[1, 3])
    assert str(scores) in module._KWARGS_DESCRIPTION
    assert str(scores) in (FOLDER / "README.md").read_text()


SCRIPT = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "bigrec_hf":
            raise ImportError(name)
sys.meta_path.insert(0, Blocker())
import evaluate
for path in PATHS:
    metric = evaluate.load(path, config_name="rankings")
    assert metric.compute(predictions=[[1, 2]], references=[2], ks=[1, 2])["hr@2"] == 1.0, path
metric = evaluate.load(PATHS[0])
encode = lambda texts: [[len(text)] for text in texts]
print(metric.compute(predictions=["abc"], references=["ab"], catalog=["a", "ab", "abcd"], encoder=encode, ks=[1]))
"""


@pytest.mark.slow
def test_the_folder_alone_works_from_every_kind_of_path(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "metrics" / "ndcg_hr", ignore=shutil.ignore_patterns("__pycache__"))
    absolute = tmp_path / "metrics" / "ndcg_hr"
    paths = ["metrics/ndcg_hr", "./metrics/ndcg_hr", str(absolute), str(absolute / "ndcg_hr.py")]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", f"PATHS = {paths!r}\n{SCRIPT}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().splitlines()[-1] == "{'ndcg@1': 1.0, 'hr@1': 1.0}"


def test_clean_title():
    assert clean_title(' "Toy Story" \n') == clean_title('" Toy Story"') == clean_title("Toy Story") == "Toy Story"
    assert clean_title('""') == clean_title(" ") == ""


def test_titles_from_files(tmp_path):
    (tmp_path / "movies.dat").write_text("1::A: B (1990)::Drama\n2::C::D::War\n", encoding="utf-8")
    (tmp_path / "id2name.txt").write_text(" B\t1\nA\t0\n", encoding="utf-8")
    (tmp_path / "titles.txt").write_text("A\x85B\r\nC", encoding="utf-8")
    assert read_titles(tmp_path / "movies.dat") == ["A: B (1990)", "C::D"]
    assert read_titles(tmp_path / "id2name.txt") == ["A", " B"]
    assert read_titles(tmp_path / "titles.txt") == ["A\x85B", "C"]
    (tmp_path / "id2name.txt").write_text("A\t0\nB\t0\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"id2name.txt:2: expected title<TAB>row"):
        read_titles(tmp_path / "id2name.txt")
    (tmp_path / "movies.dat").write_text("1::A\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"movies.dat:1: expected id::title::genres"):
        read_titles(tmp_path / "movies.dat")


def test_titles_from_csv(tmp_path):
    (tmp_path / "movies.csv").write_bytes('\ufeffmovieId,title\r\n1,"A, ""B"""\r\n2,C\r\n'.encode())
    assert read_titles(tmp_path / "movies.csv") == ['A, "B"', "C"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("movies.csv", b"id,name\n1,A\n", r"movies.csv:1: no column 'title' among id, name"),
        ("movies.csv", b"id,title\n1,A\n2\n", r"movies.csv:3: the field title is missing"),
        ("movies.csv", b'id,title\n1,"A\n', r"movies.csv:2: .*repair the quotes"),
        ("titles.txt", b"A\n\xe9\n", r"titles.txt is not UTF-8 \(byte 2\)"),
        ("u.item", b"1|A\n", r"u.item: unknown kind of catalog file"),
        ("items.parquet", b"PAR", r"items.parquet is not a parquet file"),
    ],
)
def test_faulty_files_of_titles_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_titles(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_parquet_file_without_titles(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"row": [0], "name": ["A"]}), tmp_path / "items.parquet")
    with pytest.raises(ValueError, match=r"items.parquet has no column 'title', it has row, name"):
        read_titles(tmp_path / "items.parquet")


def test_examples_are_checked_one_by_one_too():
    metric = load("rankings")
    with pytest.raises(ValueError, match="not a list of whole numbers"):
        metric.add(prediction=[1.5], reference=1)
    with pytest.raises(ValueError, match="reference 0 is missing"):
        metric.add_batch(predictions=[[1]], references=[None])
    metric.add(prediction=[1.0, 2.0], reference=1)  # whole floats, as pandas writes ids
    metric.add_batch(predictions=torch.tensor([[2, 1]]), references=torch.tensor([2]))
    assert metric.compute(ks=[1])["hr@1"] == 1.0


def test_titles_from_a_prepared_set(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "data/items").mkdir(parents=True)
    pq.write_table(pa.table({"row": [0, 1], "title": ["A", "B"]}), tmp_path / "data/items/train.parquet")
    assert read_titles(tmp_path) == ["A", "B"]


def test_the_demo_scores_its_own_example(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(FOLDER))
    pytest.importorskip("gradio")
    import app

    assert app.build() is not None
    text = app.score_rankings(*app.EXAMPLE)
    assert "hr@1" in text and "0.5" in text
    titles = app.score_titles("f", "f", "a b\nf\n", save_lm(tmp_path), "1")
    assert '"hr@1": 1.0' in titles
    assert app.score_titles("f", "f", "a", "", "x").startswith("Error: K must")
    assert app.score_rankings("a", "1", "1").startswith("Error: ids")
    assert '"hr@9": 1.0' in app.score_rankings(app.EXAMPLE[0], app.EXAMPLE[1], "9")


@given(
    lists=st.lists(st.none() | st.lists(st.integers(0, 9), max_size=8), min_size=1, max_size=20),
    target=st.integers(0, 9),
)
def test_places_in_ranked_lists_are_those_of_a_plain_search(lists, target):
    longest = max((len(ids) for ids in lists if ids), default=3)
    rank, empty = ranks_of_lists(lists, [target] * len(lists), [longest])
    for ids, place, nothing in zip(lists, rank, empty, strict=True):
        assert nothing == (not ids)
        assert place == (ids.index(target) if ids and target in ids else longest)
