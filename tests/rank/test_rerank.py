"""Reranking: the choice on validation alone, what is stored, the scorer's ranks by metric, the stage, its refusals."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigrec_hf.cli import main as cli
from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog, load_catalog
from bigrec_hf.data.examples import load_config, load_examples
from bigrec_hf.data.generations import GENERATIONS_SCHEMA, Answers
from bigrec_hf.data.item_scores import write_scores
from bigrec_hf.data.rankings import table_settings
from bigrec_hf.ground.index import CatalogIndex, load_index
from bigrec_hf.rank.model_selection import GRIDS, choose_value, mean_metrics, split_key
from bigrec_hf.rank.rerank import stage
from bigrec_hf.rank.rerank.apply import Split, apply_choice, history_split, rerank_method, search, weight_rows
from bigrec_hf.score.stage import score_folder
from bigrec_hf.settings import (
    DataSettings,
    GroundSettings,
    ModelSettings,
    RankOptions,
    RerankSettings,
    RunSettings,
    ScoreSettings,
)
from tests.helpers.tiny import TITLES

CATALOG = Catalog(list("abcde"), ["one", "two", "three", "two", "five"])


def make_split(costs, targets, prefix="v", texts=None, histories=None):
    costs = np.asarray(costs, float)
    n = len(costs)
    ids = [f"{prefix}{i}" for i in range(n)]
    answers = Answers(ids, texts or ["x"] * n, targets, histories or [[]] * n)
    return Split(answers, lambda start, stop: costs[start:stop])


def rows_of(weights):
    weights = np.asarray(weights, float)
    return lambda start, stop: weights[start:stop]


# --- the choice


def test_grids_are_the_references():
    assert (
        len(GRIDS["movie"]) == 199
        and GRIDS["movie"][:3] == (0.0, 0.01, 0.02)
        and GRIDS["movie"][99:102] == (0.99, 1, 2)
    )
    assert len(GRIDS["game"]) == 198 and (GRIDS["game"][0], GRIDS["game"][99], GRIDS["game"][-1]) == (0.01, 1.0, 99.0)
    assert GRIDS["popularity"] == tuple(range(100)) and GRIDS["unit"][-1] == 1.0


def test_choice_by_hand():
    ranks = np.array([[9, 0, 1, 4], [9, 7, 2, 2]])
    found = choose_value(ranks, [0.5, 1.0, 2.0, 3.0], [1, 3, 5])
    assert found.curves["hr@1"].tolist() == [0, 0.5, 0, 0]
    assert found.curves["hr@3"].tolist() == [0, 0.5, 1, 0.5]
    assert found.curves["ndcg@5"][2] == pytest.approx((1 / np.log2(3) + 0.5) / 2)
    assert [found.chosen[key] for key in ("hr@1", "hr@3", "hr@5")] == [1.0, 2.0, 2.0]  # hr@5: 2 and 3 are equal
    assert set(found.chosen) == {f"{m}@{k}" for m in ("ndcg", "hr") for k in (1, 3, 5)} | {"ndcg@10"}


def test_a_metric_that_is_0_everywhere_gives_0():
    found = choose_value(np.array([[8, 6]]), [0.01, 1.0], [1, 7])
    assert (found.chosen["hr@1"], found.chosen["hr@7"]) == (0.0, 1.0)


def test_the_same_ranks_in_other_examples_are_no_improvement():
    rng = np.random.default_rng(0)
    for _ in range(50):
        ranks = rng.integers(0, 20, 100)
        curve = mean_metrics(np.stack([ranks, rng.permutation(ranks)], axis=1), "ndcg@20")
        assert curve[0] == curve[1]


def test_one_choice_for_all():
    ranks = np.array([[9, 0, 1, 4], [9, 7, 2, 2]])
    found = choose_value(ranks, [0.5, 1.0, 2.0, 3.0], [1, 3], choose_by="hr@5")
    assert set(found.chosen.values()) == {2.0} and "hr@5" in found.curves
    with pytest.raises(BigrecError, match="'mrr@5' is not a metric"):
        choose_value(ranks, [0.5, 1.0, 2.0, 3.0], [1], choose_by="mrr@5")
    with pytest.raises(BigrecError, match="no validation example"):
        choose_value(np.empty((0, 2), np.int64), [0.0, 1.0], [1])
    for wrong in ("ndcg@", "ndcg@0", "hr@-1", "hr"):
        with pytest.raises(BigrecError, match="is not a metric"):
            split_key(wrong)


# --- weights


def test_weights():
    counts, scores = [0, 5, 10], np.array([[1.0, 2.0, 3.0], [7.0, 7.0, 7.0]], np.float32)
    assert weight_rows("popularity", 2, counts)(0, 2).tolist() == [[0, 0.5, 1]] * 2
    assert weight_rows("scores", 2, None, scores)(0, 2).tolist() == [[0, 0.5, 1], [0, 0, 0]]
    assert weight_rows("scores", 2, None, scores)(1, 2).tolist() == [[0, 0, 0]]
    assert weight_rows("both", 2, counts, scores)(0, 2).tolist() == [[0, 0.5, 1], [0, 0.25, 0.5]]
    with pytest.raises(BigrecError, match="need train counts"):
        weight_rows("both", 2, None, scores)
    with pytest.raises(BigrecError, match="one row of scores for each of 3 examples, but there are 2"):
        weight_rows("scores", 3, None, scores)
    with pytest.raises(BigrecError, match="train counts of example 0 hold NaN"):
        weight_rows("popularity", 2, [0, np.nan, 1])


# --- choosing and applying


def test_chosen_on_validation_and_applied_to_test(tmp_path):
    # validation: the target (row 4) is the farthest and has all the weight: the more share the better
    costs, weights = [[0.0, 1.0, 2.0, 3.0, 4.0]] * 2, [[0, 0, 0, 0, 1.0]] * 2
    validation = (make_split(costs, [4, 4]), rows_of(weights))
    # test: the target is the nearest, weights are against it: plain grounding would be perfect, and may not be chosen
    test = (make_split(costs, [0, 0], "t"), rows_of(weights))
    choice = rerank_method(
        tmp_path, "mix", validation, test, CATALOG, GRIDS["unit"], [1, 3], RankOptions(), weighted_by="scores"
    )
    assert choice.chosen["hr@1"] == 0.51  # at 1/2 both cost 1/2, and the earlier row wins
    results = score_folder(tmp_path, [1, 3], bootstrap=10)
    assert results["hr@1"] == 0.0 and results["hr@3"] == 1.0
    assert results["parameters"] == choice.chosen and results["parameter"] == "share"
    stored = json.loads((tmp_path / "choice.json").read_text())
    assert stored["parameters"] == choice.chosen and stored["grid"] == list(GRIDS["unit"])
    curve = pq.read_table(tmp_path / "curve.parquet")
    assert curve["share"].to_pylist() == list(GRIDS["unit"]) and curve["hr@1"].to_pylist() == [0.0] * 51 + [1.0] * 50


def test_targets_of_the_test_split_have_no_say(tmp_path):
    rng = np.random.default_rng(0)
    costs, weights = rng.random((40, 5)), rng.random((40, 5))
    targets = rng.integers(0, 5, 40).tolist()
    validation = (make_split(costs, targets), rows_of(weights))
    chosen = []
    for seed in range(3):
        drawn = np.random.default_rng(seed)
        test = (make_split(drawn.random((9, 5)), drawn.integers(0, 5, 9).tolist(), "t"), rows_of(drawn.random((9, 5))))
        folder = tmp_path / str(seed)
        choice = rerank_method(folder, "reweight", validation, test, CATALOG, GRIDS["movie"], [1, 3], RankOptions())
        chosen.append(choice.chosen)
    assert chosen[0] == chosen[1] == chosen[2]
    assert search("reweight", *validation, CATALOG, GRIDS["movie"], [1, 3], RankOptions()).chosen == chosen[0]


def test_shared_examples_are_refused(tmp_path):
    split = (make_split([[1.0, 2, 3, 4, 5]], [0]), rows_of([[0, 0, 0, 0, 1.0]]))
    with pytest.raises(BigrecError, match=r"1 of 1 validation examples are also evaluated \(such as 'v0'\)"):
        rerank_method(tmp_path, "mix", split, split, CATALOG, [0.0], [1], RankOptions())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("formula", ["reweight", "mix", "rrf"])
def test_ranks_by_metric_and_the_stored_ranking_agree(formula):
    rng = np.random.default_rng(1)
    costs, weights, targets = rng.random((30, 5)), rng.random((30, 5)), rng.integers(0, 5, 30).tolist()
    histories = [[(row + 1) % 5, -1] for row in targets]
    test = make_split(costs, targets, "t", ["x"] * 29 + [' "" '], histories)
    chosen = {"ndcg@1": 0.3, "hr@1": 0.9, "ndcg@10": 0.6}
    table, by_metric = apply_choice(
        formula, chosen, test, rows_of(weights), CATALOG, RankOptions(top_k=5, exclude="history"), encoder="e"
    )
    assert by_metric.column_names == ["example_id", "ndcg@1", "hr@1", "ndcg@10"]
    assert by_metric["ndcg@10"].to_pylist() == table["rank"].to_pylist()
    assert table_settings(table) == table_settings(by_metric)
    assert table_settings(table)["encoder"] == "e" and table_settings(table)["parameters"] == chosen
    rank, top, target = (table[name].to_pylist() for name in ("rank", "top_rows", "target"))
    assert rank[29] == 5 and top[29] == [] and table["empty"].to_pylist() == [False] * 29 + [True]
    assert table["in_catalog"].to_pylist() == [False] * 30
    for i in range(29):
        assert len(top[i]) == 4 and histories[i][0] not in top[i]
        same = [
            top[i].index(row) for row in range(5) if CATALOG.titles[row] == CATALOG.titles[target[i]] and row in top[i]
        ]
        assert rank[i] == min(same)


def test_the_scorer_uses_each_metrics_own_ranks(tmp_path):
    costs = np.array([[0.0, 1.0, 2.0, 3.0, 4.0]] * 3)
    weights = np.array([[0.0, 0.0, 0.0, 0.0, 1.0]] * 3)
    test = make_split(costs, [0, 4, 0], "t", ["x", "x", ""])
    table, by_metric = apply_choice(
        "mix", {"ndcg@1": 0.0, "hr@1": 1.0, "ndcg@10": 0.0}, test, rows_of(weights), CATALOG, RankOptions()
    )
    pq.write_table(table, tmp_path / "rankings.parquet")
    pq.write_table(by_metric, tmp_path / "ranks_by_metric.parquet")
    results = score_folder(tmp_path, [1], bootstrap=200)
    assert results["ndcg@1"] == pytest.approx(1 / 3) and results["hr@1"] == pytest.approx(1 / 3)
    per_example = pq.read_table(tmp_path / "per_example.parquet")
    assert per_example["ndcg@1"].to_pylist() == [1, 0, 0] and per_example["hr@1"].to_pylist() == [0, 1, 0]
    assert per_example["rank"].to_pylist() == [0, 4, 5]
    assert results["ndcg@1_low"] <= 1 / 3 <= results["ndcg@1_high"] and results["n_scored"] == 3
    results = score_folder(tmp_path, [1], drop_empty=True, bootstrap=0)
    assert (results["ndcg@1"], results["hr@1"], results["n_scored"], results["n_empty"]) == (0.5, 0.5, 2, 1)
    with pytest.raises(BigrecError, match=r"no parameter has been chosen for ndcg@3: run .* with these --ks"):
        score_folder(tmp_path, [3])
    other, _ = apply_choice("mix", {"ndcg@10": 0.5}, test, rows_of(weights), CATALOG, RankOptions())
    pq.write_table(other, tmp_path / "rankings.parquet")
    with pytest.raises(BigrecError, match="belongs to other rankings"):
        score_folder(tmp_path, [1])
    pq.write_table(table, tmp_path / "rankings.parquet")
    pq.write_table(by_metric.slice(1), tmp_path / "ranks_by_metric.parquet")
    with pytest.raises(BigrecError, match="belongs to other rankings"):
        score_folder(tmp_path, [1])


def test_equal_ranks_by_metric_change_nothing(tmp_path):
    """With one parameter for all, the scores and intervals are those of plain scoring."""
    rng = np.random.default_rng(2)
    test = make_split(rng.random((50, 5)), rng.integers(0, 5, 50).tolist(), "t")
    chosen = dict.fromkeys([f"{m}@{k}" for m in ("ndcg", "hr") for k in (1, 3, 10)], 0.4)
    table, by_metric = apply_choice("mix", chosen, test, rows_of(rng.random((50, 5))), CATALOG, RankOptions())
    pq.write_table(table, tmp_path / "rankings.parquet")
    plain = score_folder(tmp_path, [3], seed=3)
    pq.write_table(by_metric, tmp_path / "ranks_by_metric.parquet")
    assert score_folder(tmp_path, [3], seed=3) == plain


# --- the stage


def write_answers(path, dataset, split, texts):
    """generations.parquet of a split: the given texts in turn."""
    examples = load_examples(dataset, split)
    n = len(examples)
    columns = {name: examples[name] for name in (C.EXAMPLE_ID, C.TARGET, C.TARGET_TITLE, C.HISTORY)}
    columns |= {C.TEXTS: [[texts[i % len(texts)]] for i in range(n)], C.SCORES: [[0.0]] * n}
    columns |= dict.fromkeys((C.EMPTY, C.IN_CATALOG, C.IN_HISTORY), [False] * n)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({k: list(v) for k, v in columns.items()}, schema=GENERATIONS_SCHEMA), path)
    return columns[C.EXAMPLE_ID], columns[C.TARGET]


@pytest.fixture
def run_dir(tmp_path, tiny_prepared):
    """A run with answers and a collaborative model's scores that know the targets of both splits."""
    catalog, rng = load_catalog(tiny_prepared), np.random.default_rng(0)
    for folder, split in ((tmp_path / "validation", "validation"), (tmp_path, "test")):
        ids, targets = write_answers(
            folder / "finetuned/generations.parquet", tiny_prepared, split, [TITLES[3], "Heat (19", "", TITLES[7]]
        )
        scores = rng.standard_normal((len(ids), len(catalog))).astype(np.float32)
        scores[np.arange(len(ids)), targets] += 9.0
        write_scores(folder / "oracle/scores.safetensors", scores, ids, catalog, model="oracle")
    return tmp_path


