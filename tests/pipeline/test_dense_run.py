"""A run with the dense objective: titles scored exactly, ranked by probability, pooled with SASRec on validation."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bigrec_hf import cli
from bigrec_hf.common.columns import Columns as C
from bigrec_hf.data.catalog import load_catalog
from bigrec_hf.data.item_scores import read_scores
from tests.helpers.tiny_run import DENSE, make_run

SASREC = {"sasrec_dim": 8, "sasrec_layers": 1, "sasrec_heads": 1, "sasrec_epochs": 2, "sasrec_batch_size": 16}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, raw_movies, tiny_model_dir) -> Path:
    return make_run(
        tmp_path_factory.mktemp("dense"),
        raw_movies,
        tiny_model_dir,
        pipeline={"baselines": ["popularity", "zero_shot"], "rankers": ["sasrec", "pool"]},
        **DENSE,
        sasrec=SASREC,
        pool={"pool_models": ["sasrec", "popularity"]},
    )


def test_every_method_is_ranked_and_nothing_was_embedded(run_dir):
    names = {"finetuned", "zero_shot", "popularity", "sasrec"}
    names |= {"finetuned_pool_sasrec_popularity", "sasrec_popularity_pool"}
    for name in names:
        assert (run_dir / name / "results.json").is_file(), name
    assert not (run_dir / "index").exists()


@pytest.mark.parametrize("method", ["finetuned", "zero_shot"])
def test_ranks_follow_the_scores_which_are_probabilities(run_dir, method):
    catalog = load_catalog(str(run_dir / "data"))
    generations = pq.read_table(run_dir / method / "generations.parquet")
    ids = generations[C.EXAMPLE_ID].to_pylist()
    scores = read_scores(run_dir / method / "scores.safetensors", ids, catalog)
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1, atol=1e-4)
    ranks = pq.read_table(run_dir / method / "rankings.parquet")[C.RANK].to_pylist()
    targets = generations[C.TARGET].to_pylist()
    assert ranks == [int((row > row[target]).sum()) for row, target in zip(scores, targets, strict=True)]
    first = [texts[0] for texts in generations[C.TEXTS].to_pylist()]
    assert first == [catalog.titles[row.argmax()] for row in scores]


def test_a_pool_adds_up_its_models_by_the_weights_it_shows(run_dir):
    catalog = load_catalog(str(run_dir / "data"))
    counts = np.log1p(pq.read_table(next((run_dir / "data/data/items").glob("*.parquet")))[C.TRAIN_COUNT].to_numpy())
    pools = {"finetuned_pool_sasrec_popularity": ["finetuned", "sasrec"], "sasrec_popularity_pool": ["sasrec"]}
    for method, parts in pools.items():
        choice = json.loads((run_dir / method / "choice.json").read_text())
        assert list(choice["weights"]) == [*parts, "popularity"]
        rankings = pq.read_table(run_dir / method / "rankings.parquet")
        ids = rankings[C.EXAMPLE_ID].to_pylist()
        expected = choice["weights"]["popularity"] * counts
        for part in parts:
            expected = expected + choice["weights"][part] * read_scores(
                run_dir / part / "scores.safetensors", ids, catalog
            )
        np.testing.assert_allclose(
            read_scores(run_dir / method / "scores.safetensors", ids, catalog), expected, rtol=1e-5, atol=1e-5
        )
        assert choice["test"]["examples"] == len(ids)
        for split in ("validation", "test"):
            assert list(choice[split]["added_by"]) == list(choice["weights"])
            assert all(low <= gain <= high for gain, low, high in choice[split]["added_by"].values())


def test_what_a_model_adds_on_test_examples_is_the_difference_to_the_pool_of_the_others(run_dir):
    pools = ("finetuned_pool_sasrec_popularity", "sasrec_popularity_pool")
    whole, rest = (json.loads((run_dir / name / "choice.json").read_text())["test"] for name in pools)
    assert whole["added_by"]["finetuned"][0] == pytest.approx(rest["nats"] - whole["nats"])


def test_a_narrow_walk_keeps_the_first_title_and_a_second_run_keeps_everything(run_dir, tmp_path, capsys):
    recipe = run_dir / "recipe.yaml"
    assert cli.main(["run", "--config", str(recipe), "--run_dir", str(run_dir)]) == 0
    assert "done and unchanged" in capsys.readouterr().out
    options = ["--method", "narrow", "--exact_width", "1", "--adapter", str(run_dir / "adapter"), "--debug"]
    assert cli.main(["generate", "--config", str(recipe), "--run_dir", str(run_dir), *options]) == 0
    catalog = load_catalog(str(run_dir / "data"))
    ids = pq.read_table(run_dir / "narrow" / "generations.parquet")[C.EXAMPLE_ID].to_pylist()
    scores = read_scores(run_dir / "narrow" / "scores.safetensors", ids, catalog)
    np.testing.assert_allclose(np.exp(scores).sum(axis=1), 1, atol=1e-4)


@pytest.mark.parametrize("flags", [["--decoding", "beam"], ["--ranking", "distance"]])
def test_exact_scores_and_their_ranking_go_together(run_dir, flags, capsys):
    assert cli.main(["run", "--config", str(run_dir / "recipe.yaml"), *flags]) == 2
    assert "set both or neither" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--pool_models", "ease"], "does not exist: make it with `bigrec-hf linear` .* choose among .*sasrec"),
        (["--pool_models", "popularity", "--ks", "1", "5000"], "--ks: K=5000 is larger than the catalog"),
    ],
)
def test_a_pool_that_cannot_be_made_writes_nothing(run_dir, tmp_path, flags, words, capsys):
    shutil.copytree(run_dir, tmp_path / "run")
    recipe = ["--config", str(run_dir / "recipe.yaml"), "--run_dir", str(tmp_path / "run")]

    def content() -> list[Path]:
        return sorted(p for p in (tmp_path / "run").rglob("*") if p.is_file() and not p.name.startswith(".lock"))

    before = content()
    assert cli.main(["pool", *recipe, *flags]) == 2
    assert re.search(words, capsys.readouterr().err)
    assert content() == before


def test_a_pool_needs_validation_examples(run_dir, tmp_path, capsys):
    shutil.copytree(run_dir, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "validation")
    assert cli.main(["pool", "--config", str(run_dir / "recipe.yaml"), "--run_dir", str(tmp_path / "run")]) == 2
    assert "`bigrec-hf generate --split validation --output_dir" in capsys.readouterr().err
