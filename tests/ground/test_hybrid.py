"""Hybrid ranking: by hand, then against a brute force that writes the whole list out."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.data.generations import Answers, read_texts
from bigrec_hf.data.rankings import table_settings
from bigrec_hf.ground import stage as ground
from bigrec_hf.ground.distance import ground_answers
from bigrec_hf.ground.hybrid import first_rows, hybrid_rankings
from bigrec_hf.ground.index import CatalogIndex
from bigrec_hf.settings import DataSettings, GroundSettings, ModelSettings, RankOptions, RunSettings
from tests.helpers.encoders import save_lm

FACTS = dict.fromkeys(("encoder", "revision", "kind", "dtype", "template", "catalog_sha256"), "x")
TITLES = ["one", "three", "one", "six", "ten"]
POSITIONS = {"one": 1, "three": 3, "six": 6, "ten": 10}


def encode(texts):
    """A number in words on a line; anything else lies at 4.4."""
    return np.array([[POSITIONS.get(text, 4.4)] for text in texts], np.float32)


def make_index(titles=TITLES):
    return CatalogIndex(Catalog([f"i{row}" for row in range(len(titles))], titles), encode(titles), FACTS)


def rank(texts, targets, histories=None, **options):
    answers = Answers(
        [f"e{i}" for i in range(len(texts))],
        [row[0] if row else "" for row in texts],
        targets,
        histories or [[] for _ in texts],
    )
    return hybrid_rankings(texts, answers, make_index(), encode, RankOptions(**options))


def test_by_hand():
    # three, then ten, then by distance to three: one (rows 0 and 2), six
    texts = [["three", "four", '"ten"', "three"]] * 4 + [["four", "ten"], ["", "ten"], []]
    table = rank(texts, [1, 4, 2, 3, 1, 4, 4], top_k=4)
    assert table["top_rows"].to_pylist() == [[1, 4, 0, 2]] * 4 + [[4, 1, 3, 0], [], []]
    assert table["rank"].to_pylist() == [0, 1, 2, 4, 1, 5, 5]
    np.testing.assert_allclose(table["top_distances"].to_pylist()[0], [0, 7, 2, 2])
    assert table["in_catalog"].to_pylist() == [True] * 4 + [False] * 3
    assert table["empty"].to_pylist() == [False] * 5 + [True] * 2
    assert table_settings(table)["ranking"] == "hybrid"


def test_rows_of_one_title_share_its_places():
    table = rank([["six", "one", "ten"]] * 2, [2, 4])
    assert table["top_rows"].to_pylist()[0] == [3, 0, 2, 4, 1]
    assert table["rank"].to_pylist() == [1, 3]
    assert rank([["six", "one"]], [2], duplicates="exact")["rank"].to_pylist() == [2]


def test_excluded_items_take_no_place():
    table = rank([["three", "ten"], ["three", "ten"], ["ten"]], [4, 1, 3], [[1], [1], [0, 2]], exclude="history")
    assert table["top_rows"].to_pylist() == [[4, 0, 2, 3], [1, 4, 0, 2, 3], [4, 3, 1]]
    assert table["rank"].to_pylist() == [0, 0, 1]  # the second target is in its own history: it stays a candidate


def test_more_titles_than_places():
    table = rank([["three", "ten", "six"]], [3], top_k=2)
    assert table["top_rows"].to_pylist() == [[1, 4]] and table["rank"].to_pylist() == [2]
    assert first_rows(["three", "x", "one"], make_index(), [2]) == [1, 0]


def test_texts_of_another_file():
    with pytest.raises(BigrecError, match="texts of 1 examples, but generations of 2"):
        hybrid_rankings(
            [["one"]], Answers(["a", "b"], ["one", "six"], [0, 1], [[], []]), make_index(), encode, RankOptions()
        )


WORDS = st.sampled_from(["one", "three", "six", "ten", "seven", ' "one" '])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(["one", "three", "six", "ten"]), min_size=1, max_size=8),
    st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=5), st.integers(0, 7)), min_size=1, max_size=4),
    st.integers(0, 10),
    st.sampled_from(["best", "exact"]),
    st.sets(st.integers(0, 7), max_size=3),
)
def test_the_whole_list_equals_brute_force(titles, examples, top_k, duplicates, history):
    texts = [row for row, _ in examples]
    targets = [target % len(titles) for _, target in examples]
    history = sorted(row for row in history if row < len(titles))
    answers = Answers([str(i) for i in range(len(texts))], [row[0] for row in texts], targets, [history] * len(texts))
    options = {"top_k": top_k, "exclude": "history" if history else "none", "duplicates": duplicates}
    table = hybrid_rankings(texts, answers, make_index(titles), encode, RankOptions(**options))
    for i, (row, target) in enumerate(zip(texts, targets, strict=True)):
        line = {item: abs(POSITIONS[title] - encode([row[0].strip(' "')])[0, 0]) for item, title in enumerate(titles)}
        order = []
        for text in row:
            order += [item for item in line if titles[item] == text.strip(' "') and item not in order]
        order += sorted((item for item in line if item not in order), key=lambda item: (line[item], item))
        order = [item for item in order if item not in history or item == target]
        same = {item for item in line if item == target or (titles[item] == titles[target] and duplicates == "best")}
        hits = [place for place, item in enumerate(order) if item in same]
        assert table["rank"][i].as_py() == min(hits, default=len(titles))
        assert table["top_rows"][i].as_py() == order[:top_k]
        np.testing.assert_allclose(table["top_distances"][i].as_py(), [line[item] for item in order[:top_k]], rtol=1e-6)


def test_one_catalog_title_each_is_plain_grounding():
    answers = Answers(["a", "b"], ["one", "six"], [4, 1], [[], []])
    plain = ground_answers(answers, make_index(), encode, RankOptions())
    assert hybrid_rankings([["one"], ["six"]], answers, make_index(), encode, RankOptions()).equals(plain)


def test_the_stage_writes_beside_the_method(tmp_path):
    catalog = tmp_path / "catalog.csv"
    catalog.write_text("item_id,title\n" + "".join(f"i{row},{title}\n" for row, title in enumerate(TITLES)))
    folder = tmp_path / "run" / "finetuned"
    folder.mkdir(parents=True)
    table = pa.table(
        {
            "example_id": ["u:1", "v:1"],
            "target": pa.array([3, 1], pa.int32()),
            "target_title": ["six", "three"],
            "history": pa.array([[0], []], pa.list_(pa.int32())),
            "texts": [["ten", "six"], ["ten", "nothing"]],
        }
    )
    pq.write_table(table, folder / "generations.parquet")
    assert read_texts(folder / "generations.parquet") == [["ten", "six"], ["ten", "nothing"]]
    ground.main(
        RunSettings(run_dir=str(tmp_path / "run")),
        DataSettings(catalog=str(catalog)),
        ModelSettings(base_model=save_lm(tmp_path / "model")),
        GroundSettings(ranking="hybrid"),
    )
    written = pq.read_table(tmp_path / "run" / "finetuned_hybrid" / "rankings.parquet")
    assert written["top_rows"].to_pylist()[0][:2] == [4, 3] and written["rank"].to_pylist()[0] == 1
    assert not (folder / "rankings.parquet").exists()
