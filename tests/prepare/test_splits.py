"""Protocols on hand-made interactions, then samples against the libraries they imitate, then properties."""

from __future__ import annotations

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.samples import evaluation_sample, training_sample
from bigrec_hf.prepare.protocols import (
    d3_titles,
    filter_interactions,
    first_appearance,
    k_core_mask,
    long_titles,
    parse_date,
    resolve_protocol,
    shuffled,
)
from bigrec_hf.prepare.splits import ExampleRanges, build_sequences, repeated_targets, split_examples, user_time_order


def sequences_of(users, rows, times):
    times = None if times is None else np.asarray(times)
    return build_sequences(np.asarray(users, np.uint32), np.asarray(rows, np.int32), None, times)


def spelled(sequences, examples):
    """[(history rows, target row)]"""
    rows = sequences.rows.tolist()
    return [(rows[b:t], rows[t]) for b, t in zip(examples.begins.tolist(), examples.targets.tolist(), strict=True)]


def test_sequences_sort_by_time_and_ties_keep_file_order():
    sequences = sequences_of([0, 1, 0, 0, 1], [10, 20, 11, 12, 21], [5, 9, 5, 1, 3])
    assert sequences.users.tolist() == [0, 0, 0, 1, 1]
    assert sequences.rows.tolist() == [12, 10, 11, 21, 20]
    assert sequences.starts.tolist() == [0, 3, 5]
    assert sequences.positions.tolist() == [0, 1, 2, 0, 1]


def test_movie_protocol_takes_full_windows_and_splits_by_target_time():
    # user 0 has three examples at times 2, 3, 4; user 1 has one at time 3: ties put user 0 first
    protocol = resolve_protocol("bigrec-movie", window=2, train_fraction=0.5, validation_fraction=0.25)
    sequences = sequences_of([0, 0, 0, 0, 0, 1, 1, 1], [1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 1, 2, 3])
    splits = split_examples(protocol, sequences)
    assert spelled(sequences, splits["train"]) == [([1, 2], 3), ([2, 3], 4)]
    assert spelled(sequences, splits["validation"]) == [([6, 7], 8)]
    assert spelled(sequences, splits["test"]) == [([3, 4], 5)]


def test_game_protocol_gives_a_short_user_one_example_even_without_history():
    protocol = resolve_protocol("bigrec-game", window=2, train_fraction=1, validation_fraction=0)
    sequences = sequences_of([0, 0, 0, 0, 1, 1, 2], [1, 2, 3, 4, 5, 6, 7], [0, 1, 2, 3, 9, 10, 11])
    train = split_examples(protocol, sequences)["train"]
    assert spelled(sequences, train) == [([1, 2], 3), ([2, 3], 4), ([5], 6), ([], 7)]


def test_leave_one_out_keeps_the_last_two_items_and_drops_users_of_two():
    protocol = resolve_protocol("leave-one-out", window=2)
    sequences = sequences_of([0, 0, 0, 0, 0, 1, 1, 2, 2, 2], [1, 2, 3, 4, 5, 6, 7, 8, 9, 1], None)
    splits = split_examples(protocol, sequences)
    assert spelled(sequences, splits["train"]) == [([1], 2), ([1, 2], 3)]
    assert spelled(sequences, splits["validation"]) == [([2, 3], 4), ([8], 9)]
    assert spelled(sequences, splits["test"]) == [([3, 4], 5), ([8, 9], 1)]


def test_d3_protocol_starts_at_the_second_item():
    protocol = resolve_protocol("d3", train_fraction=1, validation_fraction=0)
    sequences = sequences_of([0, 0, 0, 1], [1, 2, 3, 4], [0, 1, 2, 0])
    assert spelled(sequences, split_examples(protocol, sequences)["train"]) == [([1], 2), ([1, 2], 3)]


@pytest.mark.parametrize(("n", "cuts"), [(0, (0, 0)), (1, (0, 0)), (9, (7, 8)), (10, (8, 9)), (101, (80, 90))])
def test_cuts_are_truncated_not_rounded(n, cuts):
    protocol = resolve_protocol("d3")
    sequences = sequences_of([0] * (n + 1), range(n + 1), range(n + 1))
    splits = split_examples(protocol, sequences)
    assert (len(splits["train"]), len(splits["train"]) + len(splits["validation"])) == cuts
    assert sum(map(len, splits.values())) == n


# ten examples, one a day from 2020-01-02 on
DAYS = parse_date("2020-01-01", "x") + 86_400 * np.arange(11)


