"""`recommend --engine ray` with a simulated model: how users per second grow with the number of actors.

    python -m benchmarks.ray_scaling --actors 1 2 4 8 16      # needs the extra ray; minutes, hardly any processor time

Each actor sleeps for some seconds per shard instead of computing, so that many of them can be busy on a machine of a
few cores. Everything else is what the command does: users are cut into shards, sent, recommended for, sent back,
written. The rate is the work done from the moment when all actors are at work to the last shard; the start is left out.
The processor time of the driver bounds what one driver can feed, however many actors there are.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pyarrow as pa

from bigrec_hf.common.shards import ShardFolder
from bigrec_hf.recommend import serve
from bigrec_hf.recommend.rankers import Histories
from bigrec_hf.recommend.users import Users
from bigrec_hf.settings.ray import RaySettings

HISTORY, TOP_K = 20, 10  # titles of a user; items recommended
WORK = b"work"  # key in the metadata of a shard


def simulated(seconds: float) -> Callable[..., Callable[[int, pa.Table], pa.Table]]:
    """In place of `serve._load`: what loads the models and returns the function that recommends for a shard."""

    def load(*_: Any) -> Callable[[int, pa.Table], pa.Table]:
        def compute(number: int, users: pa.Table) -> pa.Table:
            began = time.time()
            time.sleep(seconds)
            n = len(users)
            ids = [user for user in users["id"].to_pylist() for _ in range(TOP_K)]
            columns = {"user": ids, "rank": list(range(1, TOP_K + 1)) * n, "item_id": ["4711"] * len(ids)}
            columns |= {"title": ["The Silence of the Lambs (1991)"] * len(ids), "score": [-6.5] * len(ids)}
            return pa.table(columns).replace_schema_metadata({WORK: json.dumps([os.getpid(), began, time.time()])})

        return compute

    return load


def some_users(n: int) -> Users:
    """Users with HISTORY titles each."""
    titles = [
        [f"Some title of usual length {(user * 7 + place) % 1000}" for place in range(HISTORY)] for user in range(n)
    ]
    rows = [[(user * 7 + place) % 1000 for place in range(HISTORY)] for user in range(n)]
    return Users(pl.Series("user", [f"user-{user:09d}" for user in range(n)]), Histories(titles, rows), Counter())


def measure(n_actors: int, rounds: int, batch_users: int) -> dict[str, float]:
    """Users per second, and the driver's processor seconds per shard; `rounds`: shards per actor."""
    users, n_shards = some_users(n_actors * rounds * batch_users), n_actors * rounds
    work: list[tuple[int, float, float]] = []  # actor, begin and end of every shard
    with tempfile.TemporaryDirectory() as folder:
        shards = ShardFolder(Path(folder), "simulated", n_shards)

        def write(number: int, table: pa.Table) -> None:
            shards.write_table(number, table)
            work.append(tuple(json.loads(table.schema.metadata[WORK])))

        began, processor = time.time(), time.process_time()
        serve.recommend_shards(
            SimpleNamespace(name="simulated", dataset=None, options={}, facts=lambda ranker: {}),  # type: ignore[arg-type]
            "simulated",
            users,
            range(n_shards),
            write,
            top_k=TOP_K,
            exclude_seen=True,
            candidates=None,
            batch_users=batch_users,
            progress=lambda n: None,
            ray=RaySettings(num_actors=n_actors),
        )
        processor = (time.process_time() - processor) / n_shards
        assert not shards.missing() and sum(len(table) for table in shards.read_tables()) == len(users.ids) * TOP_K
    first = {actor: min(start for other, start, _ in work if other == actor) for actor, _, _ in work}
    assert len(first) == n_actors
    all_up, last = max(first.values()), max(end for _, _, end in work)
    done = sum(max(0.0, end - max(start, all_up)) / (end - start) for _, start, end in work)  # shards, also parts
    return {"users/s": done * batch_users / (last - all_up), "start": all_up - began, "driver": processor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--seconds", type=float, default=6.0, help="what the simulated model takes for a shard")
    parser.add_argument("--rounds", type=int, default=6, help="shards per actor")
    parser.add_argument("--batch_users", type=int, default=256, help="users in a shard")
    chosen = parser.parse_args()
    import ray

    serve._load = simulated(chosen.seconds)  # type: ignore[assignment]
    # one cluster for all: the actors need no core of their own
    ray.init(
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        num_cpus=max(*chosen.actors, os.cpu_count()),
    )
    print(
        "| actors | users/s | of the ideal | all at work after | driver, processor time per shard |\n"
        "|---:|---:|---:|---:|---:|"
    )
    for n in chosen.actors:
        found = measure(n, chosen.rounds, chosen.batch_users)
        ideal = n * chosen.batch_users / chosen.seconds
        print(
            f"| {n} | {found['users/s']:,.0f} | {found['users/s'] / ideal:.0%} | {found['start']:.0f} s | "
            f"{found['driver'] * 1000:.0f} ms |",
            flush=True,
        )
    ray.shutdown()


if __name__ == "__main__":
    main()
