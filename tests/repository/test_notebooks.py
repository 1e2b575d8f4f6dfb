"""The notebooks: committed without outputs, and their cells run from top to bottom."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.ipynb"))


def cells(name: str, kind: str = "code") -> list[str]:
    book = json.loads((ROOT / "docs/notebooks" / name).read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == kind]


def run(name: str, old: str, new: str, **given: str) -> dict[str, Any]:
    """Run the code cells in one namespace, with `old` replaced by `new`; returns what they have defined. `given`: names
    that hold these values whatever the first cell says."""
    code = cells(name)
    assert sum(cell.count(old) for cell in code) == 1
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(code):
        names |= given
        exec(compile(cell.replace(old, new), f"{name}, code cell {number}", "exec"), names)
    return names


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_hold_no_outputs_and_are_linked(path):
    book = json.loads(path.read_text(encoding="utf-8"))
    assert book["nbformat"] == 4 and len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    for cell in book["cells"]:
        assert cell["cell_type"] != "code" or (cell["outputs"], cell["execution_count"]) == ([], None)
    assert f"docs/notebooks/{path.stem}.md" in (ROOT / "mkdocs.yml").read_text()
    assert f"notebooks/{path.name}" in (ROOT / "docs/guide.md").read_text()


@pytest.mark.slow
def test_own_data_in_ten_cells(tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(cells("own_data.ipynb")) + len(cells("own_data.ipynb", "markdown")) == 10
    names = run("own_data.ipynb", "HuggingFaceTB/SmolLM2-135M-Instruct", tiny_model_dir)
    assert {"finetuned", "ease", "popularity", "finetuned_pool_ease"} <= set(names["scores"].index)
    found = names["recommendations"]
    assert found["user"].nunique() == 24 and list(found["rank"][:3]) == [1, 2, 3]
    read = names["table"].groupby("user")["title"].agg(set)
    assert not any(title in read[user] for user, title in zip(found["user"], found["title"], strict=True))
    # and again for another table, as somebody does who has tried it on the invented one
    again = run("own_data.ipynb", "for user in range(24)", "for user in range(20)", MODEL=tiny_model_dir)
    assert again["recommendations"]["user"].nunique() == 20


@pytest.mark.slow
def test_a_run_read_with_pandas(dense_run, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")
    names = run("read_a_run.ipynb", "runs/quickstart-movielens_dense", str(dense_run))
    results = json.loads((dense_run / "finetuned/results.json").read_text())
    assert names["k"] == 5 and names["scores"].loc["finetuned", "ndcg@5"] == results["ndcg@5"]
    assert names["by_length"].count().sum() == results["n_examples"] == names["hits"].to_numpy().sum()
    hits = names["hits"]
    assert hits.loc[True].sum() / results["n_examples"] == pytest.approx(results["hr@5"])
    assert list(names["in_words"].columns) == ["history", "recommended", "next in truth", "rank"]
    assert len(names["log"]["loss"].dropna()) == names["training"]["optimizer_steps"]
