"""Actors on a Ray cluster: each table comes once, of a killed actor too; without Ray the extra is named."""

from __future__ import annotations

import importlib.util

import pyarrow as pa
import pytest

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.ray_actors import from_bytes, map_on_ray, to_bytes
from bigrec_hf.settings.ray import RaySettings
from tests.helpers.processes import run_python

NO_RAY = importlib.util.find_spec("ray") is None
needs_ray = pytest.mark.skipif(NO_RAY, reason="Ray is not installed (extra: ray)")

SQUARES = """
import os, sys
import pyarrow as pa
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.ray_actors import map_on_ray
from bigrec_hf.settings.ray import RaySettings
fails = len(sys.argv) > 1
def load():
    offset = 100
    def compute(number, table):
        if number == 5 and fails:
            raise ValueError("five is right out")
        return pa.table({"x": [offset + x * x for x in table["x"].to_pylist()]})
    return compute
found = {}
tasks = ((n, pa.table({"x": [n, n + 1]})) for n in range(7))
try:
    map_on_ray(load, tasks, lambda n, table: found.setdefault(n, []).append(table["x"].to_pylist()), RaySettings(2))
    print(sorted(found.items()))
except BigrecError as error:
    print("BigrecError:", error)
"""


def test_tables_survive_the_way():
    table = pa.table({"a": [1, None], "b": [["x", "y"], []]}).replace_schema_metadata({"k": "v"})
    back = from_bytes(to_bytes(table))
    assert back.equals(table) and back.schema.metadata == {b"k": b"v"}
    assert from_bytes(to_bytes(pa.table({}))).num_columns == 0


@pytest.mark.skipif(not NO_RAY, reason="Ray is installed")
def test_without_ray_the_extra_is_named():
    with pytest.raises(BigrecError, match="pip install 'bigrec_hf\\[ray\\]'"):
        map_on_ray(lambda: None, [], lambda number, table: None, RaySettings(1))


@pytest.mark.slow
@needs_ray
def test_every_task_is_computed_once_with_its_own_input():
    done = run_python("-c", SQUARES, RAY_TMPDIR="/tmp")
    assert done.stdout.strip() == str([(n, [[100 + n * n, 100 + (n + 1) ** 2]]) for n in range(7)]), done.stderr[-2000:]


@pytest.mark.slow
@needs_ray
def test_an_error_of_an_actor_is_reported_in_one_line():
    done = run_python("-c", SQUARES, "fail", RAY_TMPDIR="/tmp")
    assert done.stdout == "BigrecError: an actor failed with ValueError: five is right out\n", done.stderr
