"""Work split into batches with one shard file each, so that an interrupted run does not redo finished batches.

Used by `generate` and `keywords` (texts), the catalog index (vectors) and `ground` (rankings). The batches depend only
on the inputs and the settings, not on the number of processes, so that a run can be resumed with more or fewer of them
(except in `share_rows`). Shards live in a folder named after a fingerprint of everything that affects their content; a
run with other settings never sees them. Processes synchronize through these files (they share a file system, on one
machine or over a network): a collective operation would time out while one process is still decoding.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_table, write_atomically
from bigrec_hf.common.fingerprints import fingerprint

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from accelerate import PartialState

POSITION = "position"  # int64, index of the example within the run
SHARD_SCHEMA = pa.schema([(POSITION, pa.int64()), (C.TEXTS, pa.list_(pa.string())), (C.SCORES, pa.list_(pa.float32()))])
POLL_SECONDS = 0.2


def processes(state: PartialState | None) -> dict[str, int]:
    """The arguments `rank` and `n_processes` of ShardFolder; None = a single process."""
    return {"rank": state.process_index, "n_processes": state.num_processes} if state is not None else {}


class Shards(Protocol):
    """Where finished batches go, by number: ShardFolder or ShardsInMemory."""

    def write_table(self, number: int, table: pa.Table) -> None:
        """Write shard `number`, whatever its columns."""


def write_texts(
    shards: Shards, number: int, positions: list[int], texts: list[list[str]], scores: list[list[float]]
) -> None:
    """Write shard `number` as SHARD_SCHEMA: the examples at `positions` with their texts and scores, best first."""
    shards.write_table(number, pa.table({POSITION: positions, C.TEXTS: texts, C.SCORES: scores}, schema=SHARD_SCHEMA))


class ShardsInMemory:
    """The shards that an actor sends back."""

    def __init__(self) -> None:
        self.tables: dict[int, pa.Table] = {}

    def write_table(self, number: int, table: pa.Table) -> None:
        """Keep shard `number`."""
        self.tables[number] = table


class ShardFolder:
    """The shards of one run with one set of settings, seen from process `rank` of `n_processes`."""

    def __init__(self, root: Path, key: str, n_batches: int, *, rank: int = 0, n_processes: int = 1) -> None:
        self.root, self.path = root, root / key
        self.n_batches, self.rank, self.n_processes = n_batches, rank, n_processes
        self.path.mkdir(parents=True, exist_ok=True)
        self._failure_file(rank).unlink(missing_ok=True)

    def _file(self, number: int) -> Path:
        return self.path / f"batch-{number:06d}.parquet"

    def _failure_file(self, rank: int) -> Path:
        return self.path / f"failed-{rank}.txt"

    def missing(self) -> list[int]:
        """Numbers of the batches that no process has finished."""
        done = {entry.name for entry in self.path.iterdir()} if self.path.is_dir() else set()
        return [number for number in range(self.n_batches) if self._file(number).name not in done]

    def own(self) -> list[int]:
        """This process's part of the missing batches. All processes must call it before any of them writes."""
        return self.missing()[self.rank :: self.n_processes]

    def write_table(self, number: int, table: pa.Table) -> None:
        """Write shard `number` to its file."""
        write_atomically(self._file(number), lambda path: pq.write_table(table, path))

    def read_tables(self) -> list[pa.Table]:
        """All shards, ordered by number."""
        return [read_table(self._file(number)) for number in range(self.n_batches)]

    @contextlib.contextmanager
    def shared_failure(self) -> Iterator[None]:
        """Report an error in the block to the other processes, so that none of them waits forever."""
        try:
            yield
        except Exception as error:
            if self.n_processes > 1:
                self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """Tell the other processes that this one has failed."""
        message = f"{type(error).__name__}: {error}"
        write_atomically(self._failure_file(self.rank), lambda path: path.write_text(message, encoding="utf-8"))

    def _raise_on_failure(self) -> None:
        for rank in range(self.n_processes):
            file = self._failure_file(rank)
            if rank != self.rank and file.is_file():
                raise BigrecError(
                    f"process {rank} of {self.n_processes} failed with {file.read_text(encoding='utf-8')}"
                )

    def wait_complete(self) -> None:
        """Wait until all shards exist. Raises BigrecError if another process has failed.

        A process that is killed outright cannot report it; `torchrun` and `accelerate launch` then stop the others.
        """
        while self.missing():
            self._raise_on_failure()
            time.sleep(POLL_SECONDS)

    def wait_joined(self) -> None:
        """Wait until the main process has joined and removed the shards. Raises BigrecError if it has failed."""
        while self.path.is_dir():
            self._raise_on_failure()
            time.sleep(POLL_SECONDS)

    def read(self, n_rows: int) -> tuple[list[list[str]], list[list[float]]]:
        """Texts and scores of all `n_rows` examples, in order. Raises BigrecError unless each occurs exactly once."""
        table = pa.concat_tables(self.read_tables()).sort_by(POSITION)
        if table[POSITION].to_pylist() != list(range(n_rows)):
            raise BigrecError(
                f"the shards in {self.path} hold {len(table)} rows for {n_rows} examples: delete that folder and rerun"
            )
        return table[C.TEXTS].to_pylist(), table[C.SCORES].to_pylist()

    def remove(self) -> None:
        """Delete this run's shards and any left by runs with other settings."""
        shutil.rmtree(self.root, ignore_errors=True)


def share_of_rows(n: int, part_rows: int, rank: int, n_processes: int) -> slice:
    """One process's slice of `n` rows: consecutive parts of `part_rows` rows, distributed as evenly as possible."""
    n_parts = -(-n // part_rows)
    start, stop = (n_parts * r // n_processes * part_rows for r in (rank, rank + 1))
    return slice(min(start, n), min(stop, n))


def share_rows(
    n: int, part_rows: int, compute: Callable[[slice], pa.Table], root: Path, key: str, state: PartialState
) -> pa.Table | None:
    """`compute` of all `n` rows as one table, split over the processes; the main process gets it, the others get None.

    The processes exchange their rows through files in `root`, named after `key`, which identifies everything that
    affects the rows. Each process computes whole parts of `part_rows` rows.
    """
    if state.num_processes == 1:
        shutil.rmtree(root, ignore_errors=True)  # left behind by an earlier run of several processes
        return compute(slice(0, n))
    shards = ShardFolder(root, fingerprint(key, state.num_processes), state.num_processes, **processes(state))
    numbers = shards.own()
    state.wait_for_everyone()  # all processes have listed the shards before a new one appears
    with shards.shared_failure():
        for number in numbers:  # one per process, unless an interrupted run has finished it
            shards.write_table(number, compute(share_of_rows(n, part_rows, number, state.num_processes)))
        if not state.is_main_process:
            shards.wait_joined()
            return None
        shards.wait_complete()
        table = pa.concat_tables(shards.read_tables()).combine_chunks()
        shards.remove()
    return table
