"""Progress bars where stderr is no terminal."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """
from bigrec_hf.common.progress import slow_bars_without_terminal
slow_bars_without_terminal()
from tqdm import tqdm
for _ in tqdm(range(1000)): pass
"""


def run(**environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=clean | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    return done.stderr


def test_short_bars_leave_nothing_in_a_log():
    assert run() == ""


def test_what_the_environment_says_stays():
    assert "1000/1000" in run(TQDM_DELAY="0")
