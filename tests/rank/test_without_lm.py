"""The `baselines` stage: all methods without a language model, each as its own stage gives it; the report on them."""

from __future__ import annotations

import json
from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.rank import without_lm
from bigrec_hf.rank.baselines import stage as linear_stage
from bigrec_hf.rank.sasrec import stage as sasrec_stage
from bigrec_hf.report.stage import build_report
from bigrec_hf.settings import (
    BaselinesSettings,
    DataSettings,
    GroundSettings,
    LinearSettings,
    RunSettings,
    SasrecSettings,
    ScoreSettings,
)

LINEAR = LinearSettings(linear_decays=[1.0], ease_lambdas=[10.0], itemknn_neighbors=[3], itemknn_shrinkages=[0.0])
GROUND = GroundSettings(top_k=5)
SASREC = SasrecSettings(sasrec_dim=8, sasrec_layers=1, sasrec_heads=1, sasrec_epochs=1)
WITHOUT_SASREC = ("random", "popularity", "cooccurrence", "itemknn", "ease")


def baselines(folder, prepared, *, sasrec=False, ground=GROUND, linear=LINEAR):
    run, data = RunSettings(run_dir=str(folder)), DataSettings(dataset=[prepared], eval_sample=0)
    score = ScoreSettings(ks=[1, 5], bootstrap=20)
    without_lm.main(run, data, ground, score, BaselinesSettings(sasrec=sasrec), linear, SASREC)


def test_everything_without_a_language_model_is_scored_and_reported(tiny_prepared, tmp_path, capsys):
    folder = tmp_path / "run"
    baselines(folder, tiny_prepared, sasrec=True)
    shown = capsys.readouterr().out
    for name in (*WITHOUT_SASREC, "sasrec"):
        assert json.loads((folder / name / "results.json").read_text())["n_examples"] == 12
        assert name in shown
    linear_stage.main(
        RunSettings(run_dir=str(tmp_path / "alone")),
        DataSettings(dataset=[tiny_prepared], eval_sample=0),
        GroundSettings(top_k=5),
        ScoreSettings(ks=[1, 5], bootstrap=20),
        LINEAR,
    )
    for name in ("ease", "itemknn"):  # as the stage itself gives them
        together, alone = (pq.read_table(tmp_path / place / name / "rankings.parquet") for place in ("run", "alone"))
        assert together.equals(alone)
    report = build_report([folder])
    for label in ("random", "popularity", "co-occurrence", "ItemKNN", "EASE", "SASRec"):
        assert f"| {label} |" in report
    assert "(bigrec-movie), 24 users, 20 items" in report
    assert "- SASRec: 24 training sequences, 1 epochs" in report


def test_a_run_of_one_stage_and_a_single_method_are_described(tiny_prepared, tmp_path):
    command = ["--dataset", tiny_prepared, "--eval_sample", "0", "--ks", "1", "5", "--bootstrap", "20"]
    sasrec = [f"--{name}={value}" for name, value in vars(SASREC).items()]
    assert cli.main(["sasrec", "--run_dir", str(tmp_path / "r"), *command, *sasrec, "--debug"]) == 0
    report = build_report([tmp_path / "r"])
    assert "(bigrec-movie), 24 users" in report
    single = build_report([tmp_path / "r" / "sasrec"])  # any folder with a results.json
    table = [line for line in report.splitlines() if line.startswith("| SASRec |")]
    assert table and [line for line in single.splitlines() if line.startswith("| SASRec |")] == table


def test_seen_items_are_left_out_of_every_baseline(tiny_prepared, tmp_path):
    baselines(tmp_path, tiny_prepared, ground=GroundSettings(top_k=5, exclude="seen"))
    for name in WITHOUT_SASREC:
        assert json.loads((tmp_path / name / "results.json").read_text())["exclude"] == "seen"


@pytest.mark.parametrize("exclude", ["none", "history", "seen"])
def test_sasrecs_choice_of_epoch_and_logged_best_follow_exclude(tiny_prepared, tmp_path, exclude):
    data = DataSettings(dataset=[tiny_prepared], eval_sample=0)
    ground, score = GroundSettings(top_k=5, exclude=exclude), ScoreSettings(ks=[10], bootstrap=0)
    sasrec_stage.main(RunSettings(run_dir=str(tmp_path)), data, ground, score, replace(SASREC, sasrec_epochs=3))
    training = json.loads((tmp_path / "sasrec/training.json").read_text())
    validation = json.loads((tmp_path / "validation/sasrec/results.json").read_text())
    assert (training["exclude"], validation["exclude"]) == (exclude, exclude)
    assert training["best_validation_ndcg@10"] == pytest.approx(validation["ndcg@10"], abs=1e-12)


def test_a_catalog_too_large_for_ease_leaves_the_others(tiny_prepared, tmp_path, capsys):
    baselines(tmp_path, tiny_prepared, linear=replace(LINEAR, ease_max_items=5))
    assert "ease: left out, the catalog has 20 items (--ease_max_items 5)" in capsys.readouterr().out
    assert not (tmp_path / "ease").exists() and (tmp_path / "itemknn" / "results.json").is_file()


def test_what_is_missing_is_named(tiny_prepared, tmp_path, capsys):
    assert cli.main(["baselines", "--dataset", tiny_prepared]) == 2
    assert "no run folder given" in capsys.readouterr().err
    assert cli.main(["baselines", "--run_dir", str(tmp_path)]) == 2
    assert "--dataset" in capsys.readouterr().err
    with pytest.raises(BigrecError, match="contains no results"):
        build_report([tmp_path])