@pytest.mark.parametrize(
    ("cuts", "sizes"),
    [
        ({"test_count": 3, "validation_count": 2}, (5, 2, 3)),
        ({"test_count": 3}, (7, 0, 3)),
        ({"validation_from": "2020-01-05", "test_from": "2020-01-09T00:00:01"}, (3, 5, 2)),
        ({"validation_from": "2020-01-09", "test_from": "2020-01-09"}, (7, 0, 3)),
        ({"validation_from": "2021-01-01", "test_from": "2022-01-01"}, (10, 0, 0)),
    ],
)
@pytest.mark.parametrize("divisor", [1, 1000])
def test_splits_by_counts_and_by_dates(cuts, sizes, divisor):
    sequences = sequences_of([0] * 11, range(11), DAYS * divisor)
    splits = split_examples(resolve_protocol("d3", **cuts), sequences, divisor)
    assert tuple(map(len, splits.values())) == sizes
    assert np.concatenate([part.targets for part in splits.values()]).tolist() == list(range(1, 11))


def test_cuts_that_contradict_are_refused():
    with pytest.raises(BigrecError, match="leave nothing of 10 examples"):
        sequences = sequences_of([0] * 11, range(11), DAYS)
        split_examples(resolve_protocol("d3", test_count=5, validation_count=5), sequences)
    for preset, cuts, message in (
        ("leave-one-out", {"test_count": 5}, "leave-one-out splits by position"),
        ("d3", {"test_count": 5, "test_from": "2020-01-01"}, "by counts and by dates"),
        ("d3", {"validation_count": 5}, "--test_count"),
        ("d3", {"test_from": "2020-01-01"}, "--validation_from"),
        ("d3", {"test_from": "2020-01-01", "validation_from": "2020-01-02"}, "is later than"),
        ("d3", {"test_from": "soon", "validation_from": "2020-01-02"}, "test_from is 'soon'"),
    ):
        with pytest.raises(BigrecError, match=message):
            resolve_protocol(preset, **cuts)


def test_date_window_is_inclusive_at_both_ends_in_utc():
    protocol = resolve_protocol("leave-one-out", date_from="2017-10-01", date_to="2018-11-01")
    first, last = 1_506_816_000, 1_541_030_400  # midnight UTC
    times = np.array([first - 1, first, last, last + 1])
    mask, dropped, _ = filter_interactions(protocol, np.arange(4), np.arange(4), None, times)
    assert mask.tolist() == [False, True, True, False]
    assert dropped == {"before date_from": 1, "after date_to": 1}
    mask, _, _ = filter_interactions(protocol, np.arange(4), np.arange(4), None, times * 1000, time_divisor=1000)
    assert mask.tolist() == [False, True, True, False]


def test_d3_moves_its_start_back_a_year_while_too_few_items_remain():
    years = [parse_date(f"{year}-12-01", "x") for year in (2015, 2015, 2016, 2017)]
    users, rows, times = np.zeros(4, np.uint32), np.array([0, 1, 2, 3]), np.array(years)
    protocol = resolve_protocol("d3", min_items=2, k_core=1)
    mask, _, start = filter_interactions(protocol, users, rows, None, times)
    assert (mask.tolist(), start) == ([False, False, True, True], "2016-10-01")
    protocol = resolve_protocol("d3", min_items=4, k_core=1)
    assert filter_interactions(protocol, users, rows, None, times)[2] == "2015-10-01"
    protocol = resolve_protocol("d3", min_items=5, k_core=1)
    mask, _, start = filter_interactions(protocol, users, rows, None, times)
    assert (mask.all(), start) == (True, "1996-10-01")


def test_filters_that_need_what_the_source_lacks():
    with pytest.raises(BigrecError, match=r"min_rating 3\.0 needs ratings"):
        filter_interactions(resolve_protocol("leave-one-out", min_rating=3.0), np.zeros(1), np.zeros(1), None, None)
    with pytest.raises(BigrecError, match=r"needs timestamps.*--preset leave-one-out"):
        filter_interactions(resolve_protocol("bigrec-movie"), np.zeros(1), np.zeros(1), None, None)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=60), st.integers(1, 5))
