"""The six commands and the Python of docs/hub.md, verbatim, against the loopback hub."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bigrec_hf.hub import publish
from tests.helpers.processes import HANG

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def base(hub, tiny_model_dir):
    """The run's base model as a repository on the hub."""
    name = hub.new_id("docs-llama")
    hub.api().create_repo(name)
    hub.api().upload_folder(repo_id=name, folder_path=tiny_model_dir)
    return name


@pytest.mark.slow
def test_the_six_commands_work(hub, base, tiny_run, tmp_path):
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs" / "hub.md").read_text(encoding="utf-8"), re.DOTALL)
    (block,) = (block for block in blocks if "publish run" in block)
    (exports,) = (block for block in blocks if "export ME=" in block)
    commands = block.strip().splitlines()
    assert len(commands) == 6
    own = {"ME": "alice", "RUN": str(tiny_run), "BASE": base}
    assert set(re.findall(r"\$(\w+)", block)) == set(re.findall(r"(\w+)=", exports)) == set(own)
    variables = hub.environment() | own
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", block], env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=HANG, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "dry run: would push one commit to main of the public model alice/movies" in done.stdout
    assert (tmp_path / "published" / "models" / "alice" / "movies" / "README.md").is_file()
    assert done.stdout.count("commit ") >= 4 and "'history': [" in done.stdout
    assert "Recommendation(text=" in done.stdout and done.stdout.count("Item(row=") == 3
    assert done.stdout.strip().endswith("{'ndcg@1': 0.0, 'hr@1': 0.0}")
    assert hub.tokens["alice"] not in done.stdout + done.stderr


def test_the_recommenders_example_works(hub, base, tiny_run, tmp_path, monkeypatch):
    text = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    repo_id = hub.new_id("docs-movies")
    commit = publish.publish_adapter(str(tiny_run), repo_id, base_model=base)
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    exec(block.replace("user/movies", repo_id), scope)
    assert len(scope["result"].items) == 10 and scope["result"].items[0].distance >= 0
    assert (tmp_path / "folder" / "adapter_model.safetensors").is_file()
    assert hub.api().model_info(repo_id).sha == commit  # pushed back unchanged: no commit
