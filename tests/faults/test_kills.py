"""A small share of `make attack`: a tiny run, killed or on a full disk, is finished by the next command."""

from __future__ import annotations

import pytest

from tests.helpers.processes import run_python


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_a_killed_run_comes_to_the_same_end(seed):
    done = run_python("-m", "tests.faults", "--only", "kills", "--kills", 4, "--seed", seed, "--seconds", 2000)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    for name in ("kills", "full disks"):
        assert f"{name}: 4 tried, 4 survived, tracebacks: 0" in done.stdout
