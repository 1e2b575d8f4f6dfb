"""The whole job from one recipe, on a tiny model: artifacts, manifest, skipping, redoing, report, command line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from bigrec_hf.metrics.ndcg_hr.titles import clean_title

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.report.stage import build_report
from tests.helpers.processes import run_python
from tests.helpers.tiny_run import write_recipe

METHODS = ("finetuned", "zero_shot", "random", "popularity", "cooccurrence")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, raw_movies, tiny_model_dir) -> Path:
    return write_recipe(
        tmp_path_factory.mktemp("run"), raw_movies, tiny_model_dir, pipeline={"baselines": list(METHODS[1:])}
    )


@pytest.fixture(scope="module")
def run_dir(recipe) -> Path:
    assert cli.main(["run", "--config", str(recipe), "--debug"]) == 0
    return recipe.parent / "run"


def test_every_artifact_is_there(run_dir):
    for method in METHODS:
        results = json.loads((run_dir / method / "results.json").read_text())
        assert results["n_examples"] == 10
        assert 0 <= results["hr@1"] <= results["hr@5"] <= 1
        assert results["ndcg@1"] == results["hr@1"]
        ranks = pq.read_table(run_dir / method / "per_example.parquet")["rank"].to_pylist()
        assert results["hr@5"] == pytest.approx(sum(rank < 5 for rank in ranks) / 10)
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert set(manifest["stages"]) == {
        "prepare",
        "sft",
        "index",
        *(f"generate:{m}" for m in METHODS[:2]),
        *(f"{stage}:{m}" for stage in ("ground", "score") for m in METHODS),
    }
    assert all(stage["seconds"] >= 0 and stage["process_peak_memory_mib"] > 0 for stage in manifest["stages"].values())
    assert manifest["training"]["trainable_parameters"] > 0
    assert manifest["environment"]["packages"]["trl"]


def test_all_methods_are_scored_on_the_same_examples(run_dir):
    ids = [pq.read_table(run_dir / method / "per_example.parquet")["example_id"].to_pylist() for method in METHODS]
    assert all(other == ids[0] for other in ids)


def test_done_stages_are_skipped_and_changed_ones_redone(run_dir, recipe, capsys):
    before = json.loads((run_dir / "manifest.json").read_text())["stages"]
    assert cli.main(["run", "--config", str(recipe)]) == 0
    assert json.loads((run_dir / "manifest.json").read_text())["stages"] == before
    told = capsys.readouterr().out
    assert told.count("done and unchanged") == len(before)
    assert told.splitlines()[-1] == f"report: {run_dir / 'report.html'}"
    assert "Examples" in (run_dir / "report.html").read_text(encoding="utf-8")
    assert cli.main(["run", "--config", str(recipe), "--top_k", "4"]) == 0
    after = json.loads((run_dir / "manifest.json").read_text())["stages"]
    assert {name for name in after if after[name] != before[name]} == {
        f"{stage}:{method}" for stage in ("ground", "score") for method in METHODS
    }


def test_from_redoes_a_stage_and_what_follows(run_dir, recipe):
    before = json.loads((run_dir / "manifest.json").read_text())["stages"]
    assert cli.main(["run", "--config", str(recipe), "--top_k", "4", "--from", "score"]) == 0
    after = json.loads((run_dir / "manifest.json").read_text())["stages"]
    assert {name for name in after if after[name] is not None and name.startswith("score")} == {
        f"score:{m}" for m in METHODS
    }
    assert after["sft"] == before["sft"]
    assert all(after[name]["fingerprint"] == before[name]["fingerprint"] for name in before)


def test_a_lost_output_is_made_again(run_dir, recipe):
    (run_dir / "random" / "results.json").unlink()
    assert cli.main(["run", "--config", str(recipe), "--top_k", "4"]) == 0
    assert (run_dir / "random" / "results.json").is_file()


def test_the_report_shows_the_results_files(run_dir):
    text = build_report([str(run_dir)], published="game")
    for method, label in (("random", "random"), ("zero_shot", "zero-shot LM"), ("finetuned", "fine-tuned LM")):
        results = json.loads((run_dir / method / "results.json").read_text())
        row = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
        assert f"{results['ndcg@5']:.4f} [{results['ndcg@5_low']:.4f}, {results['ndcg@5_high']:.4f}]" in row
    answers = pq.read_table(run_dir / "finetuned" / "generations.parquet")["texts"].to_pylist()
    share_row = [line for line in text.splitlines() if line.startswith("| fine-tuned LM |")][2]
    assert share_row.split("|")[4].strip() == str(len({clean_title(texts[0]) for texts in answers}))
    assert "published by Bi-Step-Rec" in text
    assert (run_dir / "report.md").read_text().startswith("# run")


def test_report_command_and_its_errors(run_dir, tmp_path, capsys):
    assert cli.main(["report", str(run_dir), "--output_dir", str(tmp_path / "r.md")]) == 0
    assert (tmp_path / "r.md").read_text().strip() == build_report([str(run_dir)]).strip()
    assert cli.main(["report", str(tmp_path)]) == 2
    assert "contains no results" in capsys.readouterr().err
    with pytest.raises(BigrecError, match="same name"):
        build_report([str(run_dir), str(run_dir)])
    with pytest.raises(BigrecError, match="no run given"):
        build_report([])


# --- command line ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", cli.STAGES)
def test_every_stage_has_help_with_defaults(stage, capsys):
    assert cli.main([stage, "--help"]) == 0
    text = capsys.readouterr().out
    assert stage in text and "--config" in text


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from bigrec_hf import cli; cli.main(['--help']); cli.main(['sft', '--help']); "
        "sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'datasets', 'pandas', 'polars')))"
    )
    assert run_python("-c", code).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, ""),
        (["fly"], 2, "unknown stage 'fly'"),
        (["sft", "--lora_r", "many"], 2, "invalid int value"),
        (["sft", "--packing", "perhaps"], 2, "neither true nor false"),
        (["run"], 2, "no run folder"),
        (["run", "--run_dir", "x", "--baselines", "oracle"], 2, "unknown baseline 'oracle'"),
        (["generate", "--output_dir", "x", "--method", "../y"], 2, "method '../y' cannot name a method's folder"),
        (["score", "--output_dir", "x", "--method", "adapter"], 2, "method 'adapter' cannot name a method's folder"),
        (["score", "--run_dir", "nowhere"], 2, "bigrec-hf ground"),
        (["generate", "--run_dir", "nowhere"], 2, "base_model"),
        (["run", "--config", "nowhere.yaml"], 2, "does not exist"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(arguments, code, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == code
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(BigrecError):
        cli.main(["score", "--run_dir", str(tmp_path), "--debug"])


def test_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("bigrec-hf 0.")
