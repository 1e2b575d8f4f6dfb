"""Recommendations on a Ray cluster: actors, each with its models, take shards of users (Ray Data `map_batches`).

The driver hands out the users and writes what comes back, so that the actors need the run or the adapter, the prepared
set and this package, but no place to write to. A shard of an actor that dies is computed again by another one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.recommend.rankers import Rankers
from bigrec_hf.recommend.serve import recommend_part
from bigrec_hf.recommend.users import Users

NUMBER, USERS, N_USERS, ROWS = "number", "users", "n_users", "rows"  # columns between driver and actors


class Worker:
    """An actor: the ranker, loaded once."""

    def __init__(self, name: str, dataset: str | None, options: dict[str, Any], ranker: str, choice: dict[str, Any]):
        """`options`: of `Rankers`; `choice`: the arguments of `recommend_part` by name."""
        self.rankers, self.choice = Rankers(name, dataset, **options), choice
        self.rank = self.rankers.rank(ranker)

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A batch of one shard: NUMBER and USERS -> NUMBER, N_USERS and ROWS; tables travel as Arrow streams."""
        users = Users.from_arrow(from_bytes(batch[USERS][0]))
        rows = recommend_part(self.rankers, self.rank, users, **self.choice)
        content = np.array([to_bytes(rows.to_arrow(compat_level=pl.CompatLevel.oldest()))], dtype=object)
        return {NUMBER: batch[NUMBER], N_USERS: np.array([len(users.ids)]), ROWS: content}


def to_bytes(table: pa.Table) -> bytes:
    """A table as an Arrow stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def from_bytes(stream: bytes) -> pa.Table:
    """The table of an Arrow stream."""
    return pa.ipc.open_stream(stream).read_all()


def recommend_on_ray(
    rankers: Rankers,
    ranker: str,
    users: Users,
    numbers: Iterable[int],
    write: Callable[[int, pa.Table], None],
    *,
    batch_users: int,
    progress: Callable[[int], Any],
    num_actors: int,
    resources: dict[str, float],
    address: str | None,
    worker: type = Worker,
    **choice: Any,
) -> None:
    """As `serve.recommend_shards`, in any order, by `num_actors` actors with these `resources` each (CPU, GPU, or any
    that the cluster names).

    `address`: of a running cluster, None = one on this machine. Raises BigrecError where Ray is not installed, and for
    an error of an actor.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise BigrecError("--engine ray needs Ray: pip install 'bigrec_hf[ray]'") from error
    rankers.facts(ranker)
    needs = {"CPU": 1.0, **resources}
    own: dict[str, Any] = {"address": address}
    if address is None:  # actors that find no core would wait for ever
        own["num_cpus"] = max(os.cpu_count() or 1, math.ceil(num_actors * needs["CPU"]))
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR", **own)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars, context.print_on_execution_start = False, False
    try:
        shards = [
            {
                NUMBER: number,
                USERS: to_bytes(users.part(number * batch_users, (number + 1) * batch_users).to_arrow()),
            }
            for number in numbers
        ]
        if not shards:
            return
        done = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
            worker,
            batch_size=1,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(size=min(num_actors, len(shards))),
            fn_constructor_args=(rankers.name, rankers.dataset, rankers.options, ranker, choice),
            num_cpus=needs.pop("CPU"),
            num_gpus=needs.pop("GPU", None),
            resources=needs or None,
        )
        for row in done.iter_rows():
            write(int(row[NUMBER]), from_bytes(row[ROWS]))
            progress(int(row[N_USERS]))
    except ray.exceptions.RayError as error:
        raise BigrecError(f"an actor failed: {str(error).strip().splitlines()[-1]}") from error
    finally:
        if started:
            ray.shutdown()
