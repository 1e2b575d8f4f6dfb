"""The dense objective: how histories are cut, what a batch holds."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.sequences import ItemSequences
from bigrec_hf.data.trie import build_trie
from bigrec_hf.models.trie_loss import title_choices
from bigrec_hf.sft.dense import (
    BLOCK,
    FIRST,
    ROWS,
    DenseCollator,
    batches_of_like_length,
    cut_sequences,
    dense_segments,
    dense_validation,
)

END = 1
TITLES = [[5, END], [5, 6, END], [7, 8, 9, END]]
LENGTHS = np.array([len(title) for title in TITLES])


def sequences(*rows: list[int]) -> ItemSequences:
    return ItemSequences(np.array([row for part in rows for row in part], np.int64), np.cumsum([0, *map(len, rows)]))


@given(
    st.lists(st.lists(st.integers(0, 2), max_size=9), min_size=1, max_size=5),
    st.integers(4, 12),
    st.integers(0, 2),
    st.integers(0, 99),
)
def test_segments_fit_and_make_every_item_a_target_once_but_the_first_ones(rows, room, context, seed):
    found = cut_sequences(
        sequences(*rows), LENGTHS, room=room, context=context, rng=np.random.default_rng(seed)
    ).tolist()
    flat, starts = [row for part in rows for row in part], np.cumsum([0, *map(len, rows)]).tolist()
    for begin, end in found:
        assert sum(LENGTHS[flat[begin:end]]) <= room
        assert end - begin > context
        assert any(a <= begin and end <= b for a, b in pairwise(starts))  # one user each
    targets = [place for begin, end in found for place in range(begin + context, end)]
    assert len(targets) == len(set(targets))
    if room >= max(LENGTHS) * (context + 1):  # any context + 1 titles fit
        assert len(targets) == sum(max(0, len(row) - context) for row in rows)


def test_a_history_that_fits_is_one_segment():
    assert cut_sequences(sequences([0, 1, 2]), LENGTHS, room=9, context=1, rng=np.random.default_rng(0)).tolist() == [
        [0, 3]
    ]


def test_epochs_differ_and_the_same_seed_gives_the_same():
    data = sequences([0, 1, 2] * 20, [2, 1] * 15)
    options = {"epochs": 2, "room": 12, "context": 1}
    a, counts = dense_segments(data, LENGTHS, seed=0, **options)
    b, _ = dense_segments(data, LENGTHS, seed=0, **options)
    c, _ = dense_segments(data, LENGTHS, seed=1, **options)
    assert a[ROWS][:] == b[ROWS][:]
    assert a[ROWS][:] != c[ROWS][:]
    assert counts["n_train_targets"] == 2 * (59 + 29)
    assert counts["n_items_left_out"] == 0
    half, _ = dense_segments(data, LENGTHS, seed=0, epochs=0.5, room=12, context=1)
    assert half[ROWS][:] == a[ROWS][: len(half)]


@given(st.lists(st.integers(1, 50), max_size=900), st.integers(1, 8), st.integers(0, 100))
def test_batches_of_like_length_are_an_order_of_all_segments(n_tokens, batch_size, seed):
    n_tokens = np.array(n_tokens, np.int64)
    order = batches_of_like_length(n_tokens, batch_size=batch_size, rng=np.random.default_rng(seed))
    assert sorted(order) == list(range(len(n_tokens)))
    if len(order):  # within a block, the batches' ranges of lengths do not overlap
        block = n_tokens[order[: BLOCK * batch_size]]
        n_full = len(block) // batch_size * batch_size
        batches = sorted((min(b), max(b)) for b in block[:n_full].reshape(-1, batch_size).tolist())
        assert all(before[1] <= after[0] for before, after in pairwise(batches))


def test_batches_of_like_length_by_hand():
    order = batches_of_like_length(np.array([9, 1, 8, 2]), batch_size=2, rng=np.random.default_rng(0))
    assert {frozenset(order[:2].tolist()), frozenset(order[2:].tolist())} == {frozenset({0, 2}), frozenset({1, 3})}


def test_titles_without_text_or_longer_than_a_segment_are_left_out():
    lengths = np.array([2, 0, 50])
    data, counts = dense_segments(sequences([0, 1, 0, 2, 0]), lengths, epochs=1, room=10, context=1, seed=0)
    assert data[ROWS][:] == [[0, 0, 0]]
    assert counts == {"n_train_targets": 2, "n_train_tokens": 6, "n_items_left_out": 2}
    with pytest.raises(BigrecError, match="dense_context"):
        dense_segments(sequences([0]), lengths, epochs=1, room=10, context=1, seed=0)


def test_validation_rows_hold_the_latest_titles_that_fit_and_one_target():
    rows = dense_validation([[0, 1, 2], [2, 2, 2], []], [1, 2, 2], LENGTHS, room=10, max_history=2)
    assert rows[ROWS][:] == [[1, 2, 1], [2, 2], [2]]
    assert rows[FIRST][:] == [2, 1, 0]


def test_a_batch_by_hand():
    trie, _ = build_trie(TITLES)
    examples = [{ROWS: [2, 0], FIRST: 1}, {ROWS: [1], FIRST: 0}]
    batch = DenseCollator([20, 21], TITLES, title_choices(TITLES, trie))(examples)
    assert batch["input_ids"].tolist() == [[20, 21, 7, 8, 9, END, 5, END], [20, 21, 5, 6, END, 0, 0, 0]]
    assert batch["labels"].tolist() == [[-100, -100, 0], [-100, 1, -100]]  # the trainer counts from column 1 on
    # 5 is predicted at 5 (the end of the title before), END or 6 at the 5; in the second row behind the header
    assert batch["positions"].tolist() == [5, 6, 9, 10]
    assert batch["nodes"].tolist()[0] == batch["nodes"].tolist()[2] == 0
    plain = DenseCollator([20, 21], TITLES)(examples)
    assert plain["positions"].tolist() == [5, 6, 9, 10, 11]
    assert plain["targets"].tolist() == [5, END, 5, 6, END]
