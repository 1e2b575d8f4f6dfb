"""A small share of `make attack`: a tiny run, killed or on a full disk, is finished by the next command."""

from __future__ import annotations

import pytest

from tests.faults.kills import Write, in_turns
from tests.helpers.processes import run_python


def test_every_site_comes_before_any_comes_again():
    writes = [Write(n, True, where) for n, where in enumerate("aaaabbc")]
    turns = in_turns(writes, 3)
    assert [sorted(write.site for write in turns[:3]), sorted(write.site for write in turns[3:5])] == [
        ["a", "b", "c"],
        ["a", "b"],
    ]
    assert sorted(write.number for write in turns) == list(range(7))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_run_comes_to_the_same_end(seed):
    done = run_python("-m", "tests.faults", "--only", "kills", "--kills", 4, "--seed", seed, "--seconds", 2000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    for name in ("kills", "full disks"):
        line = next(line for line in done.stdout.splitlines() if line.startswith(f"{name}: "))
        assert "writes 4 of " in line and line.endswith("4 survived, tracebacks: 0")


KILLED = """
import shutil, tempfile
from pathlib import Path
from tests.faults.kills import TinyRun, contents, forked
with tempfile.TemporaryDirectory() as place:
    tiny = TinyRun(Path(place))
    halves = [write.number for write in tiny.writes if write.site.startswith(("save", "write_table"))]
    for number in (40, halves[0], halves[-1], len(tiny.writes) - 5):
        shutil.rmtree(tiny.run)
        code, _ = forked(tiny.arguments, tiny.log, tiny.run, killed=number)
        copy = tiny.copies / str(number)
        print(number, code, contents(copy) == contents(tiny.run), len(contents(copy)), flush=True)
"""


@pytest.mark.slow
def test_a_copy_holds_what_a_kill_leaves():
    done = run_python("-c", KILLED, TQDM_DISABLE="1")
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and all(line.split()[1:3] == ["-9", "True"] for line in lines), lines
