"""All earlier items of an example's user, from the `interactions` of a prepared set: what the user has had already.

An example's history is a window (ten items in every preset); the user may have had many more. They are what a service
would never show again (`exclude: seen`), and the full history that EASE can take as its input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.examples import load_config
from bigrec_hf.data.generations import Answers, Examples

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings, RankOptions

AnyExamples = TypeVar("AnyExamples", Examples, Answers)


def with_seen(examples: AnyExamples, options: RankOptions, data: DataSettings) -> AnyExamples:
    """The examples with all earlier items of their users, where `options` exclude them; else unchanged.

    Raises BigrecError without a prepared set, and as `earlier_items`.
    """
    if options.exclude != "seen":
        return examples
    if not data.dataset:
        raise BigrecError(
            "exclude is 'seen': all earlier items of a user come from a prepared set: name it with --dataset, or use "
            "--exclude history"
        )
    seen = [rows.tolist() for rows in earlier_items(data.dataset[0], examples.example_ids, examples.histories)]
    return replace(examples, seen=seen) if isinstance(examples, Answers) else examples._replace(seen=seen)


def user_and_position(example_id: str) -> tuple[str, int] | None:
    """`90:125` -> ("90", 125): the user, and the target's place in the user's sequence; None for any other id.

    A user's id may hold colons itself: the last one counts.
    """
    user, colon, position = example_id.rpartition(":")
    return (user, int(position)) if colon and user and position.isdecimal() else None


def earlier_items(
    dataset: str, example_ids: Sequence[str], histories: Sequence[Sequence[int]] | None = None
) -> list[np.ndarray]:
    """Each example's earlier items: (position,) int64 catalog rows, oldest first, repeats kept.

    Items strictly before the target in its user's sequence, in the order in which `prepare` put them: by time, equal
    times in file order. So a validation or test example may have targets of earlier examples among them, never its own
    or a later one. Where `histories` are given, each must be the end of what is found.

    Raises BigrecError for an id that names no user of the set or a position beyond the user's sequence, and if a
    history differs: times below a second order the examples, and `interactions` holds whole seconds.
    """
    dictionary, rows, starts = user_sequences(dataset)
    parts = [user_and_position(example_id) for example_id in example_ids]
    users = pc.index_in(pa.array([part[0] if part else None for part in parts], pa.string()), dictionary)
    found = []
    for number, (part, user) in enumerate(zip(parts, users.to_pylist(), strict=True)):
        if part is None or user is None or starts[user] + part[1] >= starts[user + 1]:
            raise BigrecError(
                f"the example {example_ids[number]!r} is not one of {dataset!r} (user:position of its `interactions`), "
                "so its user's earlier items are unknown: name the prepared set these examples come from"
            )
        earlier = rows[starts[user] : starts[user] + part[1]]
        history = histories[number] if histories is not None else ()
        if len(history) and not np.array_equal(earlier[-len(history) :], history):
            raise BigrecError(
                f"{dataset!r}: the interactions of the user of {example_ids[number]!r} are in another order than its "
                "history: its times are finer than seconds, or it was changed; use exclude history, or prepare it with "
                "times in seconds"
            )
        found.append(earlier)
    return found


def user_sequences(dataset: str) -> tuple[pa.StringArray, np.ndarray, np.ndarray]:
    """All users of a prepared set's `interactions`, in the order of the file, (n,); all their items, catalog rows by
    user, oldest first, (total,) int64; and where each user's begin, (n + 1,) int64."""
    table = load_config(dataset, "interactions", "train").data.table
    names = table[C.USER_ID].combine_chunks().dictionary_encode()
    return names.dictionary, *_by_user(names.indices.to_numpy(), table[C.ROW].to_numpy(), table[C.TIMESTAMP])


def _by_user(users: np.ndarray, rows: np.ndarray, times: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """The rows of all interactions by user, each user's in order (int64), and where each user's begin, (n + 1,)."""
    keys = (users,) if times.null_count else (times.to_numpy(), users)  # no times: the file's own order
    order = np.lexsort(keys)  # stable
    starts = np.concatenate([[0], np.cumsum(np.bincount(users))]) if len(users) else np.zeros(1, np.int64)
    return rows[order].astype(np.int64), starts