def settings(run_dir, dataset, model, **rerank):
    return {
        "run": RunSettings(run_dir=str(run_dir)),
        "data": DataSettings(dataset=[dataset]),
        "model": ModelSettings(base_model=model),
        "ground": GroundSettings(top_k=5),
        "score": ScoreSettings(ks=[1, 3, 5], bootstrap=20),
        "rerank": RerankSettings(**rerank),
    }


def test_the_stage(run_dir, tiny_prepared, tiny_model_dir, capsys):
    options = {"formulas": ["reweight", "mix", "rrf"], "weights": ["popularity", "scores"], "scores": "oracle"}
    stage.main(**settings(run_dir, tiny_prepared, tiny_model_dir, **options))
    names = [f"finetuned_{name}" for name in ("popularity", "oracle", "mix_popularity", "mix_oracle", "rrf_oracle")]
    results = {name: json.loads((run_dir / name / "results.json").read_text()) for name in names}
    assert results["finetuned_oracle"]["hr@1"] == 0.0  # the closest item stays first, and is no target here
    assert results["finetuned_oracle"]["hr@3"] == 0.75  # all but the empty answers, 3 of 12
    assert results["finetuned_mix_oracle"]["hr@1"] > 0.5 and results["finetuned_rrf_oracle"]["hr@1"] > 0.5
    assert results["finetuned_popularity"]["parameter"] == "gamma" and results["finetuned_mix_oracle"]["n_empty"] == 3
    assert results["finetuned_oracle"]["test_scores"] == {"model": "oracle"}
    assert results["finetuned_oracle"]["weighted_by"] == "scores"
    grids = {name: json.loads((run_dir / name / "choice.json").read_text())["grid"] for name in names}
    assert [len(grids[name]) for name in names] == [100, 199, 101, 101, 101]
    printed = capsys.readouterr().out
    assert "rerank (finetuned_mix_oracle): share chosen on validation: ndcg@1 " in printed
    assert "| finetuned_rrf_popularity |" in printed
    assert not (run_dir / "validation/finetuned_mix_oracle").exists()


