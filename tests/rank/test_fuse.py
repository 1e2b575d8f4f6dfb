"""Fusion of several texts: by hand, against a full sort, on disk, then the stage and what it may read to choose."""

import json
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bigrec_hf import cli
from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.generations import GENERATIONS_SCHEMA, Answers
from bigrec_hf.data.rankings import table_settings
from bigrec_hf.generate.keywords import keyword_catalog
from bigrec_hf.ground.distance import embed_texts, ground_answers
from bigrec_hf.ground.index import CatalogIndex
from bigrec_hf.rank.fuse.formulas import (
    Beams,
    Evidence,
    candidate_ranks,
    choose_parameters,
    fuse,
    gather_beams,
    parameter_grid,
    rank_fused,
    row_ranks,
    text_distances,
)
from bigrec_hf.rank.fuse.stage import KeywordIndex, fuse_method
from bigrec_hf.settings import DataSettings, FuseSettings, RankOptions, RunSettings
from tests.helpers.encoders import save_lm
from tests.helpers.line import FACTS, POSITIONS, TITLES, encode, make_index


def evidence_of(texts, index=None, **more):
    index = index or make_index()
    beams = gather_beams(texts)
    distances = text_distances(embed_texts(beams.texts, index, encode), index.embeddings)
    return Evidence(beams, distances, **more)


class TestByHand:
    """Items at 1, 3, 1, 6, 10 on a line; the texts lie at 4.4 ("four") and 10 ("ten")."""

    def evidence(self):
        return evidence_of([["four", "ten"], ["", '" "']])

    def test_min(self):
        fused = fuse("min", {"beams": 2}, self.evidence())
        np.testing.assert_allclose(fused.costs(0, 1), [[3.4, 1.4, 3.4, 1.6, 0.0]], rtol=1e-6)
        assert fused.empty.tolist() == [False, True]
        assert fused.costs(1, 2).tolist() == [[0.0] * 5]
        ranking = rank_fused(fused, [[2], [0]])
        assert ranking.rank.tolist() == [4, 5]  # row 0 is as near as row 2 and stands before it; an empty one is a miss
        assert ranking.top_rows.tolist() == [[4, 1, 3, 0, 2], [-1] * 5]

    def test_reciprocal_ranks(self):
        costs = fuse("rrf", {"beams": 2, "k0": 0}, self.evidence()).costs(0, 1)
        np.testing.assert_allclose(-costs, [[1 / 3 + 1 / 4, 1 + 1 / 3, 1 / 4 + 1 / 5, 1, 1 / 5 + 1]], atol=1e-12)
        costs = fuse("rrf", {"beams": 1, "k0": 10}, self.evidence()).costs(0, 1)
        np.testing.assert_allclose(-costs, [[1 / 13, 1 / 11, 1 / 14, 1 / 12, 1 / 15]], atol=1e-12)

    def test_excluded_items_take_no_rank(self):
        # of the five rows the first text ranks 2, 0, 3, 1, 4 (0-based); without row 1 the others are 1, -, 2, 0, 3
        ranks = self.evidence().ranks[:1]
        assert ranks.tolist() == [[2, 0, 3, 1, 4]]
        assert candidate_ranks(ranks, [1, 1])[0, [0, 2, 3, 4]].tolist() == [1, 2, 0, 3]
        assert candidate_ranks(ranks, []) is ranks
        costs = fuse("rrf", {"beams": 1, "k0": 0}, self.evidence(), [[1], []]).costs(0, 1)
        np.testing.assert_allclose(-costs[0, [0, 2, 3, 4]], [1 / 2, 1 / 3, 1, 1 / 4], atol=1e-12)

    def test_keywords(self):
        # "four" ranks the rows 2, 0, 3, 1, 4; its keywords, nearest to row 4, rank them 3, 2, 4, 1, 0
        keyword_distances = np.array([[9.0, 7.0, 9.0, 4.0, 0.0]])
        evidence = evidence_of(
            [["four", "ten"], [""]],
            keyword_places=np.array([0, -1], np.int32),
            keyword_distances=keyword_distances,
        )
        assert evidence.keyword_ranks.tolist() == [[3, 2, 4, 1, 0]]
        costs = fuse("keywords", {"a": 7, "b": 3}, evidence).costs(0, 2)
        assert costs.tolist() == [[7 * 2 + 3 * 3, 3 * 2, 7 * 3 + 3 * 4, 7 + 3, 7 * 4], [0] * 5]
        assert fuse("keywords", {"a": 7, "b": 3}, evidence).empty.tolist() == [False, True]

    def test_beams(self):
        beams = gather_beams([['"a" ', None, "b"], ["b"], []])
        assert beams.texts == ["a", "b"]
        assert beams.places.tolist() == [[0, -1, 1], [1, -1, -1], [-1, -1, -1]]

    def test_grid_and_choice(self):
        assert parameter_grid("rrf", 2, k0s=[0, 60]) == [{"beams": b, "k0": k} for b in (1, 2) for k in (0, 60)]
        assert parameter_grid("keywords", 4)[0] == {"a": 10, "b": 0} and len(parameter_grid("keywords", 4)) == 11
        evidence = evidence_of([["four", "ten"]])
        found = choose_parameters("min", parameter_grid("min", 2), evidence, [[4]], "hr@1")
        assert found["parameters"] == {"beams": 2} and found["value"] == 1.0
        assert found["table"] == [{"beams": 1, "hr@1": 0.0}, {"beams": 2, "hr@1": 1.0}]
        nothing = choose_parameters("rrf", parameter_grid("rrf", 2, [5, 1]), evidence, [[0]], "ndcg@1")
        assert nothing["parameters"] == {"beams": 1, "k0": 5}  # nothing hits: the first of equals


