"""Tables computed by actors on a Ray cluster, each with its own models (Ray Data `map_batches`).

The driver hands out numbered tasks and takes back their tables, so that the actors need the models, the data and this
package, but no place to write to. A task of an actor that dies is computed again by another one.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa

from bigrec_hf.common.errors import BigrecError

if TYPE_CHECKING:
    Compute = Callable[[int, pa.Table], pa.Table]  # number of a task and its input -> its output

NUMBER, INPUT, OUTPUT, ERROR = "number", "input", "output", "error"  # columns between driver and actors


class Cluster(Protocol):
    """How many actors, what each needs (CPU, GPU, or any resource that the cluster names), and where.

    `ray_address`: of a running cluster, None = one on this machine.
    """

    @property
    def num_actors(self) -> int:
        """At least 1."""

    @property
    def resources(self) -> dict[str, float]:
        """One CPU unless it says otherwise."""

    @property
    def ray_address(self) -> str | None:
        """As `ray.init` takes it."""


class Actor:
    """What computes tasks in a process of its own, loaded with the first of them."""

    def __init__(self, load: Callable[[], Compute]) -> None:
        self.load = load
        self.compute: Compute | None = None

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One task: NUMBER and INPUT -> NUMBER, OUTPUT and ERROR; tables travel as Arrow streams, an error as text."""
        output, problem = b"", ""
        try:
            self.compute = self.compute or self.load()
            output = to_bytes(self.compute(int(batch[NUMBER][0]), from_bytes(batch[INPUT][0])))
        except Exception as error:  # Ray would wrap it and its traceback in several layers
            problem = " ".join(f"{type(error).__name__}: {error}".split())
        return {NUMBER: batch[NUMBER], OUTPUT: np.array([output], dtype=object), ERROR: np.array([problem])}


def to_bytes(table: pa.Table) -> bytes:
    """A table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def from_bytes(stream: bytes) -> pa.Table:
    """The table of an Arrow stream."""
    return pa.ipc.open_stream(stream).read_all()


def map_on_ray(
    load: Callable[[], Compute],
    tasks: Iterable[tuple[int, pa.Table]],
    write: Callable[[int, pa.Table], None],
    cluster: Cluster,
) -> None:
    """Compute every task in one of the actors, and `write` its output here, in any order.

    `load` is called once in every actor and returns what computes a task. Raises BigrecError where Ray is not
    installed, and for an error of an actor.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BigrecError("actors need Ray: pip install 'bigrec_hf[ray]'") from error
    rows = [{NUMBER: number, INPUT: to_bytes(table)} for number, table in tasks]
    if not rows:
        return
    needs = {"CPU": 1.0, **cluster.resources}
    own: dict[str, Any] = {"address": cluster.ray_address}
    if cluster.ray_address is None:  # actors that find no core would wait for ever
        own["num_cpus"] = max(os.cpu_count() or 1, math.ceil(cluster.num_actors * needs["CPU"]))
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, **own)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.print_on_execution_start = False, False
    try:
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            Actor,
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=min(cluster.num_actors, len(rows))),
            fn_constructor_args=(load,),
            num_cpus=needs.pop("CPU"),
            num_gpus=needs.pop("GPU", None),
            resources=needs or None,
        )
        for row in done.iter_rows():
            if row[ERROR]:
                raise BigrecError(f"an actor failed with {row[ERROR]}")
            write(int(row[NUMBER]), from_bytes(row[OUTPUT]))
    except ray.exceptions.RayError as error:
        raise BigrecError(f"an actor failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        if started:
            ray.shutdown()