def test_a_single_choice_own_grid_and_own_files(run_dir, tiny_prepared, tiny_model_dir):
    given = {
        "validation_scores": str(run_dir / "validation/oracle/scores.safetensors"),
        "test_scores": str(run_dir / "oracle/scores.safetensors"),
    }
    options = {"weights": ["scores", "both"], "gamma_values": [0.0, 2.5], "choose_by": "hr@3", **given}
    stage.main(**settings(run_dir, tiny_prepared, tiny_model_dir, **options))
    results = json.loads((run_dir / "finetuned_scores/results.json").read_text())
    assert set(results["parameters"].values()) == {2.5} and results["choose_by"] == "hr@3"
    assert json.loads((run_dir / "finetuned_both/results.json").read_text())["weighted_by"] == "both"


def test_the_stage_refuses_to_choose_on_what_it_evaluates(run_dir, tiny_prepared, tiny_model_dir):
    good = settings(run_dir, tiny_prepared, tiny_model_dir)
    with pytest.raises(BigrecError, match="split is 'validation': a parameter chosen there cannot be evaluated"):
        stage.main(**{**good, "data": DataSettings(dataset=[tiny_prepared], split="validation")})
    file = run_dir / "validation/finetuned/generations.parquet"
    answers = pq.read_table(file)
    test = pq.read_table(run_dir / "finetuned/generations.parquet")
    pq.write_table(pa.concat_tables([answers, test.slice(0, 1)]), file)
    with pytest.raises(BigrecError, match=r"1 of 13 examples to choose on .* are not in the validation split"):
        stage.main(**good)
    catalog = DataSettings(catalog=tiny_prepared)  # the split is unknown here: shared examples are still refused
    with pytest.raises(BigrecError, match="1 of 13 validation examples are also evaluated"):
        stage.main(**{**good, "data": catalog})
    write_answers(file, tiny_prepared, "train", ["x"])
    with pytest.raises(BigrecError, match="are not in the validation split"):
        stage.main(**good)
    file.unlink()
    with pytest.raises(BigrecError, match=r"validation/finetuned/generations.parquet does not exist"):
        stage.main(**good)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formulas": ["product"]}, "formulas: 'product': choose among reweight, mix, rrf"),
        ({"weights": []}, "weights: empty: choose among popularity, scores, both"),
        ({"weights": ["scores"]}, "name it with --scores"),
        ({"weights": ["scores"], "scores": "sasrec"}, r"validation/sasrec/scores.safetensors does not exist"),
        ({"gamma_values": [0.0, 400.0]}, "gamma = 400"),
        ({"formulas": ["mix"], "share_values": [2.0]}, "share = 2"),
        ({"choose_by": "best"}, "'best' is not a metric"),
    ],
)
def test_wrong_settings(run_dir, tiny_prepared, tiny_model_dir, options, message):
    with pytest.raises(BigrecError, match=message):
        stage.main(**settings(run_dir, tiny_prepared, tiny_model_dir, **options))
    assert sorted(path.name for path in run_dir.iterdir() if path.name != "index") == [
        "finetuned",
        "oracle",
        "validation",
    ]


