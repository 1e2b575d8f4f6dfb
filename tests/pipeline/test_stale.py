"""Nothing stale is kept: whatever a run's artifacts depend on changes, and what depends on it is made again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.locks import LOCK_FILE, locked
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


def test_other_data_train_another_adapter(place):
    before = adapter()
    run("--min_history", "2")
    assert adapter() != before


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
    assert cli.main(["run", "--config", "recipe.yaml", "--seed", "3", "--ks", "1", "100000"]) == 2
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