def brute_force(name, parameters, texts, vectors, items, keyword):
    """The order of all items for one example by a plain sort in Python; None where there is no text."""
    kept = [t for t in texts[: parameters.get("beams", 1)] if t is not None]
    if not kept:
        return None

    def distances(query, rows):
        return [
            float(np.sqrt(sum((float(a) - float(b)) ** 2 for a, b in zip(query, row, strict=True)))) for row in rows
        ]

    def ranks(costs):
        order = sorted(range(len(costs)), key=lambda i: (costs[i], i))
        return [order.index(i) for i in range(len(costs))]

    each = [distances(vectors[t], items) for t in kept]
    if name == "min":
        costs = [min(column) for column in zip(*each, strict=True)]
    elif name == "rrf":
        places = [ranks(row) for row in each]
        costs = [
            -sum(round(Fraction(2**44) / (parameters["k0"] + 1 + row[i])) for row in places) for i in range(len(items))
        ]
    else:
        first, second = ranks(each[0]), ranks(distances(keyword[0], keyword[1]))
        costs = [parameters["a"] * a + parameters["b"] * b for a, b in zip(first, second, strict=True)]
    return sorted(range(len(items)), key=lambda i: (costs[i], i))


@st.composite
def cases(draw):
    """Small whole-number vectors: distances tie within and across texts; duplicate rows and empty texts."""
    n_items, dim = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    vector = st.lists(st.integers(-2, 2), min_size=dim, max_size=dim)
    items = draw(st.lists(vector, min_size=n_items, max_size=n_items))
    vectors = draw(st.lists(vector, min_size=4, max_size=4))
    texts = draw(
        st.lists(st.lists(st.sampled_from([None, 0, 1, 2, 3]), min_size=3, max_size=3), min_size=1, max_size=5)
    )
    name = draw(st.sampled_from(["min", "rrf", "keywords"]))
    grid = parameter_grid(name, 3, k0s=[0, 3, 60])
    return name, draw(st.sampled_from(grid)), np.array(items), np.array(vectors), texts


@settings(max_examples=150, deadline=None)
@given(case=cases(), seed=st.integers(0, 2**16))
def test_equals_a_full_sort(case, seed):
    name, parameters, items, vectors, texts = case
    rng = np.random.default_rng(seed)
    keyword_items = rng.permutation(items)
    places = np.array([[-1 if t is None else t for t in row] for row in texts], np.int32)
    distances = text_distances(np.float32(vectors), np.float32(items))
    evidence = Evidence(
        Beams(["a", "b", "c", "d"], places),
        distances,
        keyword_places=np.where(places[:, 0] >= 0, 0, -1),
        keyword_distances=text_distances(np.float32(vectors[:1]), np.float32(keyword_items)),
    )
    targets = [sorted(set(rng.integers(0, len(items), size=2).tolist())) for _ in texts]
    ranking = rank_fused(fuse(name, parameters, evidence), targets, len(items))
    for i, row in enumerate(texts):
        order = brute_force(name, parameters, row, vectors, items, keyword=(vectors[0], keyword_items.tolist()))
        if order is None:
            assert ranking.rank[i] == len(items) and (ranking.top_rows[i] == -1).all()
        else:
            assert ranking.top_rows[i].tolist() == order
            assert ranking.rank[i] == min(order.index(row) for row in targets[i])


