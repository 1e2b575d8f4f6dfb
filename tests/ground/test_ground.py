"""Grounding: texts to rankings, by hand, then the faults, then the stage with a tiny language model."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.generations import Answers, read_generations
from bigrec_hf.data.rankings import table_settings, write_rankings
from bigrec_hf.ground import stage as ground
from bigrec_hf.ground.distance import embed_texts, ground_answers
from bigrec_hf.settings import DataSettings, GroundSettings, ModelSettings, RankOptions, RunSettings
from tests.helpers.encoders import save_lm
from tests.helpers.line import encode, make_index, write_generations


def answers(texts, targets, histories=None):
    return Answers([f"e{i}" for i in range(len(texts))], texts, targets, histories or [[] for _ in texts])


def test_hand_computed():
    table = ground_answers(
        answers(["one", "four", '" "'], [2, 3, 0], [[2], [1], []]), make_index(), encode, RankOptions(top_k=3)
    )
    assert table.column_names == [
        "example_id",
        "target",
        "rank",
        "top_rows",
        "top_distances",
        "empty",
        "in_catalog",
        "in_history",
    ]
    assert table["rank"].to_pylist() == [0, 1, 5]  # the empty answer is a miss at every K
    assert table["top_rows"].to_pylist() == [[0, 2, 1], [1, 3, 0], []]
    np.testing.assert_allclose(table["top_distances"].to_pylist()[1], [1.4, 1.6, 3.4], rtol=1e-6)
    assert table["empty"].to_pylist() == [False, False, True]
    assert table["in_catalog"].to_pylist() == [True, False, False]
    assert table["in_history"].to_pylist() == [True, False, False]
    assert table_settings(table)["n_items"] == 5


def test_duplicate_titles_and_history():
    index = make_index()
    assert ground_answers(answers(["one"], [2]), index, encode, RankOptions(duplicates="exact"))[
        "rank"
    ].to_pylist() == [1]
    inputs = answers(["four"], [2], [[1, 3]])
    assert ground_answers(inputs, index, encode, RankOptions())["rank"].to_pylist() == [2]
    table = ground_answers(inputs, index, encode, RankOptions(exclude="history"))
    assert table["rank"].to_pylist() == [0]
    assert table["top_rows"].to_pylist() == [[0, 2, 4]]


def test_a_catalog_title_gets_its_own_vector_without_encoding():
    asked = []
    vectors = embed_texts([' "six"', "seven"], make_index(), lambda texts: asked.extend(texts) or encode(texts))
    assert asked == ["seven"]
    np.testing.assert_allclose(vectors, [[6], [4.4]])


def test_all_empty():
    table = ground_answers(answers(["", " "], [0, 1]), make_index(), encode, RankOptions())
    assert table["rank"].to_pylist() == [5, 5]


def test_faults_of_values():
    with pytest.raises(BigrecError, match="target row 9 is outside"):
        ground_answers(answers(["one"], [9]), make_index(), encode, RankOptions())
    with pytest.raises(BigrecError, match="has 2 dimensions, the index 1"):
        ground_answers(
            answers(["x"], [0]), make_index(), lambda texts: np.zeros((len(texts), 2), np.float32), RankOptions()
        )
    with pytest.raises(BigrecError, match="grounding: queries holds NaN"):
        ground_answers(
            answers(["x"], [0]), make_index(), lambda texts: np.full((len(texts), 1), np.nan, np.float32), RankOptions()
        )
    with pytest.raises(BigrecError, match="contain no settings"):
        table_settings(pa.table({"rank": [1]}))


def test_read_generations(tmp_path):
    read = read_generations(write_generations(tmp_path / "g.parquet"), make_index().catalog)
    assert (read.texts, read.targets, read.histories) == (["one", ""], [2, 3], [[0], [0]])


def test_an_unknown_target_row_is_found_by_its_title(tmp_path):
    path = write_generations(tmp_path / "g.parquet", targets=(-1, 3))
    assert read_generations(path, make_index().catalog).targets == [0, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"titles": ("zz", "yy")}, r"target 'zz' is not in the catalog.*\(2 of 2 targets\)"),
        ({"targets": (1, 3)}, r"target 'one' .* or not at the row that the file gives \(1 of 2"),
        ({"history": None}, "lacks the column 'history'"),
        (
            {"targets": (), "titles": (), "texts": (), "history": pa.array([], pa.list_(pa.int32()))},
            "contains no examples",
        ),
    ],
)
def test_faults_of_the_file(tmp_path, changes, message):
    path = write_generations(tmp_path / "g.parquet", **changes)
    with pytest.raises(BigrecError, match=message):
        read_generations(path, make_index().catalog)


def test_a_missing_file(tmp_path):
    with pytest.raises(BigrecError, match="run `bigrec-hf generate` first"):
        read_generations(tmp_path / "none.parquet", make_index().catalog)


def test_the_stage(tmp_path, capsys):
    lm = save_lm(tmp_path / "lm")
    (tmp_path / "id2name.txt").write_text("a b\t0\nc d e\t1\na b\t2\n f\t3\n")
    write_generations(
        tmp_path / "run/finetuned/generations.parquet", titles=("a b", "f"), texts=(["a b"], ["f"]), targets=(2, 3)
    )
    settings = {
        "run": RunSettings(run_dir=str(tmp_path / "run")),
        "data": DataSettings(catalog=str(tmp_path / "id2name.txt")),
        "model": ModelSettings(base_model=lm),
        "ground": GroundSettings(top_k=2),
    }
    ground.main(**settings)
    table = pq.read_table(tmp_path / "run/finetuned/rankings.parquet")
    assert table["rank"].to_pylist() == [0, 0] and table["top_rows"].to_pylist()[0] == [0, 2]
    assert table_settings(table)["encoder"] == lm
    assert (tmp_path / "run/index/fingerprint.json").is_file()
    assert "2 examples, 4 items" in capsys.readouterr().out
    for section, value, message in (
        ("run", RunSettings(), "no run folder"),
        ("data", DataSettings(), "no catalog given"),
        ("model", ModelSettings(), "no base model is given"),
    ):
        with pytest.raises(BigrecError, match=message):
            ground.main(**{**settings, section: value})


def test_new_rankings_leave_no_results_of_those_before(tmp_path):
    known = {"results.json", "per_example.parquet", "ranks_by_metric.parquet"}
    for name in (*known, "generations.parquet"):
        (tmp_path / name).write_text("old")
    write_rankings(pa.table({"rank": [1]}), tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"generations.parquet", "rankings.parquet"}
    assert pq.read_table(tmp_path / "rankings.parquet")["rank"].to_pylist() == [1]
