"""Nothing stale is kept: whatever a run's artifacts depend on changes, and what depends on it is made again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.locks import LOCK_FILE, locked
from bigrec_hf.pipeline import steps
from tests.helpers.processes import run_python
from tests.helpers.tiny import save_tiny_model
from tests.helpers.tiny_run import make_run


@pytest.fixture(scope="module")
def template(tmp_path_factory, raw_movies) -> Path:
    """A finished run with raw files and a base model of its own, all named relative to its folder."""
    folder = tmp_path_factory.mktemp("stale")
    shutil.copytree(raw_movies, folder / "raw")
    save_tiny_model(folder / "base", seed=1)
    with contextlib.chdir(folder):
        make_run(Path(), Path("raw"), "base")
    return folder


@pytest.fixture
def place(template, tmp_path, monkeypatch) -> Path:
    """A copy of it, to be changed; the working directory."""
    folder = tmp_path / "copy"
    shutil.copytree(template, folder)
    monkeypatch.chdir(folder)
    return folder


def run(*flags: str) -> None:
    assert cli.main(["run", "--config", "recipe.yaml", "--debug", *flags]) == 0


def adapter() -> str:
    return hashlib.sha256(Path("run/adapter/adapter_model.safetensors").read_bytes()).hexdigest()


def stages() -> dict:
    return json.loads(Path("run/manifest.json").read_text())["stages"]


def test_an_unchanged_run_is_kept(place):
    before = stages()
    run()
    assert stages() == before


def test_other_data_train_another_adapter_only_if_allowed(place, capsys):
    before = adapter()
    assert cli.main(["run", "--config", "recipe.yaml", "--min_history", "2", "--learning_rate", "0.5"]) == 2
    message = capsys.readouterr().err
    assert "run holds a run with other settings (prepare.min_history 0 -> 2; sft.learning_rate" in message
    assert "--run_dir, or redo what depends on them with --overwrite" in message
    assert adapter() == before and yaml.safe_load(Path("run/recipe.yaml").read_text())["prepare"]["min_history"] == 0
    run("--min_history", "2", "--overwrite")
    assert "changed since run was made" in capsys.readouterr().out
    assert adapter() != before


def test_a_damaged_recipe_of_a_run_is_written_again_if_allowed(place, capsys):
    recipe = Path("run/recipe.yaml")
    whole = recipe.read_text()
    recipe.write_text(whole[: len(whole) // 2] + "{")
    assert cli.main(["run", "--config", "recipe.yaml"]) == 2
    assert "redo what depends on it with --overwrite" in capsys.readouterr().err
    before = adapter()
    run("--overwrite")
    assert adapter() == before and yaml.safe_load(recipe.read_text())


def test_rankings_and_reports_may_change_freely(place):
    before = adapter()
    run("--ks", "1", "3", "--top_k", "3", "--baselines", "popularity")
    assert adapter() == before


# a run that is killed as it comes to the stage that the first argument names
KILLED_AT = """
import os, signal, sys
from bigrec_hf import cli
from bigrec_hf.pipeline.steps import Steps
do = Steps.do
def killed(self, stage, *args, **options):
    if stage == sys.argv[1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return do(self, stage, *args, **options)
Steps.do = killed
sys.exit(cli.main(["run", "--config", "recipe.yaml", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("flags", [("--learning_rate", "0.5", "--overwrite"), ("--ks", "1", "3")])
def test_results_of_another_recipe_are_not_reported_after_a_kill(place, monkeypatch, capsys, flags):
    script = Path("killed.py")
    script.write_text(KILLED_AT)
    monkeypatch.setenv("PYTHONPATH", str(Path(cli.__file__).parents[1]))
    ended = subprocess.run([sys.executable, script, "prepare", *flags], capture_output=True, text=True)
    assert ended.returncode == -9, ended.stderr
    recipe = yaml.safe_load(Path("run/recipe.yaml").read_text())
    assert recipe["sft"]["learning_rate"] == 0.5 or recipe["score"]["ks"] == [1, 3]
    assert cli.main(["report", "run"]) == 2
    assert "'run' contains no results: create them" in capsys.readouterr().err
    assert not Path("run/report.html").exists() and not Path("run/report.md").exists()
    by_hand = cli.main(["score", "--config", "run/recipe.yaml"])
    assert by_hand == (2 if "--overwrite" in flags else 0)  # no rankings of the earlier adapter are left to score
    run(*flags)
    after = contents()
    assert cli.main(["report", "run"]) == 0
    run("--run_dir", "fresh", *flags)  # never interrupted
    fresh = {name.replace("fresh/", "run/"): value for name, value in contents("fresh").items()}
    same = [name for name in after if "results.json" in name or "rankings" in name]
    assert same and {name: after[name] for name in same} == {name: fresh[name] for name in same}


def test_seeds_that_have_not_started_lose_the_results_of_another_recipe(place, monkeypatch):
    for seed in (0, 1):
        shutil.copytree("run", f"seeds/seed-{seed}")

    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(steps.Steps, "do", interrupted)
    flags = ["--run_dir", "seeds", "--seeds", "0", "1", "--learning_rate", "0.5", "--overwrite"]
    with contextlib.suppress(KeyboardInterrupt):
        cli.main(["run", "--config", "recipe.yaml", *flags])
    assert yaml.safe_load(Path("seeds/seed-1/recipe.yaml").read_text())["sft"]["learning_rate"] == 0.5
    assert not list(Path("seeds").glob("*/*/results.json"))


def test_a_folder_without_finished_stages_is_no_run_yet(place):
    shutil.rmtree("run/finetuned")
    Path("run/manifest.json").unlink()
    run("--min_history", "2")


def test_changed_raw_files_are_prepared_and_trained_on_again(place):
    before, facts = adapter(), Path("run/data/facts.json").read_text()
    ratings = Path("raw/ratings.csv")
    lines = ratings.read_text().splitlines(keepends=True)
    ratings.write_text("".join(lines[: 2 * len(lines) // 3]))
    run()
    assert Path("run/data/facts.json").read_text() != facts
    assert adapter() != before


def test_another_model_in_the_bases_folder_is_seen(place):
    before, index = adapter(), Path("run/index/fingerprint.json").read_text()
    shutil.rmtree("base")
    save_tiny_model(place / "base", seed=2)
    run()
    assert adapter() != before
    assert Path("run/index/fingerprint.json").read_text() != index


def test_from_sft_trains_from_the_beginning(place, capsys):
    before = json.loads(Path("run/adapter/training.json").read_text())
    Path("run/adapter/adapter_model.safetensors").write_bytes(b"broken")
    run("--from", "sft")
    after = json.loads(Path("run/adapter/training.json").read_text())
    assert after["train_loss"] == pytest.approx(before["train_loss"], rel=1e-3)
    assert after["train_loss"] > 0
    assert Path("run/adapter/adapter_model.safetensors").read_bytes() != b"broken"


def contents(folder: str = "run") -> dict[str, str]:
    """The files of the run whose bytes depend on nothing but its inputs."""
    kept = ("data/**/*", "index/*", "adapter/*.safetensors", "adapter/tokenizer*", "*/*.parquet", "*/results.json")
    files = {file for pattern in kept for file in Path(folder).glob(pattern) if file.is_file()}
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def edited(file: Path) -> None:
    """Change one byte in the middle; size and structure stay."""
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def truncated(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", [Path.unlink, truncated, edited])
@pytest.mark.parametrize(
    "name",
    [
        "data/data/default/test.parquet",
        "index/embeddings.safetensors",
        "random/rankings.parquet",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                *("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "adapter/tokenizer.json"),
                *("adapter/training.json", "data/facts.json", "data/data/default/train.parquet"),
                *("data/data/items/train.parquet", "index/catalog.parquet", "index/fingerprint.json"),
                *("finetuned/generations.parquet", "finetuned/generate.json", "finetuned/results.json"),
                *("finetuned/per_example.parquet", "manifest.json"),
            )
        ),
    ],
)
def test_what_a_run_has_lost_is_made_again(place, name, damage):
    before = contents()
    damage(Path("run") / name)
    run()
    after = contents()
    assert {file for file in before | after if before.get(file) != after.get(file)} == set()
    assert set(json.loads(Path("run/manifest.json").read_text())["stages"]) >= {"prepare", "sft", "score:random"}


def test_an_unchanged_file_is_read_once(place, monkeypatch):
    read = []
    monkeypatch.setattr(steps, "file_fingerprint", lambda file: read.append(file))
    run()
    assert read == []


def test_a_folder_that_the_user_named_as_index_is_never_removed(place, capsys):
    shutil.copytree("run/index", "mine")
    run("--index_dir", "mine")
    edited(Path("mine/embeddings.safetensors"))
    kept = Path("mine/embeddings.safetensors").read_bytes()
    for flags in ([], ["--from", "index"]):
        assert cli.main(["run", "--config", "recipe.yaml", "--index_dir", "mine", *flags]) == 2
        assert "the index in mine is damaged" in capsys.readouterr().err
        assert Path("mine/embeddings.safetensors").read_bytes() == kept


def test_a_prepared_set_that_was_changed_is_refused_until_it_is_prepared_again(place, capsys):
    shutil.copytree("run/data", "mine")
    edited(Path("mine/data/default/test.parquet"))
    flags = ["--dataset", "mine", "--run_dir", "other", "--method", "zero_shot", "--base_model", "base"]
    assert cli.main(["generate", *flags]) == 2
    assert "mine/data/default/test.parquet was changed since the set was prepared" in capsys.readouterr().err
    assert cli.main(["prepare", "--source", "movielens", "--raw_dir", "raw", "--output_dir", "mine"]) == 0
    assert "is up to date" not in capsys.readouterr().out
    assert (
        Path("mine/data/default/test.parquet").read_bytes() == Path("run/data/data/default/test.parquet").read_bytes()
    )


def test_a_shared_set_of_other_settings_is_not_replaced_by_a_run(place, capsys):
    prepared = ["prepare", "--source", "movielens", "--raw_dir", "raw", "--output_dir", "shared", "--min_history", "3"]
    assert cli.main(prepared) == 0
    before = Path("shared/facts.json").read_bytes()
    flags = ["--prepared_dir", "shared", "--run_dir", "other"]
    assert cli.main(["run", "--config", "recipe.yaml", *flags]) == 2
    assert "shared holds another prepared set (min_history 3 -> 0): " in capsys.readouterr().err
    assert Path("shared/facts.json").read_bytes() == before


def test_the_runs_own_set_follows_its_files(place):
    with Path("raw/ratings.csv").open("a") as file:
        file.write("1,20,5.0,2000000\n")
    before = stages()["prepare"]["outputs"]
    run()
    assert stages()["prepare"]["outputs"] != before


def test_from_prepare(place):
    before = contents()
    run("--from", "prepare")
    assert contents() == before


def test_a_stage_run_alone_with_other_settings_is_made_good(place):
    before = stages()
    answers = pq.read_table("run/finetuned/generations.parquet")
    assert cli.main(["generate", "--config", "recipe.yaml", "--eval_sample", "4", "--debug"]) == 0
    assert pq.read_table("run/finetuned/generations.parquet").num_rows == 4
    run()
    assert pq.read_table("run/finetuned/generations.parquet").equals(answers)
    assert stages()["score:finetuned"]["outputs"] == before["score:finetuned"]["outputs"]


def test_rankings_of_other_texts_are_not_scored(place, capsys):
    assert cli.main(["generate", "--config", "recipe.yaml", "--eval_sample", "4"]) == 0
    assert cli.main(["score", "--config", "recipe.yaml"]) == 2
    assert "run `bigrec-hf ground` again" in capsys.readouterr().err
    assert cli.main(["ground", "--config", "recipe.yaml"]) == 0
    assert cli.main(["score", "--config", "recipe.yaml"]) == 0


def test_an_adapter_of_another_base_is_refused(place, capsys):
    save_tiny_model(place / "other", seed=3)
    assert cli.main(["generate", "--config", "recipe.yaml", "--base_model", "other"]) == 2
    assert "was trained on another base model than 'other'" in capsys.readouterr().err
    assert cli.main(["generate", "--config", "recipe.yaml", "--base_model", "other", "--method", "zero_shot"]) == 0


def test_cut_offs_beyond_the_catalog_are_told_before_the_training(place, capsys):
    before = adapter()
    assert cli.main(["run", "--config", "recipe.yaml", "--seed", "3", "--overwrite", "--ks", "1", "100000"]) == 2
    assert "K=100000 is larger than the catalog" in capsys.readouterr().err
    assert adapter() == before


@pytest.mark.parametrize(
    ("holder", "other", "free"),
    [
        (("run", "finetuned"), ("run", "finetuned"), False),
        (("run", "finetuned"), ("generate", "beams"), False),
        (("generate", "finetuned"), ("run", "finetuned"), False),
        (("generate", "finetuned"), ("score", "finetuned"), False),
        (("generate", "finetuned"), ("generate", "beams"), True),
        (("sasrec", "finetuned"), ("generate", "finetuned"), True),
    ],
)
def test_two_commands_do_not_write_the_same_place(tmp_path, holder, other, free):
    with locked(tmp_path, *holder):  # file locks: two holders in one process exclude each other, too
        if free:
            with locked(tmp_path, *other):
                pass
        else:
            with pytest.raises(BigrecError, match="another bigrec-hf command is working"), locked(tmp_path, *other):
                pass
    with locked(tmp_path, *other):
        pass


def test_a_killed_command_holds_nothing(tmp_path):
    code = (
        "import os, sys; from bigrec_hf.common.locks import locked\n"
        "with locked(sys.argv[1], 'run', 'finetuned'): os.kill(os.getpid(), 9)"
    )
    assert run_python("-c", code, tmp_path).returncode == -9
    assert (tmp_path / LOCK_FILE).is_file()
    with locked(tmp_path, "run", "finetuned"):
        pass


def test_a_command_that_fails_at_once_leaves_no_folder(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["run", "--run_dir", "new", "--baselines", "oracle"]) == 2
    assert not Path("new").exists()
    Path("old").mkdir()
    assert cli.main(["run", "--run_dir", "old", "--baselines", "oracle"]) == 2
    assert Path("old").is_dir()  # the user's own


def test_other_data_do_not_replace_a_run_either(place, tmp_path, capsys):
    """The same set in another place is another set; the run's own set may be spelled in any way."""
    before = adapter()
    shutil.copytree("run/data", tmp_path / "other")
    assert cli.main(["run", "--config", "recipe.yaml", "--dataset", str(tmp_path / "other")]) == 2
    assert "data.dataset" in capsys.readouterr().err
    run("--dataset", str(Path("run/data").absolute()))
    assert adapter() == before
