"""Shipped recipes are found by name, and flags however they are spelled."""

from __future__ import annotations

from pathlib import Path

import pytest

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.settings import shipped
from bigrec_hf.settings.recipes import default_run_dir, read_recipe
from bigrec_hf.settings.shipped import describe, find_recipe, recipes_folder, shipped_recipes

ROOT = Path(__file__).parents[2]


def test_all_recipes_but_shared_parents_are_listed():
    expected = {path for path in (ROOT / "recipes").rglob("*.yaml") if "_base" not in path.parts}
    assert {path.resolve() for path in shipped_recipes().values()} == expected
    for path in shipped_recipes().values():
        assert any(line.startswith("hardware") for line in describe(path)), path
        assert read_recipe(path)


@pytest.mark.parametrize(
    "given",
    ["quickstart/movielens_dense", "quickstart/movielens_dense.yaml", "recipes/quickstart/movielens_dense.yaml"],
)
def test_a_name_is_enough_anywhere(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_recipe(given).read_bytes() == (ROOT / "recipes/quickstart/movielens_dense.yaml").read_bytes()


def test_a_file_comes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "quickstart" / "movielens_dense"
    own.parent.mkdir()
    own.write_text("{}")
    assert find_recipe("quickstart/movielens_dense") == Path("quickstart/movielens_dense")


def test_a_wrong_name_gets_the_nearest_one():
    with pytest.raises(BigrecError, match=r"did you mean quickstart/movielens_dense\?"):
        find_recipe("quickstart/movielens_dens")
    with pytest.raises(BigrecError, match="`bigrec-hf recipes` lists"):
        find_recipe("x")


def test_the_wheel_holds_them_in_the_package(tmp_path, monkeypatch):
    (tmp_path / "recipes_data" / "study").mkdir(parents=True)
    (tmp_path / "recipes_data" / "study" / "one.yaml").write_text("# hardware: any\n{}\n")
    monkeypatch.setattr(shipped, "__file__", str(tmp_path / "settings" / "shipped.py"))
    assert recipes_folder() == tmp_path / "recipes_data"
    assert list(shipped_recipes()) == ["study/one"]
    assert default_run_dir(shipped_recipes()["study/one"]) == "runs/study-one"


def test_the_command_lists_them(capsys):
    assert cli.main(["recipes"]) == 0
    out = capsys.readouterr().out
    assert "quickstart/movielens_dense\n    hardware: 2 CPU cores" in out
    assert "_base" not in out


def test_dashes_in_a_flag_are_underscores():
    assert cli.parse("sft", ["--learning-rate", "1e-3", "--lora-r=4", "--trainer_args", "{a-b: 1}"]) == {
        "config": None,
        "debug": False,
        "learning_rate": 1e-3,
        "lora_r": 4,
        "trainer_args": {"a-b": 1},
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--lerning_rate", "1"], "unknown argument --lerning_rate: did you mean --learning_rate?"),
        (["--lora-rank=4"], "unknown argument --lora-rank: did you mean --lora_r"),
        (["--zzzzzz"], "unknown argument --zzzzzz: see --help"),
        (["stray"], "unknown argument stray"),
    ],
)
def test_a_mistyped_flag_gets_the_nearest_one(words, message, capsys):
    assert cli.main(["sft", *words]) == 2
    assert message in capsys.readouterr().err
