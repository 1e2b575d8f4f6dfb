"""All earlier items of a user: by hand, against the histories of a prepared set, faults."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.earlier import earlier_items, user_and_position
from bigrec_hf.data.examples import load_config


def write_interactions(folder, entries):
    """`entries`: (user, row, time) in file order."""
    users, rows, times = zip(*entries, strict=True)
    path = folder / "data/interactions/train.parquet"
    path.parent.mkdir(parents=True)
    table = {"user_id": users, "row": pa.array(rows, pa.int32()), "timestamp": pa.array(times, pa.int64())}
    pq.write_table(pa.table(table), path)
    return str(folder)


def as_lists(found):
    return [rows.tolist() for rows in found]


def test_by_hand(tmp_path):
    entries = [("b", 7, 30), ("a", 1, 10), ("b", 5, 10), ("a", 2, 10), ("a", 0, 5), ("b", 5, 40), ("a:1", 9, 1)]
    dataset = write_interactions(tmp_path, entries)
    # a: 0, then 1 and 2 at the same time in file order; b: 5 7 5; the user a:1 has a colon in its name
    assert as_lists(earlier_items(dataset, ["a:2", "b:1", "b:2", "a:0", "a:1:0"])) == [[0, 1], [5], [5, 7], [], []]


def test_without_times_the_order_is_the_files(tmp_path):
    dataset = write_interactions(tmp_path, [("a", 3, None), ("b", 1, None), ("a", 2, None), ("a", 1, None)])
    assert as_lists(earlier_items(dataset, ["a:2", "b:0"])) == [[3, 2], []]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_histories_are_the_ends_of_what_is_found(tiny_prepared, split):
    examples = load_config(tiny_prepared, "default", split)
    ids, histories = examples["example_id"][:], examples["history"][:]
    found = earlier_items(tiny_prepared, ids, histories)
    assert [len(rows) for rows in found] == [int(example_id.rpartition(":")[2]) for example_id in ids]
    assert all(rows[-len(h) :].tolist() == h for rows, h in zip(found, histories, strict=True))
    assert any(len(rows) > len(h) for rows, h in zip(found, histories, strict=True))
    assert not any(target in rows for rows, target in zip(found, examples["target"][:], strict=True))


def test_faults(tmp_path):
    dataset = write_interactions(tmp_path, [("a", 3, 1), ("a", 2, 1), ("a", 1, 2)])
    for wrong in ("c:0", "a:3", "a", "a:x", "test_5000:17"):
        with pytest.raises(BigrecError, match="is not one of"):
            earlier_items(dataset, [wrong])
    assert as_lists(earlier_items(dataset, ["a:2"], [[3, 2]])) == [[3, 2]]
    with pytest.raises(BigrecError, match="in another order than its history"):
        earlier_items(dataset, ["a:2"], [[2, 3]])


def test_user_and_position():
    assert user_and_position("90:125") == ("90", 125)
    assert user_and_position("a:b:0") == ("a:b", 0)
    assert [user_and_position(other) for other in ("90", ":3", "90:", "90:-1", "90:x", "")] == [None] * 6
