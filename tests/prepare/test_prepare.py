"""The prepared set as a whole: a case by hand, every config through `datasets`, reruns, interruptions, refusals."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import datasets
import polars as pl
import pyarrow.parquet as pq
import pytest

from bigrec_hf.cli import main as run_cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import Catalog, load_catalog
from bigrec_hf.prepare import stage
from bigrec_hf.prepare.stage import main, prepare_dataset
from bigrec_hf.settings import PrepareSettings
from tests.helpers.processes import run_python

MOVIES = (
    "10::Toy Story (1995)::X\n7::Heat: Director's Cut (1995)::X\n3::Misérables, Les (1995)::X\n99::Unseen (2000)::X\n"
)
# user b is first in the file; its ratings at equal times keep the file's order
RATINGS = "b::7::3::20\nb::10::4.5::10\na::3::1::15\nb::3::5::20\na::7::2::16\na::10::3::17\nc::7::3::1\n"


@pytest.fixture
def raw(tmp_path):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "movies.dat").write_text(MOVIES, encoding="utf-8")
    (folder / "ratings.dat").write_text(RATINGS, encoding="utf-8")
    return folder


def facts_of(prepared):
    return json.loads((prepared / "facts.json").read_text(encoding="utf-8"))


def contents(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_case_by_hand(raw, tmp_path, capsys):
    # sequences: b = 10, 7, 3 (rows 0, 1, 2); a = 3, 7, 10 (rows 2, 1, 0); c = 7. Window 1: targets by time are
    # a/7 at 16, a/10 at 17, b/7 at 20, b/3 at 20
    prepared = prepare_dataset(
        "movielens", raw, tmp_path / "set", window=1, train_fraction=0.5, validation_fraction=0.25
    )
    train = pl.read_parquet(prepared / "data/default/train.parquet").to_dicts()
    assert train == [
        {
            "example_id": "a:1",
            "user_id": "a",
            "history": [2],
            "history_ratings": [1.0],
            "target": 1,
            "rating": 2.0,
            "timestamp": 16,
        },
        {
            "example_id": "a:2",
            "user_id": "a",
            "history": [1],
            "history_ratings": [2.0],
            "target": 0,
            "rating": 3.0,
            "timestamp": 17,
        },
    ]
    assert pl.read_parquet(prepared / "data/default/validation.parquet")["example_id"].to_list() == ["b:1"]
    assert pl.read_parquet(prepared / "data/default/test.parquet")["example_id"].to_list() == ["b:2"]
    items = pl.read_parquet(prepared / "data/items/train.parquet")
    assert items["train_count"].to_list() == [1, 1, 0, 0]
    interactions = pl.read_parquet(prepared / "data/interactions/train.parquet").rows()
    assert interactions[:3] == [("b", 1, 3.0, 20), ("b", 0, 4.5, 10), ("a", 2, 1.0, 15)]
    text = pl.read_parquet(prepared / "data/text/test.parquet").to_dicts()
    assert text == [
        {
            "example_id": "b:2",
            "instruction": "Given a list of movies the user has watched before, please recommend a new movie that the "
            "user likes to the user.",
            "input": 'The user has watched the following movies before:"Heat: Director\'s Cut (1995)"\n ',
            "output": '"Misérables, Les (1995)"',
        }
    ]
    facts = facts_of(prepared)
    assert facts["name"] == "tiny"
    assert facts["interactions"] == {"raw": 7, "dropped": {}, "kept": 7}
    assert (facts["users"], facts["users_without_example"]) == (3, 1)
    assert (facts["items"], facts["items_with_interactions"]) == (4, 3)
    assert facts["examples"] == {"train": 2, "validation": 1, "test": 1}
    assert facts["time_span"]["train"] == ["1970-01-01T00:00:16Z", "1970-01-01T00:00:17Z"]
    assert facts["max_history"] == 1
    assert set(facts["sha256"]) == {"ratings.dat", "movies.dat"}
    assert str(tmp_path) not in json.dumps(facts) + (prepared / "README.md").read_text(encoding="utf-8")
    printed = capsys.readouterr().out
    assert "users                                        3 (1 too short for an example)" in printed
    assert "examples: test" in printed
    assert load_catalog(prepared) == Catalog(
        ["10", "7", "3", "99"], [line.split("::")[1] for line in MOVIES.split("\n")[:4]]
    )


SCHEMAS = {
    "default": ["example_id", "user_id", "history", "history_ratings", "target", "rating", "timestamp"],
    "items": ["row", "item_id", "title", "train_count"],
    "interactions": ["user_id", "row", "rating", "timestamp"],
    "text": ["example_id", "instruction", "input", "output"],
}


@pytest.mark.parametrize("with_times", [True, False])
def test_every_config_loads_with_plain_datasets_even_with_empty_splits_and_columns(raw, tmp_path, with_times):
    if with_times:  # one example: the train and validation splits are empty
        prepared = prepare_dataset("movielens", raw, tmp_path / "set", preset="bigrec-movie", min_history=2, window=2)
        sizes = {"train": 1, "validation": 0, "test": 1}
    else:  # ratings and timestamps are null throughout
        (raw / "s.item").write_text("item_id:token\ttitle:token_seq\n0\tA\n1\tB\n2\tC\n")
        (raw / "sequences.tsv").write_text("u\t0 1 2\n")
        prepared = prepare_dataset(
            "sequences", raw, tmp_path / "set", preset="leave-one-out", items_file=str(raw / "s.item")
        )
        sizes = {"train": 0, "validation": 1, "test": 1}
    assert facts_of(prepared)["examples"] == sizes
    cache = str(tmp_path / "cache")
    for config, columns in SCHEMAS.items():
        loaded = datasets.load_dataset(str(prepared), config, cache_dir=cache)
        filled = [split for split, n in sizes.items() if n]  # `datasets` refuses to read a split without rows
        assert list(loaded) == (["train"] if config in ("items", "interactions") else filled)
        for split, rows in loaded.items():
            assert rows.column_names == columns
            assert rows.features == next(iter(loaded.values())).features
            schema = datasets.Features.from_arrow_schema(pq.read_schema(prepared / f"data/{config}/{split}.parquet"))
            assert rows.features == schema
            if config in ("default", "text"):
                assert len(rows) == sizes[split]
    default = datasets.load_dataset(str(prepared), cache_dir=cache)
    assert {split: len(rows) for split, rows in default.items()} == {split: n for split, n in sizes.items() if n}
    assert len(pl.read_parquet(prepared / "data/default/validation.parquet")) == sizes["validation"]
    features = default["test"].features
    assert features["history"] == datasets.List(datasets.Value("int32"))
    assert features["history_ratings"] == datasets.List(datasets.Value("float32"))
    assert (features["target"].dtype, features["rating"].dtype, features["timestamp"].dtype) == (
        "int32",
        "float32",
        "int64",
    )
    if not with_times:
        assert default["test"][0]["timestamp"] is None
        assert default["test"][0]["history_ratings"] is None
        assert default["test"][0]["history"] == [0, 1]


def test_words_of_the_domain(raw, tmp_path):
    options = {"window": 1, "noun": "books", "verb": "read"}
    prepared = prepare_dataset("movielens", raw, tmp_path / "set", **options)
    text = pl.read_parquet(prepared / "data/text/train.parquet")
    assert "recommend a new book that" in text["instruction"][0]
    assert text["input"][0].startswith('The user has read the following books before:"')
    facts = facts_of(prepared)
    assert (facts["noun"], facts["noun_singular"], facts["verb"]) == ("books", "book", "read")
    assert "Which of the books" in (prepared / "README.md").read_text(encoding="utf-8")


def test_milliseconds_order_within_a_second_and_are_stored_as_seconds(tmp_path):
    reviews = [("U", "B", 2_900), ("U", "A", 2_100), ("U", "C", 3_000)]
    (tmp_path / "Video_Games.jsonl").write_text(
        "".join(json.dumps({"rating": 1, "user_id": u, "parent_asin": i, "timestamp": t}) + "\n" for u, i, t in reviews)
    )
    (tmp_path / "meta_Video_Games.jsonl").write_text(
        "".join(json.dumps({"parent_asin": i, "title": f"Game {i}"}) + "\n" for i in "ABC")
    )
    prepared = prepare_dataset("amazon", tmp_path, tmp_path / "set", preset="leave-one-out")
    (test,) = pl.read_parquet(prepared / "data/default/test.parquet").to_dicts()
    titles = load_catalog(prepared).titles
    assert titles == ["Game B", "Game A", "Game C"]  # in order of first appearance
    assert ([titles[row] for row in test["history"]], test["timestamp"]) == (["Game A", "Game B"], 3)
    assert facts_of(prepared)["time_span"]["test"] == ["1970-01-01T00:00:03Z"] * 2


def test_filters_are_counted_and_users_follow_their_first_kept_row(raw, tmp_path):
    prepared = prepare_dataset("movielens", raw, tmp_path / "set", preset="leave-one-out", min_rating=2, min_history=1)
    facts = facts_of(prepared)
    assert facts["interactions"] == {"raw": 7, "dropped": {"rating below min_rating": 1}, "kept": 6}
    assert facts["examples"] == {"train": 0, "validation": 1, "test": 1}
    with pytest.raises(BigrecError, match=r"no interaction of ratings\.dat is left after dropping"):
        prepare_dataset("movielens", raw, tmp_path / "other", min_rating=6)
    with pytest.raises(BigrecError, match=r"none of 3 users has enough items.*lower min_history \(now 10\)"):
        prepare_dataset("movielens", raw, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_latin_1_on_request_gives_the_reference_strings(raw, tmp_path):
    # as the reference reads the 10M file; U+0085 must not end a line
    (raw / "movies.dat").write_text(MOVIES.replace("Unseen", "Fucking Åmål"), encoding="utf-8")
    options = {"window": 1, "encoding": "latin-1", "export_reference_json": str(tmp_path / "json")}
    prepared = prepare_dataset("movielens", raw, tmp_path / "set", **options)
    assert load_catalog(prepared).titles[2:] == ["MisÃ©rables, Les (1995)", "Fucking Ã\x85mÃ¥l (2000)"]
    assert json.loads((tmp_path / "json/test.json").read_text())[0]["output"] == '"MisÃ©rables, Les (1995)"'
    assert "Mis\\u00c3\\u00a9rables" in (tmp_path / "json/test.json").read_text()
    assert facts_of(prepared)["encoding"] == "latin-1"


def test_d3_cleans_and_refuses_titles_of_any_source(tmp_path):
    titles = ["Toys &amp; Story", ' "Heat" ', "<span id=x>", "Z"]
    (tmp_path / "movies.dat").write_text("".join(f"{i}::{title}::X\n" for i, title in enumerate(titles)))
    moment = 1_510_000_000  # November 2017
    ratings = [f"u::{item}::3::{moment + i}\n" for i, item in enumerate([0, 1, 2, 3, 1, 0])]
    (tmp_path / "ratings.dat").write_text("".join(ratings))
    prepared = prepare_dataset("movielens", tmp_path, tmp_path / "set", preset="d3", k_core=2, min_items=0)
    assert load_catalog(prepared).titles == ["Heat", "Toys & Story"]  # first appearance, shuffled with seed 42
    facts = facts_of(prepared)
    assert facts["interactions"] == {"raw": 6, "dropped": {"title refused by d3": 2}, "kept": 4}
    assert facts["protocol"]["date_from"] == "2017-10-01"
    with pytest.raises(BigrecError, match="is left after dropping"):
        prepare_dataset("movielens", tmp_path, tmp_path / "other", preset="d3", min_items=9)


def test_a_file_cut_by_a_lazy_reader_gives_the_set_that_date_from_gives(tmp_path):
    # docs/scaling.md: how data larger than memory are cut first
    lines = [f"{user},{item},{1 + item % 5},{10 * item + user}" for user in (2, 1) for item in (7, 3, 9, 1)]
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp\n" + "\n".join(lines) + "\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n" + "".join(f"{i},Film {i},X\n" for i in (9, 7, 3, 1)))
    pl.scan_csv(tmp_path / "ratings.csv").filter(pl.col("timestamp") >= 20).sink_parquet(tmp_path / "cut.parquet")
    cut = prepare_dataset(
        "tabular",
        None,
        tmp_path / "one",
        ratings_file=str(tmp_path / "cut.parquet"),
        items_file=str(tmp_path / "movies.csv"),
        user_column="userId",
        item_column="movieId",
        preset="bigrec-movie",
        timestamp_unit="s",
        window=1,
    )
    whole = prepare_dataset("movielens", tmp_path, tmp_path / "two", date_from="1970-01-01T00:00:20", window=1)
    found, wanted = contents(cut / "data"), contents(whole / "data")
    found, wanted = ({name: file for name, file in all_.items() if "text" not in name} for all_ in (found, wanted))
    assert found == wanted and len(wanted) == 5
    assert facts_of(whole)["interactions"]["dropped"] == {"before date_from": 2}


def test_d3_notes_how_far_its_window_went_back(raw, tmp_path):
    (raw / "ratings.dat").write_text("".join(f"u::{item}::3::{1_400_000_000 + item}\n" for item in (10, 7, 3)))
    prepared = prepare_dataset("movielens", raw, tmp_path / "set", preset="d3", k_core=1)
    assert facts_of(prepared)["notes"] == {"date_from moved back to": "1996-10-01"}


def test_ties_go_to_the_user_whose_first_kept_row_comes_first(raw, tmp_path):
    # a is first in the file, but that row is too old; among the kept rows b is first
    lines = "a::10::3::5\nb::7::3::20\na::7::3::20\na::3::3::30\nb::3::3::30\n"
    (raw / "ratings.dat").write_text(lines)
    options = {"window": 1, "date_from": "1970-01-01T00:00:10", "train_fraction": 1, "validation_fraction": 0}
    prepared = prepare_dataset("movielens", raw, tmp_path / "set", **options)
    train = pl.read_parquet(prepared / "data/default/train.parquet")
    assert train["example_id"].to_list() == ["b:1", "a:1"]
    interactions = pl.read_parquet(prepared / "data/interactions/train.parquet")
    assert interactions["user_id"].to_list() == ["b", "a", "a", "b"]
    assert facts_of(prepared)["interactions"]["dropped"] == {"before date_from": 1}


def test_repeated_targets_and_duplicates_are_reported(tmp_path):
    (tmp_path / "movies.dat").write_text('1::A::X\n2::"A"::X\n3::A::X\n')
    (tmp_path / "ratings.dat").write_text("".join(f"u::{i}::3::{t}\n" for t, i in enumerate("12131")))
    facts = facts_of(prepare_dataset("movielens", tmp_path, tmp_path / "set", min_history=1, window=2))
    assert facts["duplicate_titles"] == {
        "as_spelled": {"titles": 1, "rows": 2},
        "without_quotes_and_spaces": {"titles": 1, "rows": 3},
    }
    assert facts["repeated_targets"]["all"] == 0.5


# --- reruns and interruptions -----------------------------------------------------------------------------------------


def test_an_unchanged_set_is_kept_and_a_changed_one_replaced_on_request(raw, tmp_path, capsys):
    target = tmp_path / "set"
    prepare_dataset("movielens", raw, target, window=1)
    before, inode = contents(target), target.stat().st_ino
    prepare_dataset("movielens", raw, target, window=1)
    assert target.stat().st_ino == inode
    assert "kept" in capsys.readouterr().out
    with pytest.raises(BigrecError, match=r"set \(window 1 -> 2\): write to another folder .* it with --overwrite"):
        prepare_dataset("movielens", raw, target, window=2)
    assert contents(target) == before
    prepare_dataset("movielens", raw, target, window=2, overwrite_prepared=True)
    assert facts_of(target)["max_history"] == 2
    prepare_dataset("movielens", raw, target, window=1, overwrite_prepared=True)
    assert contents(target) == before  # nothing depends on time or place
    (raw / "ratings.dat").write_text(RATINGS + "c::3::1::2\n")
    with pytest.raises(BigrecError, match=r"set \(ratings.dat has other content\)"):
        prepare_dataset("movielens", raw, target, window=1)
    prepare_dataset("movielens", raw, target, window=1, overwrite_prepared=True)
    assert facts_of(target)["interactions"]["raw"] == 8
    (target / "data/items/train.parquet").write_bytes(b"damaged")
    prepare_dataset("movielens", raw, target, window=1)
    assert len(load_catalog(target)) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "tiny"]


def test_a_set_of_an_earlier_release_had_the_defaults_and_its_name_does_not_count(raw, tmp_path):
    target = prepare_dataset("movielens", raw, tmp_path / "set", window=1)
    facts = facts_of(target)
    del facts["settings"]["k_core"]
    (target / "facts.json").write_text(json.dumps(facts))
    prepare_dataset("movielens", raw, target, window=1, dataset_name="other")
    assert facts_of(target)["name"] == "other"
    with pytest.raises(BigrecError, match=r"\(k_core 0 -> 2\)"):
        prepare_dataset("movielens", raw, target, window=1, k_core=2)


def test_a_folder_that_is_no_prepared_set_is_never_touched(raw, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    with pytest.raises(BigrecError, match="neither empty nor a prepared set"):
        prepare_dataset("movielens", raw, tmp_path / "mine", window=1)
    with pytest.raises(BigrecError, match="is not a folder"):
        prepare_dataset("movielens", raw, tmp_path / "mine/thesis.tex", window=1)
    assert (tmp_path / "mine/thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    prepare_dataset("movielens", raw, tmp_path / "empty", window=1)


def test_a_failure_leaves_the_old_set_and_no_temporary_folder(raw, tmp_path):
    target = prepare_dataset("movielens", raw, tmp_path / "set", window=1)
    before = contents(target)
    (raw / "ratings.dat").write_text("broken\n")
    with pytest.raises(BigrecError, match=r"ratings\.dat:1"):
        prepare_dataset("movielens", raw, target, window=1, overwrite_prepared=True)
    assert contents(target) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set", "tiny"]


@pytest.mark.parametrize(
    "stop_at",
    [pytest.param("items", marks=pytest.mark.slow), pytest.param("facts.json", marks=pytest.mark.slow), "rename"],
)
def test_kill_in_the_middle_then_rerun_gives_the_same_set(raw, tmp_path, stop_at):
    expected = contents(prepare_dataset("movielens", raw, tmp_path / "expected", window=1))
    program = """
