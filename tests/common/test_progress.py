"""Progress bars in a terminal, and where stderr is none."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import termios

CODE = """
from bigrec_hf.common.progress import say, settle_bars
settle_bars()
from tqdm import tqdm
for n in tqdm(range(1000)):
    if n == 500: say("half")
"""


CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("TQDM_")}


def run(**environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        env=CLEAN | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert done.stdout == "half\n"
    return done.stderr


def test_short_bars_leave_nothing_in_a_log():
    assert run() == ""


def test_what_the_environment_says_stays():
    assert "1000/1000" in run(TQDM_DELAY="0")


def test_a_terminal_keeps_lines_and_no_finished_bar():
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([sys.executable, "-c", CODE], env=CLEAN, stdout=theirs, stderr=theirs, check=True, timeout=300)
    os.close(theirs)
    read = b""
    with contextlib.suppress(OSError):  # its end
        while part := os.read(ours, 10_000):
            read += part
    os.close(ours)
    shown = read.decode()
    assert "0/1000" in shown  # it moved
    assert "half\r\n" in shown
    assert shown.count("\n") == 1 and not shown.rpartition("\r")[2].strip()  # and is wiped in the end
