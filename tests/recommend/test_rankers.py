"""All rankers of a run: for the test examples they give the run's own rankings; rules of seen items and candidates."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
import pytest

from bigrec_hf import Recommender, cli, recommend_frame
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.examples import load_examples
from bigrec_hf.hub.histories import ItemChoice, choose_items
from bigrec_hf.recommend.mixes import Histories
from bigrec_hf.recommend.priors import prior_of, with_weight
from bigrec_hf.recommend.rankers import Rankers
from tests.helpers.tiny import TITLES
from tests.helpers.tiny_run import make_run, run_histories

FORMULAS, WEIGHTS = ("reweight", "mix", "rrf"), ("sasrec", "popularity", "both")
MIXES = [f"finetuned_{f}_{w}".replace("reweight_", "") for f in FORMULAS for w in WEIGHTS]
CONSTRAINED = "finetuned_constrained_hybrid"
POOLS = ["finetuned_pool_ease_popularity", "ease_popularity_pool"]


@pytest.fixture(scope="module")
def rankers(dense_run):
    return Rankers(dense_run)


def as_histories(run_dir):
    examples = load_examples(str(run_dir / "data"), "test", sample=10)
    return Histories(list(examples["history_titles"]), list(examples["history"]))


def same_as_the_run(rankers, run_dir, name, *, exclude_seen=False):
    assert name in rankers.names()
    histories = as_histories(run_dir)
    choice = choose_items(histories.titles, rankers.catalog, 5, exclude_seen=exclude_seen)
    found = rankers.rank(name)(histories, choice)
    table = pq.read_table(run_dir / name / "rankings.parquet")
    for one, rows, costs in zip(found, table["top_rows"].to_pylist(), table["top_distances"].to_pylist(), strict=True):
        assert [item.row for item in one.items] == rows
        assert [-item.score for item in one.items] == pytest.approx(costs, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", ["finetuned", "ease", "itemknn", "popularity", "cooccurrence", *POOLS])
def test_the_runs_own_rankings(rankers, dense_run, name):
    same_as_the_run(rankers, dense_run, name)


@pytest.mark.parametrize(("run", "stage", "names"), [("dense_run", "pool", POOLS), ("distance_run", "rerank", MIXES)])
def test_the_rankings_of_a_run_that_excludes_the_history(run, stage, names, request, tmp_path):
    run_dir = shutil.copytree(request.getfixturevalue(run), tmp_path / "run")
    common = ["--config", str(run_dir / "recipe.yaml"), "--run_dir", str(run_dir), "--exclude", "history", "--debug"]
    assert cli.main(["ground", *common]) == 0
    assert cli.main([stage, *common]) == 0
    rankers = Rankers(run_dir)
    for name in ("finetuned", *names):
        same_as_the_run(rankers, run_dir, name, exclude_seen=True)


@pytest.fixture(scope="module")
def distance_run(raw_movies, tiny_model_dir, tmp_path_factory):
    """A run that ranks by distance, with SASRec."""
    sasrec = {"sasrec_dim": 8, "sasrec_layers": 1, "sasrec_heads": 1, "sasrec_epochs": 2, "sasrec_batch_size": 16}
    return make_run(
        tmp_path_factory.mktemp("distance"),
        raw_movies,
        tiny_model_dir,
        pipeline={"baselines": ["popularity"], "rankers": ["sasrec", "rerank", "constrained"], "constrained_beams": 3},
        sasrec=sasrec,
        rerank={"formulas": [*FORMULAS], "weights": ["scores", "popularity", "both"], "scores": "sasrec"},
    )


@pytest.mark.parametrize("name", ["finetuned", "sasrec", CONSTRAINED, *MIXES])
def test_a_run_by_distance_with_sasrec(distance_run, name):
    same_as_the_run(Rankers(distance_run), distance_run, name)


def test_another_decoding_is_offered_only_for_the_same_model(distance_run, tmp_path):
    assert Rankers(distance_run).names()[-1] == CONSTRAINED  # not finetuned_constrained, which the run has not ranked
    run_dir = shutil.copytree(distance_run, tmp_path / "run")
    record = run_dir / "finetuned_constrained" / "generate.json"
    facts = json.loads(record.read_text())
    record.write_text(json.dumps(facts | {"adapter_sha256": "of another"}))
    assert CONSTRAINED not in Rankers(run_dir).names()


def test_titles_of_constrained_beams_come_first(distance_run):
    histories = as_histories(distance_run)
    choice = choose_items(histories.titles, Rankers(distance_run).catalog, 20, exclude_seen=True)
    found = Rankers(distance_run).rank(CONSTRAINED)(histories, choice)
    for one, rows in zip(found, histories.rows, strict=True):
        beams = [title for title in one.texts if TITLES.index(title) not in rows]
        assert [item.title for item in one.items][: len(beams)] == beams and len(one.texts) == 3
        rest = [item.score for item in one.items][len(beams) :]
        assert rest == sorted(rest, reverse=True)
    scores = {str(item.score) for one in found for item in one.items}
    assert "0.0" in scores and "-0.0" not in scores  # a first text that is a title is at distance 0


def test_choices_for_the_other_kind_of_run_are_not_served(dense_run, distance_run, tmp_path):
    run_dir = shutil.copytree(dense_run, tmp_path / "run")
    shutil.copytree(distance_run / MIXES[0], run_dir / MIXES[0])
    assert MIXES[0] in Rankers(distance_run).names()
    assert MIXES[0] not in Rankers(run_dir).names()


@pytest.mark.parametrize(
    ("run", "name"),
    [
        ("dense_run", "finetuned"),
        ("dense_run", "ease"),
        ("dense_run", POOLS[0]),
        ("distance_run", "finetuned_rrf_both"),
        ("distance_run", CONSTRAINED),
    ],
)
def test_seen_items_and_other_candidates_never_come(run, name, request):
    run_dir = request.getfixturevalue(run)
    rankers, histories = Rankers(run_dir), as_histories(run_dir)
    choice = choose_items(histories.titles, rankers.catalog, 100, exclude_seen=True)
    everything = rankers.rank(name)(histories, choice)
    for one, rows in zip(everything, histories.rows, strict=True):
        assert sorted([item.row for item in one.items] + sorted(set(rows))) == list(range(len(TITLES)))
    choice = choose_items(histories.titles, rankers.catalog, 3, exclude_seen=True, candidates=np.array([2, 5, 7, 11]))
    for one, rows in zip(rankers.rank(name)(histories, choice), histories.rows, strict=True):
        assert {item.row for item in one.items} <= {2, 5, 7, 11} - set(rows)
        assert len(one.items) == min(3, len({2, 5, 7, 11} - set(rows)))


def test_unknown_rankers_and_those_without_data(rankers, tiny_run, tmp_path):
    with pytest.raises(BigrecError, match="has no ranker 'svd': choose among finetuned, ease"):
        rankers.rank("svd")
    saved = Recommender.from_pretrained(tiny_run).save_pretrained(tmp_path / "saved")
    alone = Rankers(saved)
    assert alone.names() == ["finetuned", CONSTRAINED]
    (one,) = alone.popularity(1, ItemChoice(3))
    counts = alone.train_counts
    assert [item.row for item in one.items] == sorted(range(20), key=lambda row: (-counts[row], row))[:3]
    # with the set they are chosen on validation, as the stage does
    with_data = Rankers(saved, str(tiny_run / "data"))
    assert "ease" in with_data.names()
    assert len(with_data.rank("ease")(Histories([[TITLES[0]]], [[0]]), ItemChoice(3))[0].items) == 3


@pytest.mark.parametrize(("run", "name"), [("dense_run", POOLS[0]), ("distance_run", MIXES[0])])
def test_the_chosen_weight_of_the_prior_gives_the_chosen_ranking(run, name, request):
    run_dir = request.getfixturevalue(run)
    rankers, histories = Rankers(run_dir), as_histories(run_dir)
    choice = choose_items(histories.titles, rankers.catalog, 20, exclude_seen=False)

    def ranked(ranker, weight=None):
        return [[item.row for item in one.items] for one in rankers.rank(ranker, weight)(histories, choice)]

    chosen = rankers.prior(name).chosen
    assert ranked(name, chosen) == ranked(name)
    assert ranked(name, 0.0) == ranked("finetuned")
    assert ranked(name, chosen + 50.0) != ranked(name, 0.0)
    assert ranked("finetuned", 0.0) == ranked("finetuned")


def test_weights_of_priors():
    pool = {"weights": {"finetuned": 0.5, "ease": 6.0, "popularity": 2.0}}
    assert prior_of(pool) == ("ease + popularity", 8.0, 16.0, float("inf"))
    assert with_weight(pool, 4.0) == {"weights": {"finetuned": 0.5, "ease": 3.0, "popularity": 1.0}}
    useless = {"weights": {"finetuned": 0.5, "ease": 0.0, "popularity": 0.0}}
    assert with_weight(useless, 4.0)["weights"] == {"finetuned": 0.5, "ease": 2.0, "popularity": 2.0}
    without = {"weights": {"finetuned": 0.0, "ease": 1.5}}  # the language model alone, where the pool gave it no weight
    assert with_weight(without, 0.0)["weights"] == {"finetuned": 1.0, "ease": 0.0}
    assert with_weight(without, 1.5)["weights"] == without["weights"]
    mix = {"weighted_by": "both", "validation_scores": {"model": "sasrec"}, "formula": "mix"}
    mix["parameters"] = {"ndcg@10": 0.3, "hr@1": 0.1}
    assert prior_of(mix) == ("sasrec + popularity", 0.3, 1.0, 1.0)
    assert with_weight(mix, 0.2)["parameters"] == {"ndcg@10": 0.2}
    assert prior_of({"weights": {"ease": 1.0, "popularity": 1.0}}) is None
    for weight in (-0.1, 1.1, float("nan")):
        with pytest.raises(BigrecError, match="give a number from 0 to 1 "):
            with_weight(mix, weight)
    with pytest.raises(BigrecError, match="prior_weight is inf"):
        with_weight(pool, float("inf"))


def test_frames_in_and_out(dense_run):
    histories, _ = run_histories(dense_run)
    recommender = Recommender.from_pretrained(dense_run)
    frame = pl.DataFrame({"user": list(range(7, 17)), "history": histories})
    found = recommend_frame(frame, recommender, top_k=3, batch_users=4)
    assert isinstance(found, pl.DataFrame)
    assert found.columns == ["user", "rank", "item_id", "title", "score", "text", "fallback"]
    assert found["user"].to_list() == [user for user in range(7, 17) for _ in range(3)]
    expected = [item for one in recommender.recommend(histories, 3) for item in one.items]
    assert found["item_id"].to_list() == [item.item_id for item in expected]
    assert found["score"].to_list() == pytest.approx([item.score for item in expected], rel=1e-5)
    # the same as a long table of ids in pandas
    rows = [(7 + n, str(TITLES.index(title) + 1), at) for n, h in enumerate(histories) for at, title in enumerate(h)]
    long = pd.DataFrame(rows, columns=["userId", "itemId", "timestamp"]).sample(frac=1, random_state=0)
    again = recommend_frame(long, recommender, top_k=3)
    assert isinstance(again, pd.DataFrame)
    by_user = [dict(table.groupby("user")["item_id"].apply(list)) for table in (again, found.to_pandas())]
    assert by_user[0] == by_user[1]
    assert recommend_frame(frame.head(0), recommender).shape == (0, 7)
    one = recommend_frame(frame, recommender, ranker="ease", candidates=[TITLES[4]], exclude_seen=False)
    assert one["title"].to_list() == [TITLES[4]] * 10 and one["text"].to_list() == [None] * 10


def test_users_for_whom_no_item_is_left_are_counted(dense_run, tmp_path, capsys):
    frame = pl.DataFrame({"user": ["a", "b"], "history": [[TITLES[0]], [TITLES[1]]]})
    found = recommend_frame(frame, str(dense_run), ranker="ease", candidates=[TITLES[0]])
    said = "users without any item: 1 (all candidates are in their history, or the model wrote no title)"
    assert found["user"].to_list() == ["b"] and said in capsys.readouterr().out
    frame.write_parquet(tmp_path / "users.parquet")
    (tmp_path / "one.txt").write_text(TITLES[0])
    flags = ["--histories", tmp_path / "users.parquet", "--candidates", tmp_path / "one.txt", "--ranker", "ease"]
    output = ["--run_dir", dense_run, "--output", tmp_path / "recs.csv"]
    assert cli.main(["recommend", *map(str, [*flags, *output])]) == 0
    assert said in capsys.readouterr().out
    assert json.loads((tmp_path / "recs.csv.json").read_text())["users_without_items"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [({"batch_users": 0}, "batch_users is 0: expected at least 1"), ({"items_are": "title"}, "did you mean 'titles'?")],
)
def test_options_of_frames_are_checked(dense_run, options, message):
    with pytest.raises(BigrecError, match=message):
        recommend_frame(pl.DataFrame({"user": ["a"], "title": [TITLES[0]]}), str(dense_run), **options)


def test_users_without_a_known_title_get_the_popular_items(dense_run, capsys):
    frame = pl.DataFrame({"user": ["new", "b", "lost"], "history": [[], [TITLES[0]], ["Nothing (1900)"]]})
    found = recommend_frame(frame, str(dense_run), top_k=2)
    assert "'Nothing (1900)', 1 times" in capsys.readouterr().out
    flags = dict(zip(found["user"], found["fallback"], strict=True))
    assert flags == {"new": True, "b": False, "lost": True}
    popular = [title for user, title in zip(found["user"], found["title"], strict=True) if user == "new"]
    assert popular == [title for user, title in zip(found["user"], found["title"], strict=True) if user == "lost"]
    assert found.filter(pl.col("user") == "new")["text"].to_list() == [None, None]
