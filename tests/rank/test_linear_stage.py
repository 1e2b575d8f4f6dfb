"""The `linear` stage on the tiny set: files, choice on validation only, scores that others can mix."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import load_catalog
from bigrec_hf.data.item_scores import read_scores
from bigrec_hf.rank.baselines import stage
from bigrec_hf.settings import DataSettings, GroundSettings, LinearSettings, RunSettings, ScoreSettings

LINEAR = LinearSettings(
    linear_decays=[1.0, 0.5],
    ease_lambdas=[1.0, 10.0],
    itemknn_neighbors=[3],
    itemknn_shrinkages=[0.0],
)


def linear(folder, prepared, **changes):
    settings = {"score": ScoreSettings(ks=[1, 5], bootstrap=20), "linear": LINEAR, "ground": GroundSettings(top_k=5)}
    settings |= changes
    data = DataSettings(dataset=[prepared], eval_sample=0)
    stage.main(RunSettings(run_dir=str(folder)), data, settings["ground"], settings["score"], settings["linear"])


def test_both_models_are_chosen_ranked_and_scored_on_both_splits(tiny_prepared, tmp_path, capsys):
    linear(tmp_path, tiny_prepared)
    catalog = load_catalog(tiny_prepared)
    for place in (tmp_path, tmp_path / "validation"):
        for name in ("ease", "itemknn"):
            rankings = pq.read_table(place / name / "rankings.parquet")
            scores = read_scores(place / name / "scores.safetensors", rankings[C.EXAMPLE_ID].to_pylist(), catalog)
            targets = pq.read_table(place / name / "per_example.parquet")
            assert len(targets) == len(scores) == 12
            first = [rows[0] for rows in rankings[C.TOP_ROWS].to_pylist()]
            assert first == np.argmax(scores, axis=1).tolist()
    choice = json.loads((tmp_path / "ease" / "choice.json").read_text())
    assert len(choice["tried"]) == 4
    assert max(row["ndcg@10"] for row in choice["tried"]) == next(
        row["ndcg@10"] for row in choice["tried"] if {k: row[k] for k in choice["chosen"]} == choice["chosen"]
    )
    assert "chosen on 12 validation examples" in capsys.readouterr().out


def test_unknown_models_and_missing_data_are_named(tiny_prepared, tmp_path):
    with pytest.raises(BigrecError, match="'svd': choose among ease, itemknn"):
        linear(tmp_path, tiny_prepared, linear=replace(LINEAR, linear_models=["svd"]))
    with pytest.raises(BigrecError, match="linear_models: empty"):
        linear(tmp_path, tiny_prepared, linear=replace(LINEAR, linear_models=[]))
    with pytest.raises(BigrecError, match="ease_max_items"):
        linear(tmp_path, tiny_prepared, linear=replace(LINEAR, ease_max_items=5))
    with pytest.raises(BigrecError, match="--dataset"):
        stage.main(RunSettings(run_dir="x"), DataSettings(), GroundSettings(), ScoreSettings(), LINEAR)