def test_popularity_needs_the_sets_own_rows(run_dir, tiny_prepared, tiny_model_dir, tmp_path):
    swapped = tmp_path / "id2name.txt"
    titles = load_catalog(tiny_prepared).titles
    swapped.write_text("".join(f"{title}\t{row}\n" for row, title in enumerate(titles[::-1])), encoding="utf-8")
    for folder in (run_dir, run_dir / "validation"):
        file = folder / "finetuned/generations.parquet"
        table = pq.read_table(file)
        column = pa.array([-1] * len(table), pa.int32())
        pq.write_table(table.set_column(table.column_names.index("target"), "target", column), file)
    with pytest.raises(BigrecError, match="rows are not the items of"):
        stage.main(
            **{
                **settings(run_dir, tiny_prepared, tiny_model_dir),
                "data": DataSettings(dataset=[tiny_prepared], catalog=str(swapped)),
            }
        )


def test_the_command(run_dir, tiny_prepared, tiny_model_dir, capsys):
    arguments = [
        "--run_dir",
        str(run_dir),
        "--dataset",
        tiny_prepared,
        "--base_model",
        tiny_model_dir,
        "--ks",
        "1",
        "5",
    ]
    assert cli(["rerank", *arguments, "--weights", "popularity", "--formulas", "mix", "--bootstrap", "0"]) == 0
    assert "finetuned_mix_popularity" in capsys.readouterr().out
    assert cli(["rerank", *arguments, "--split", "validation"]) == 2
    assert "cannot be evaluated there" in capsys.readouterr().err


