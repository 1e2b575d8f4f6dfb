"""Several seeds of one recipe on a tiny model: what is shared, what is not, the report over them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.pipeline.seeds import run_seeds, seed_sections
from bigrec_hf.report.stage import build_report
from bigrec_hf.settings import GroundSettings, PipelineSettings, RunSections, RunSettings, SftSettings
from tests.helpers.tiny_run import write_recipe


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, raw_movies, tiny_model_dir) -> Path:
    return write_recipe(
        tmp_path_factory.mktemp("seeds"),
        raw_movies,
        tiny_model_dir,
        pipeline={"seeds": [3, 1], "baselines": ["popularity", "random"]},
        data={"eval_sample": 8},
        sft={"sample": 4, "validation_sample": 2, "global_batch_size": 4},
        generate={"decoding": "greedy", "max_new_tokens": 4},
        score={"bootstrap": 10},
    )


def test_every_seed_has_its_run_and_shares_data_and_index(recipe, capsys):
    assert cli.main(["run", "--config", str(recipe), "--debug"]) == 0
    out = capsys.readouterr().out
    run = recipe.parent / "run"
    assert json.loads((run / "manifest.json").read_text())["seeds"] == [3, 1]
    for seed in (1, 3):
        own = run / f"seed-{seed}"
        assert json.loads((own / "manifest.json").read_text())["seed"] == seed
        assert json.loads((own / "finetuned" / "results.json").read_text())["seed"] == seed
        assert (own / "adapter" / "adapter_model.safetensors").is_file() and not (own / "data").exists()
        assert f"data/{run.name}" not in (own / "recipe.yaml").read_text()
    assert (run / "data" / "facts.json").is_file()
    assert out.count("is up to date (same raw files, same settings): kept") == 1
    assert (run / "seed-3" / "index").is_dir() and not (run / "seed-1" / "index").exists()
    ranks = [pq.read_table(run / f"seed-{s}" / "random" / "per_example.parquet")["rank"].to_pylist() for s in (1, 3)]
    assert ranks[0] != ranks[1]  # another seed, another order
    report = (run / "report.md").read_text()
    assert report.strip() == build_report([run]).strip()
    values = [json.loads((run / f"seed-{s}" / "random" / "results.json").read_text())["hr@5"] for s in (1, 3)]
    assert f"{sum(values) / 2:.4f} ± " in report and f"({min(values):.4f}..{max(values):.4f})" in report
    assert "- seeds: 1, 3" in report

    # again with another seed: the finished ones are skipped, and only the named ones are reported
    assert cli.main(["run", "--config", str(recipe), "--seeds", "3", "--debug"]) == 0
    assert "== sft: done and unchanged" in capsys.readouterr().out
    assert "±" not in (run / "report.md").read_text()


def sections(tmp_path, **changes) -> RunSections:
    plain = RunSections(
        run=RunSettings(run_dir=str(tmp_path)),
        pipeline=PipelineSettings(seeds=[0, 1]),
        sft=SftSettings(adapter_dir=str(tmp_path / "adapter")),
    )
    return replace(plain, **changes)


def test_folders_of_a_seed(tmp_path):
    first, second = (seed_sections(sections(tmp_path), seed, 0) for seed in (0, 1))
    assert first.ground.index_dir is None
    assert second.ground.index_dir == str(tmp_path / "seed-0" / "index")
    assert second.run == replace(RunSettings(), run_dir=str(tmp_path / "seed-1"), seed=1)
    assert second.sft.adapter_dir == str(tmp_path / "seed-1" / "adapter")
    assert second.pipeline.seeds == []
    named = sections(tmp_path, ground=GroundSettings(index_dir="shared"))
    assert {seed_sections(named, seed, 0).ground.index_dir for seed in (0, 1)} == {"shared"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pipeline": PipelineSettings(seeds=[1, 1])}, "distinct"),
        ({"pipeline": PipelineSettings(seeds=[-1])}, "of at least 0"),
        ({"sft": SftSettings(adapter_dir="mine")}, "'mine' is one folder for 2 seeds"),
        ({"run": RunSettings()}, "no run folder"),
    ],
)
def test_faults(tmp_path, changes, message):
    def never(sections):
        raise AssertionError("no seed may start")

    with pytest.raises(BigrecError, match=message):
        run_seeds(never, sections(tmp_path, **changes))
