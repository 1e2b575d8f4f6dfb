"""An independent server, olah, between publishing and reading: scripts/check_mirror.py on the tiny run."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.loopback_hub.fixtures import PROJECT

OLAH = os.environ.get("OLAH", "")


@pytest.mark.skipif(not OLAH, reason="set OLAH to the program olah-cli, in a virtual environment of its own")
def test_the_same_bytes_come_through_a_mirror(tiny_run, tiny_model_dir):
    command = [sys.executable, "scripts/check_mirror.py", str(tiny_run), "--base", tiny_model_dir, "--olah", OLAH]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("bytes equal") == 4 and done.stdout.count("rows equal, also streaming") == 8