# --- texts: history


def test_history_by_hand():
    """Items on a line at 0, 1, 5, 6, 20; the closest of the two latest history items counts."""
    index = CatalogIndex(CATALOG, np.array([[0.0], [1.0], [5.0], [6.0], [20.0]], np.float32), {})
    answers = Answers(["a", "b", "c"], [""] * 3, [1, 1, 1], [[4, 0, 2], [-1], [3]])
    split = history_split(answers, index, 2)
    np.testing.assert_allclose(split.costs(0, 3), [[0, 1, 0, 1, 15], [0] * 5, [6, 5, 1, 0, 14]], atol=1e-9)
    np.testing.assert_allclose(split.costs(2, 3), [[6, 5, 1, 0, 14]], atol=1e-9)
    assert split.answers.texts == ["three", "", "two"] and list(split.empty) == [False, True, False]


@pytest.fixture
def history_settings(run_dir, tiny_prepared, tiny_model_dir):
    given = settings(run_dir, tiny_prepared, tiny_model_dir, texts="history", formulas=["mix"], weights=["scores"])
    given["rerank"] = replace(given["rerank"], scores="oracle")
    return given | {"ground": GroundSettings(top_k=5, exclude="history")}


def test_history_stage(run_dir, history_settings, capsys):
    for folder in (run_dir, run_dir / "validation"):  # the LM's answers are not read
        (folder / "finetuned/generations.parquet").unlink()
    stage.main(**history_settings)
    results = {
        name: json.loads((run_dir / name / "results.json").read_text()) for name in ("history", "history_mix_oracle")
    }
    assert results["history_mix_oracle"]["hr@1"] > 0.9  # the oracle knows the targets
    assert results["history_mix_oracle"]["base_method"] == "history" and results["history"]["history_items"] == 10
    assert "history_mix_oracle" in capsys.readouterr().out
    index = load_index(run_dir / "index")
    table = pq.read_table(run_dir / "history/rankings.parquet")
    rows = {row["example_id"]: row for row in load_config(history_settings["data"].dataset[0], "default", "test")}
    assert len(table) == len(rows)
    for ranked in table.to_pylist():  # brute force: distances to the closest history title, the history left out
        example = rows[ranked["example_id"]]
        history = [row for row in example["history"] if row >= 0][-10:]
        gaps = index.embeddings[:, None].astype(float) - index.embeddings[history][None]
        cost = np.sqrt((gaps**2).sum(-1)).min(axis=1)
        left = [row for row in range(len(cost)) if row not in set(example["history"])]
        order = sorted(left, key=lambda row: (round(cost[row], 9), row))
        assert ranked["top_rows"] == order[: len(ranked["top_rows"])]