def test_real_valued_vectors_with_a_large_common_part():
    """Hidden states look like this: a mean of norm 1,000, differences of 1; 300 examples, more than one chunk."""
    rng = np.random.default_rng(0)
    items = (1000 + rng.normal(size=(200, 16))).astype(np.float32)
    items[50:60] = items[:10]
    vectors = np.concatenate([(1000 + rng.normal(size=(40, 16))).astype(np.float32), items[:20]])
    places = rng.integers(-1, 60, size=(300, 4)).astype(np.int32)
    beams = Beams([str(i) for i in range(60)], places)
    distances = text_distances(vectors, items)
    targets = [[int(t)] for t in rng.integers(0, 200, size=300)]
    exact = np.sqrt(((vectors.astype(np.float64)[:, None] - items.astype(np.float64)) ** 2).sum(axis=2))
    np.testing.assert_allclose(distances, exact, rtol=1e-12)
    cost = np.where(places[..., None] >= 0, exact[places], np.inf).min(axis=1)
    order = np.argsort(np.round(cost, 10), axis=1, kind="stable")
    ranking = rank_fused(fuse("min", {"beams": 4}, Evidence(beams, distances)), targets, 200)
    found = (places >= 0).any(axis=1)
    np.testing.assert_array_equal(ranking.top_rows[found], order[found])