import os, pathlib, signal, sys
from bigrec_hf.prepare import stage, tables
stop_at, raw, target = sys.argv[1:]
def die(*rest):
    os.kill(os.getpid(), signal.SIGKILL)
if stop_at == "items":
    tables.item_table = die
elif stop_at == "facts.json":
    write_text = pathlib.Path.write_text
    pathlib.Path.write_text = lambda p, *a, **k: die() if p.name == "facts.json" else write_text(p, *a, **k)
else:
    pathlib.Path.replace = die
stage.prepare_dataset("movielens", raw, target, window=1, overwrite_prepared=True)
"""
    target = tmp_path / "set"
    if stop_at == "rename":  # an older set is being replaced
        prepare_dataset("movielens", raw, target, window=2)
    assert run_python("-c", program, stop_at, raw, target).returncode == -signal.SIGKILL
    assert not target.exists() or facts_of(target)["max_history"] == 2
    assert list(tmp_path.glob(".set.*"))
    if stop_at == "rename":  # the older set is not lost, even if the next run fails
        with pytest.raises(BigrecError, match="has enough items"):
            prepare_dataset("movielens", raw, target, min_history=50, overwrite_prepared=True)
        assert facts_of(target)["max_history"] == 2
    prepare_dataset("movielens", raw, target, window=1, overwrite_prepared=True)
    got = contents(target)
    assert got == expected
    assert not list(tmp_path.glob(".set.*"))


def test_a_temporary_folder_of_a_running_process_is_left_alone(raw, tmp_path):
    running = tmp_path / f".set.tmp-{os.getppid()}"
    running.mkdir()
    prepare_dataset("movielens", raw, tmp_path / "set", window=1)
    assert running.is_dir()


# --- command line -----------------------------------------------------------------------------------------------------


def test_the_command_line_prepares_and_prints_errors_in_one_line(raw, tmp_path, capsys):
    arguments = ["prepare", "--source", "movielens", "--raw_dir", str(raw), "--output_dir", str(tmp_path / "set")]
    assert run_cli([*arguments, "--window", "1", "--export_reference_json", str(tmp_path / "json")]) == 0
    assert sorted(path.name for path in (tmp_path / "json").iterdir()) == [
        "test.json",
        "test_5000.json",
        "train.json",
        "valid.json",
        "valid_5000.json",
    ]
    assert len(json.loads((tmp_path / "json/train.json").read_text())) == 3
    capsys.readouterr()
    assert run_cli(arguments) == 2
    assert "holds another prepared set (window 1 -> 0)" in capsys.readouterr().err
    assert run_cli([*arguments, "--overwrite"]) == 2
    message = capsys.readouterr().err.strip()
    assert "none of 3 users has enough items" in message
    assert len(message.splitlines()) == 1


def test_an_export_from_a_kept_set_needs_no_new_prepare(raw, tmp_path, monkeypatch):
    target = prepare_dataset("movielens", raw, tmp_path / "set", window=1)
    monkeypatch.setattr(stage, "write_set", None)
    prepare_dataset("movielens", raw, target, window=1, export_reference_json=str(tmp_path / "json"))
    assert (tmp_path / "json/test_5000.json").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "source is not set: give it with --source"),
        ({"source": "movielens"}, "folder to write to is not set: give it with --output_dir"),
        ({"source": "movielens", "prepared_dir": "p"}, "raw_dir is not set"),
        ({"source": "netflix", "prepared_dir": "p"}, "unknown source 'netflix'"),
        ({"source": "movielens", "prepared_dir": "p", "text_sample": -1}, "text_sample is -1: expected at least 0"),
        ({"source": "movielens", "prepared_dir": "p", "min_rating": float("nan")}, "min_rating is nan: expected at"),
        ({"source": "movielens", "prepared_dir": "p", "ratings_file": "/none/r.dat"}, "/none/r.dat: no such file"),
    ],
)
def test_settings_that_are_missing_or_wrong(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BigrecError, match=message):
        main(PrepareSettings(**options))


# --- real data --------------------------------------------------------------------------------------------------------

DATA = Path(os.environ.get("BIGREC_HF_DATA", "none"))
real = pytest.mark.skipif(not DATA.is_dir(), reason="BIGREC_HF_DATA is not set to the folder of the real data")


@pytest.mark.slow
@real
def test_movielens_latest_small(tmp_path):
    prepared = prepare_dataset("movielens", DATA / "ml-latest-small", tmp_path / "movie")
    facts = facts_of(prepared)
    assert facts["interactions"] == {"raw": 100_836, "dropped": {}, "kept": 100_836}
    assert (facts["users"], facts["items"], facts["items_with_interactions"]) == (610, 9_742, 9_724)
    assert facts["examples"] == {"train": 75_788, "validation": 9_474, "test": 9_474}
    assert facts["licence"]["redistribution"] == "same terms"
    facts = facts_of(prepare_dataset("movielens", DATA / "ml-latest-small", tmp_path / "loo", preset="leave-one-out"))
    assert facts["examples"] == {"train": 100_836 - 3 * 610, "validation": 610, "test": 610}


@pytest.mark.slow
@real
def test_amazon_games_2018(tmp_path):
    prepared = prepare_dataset(
        "sequences",
        DATA / "amazon-games-2018",
        tmp_path / "games",
        preset="leave-one-out",
        noun="video games",
        verb="played",
    )
    facts = facts_of(prepared)
    assert (facts["users"], facts["items"], facts["interactions"]["kept"]) == (50_546, 16_859, 440_264)
    assert facts["examples"] == {"train": 440_264 - 3 * 50_546, "validation": 50_546, "test": 50_546}


@real
def test_full_catalogs():
    movies = load_catalog(DATA / "titles/movies.dat")
    assert len(movies) == 10_681
    mojibake = load_catalog(DATA / "titles/movies.dat", encoding="latin-1")
    assert len(mojibake) == 10_681  # one title holds U+0085 when read like this
    assert [item for item, title in zip(mojibake.item_ids, mojibake.titles, strict=True) if "\u0085" in title] == [
        "7034"
    ]
    games = load_catalog(DATA / "titles/game.id2name.txt")
    assert len(games) == 17_408
    repeated = [rows for rows in games.rows_by_title.values() if len(rows) > 1]
    assert (len(repeated), sum(map(len, repeated))) == (383, 871)
    assert games.titles[0] == " Xbox 360 Guitar Hero 5 Guitar Bundle"


def test_heavy_packages_are_not_imported(raw, tmp_path):
    # each costs a tenth to a half of the time of a small set; pyarrow imports pandas where it converts Python objects
    code = "import sys\nfrom bigrec_hf.prepare.stage import prepare_dataset\n"
    code += f"prepare_dataset('movielens', {str(raw)!r}, {str(tmp_path / 'set')!r}, window=1)\n"
    code += (
        "print('IMPORTED', [name for name in ('datasets', 'pandas', 'torch', 'transformers') if name in sys.modules])"
    )
    assert "IMPORTED []" in run_python("-c", code).stdout