def test_k_core_is_the_fixpoint_of_dropping(pairs, k):
    users, rows = np.array([p[0] for p in pairs], int), np.array([p[1] for p in pairs], int)
    kept = list(range(len(pairs)))
    while True:
        smaller = [
            i
            for i in kept
            if sum(users[j] == users[i] for j in kept) >= k and sum(rows[j] == rows[i] for j in kept) >= k
        ]
        if smaller == kept:
            break
        kept = smaller
    assert np.flatnonzero(k_core_mask(users, rows, k)).tolist() == kept


def test_title_rules():
    titles = pl.Series(["ab", "a", "", None, "日本"])
    assert long_titles(titles).to_list() == ["ab", None, None, None, "日本"]
    raw = pl.Series(
        ['<span id="x">y', " &quot;A &amp; B&quot; ", "w " * 19 + "w", "w " * 20 + "w", "x", '""', None, "&amp;quot;"]
    )
    assert d3_titles(raw).to_list() == [None, "A & B", "w " * 19 + "w", None, None, None, None, "&quot;"]


def test_orders_of_items():
    assert first_appearance(np.array([7, 3, 7, 0, 3])).tolist() == [7, 3, 0]
    assert shuffled(np.arange(10)).tolist() == [7, 3, 2, 8, 5, 6, 9, 4, 0, 1]  # random.seed(42); random.shuffle


@pytest.mark.parametrize("n", [0, 1, 7, 4999, 5000, 5001, 12_345])
def test_evaluation_sample_is_that_of_pandas(n):
    expected = pd.DataFrame({"row": range(n)}).sample(n=min(n, 5000), random_state=42)["row"]
    assert evaluation_sample(n).tolist() == expected.tolist()


@pytest.mark.parametrize(("n", "size"), [(1, 1), (50, 7), (50, 80), (50, 0)])
def test_training_sample_is_that_of_datasets(n, size):
    rows = datasets.Dataset.from_dict({"row": list(range(n))}).shuffle(seed=0)
    assert training_sample(n, size).tolist() == rows.select(range(min(size or n, n)))["row"][:]


def test_repeated_targets_look_only_into_their_own_window():
    sequences = sequences_of([0, 0, 0, 0, 1, 1], [5, 6, 7, 5, 5, 5], range(6))
    whole = ExampleRanges(np.array([0, 4]), np.array([3, 5]))
    assert np.flatnonzero(repeated_targets(sequences, [whole])).tolist() == [3, 5]
    shorter, other = ExampleRanges(np.array([1]), np.array([3])), ExampleRanges(np.array([4]), np.array([5]))
    assert np.flatnonzero(repeated_targets(sequences, [shorter, other])).tolist() == [5]
    assert not repeated_targets(sequences, [ExampleRanges(np.array([], int), np.array([], int))]).any()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), max_size=40), st.sampled_from([0, 2**40, 2**61]))
def test_users_are_ordered_by_time_and_ties_by_file_order_however_far_the_times_lie_apart(entries, offset):
    users, times = (np.array([entry[i] for entry in entries], dtype=np.int64) for i in (0, 1))
    users = users.astype(np.uint32)
    times = np.where(times > 0, times + offset, times)
    expected = sorted(range(len(entries)), key=lambda i: (users[i], times[i]))
    assert user_time_order(users, times).tolist() == expected
    assert user_time_order(users, None).tolist() == sorted(range(len(entries)), key=lambda i: users[i])


@given(st.lists(st.integers(0, 9), max_size=30))
def test_first_appearance_is_that_of_a_dictionary(codes):
    assert first_appearance(np.array(codes, dtype=np.uint32)).tolist() == list(dict.fromkeys(codes))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "mine"}, "unknown preset 'mine'"),
        ({"preset": "d3", "window": -1}, "window is -1"),
        ({"preset": "d3", "date_from": "yesterday"}, "date_from is 'yesterday': give an ISO date"),
        ({"preset": "d3", "train_fraction": 0.9, "validation_fraction": 0.2}, "their sum at most 1"),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(BigrecError, match=message):
        resolve_protocol(**options)


def test_presets_fill_what_is_not_set():
    movie, game, d3 = (resolve_protocol(name) for name in ("bigrec-movie", "bigrec-game", "d3"))
    assert (movie.window, movie.min_history, movie.k_core) == (10, 10, 1)
    assert game.min_history == 10
    assert (d3.min_history, d3.k_core, d3.date_from, d3.date_to) == (1, 5, "2017-10-01", "2018-11-01")
    assert resolve_protocol("bigrec-movie", window=5).min_history == 5
    assert resolve_protocol("bigrec-movie", window=5, min_history=2).min_history == 2