def test_history_refusals(history_settings, tmp_path):
    with pytest.raises(BigrecError, match="add --exclude history"):
        stage.main(**history_settings | {"ground": GroundSettings()})
    with pytest.raises(BigrecError, match="name one with --dataset"):
        stage.main(**history_settings | {"data": DataSettings(catalog=history_settings["data"].dataset[0])})
    titles = load_catalog(history_settings["data"].dataset[0]).titles
    swapped = tmp_path / "id2name.txt"
    swapped.write_text("".join(f"{title}\t{row}\n" for row, title in enumerate(titles[::-1])), encoding="utf-8")
    data = replace(history_settings["data"], catalog=str(swapped))
    with pytest.raises(BigrecError, match="omit --catalog"):
        stage.main(**history_settings | {"data": data})


@pytest.mark.parametrize("name", ["history", "history_mix_oracle"])
def test_a_kill_leaves_no_results_of_other_rankings(run_dir, history_settings, monkeypatch, name):
    stage.main(**history_settings)
    assert (run_dir / name / "results.json").is_file()

    def killed(folder, *args, **options):
        if folder.name == name:
            raise KeyboardInterrupt
        return score_folder(folder, *args, **options)

    monkeypatch.setattr(stage, "score_folder", killed)
    history_settings["rerank"] = replace(history_settings["rerank"], history_items=1)
    with pytest.raises(KeyboardInterrupt):
        stage.main(**history_settings)
    assert not (run_dir / name / "results.json").exists()
    assert table_settings(pq.read_table(run_dir / name / "rankings.parquet"))["history_items"] == 1


@pytest.mark.parametrize(
    "column, value, message",
    [
        (C.EXAMPLE_ID, "same", "the example 'same' occurs twice"),
        (C.HISTORY, [5000], "contains row 5000, but the catalog ends at row"),
        (C.TARGET_TITLE, None, "has no target_title"),
    ],
)
def test_answers_that_do_not_fit(run_dir, history_settings, column, value, message):
    file = run_dir / "finetuned/generations.parquet"
    table = pq.read_table(file)
    values = pa.array([value] * 2 + table[column].to_pylist()[2:], GENERATIONS_SCHEMA.field(column).type)
    pq.write_table(table.set_column(table.column_names.index(column), column, values), file)
    for texts in ("history", "answers"):
        history_settings["rerank"] = replace(history_settings["rerank"], texts=texts)
        with pytest.raises(BigrecError, match=message):
            stage.main(**history_settings)
