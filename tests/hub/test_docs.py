"""The six commands of README.md, as they stand there, against the loopback hub."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "README.md"


def test_the_six_commands_work(hub, tiny_run, tiny_model_dir, tmp_path):
    base = hub.new_id("docs-llama")
    hub.api().create_repo(base)
    hub.api().upload_folder(repo_id=base, folder_path=tiny_model_dir)
    blocks = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = (block for block in blocks if "publish run" in block)
    (exports,) = (block for block in blocks if "export ME=" in block)
    commands = block.strip().splitlines()
    assert len(commands) == 6
    own = {"ME": "alice", "RUN": str(tiny_run), "BASE": base}
    assert set(re.findall(r"\$(\w+)", block)) == set(re.findall(r"(\w+)=", exports)) == set(own)
    variables = hub.environment() | own
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    done = subprocess.run(
        ["bash", "-euc", block], env=variables, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "dry run: would push one commit to main of the public model alice/movies" in done.stdout
    assert (tmp_path / "published" / "models" / "alice" / "movies" / "README.md").is_file()
    assert done.stdout.count("commit ") >= 4 and "'history': [" in done.stdout
    assert "Recommendation(text=" in done.stdout and done.stdout.count("Item(row=") == 3
    assert done.stdout.strip().endswith("{'ndcg@1': 0.0, 'hr@1': 0.0}")
    assert hub.tokens["alice"] not in done.stdout + done.stderr