def test_rows_on_disk_are_those_in_memory(tmp_path):
    rng = np.random.default_rng(0)
    vectors, items = rng.normal(size=(300, 4)).astype(np.float32), rng.normal(size=(600, 4)).astype(np.float32)
    inside = text_distances(vectors, items)
    outside = text_distances(vectors, items, 1, tmp_path)  # 1.4 MB of float64, 1 MiB allowed
    assert isinstance(outside, np.memmap) and not isinstance(inside, np.memmap)
    np.testing.assert_array_equal(inside, outside)
    np.testing.assert_array_equal(row_ranks(inside), row_ranks(outside, 1, tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("duplicates", ["best", "exact"])
@pytest.mark.parametrize("exclude", [True, False])
def test_the_first_text_alone_is_plain_grounding(duplicates, exclude):
    index = make_index()
    texts = [["four", "one"], ["one", "six"], ["", "ten"], ["ten", ""], ["six", "four"]]
    answers = Answers([f"e{i}" for i in range(5)], [row[0] for row in texts], [2, 2, 0, 4, 1], [[], [1], [3], [4], [0]])
    plain = ground_answers(
        answers, index, encode, RankOptions(exclude="history" if exclude else "none", duplicates=duplicates)
    )
    rows = [[0, 2] if t in (0, 2) and duplicates == "best" else [t] for t in answers.targets]
    fused = fuse("min", {"beams": 1}, evidence_of(texts))
    ranking = rank_fused(fused, rows, 50, RankOptions(exclude="history").excluded(answers) if exclude else None)
    assert ranking.rank.tolist() == plain[C.RANK].to_pylist()
    assert [[r for r in row if r >= 0] for row in ranking.top_rows.tolist()] == plain[C.TOP_ROWS].to_pylist()


def test_faults_of_values():
    evidence = evidence_of([["four", "ten"]])
    with pytest.raises(BigrecError, match="choose one of min"):
        fuse("max", {"beams": 1}, evidence)
    with pytest.raises(BigrecError, match="bigrec-hf keywords"):
        fuse("keywords", {"a": 5, "b": 5}, evidence)
    for metric in ("ndcg", "hr@0", "mrr@10", "hr@ten"):
        with pytest.raises(BigrecError, match="such as ndcg@10"):
            choose_parameters("min", [{"beams": 1}], evidence, [[0]], metric)
    with pytest.raises(BigrecError, match="at least 0"):
        parameter_grid("rrf", 2, k0s=[-1])
    with pytest.raises(BigrecError, match="grid of fusion 'rrf' is empty"):
        choose_parameters("rrf", parameter_grid("rrf", 2, k0s=[]), evidence, [[0]], "hr@1")


def write_generations(path, targets, texts, scores=None, *, name="t", adapter="a"):
    path.parent.mkdir(parents=True, exist_ok=True)
    n = len(targets)
    columns = {
        C.EXAMPLE_ID: [f"{name}{i}" for i in range(n)],
        C.TARGET: targets,
        C.TARGET_TITLE: [TITLES[t] for t in targets],
        C.HISTORY: [[]] * n,
        C.TEXTS: texts,
        C.SCORES: scores or [[-0.1 * (b + 1) for b in range(len(row))] for row in texts],
        **{flag: [False] * n for flag in (C.EMPTY, C.IN_CATALOG, C.IN_HISTORY)},
    }
    pq.write_table(pa.table(columns, schema=GENERATIONS_SCHEMA), path)
    path.with_name("generate.json").write_text(json.dumps({"adapter_sha256": adapter}), encoding="utf-8")


FUSIONS = ["min", "rrf"]


class TestStage:
    @pytest.fixture
    def run(self, tmp_path):
        """On validation the second text is right, on test the first one is."""
        write_generations(
            tmp_path / "validation/finetuned/generations.parquet",
            [4, 4, 3, 1],
            [["one", "ten"], ["six", "ten"], ["one", "six"], ["ten", ""]],
            name="v",
        )
        write_generations(
            tmp_path / "finetuned/generations.parquet", [3, 1, 0], [["six", "one"], ["three", "one"], ["", " "]]
        )
        return tmp_path

    def chosen(self, run, fusion="min"):
        return json.loads((run / f"finetuned_fused_{fusion}/fusion.json").read_text(encoding="utf-8"))

    def fuse(self, run, keywords=None, **more):
        settings = FuseSettings(fusion_metric="ndcg@5", fusion_k0=[0, 60], **more)
        inputs = (RunSettings(run_dir=str(run)), DataSettings(), settings, RankOptions(), make_index(), encode)
        return fuse_method(*inputs, keywords, quiet=True)

    def test_tables_and_choice(self, run):
        parameters = self.fuse(run)
        assert parameters["min"] == {"beams": 2}
        for name in FUSIONS:
            table = pq.read_table(run / f"finetuned_fused_{name}/rankings.parquet")
            assert table[C.EXAMPLE_ID].to_pylist() == ["t0", "t1", "t2"]
            assert table[C.EMPTY].to_pylist() == [False, False, True]
            assert table[C.RANK].to_pylist()[2] == 5 and table[C.TOP_ROWS].to_pylist()[2] == []
            facts = table_settings(table)
            assert facts["fusion"] == name and facts["fusion_beams"] == parameters[name]["beams"]
            assert self.chosen(run, name)["parameters"] == parameters[name]
        # both texts at distance 0, so catalog order: rows 0, 2, 3 and rows 0, 1, 2
        assert pq.read_table(run / "finetuned_fused_min/rankings.parquet")[C.RANK].to_pylist() == [2, 1, 5]
        assert self.chosen(run)["n_validation"] == 4

    def test_the_choice_never_sees_the_test_examples(self, run):
        self.fuse(run)
        before = [(run / f"finetuned_fused_{name}/fusion.json").read_bytes() for name in FUSIONS]
        ranks = pq.read_table(run / "finetuned_fused_min/rankings.parquet")[C.RANK].to_pylist()
        write_generations(
            run / "finetuned/generations.parquet", [0, 4, 4], [["ten", "one"], ["one", "ten"], ["ten", "four"]]
        )
        self.fuse(run)
        assert [(run / f"finetuned_fused_{name}/fusion.json").read_bytes() for name in FUSIONS] == before
        assert pq.read_table(run / "finetuned_fused_min/rankings.parquet")[C.RANK].to_pylist() != ranks
        write_generations(
            run / "validation/finetuned/generations.parquet", [3, 1], [["six", "one"], ["three", "one"]], name="v"
        )
        assert self.fuse(run)["min"] == {"beams": 1}

    def test_the_choice_is_written_before_the_test_texts_are_read(self, run):
        path = run / "finetuned/generations.parquet"
        pq.write_table(pq.read_table(path).select([C.EXAMPLE_ID]), path)
        with pytest.raises(BigrecError, match="lacks the column"):
            self.fuse(run)
        assert self.chosen(run)["parameters"] == {"beams": 2}
        assert not (run / "finetuned_fused_min/rankings.parquet").exists()

    def test_faults(self, run):
        validation = run / "validation/finetuned/generations.parquet"
        write_generations(validation, [4], [["one", "ten"]], name="t")
        with pytest.raises(BigrecError, match="1 of 1 validation examples are also evaluated"):
            self.fuse(run)
        write_generations(validation, [4], [["one", "ten"]], name="v", adapter="b")
        with pytest.raises(BigrecError, match="different adapters"):
            self.fuse(run)
        write_generations(validation, [4], [["one"]], name="v")
        with pytest.raises(BigrecError, match="one text per example"):
            self.fuse(run)
        validation.unlink()
        with pytest.raises(BigrecError, match=r"validation/finetuned/generations.parquet does not exist"):
            self.fuse(run)

    def test_fewer_texts_than_there_are(self, run):
        assert self.fuse(run, fusion_beams=1)["min"] == {"beams": 1}

    def test_two_indexes(self, run):
        # keywords that put every title at its mirror image: "one" <-> "ten", "three" <-> "six"
        keywords = {"one": "ten", "ten": "one", "three": "six", "six": "three", "four": "six"}
        catalog = keyword_catalog(make_index().catalog, keywords)
        assert catalog.titles == ["ten", "six", "ten", "three", "one"]
        given = KeywordIndex(keywords, CatalogIndex(catalog, encode(catalog.titles), FACTS))
        parameters = self.fuse(run, given, fusion="keywords")["keywords"]
        table = pq.read_table(run / "finetuned_fused_keywords/rankings.parquet")
        a, b = parameters["a"], parameters["b"]
        titles = np.array([POSITIONS[title] for title in TITLES])
        mirrored = np.array([POSITIONS[title] for title in catalog.titles])
        for i, (text, target) in enumerate([("six", [3]), ("three", [1])]):
            first = row_ranks(np.abs(titles - POSITIONS[text])[None])[0]
            second = row_ranks(np.abs(mirrored - POSITIONS[keywords[text]])[None])[0]
            order = np.lexsort((np.arange(5), a * first + b * second))
            assert table[C.TOP_ROWS].to_pylist()[i] == order.tolist()
            assert table[C.RANK].to_pylist()[i] == int(np.isin(order, target).argmax())
        with pytest.raises(BigrecError, match=r"1 titles of .* have no keywords, such as 'one'"):
            del keywords["one"]
            self.fuse(run, given, fusion="keywords")


def test_command(tmp_path, capsys):
    model = save_lm(tmp_path / "encoder")
    catalog = tmp_path / "id2name.txt"
    catalog.write_text("".join(f"{title}\t{row}\n" for row, title in enumerate(TITLES)), encoding="utf-8")
    run = tmp_path / "run"
    texts = [["one", "two"], ["five", "ten"], ["", "six"]]
    write_generations(run / "validation/finetuned/generations.parquet", [4, 4, 3], texts, name="v")
    write_generations(run / "finetuned/generations.parquet", [4, 4, 3], texts)
    where = ["--run_dir", str(run), "--catalog", str(catalog), "--base_model", str(model), "--method", "finetuned"]
    assert cli.main(["ground", *where]) == 0
    assert cli.main(["fuse", *where, "--ks", "1", "5", "--fusion_metric", "hr@1"]) == 0
    shown = capsys.readouterr().out
    assert "finetuned_fused_rrf" in shown and "| finetuned |" in shown and "keywords" not in shown
    for name in FUSIONS:
        results = json.loads((run / f"finetuned_fused_{name}/results.json").read_text(encoding="utf-8"))
        assert results["n_examples"] == 3 and results["fusion"] == name
    assert cli.main(["fuse", *where, "--fusion", "keywords"]) == 2
    assert "bigrec-hf keywords" in capsys.readouterr().err
