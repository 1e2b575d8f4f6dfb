"""Work cut into batches, one shard file a batch: what was written before a kill is not done again.

The batches follow from the prompts and the settings alone, not from the number of processes, so that a run may be
continued by more or fewer of them. Shards live in a folder named after a fingerprint of everything that has a say in
their content; a run with other settings never sees them. Processes meet over these files (they share a file system, as
on one machine): a collective operation would time out while one process still decodes.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from bigrec_hf.columns import Columns as C
from bigrec_hf.errors import BigrecError
from bigrec_hf.runs import write_atomically

if TYPE_CHECKING:
    from collections.abc import Sequence

POSITION = "position"  # int64, row of the example among those of the run
SHARD_SCHEMA = pa.schema([(POSITION, pa.int64()), (C.TEXTS, pa.list_(pa.string())), (C.SCORES, pa.list_(pa.float32()))])
POLL_SECONDS = 0.2


def plan_batches(
    lengths: Sequence[int], *, batch_size: int, batch_tokens: int, extra_tokens: int, copies: int
) -> list[list[int]]:
    """Positions in batches of similar prompt length, longest first (what does not fit in memory fails at once).

    A batch holds at most `batch_size` prompts and `batch_tokens` tokens: (longest prompt + `extra_tokens` for the
    answer) x prompts x `copies` (beams or samples); a single prompt is always a batch. Ties keep the examples' order.
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    batches: list[list[int]] = []
    for position in order:
        if batches:
            longest = lengths[batches[-1][0]] + extra_tokens
            n = len(batches[-1]) + 1
            if n <= batch_size and longest * n * copies <= batch_tokens:
                batches[-1].append(position)
                continue
        batches.append([position])
    return batches


class ShardFolder:
    """The shards of one run with one set of settings; `rank` of `n_processes` works on them."""

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
        """This process's part of what is missing now. Call it in all processes before any goes on to `write`."""
        return self.missing()[self.rank :: self.n_processes]

    def write(self, number: int, positions: list[int], texts: list[list[str]], scores: list[list[float]]) -> None:
        table = pa.table({POSITION: positions, C.TEXTS: texts, C.SCORES: scores}, schema=SHARD_SCHEMA)
        write_atomically(self._file(number), lambda path: pq.write_table(table, path))

    def fail(self, error: BaseException) -> None:
        """Tell the other processes that this one gives up."""
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
        """Return when all shards are there; raise where another process has failed.

        A process that is killed outright writes no failure: `torchrun` and `accelerate launch` then end the others.
        """
        while self.missing():
            self._raise_on_failure()
            time.sleep(POLL_SECONDS)

    def wait_joined(self) -> None:
        """Return when the main process has joined and removed the shards; raise where it has failed."""
        while self.path.is_dir():
            self._raise_on_failure()
            time.sleep(POLL_SECONDS)

    def read(self, n_rows: int) -> tuple[list[list[str]], list[list[float]]]:
        """Texts and scores of all examples in their own order. Raises BigrecError unless each is there once."""
        table = pa.concat_tables([pq.read_table(self._file(number)) for number in range(self.n_batches)])
        table = table.sort_by(POSITION)
        if table[POSITION].to_pylist() != list(range(n_rows)):
            raise BigrecError(
                f"the shards in {self.path} hold {len(table)} rows for {n_rows} examples: delete that folder, try again"
            )
        return table[C.TEXTS].to_pylist(), table[C.SCORES].to_pylist()

    def remove(self) -> None:
        """Delete this run's shards and any that runs with other settings have left."""
        shutil.rmtree(self.root, ignore_errors=True)
