"""`run` with rankers: every further ranking from one recipe; debiased decoding with its share chosen on validation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.pipeline.rankers import check_rankers
from bigrec_hf.rank.debias import check_shares, choose_share, share_name
from bigrec_hf.settings import GenerateSettings, PipelineSettings, RerankSettings, RunSections
from bigrec_hf.settings.train import RANKERS
from tests.helpers.tiny_run import make_run

RANKED = {
    "sasrec",
    *(f"finetuned_fused_{name}" for name in ("min", "rrf")),
    "finetuned_mix_popularity",
    "finetuned_mix_sasrec",
    "finetuned_constrained_hybrid",
    "finetuned_debiased_hybrid",
}
SASREC = {"sasrec_dim": 8, "sasrec_layers": 1, "sasrec_heads": 1, "sasrec_epochs": 2, "sasrec_batch_size": 16}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory, raw_movies, tiny_model_dir) -> Path:
    return make_run(
        tmp_path_factory.mktemp("rankers"),
        raw_movies,
        tiny_model_dir,
        pipeline={"rankers": [name for name in RANKERS if name != "pool"], "constrained_beams": 3},
        sasrec=SASREC,
        rerank={"formulas": ["mix"], "weights": ["popularity", "scores"], "scores": "sasrec"},
        debias={"debias_lm_weights": [0.75, 0.0], "debias_beams": 2, "debias_examples": 6},
    )


def test_every_ranker_ranks_the_same_examples(run_dir):
    ids = {name: pq.read_table(run_dir / name / "per_example.parquet")["example_id"].to_pylist() for name in RANKED}
    plain = pq.read_table(run_dir / "finetuned" / "per_example.parquet")["example_id"].to_pylist()
    assert all(other == plain for other in ids.values())
    report = (run_dir / "report.md").read_text()
    assert "SASRec" in report
    assert "debiased hybrid" in report


def test_the_share_is_chosen_on_validation_examples_only(run_dir):
    folder = run_dir / "finetuned_debiased_hybrid"
    choice = json.loads((folder / "choice.json").read_text())
    curve = pq.read_table(folder / "curve.parquet")
    assert curve["lm_weight"].to_pylist() == [0.0, 0.75]
    values = curve["ndcg@10"].to_pylist()
    for share, value in zip(("0", "75"), values, strict=True):
        decoded = run_dir / "validation" / f"finetuned_debiased_{share}_hybrid"
        ranks = pq.read_table(decoded / "rankings.parquet")["rank"].to_numpy()
        assert value == pytest.approx(np.mean((ranks < 10) / np.log2(ranks + 2)))
    assert choice["parameters"]["ndcg@10"] == [0.0, 0.75][int(np.argmax(values))]
    chosen_on = pq.read_table(run_dir / "validation" / "finetuned_debiased_0" / "generations.parquet")["example_id"]
    test_ids = pq.read_table(folder / "rankings.parquet")["example_id"]
    assert not set(chosen_on.to_pylist()) & set(test_ids.to_pylist())
    facts = json.loads((run_dir / "finetuned_debiased" / "generate.json").read_text())
    assert facts["generate"]["lm_weight"] == choice["parameters"]["ndcg@10"]
    assert facts["data"]["split"] == "test"


def test_done_rankers_are_skipped_and_a_changed_one_is_redone(run_dir, capsys):
    recipe = run_dir.parent / "recipe.yaml"
    before = json.loads((run_dir / "manifest.json").read_text())["stages"]
    assert cli.main(["run", "--config", str(recipe)]) == 0
    assert json.loads((run_dir / "manifest.json").read_text())["stages"] == before
    capsys.readouterr()
    assert cli.main(["run", "--config", str(recipe), "--share_values", "0", "0.5", "1"]) == 0
    after = json.loads((run_dir / "manifest.json").read_text())["stages"]
    assert {name for name in after if after[name] != before[name]} == {"rerank"}


def test_debias_keeps_the_shares_that_are_decoded(run_dir, capsys):
    shutil.rmtree(run_dir / "validation" / "finetuned_debiased_75")  # as after a kill in its decoding
    shutil.rmtree(run_dir / "finetuned_debiased_hybrid")
    before = (run_dir / "validation" / "finetuned_debiased_0" / "generations.parquet").stat().st_mtime_ns
    assert cli.main(["run", "--config", str(run_dir.parent / "recipe.yaml")]) == 0
    assert "finetuned_debiased_0 are done and their settings are unchanged: kept" in capsys.readouterr().out
    assert (run_dir / "validation" / "finetuned_debiased_0" / "generations.parquet").stat().st_mtime_ns == before
    assert (run_dir / "finetuned_debiased_hybrid" / "results.json").is_file()


def test_share_with_the_best_validation_metric_by_hand():
    # NDCG@3: 1 for rank 0, 1 / log2(3) for rank 1, 0 for rank 3
    ranks = {0.1: np.array([0, 3]), 0.5: np.array([1, 1]), 0.9: np.array([1, 1])}
    choice = choose_share(ranks, "ndcg@3")
    assert choice.curves["ndcg@3"] == pytest.approx([0.5, 1 / np.log2(3), 1 / np.log2(3)])
    assert choice.chosen == {"ndcg@3": 0.5}  # the first best
    nothing = choose_share({0.1: np.array([9]), 0.5: np.array([9])}, "hr@3")
    assert nothing.chosen == {"hr@3": 0.1}  # one that was tried, even where all are 0


@pytest.mark.parametrize(("share", "name"), [(0.0, "0"), (0.5, "50"), (1.0, "100"), (0.125, "12_5"), (0.1, "10")])
def test_share_names(share, name):
    assert share_name(share) == name


@pytest.mark.parametrize("shares", [[], [1.5], [-0.1, 0.5], [0.5, 0.500001], [float("nan")]])
def test_bad_shares_are_refused(shares):
    with pytest.raises(BigrecError, match="debias_lm_weights"):
        check_shares(shares)


@pytest.mark.parametrize(
    ("rankers", "rerank", "decoding", "message"),
    [
        (["sasrek"], {}, "beam", "unknown ranker 'sasrek'"),
        (["debias"], {}, "beam", "add sasrec"),
        (["rerank"], {"weights": ["scores"], "scores": "sasrec"}, "beam", "add sasrec"),
        (["rerank"], {"weights": ["scores"]}, "beam", "set `scores`"),
        (["pool"], {}, "exact", "add linear"),
        (["pool", "linear"], {}, "beam", "set `decoding: exact`"),
    ],
)
def test_rankers_that_cannot_run_are_refused_first(rankers, rerank, decoding, message):
    sections = RunSections(
        pipeline=PipelineSettings(rankers=rankers),
        rerank=RerankSettings(**rerank),
        generate=GenerateSettings(decoding=decoding),
    )
    with pytest.raises(BigrecError, match=message):
        check_rankers(sections)


def test_debias_without_scores_says_what_to_run(tmp_path, run_dir, capsys):
    recipe = yaml.safe_load((run_dir.parent / "recipe.yaml").read_text())
    recipe["run"]["run_dir"] = str(tmp_path / "empty")
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    assert cli.main(["debias", "--config", str(tmp_path / "r.yaml")]) == 2
    assert "run `bigrec-hf sasrec` first" in capsys.readouterr().err
