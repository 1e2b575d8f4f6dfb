"""`bigrec-hf recommend`: inputs, formats, order, resumption after a kill, protection of other jobs' outputs."""

from __future__ import annotations

import json
import signal

import polars as pl
import pytest

from bigrec_hf import Recommender, cli
from bigrec_hf.data.earlier import user_sequences
from tests.helpers.processes import run_python
from tests.helpers.tiny import TITLES
from tests.helpers.tiny_run import run_histories


@pytest.fixture(scope="module")
def users_file(dense_run, tmp_path_factory):
    """Ten users and their histories, the ninth unknown."""
    histories, _ = run_histories(dense_run)
    histories[8] = ["Nothing (1900)", "Toy Storry (1995)"]
    frame = pl.DataFrame({"user": [f"u{9 - n}" for n in range(10)], "history": [json.dumps(h) for h in histories]})
    path = tmp_path_factory.mktemp("users") / "users.csv"
    frame.write_csv(path)
    return path


def recommend(*flags, code=0):
    assert cli.main(["recommend", *map(str, flags), *(["--debug"] if code == 0 else [])]) == code


def test_a_file_of_users_in_every_format(dense_run, users_file, tmp_path, capsys):
    tables = []
    for suffix in ("parquet", "csv", "jsonl"):
        output = tmp_path / f"recs.{suffix}"
        flags = ("--histories", users_file, "--top_k", 3, "--output", output, "--batch_users", 4)
        recommend("--run_dir", dense_run, *flags)
        read = {"parquet": pl.read_parquet, "csv": pl.read_csv, "jsonl": pl.read_ndjson}[suffix]
        tables.append(read(output).cast({"rank": pl.Int32, "score": pl.Float32, "item_id": pl.String}))
        assert sorted(p.name for p in tmp_path.iterdir() if suffix in p.name) == [output.name, f"{output.name}.json"]
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])
    out = capsys.readouterr().out
    assert "2 history entries (2 titles) are not in the catalog" in out
    assert "'Toy Storry (1995)', 1 times; did you mean 'Toy Story (1995)'" in out
    assert "1 user without a known title" in out
    assert tables[0]["user"].to_list() == [f"u{9 - n}" for n in range(10) for _ in range(3)]
    assert tables[0]["rank"].to_list() == [1, 2, 3] * 10
    assert tables[0].filter("fallback")["user"].unique().to_list() == ["u1"]
    histories, _ = run_histories(dense_run)
    expected = Recommender.from_pretrained(dense_run).recommend(histories, 3)
    rows = tables[0].filter(~pl.col("fallback"))
    assert rows["title"].to_list() == [item.title for n, one in enumerate(expected) if n != 8 for item in one.items]
    assert rows["text"].to_list() == [one.text for n, one in enumerate(expected) if n != 8 for _ in range(3)]
    record = json.loads((tmp_path / "recs.csv.json").read_text())
    assert (record["users"], record["rows"], record["fallback_users"], record["unknown_entries"]) == (10, 30, 1, 2)
    assert record["users_per_second"] > 0


def test_popularity_for_everybody_is_said_loudly(dense_run, tmp_path, capsys):
    table = tmp_path / "wrong.csv"
    table.write_text("user,title,note\na,1,x\nb,2,x\n")
    recommend("--run_dir", dense_run, "--histories", table, "--output", tmp_path / "recs.csv")
    warning = "warning: NO USER HAS A KNOWN TITLE, so everyone gets the most popular items; they hold ids such as '1'"
    assert [line for line in capsys.readouterr().err.splitlines() if line.startswith(warning)]
    recommend("--run_dir", dense_run, "--histories", table, "--output", tmp_path / "ids.csv", "--items_are", "ids")
    assert "NO USER" not in capsys.readouterr().err


def test_sasrec_is_offered_only_where_it_was_trained(dense_run, capsys):
    recommend("--run_dir", dense_run, "--history", "Heat (1995)", "--ranker", "sasrec", code=2)
    said = capsys.readouterr().err
    assert "has no ranker 'sasrec': choose among finetuned, ease, itemknn, popularity, cooccurrence, " in said
    assert "or train one with `bigrec-hf sasrec`" in said


def test_another_jobs_output_is_not_replaced(dense_run, users_file, tmp_path, capsys):
    output = tmp_path / "recs.csv"
    flags = ["--run_dir", dense_run, "--histories", users_file, "--output", output, "--ranker", "popularity"]
    recommend(*flags)
    before = output.read_bytes()
    capsys.readouterr()
    recommend(*flags)
    assert "unchanged: kept" in capsys.readouterr().out
    recommend(*flags, "--top_k", 2, code=2)
    assert "recommendations of other settings, users or models" in capsys.readouterr().err
    assert output.read_bytes() == before
    recommend(*flags, "--top_k", 2, "--overwrite")
    assert len(pl.read_csv(output)) == 20
    output.write_text("mine\n")
    recommend(*flags, "--top_k", 2, code=2)
    (tmp_path / "recs.csv.json").unlink()
    recommend(*flags, code=2)
    assert "of an unknown origin" in capsys.readouterr().err and output.read_text() == "mine\n"


def test_whole_histories_of_a_prepared_set(dense_run, tmp_path, capsys):
    output = tmp_path / "recs.parquet"
    flags = ["--run_dir", dense_run, "--output", output, "--ranker", "ease", "--top_k", 100]
    recommend(*flags, "--users", "all")
    found = pl.read_parquet(output)
    names, rows, starts = user_sequences(str(dense_run / "data"))
    assert found["user"].unique(maintain_order=True).to_list() == names.to_pylist()
    for number, name in enumerate(names.to_pylist()):
        own = {str(row + 1) for row in rows[starts[number] : starts[number + 1]]}
        assert not own & set(found.filter(pl.col("user") == name)["item_id"])
    (tmp_path / "some.txt").write_text("7\n3\n")
    (tmp_path / "titles.txt").write_text(f"{TITLES[0]}\n{TITLES[1]}\n")
    some = ["--users", tmp_path / "some.txt", "--candidates", tmp_path / "titles.txt", "--include_seen", "--overwrite"]
    recommend(*flags, *some)
    found = pl.read_parquet(output)
    assert found["user"].to_list() == ["7", "7", "3", "3"] and set(found["title"]) == {TITLES[0], TITLES[1]}
    (tmp_path / "some.txt").write_text("7\nnobody\n")
    recommend(*flags, *some, code=2)
    assert "has no user 'nobody' (1 of 2 are unknown)" in capsys.readouterr().err


def test_rankers_without_a_language_model(dense_run, tmp_path, capsys):
    data, output = dense_run / "data", tmp_path / "recs.parquet"
    where = ["--dataset", data, "--run_dir", tmp_path / "without"]
    assert cli.main(["baselines", *map(str, where), "--ks", "1", "--ease_lambdas", "50"]) == 0
    recommend(*where, "--users", "all", "--ranker", "ease", "--output", output)
    found = pl.read_parquet(output)
    recommend("--dataset", data, "--users", "all", "--ranker", "popularity", "--output", output, "--overwrite")
    assert len(pl.read_parquet(output)) == len(found) and not pl.read_parquet(output).equals(found)
    capsys.readouterr()
    recommend(*where, "--history", TITLES[0], code=2)
    assert "has no ranker 'finetuned': choose among ease" in capsys.readouterr().err


def test_one_history_is_printed(dense_run, capsys):
    recommend("--adapter", dense_run / "adapter", "--history", TITLES[0], TITLES[3], "--top_k", 2)
    out = capsys.readouterr().out
    assert "generated: " in out and out.count("\n  1  ") == 1 and out.count("\n  2  ") == 1
    recommend("--run_dir", dense_run, "--history", "Nothing (1900)", "--top_k", 2)
    assert "the most popular items" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --run_dir (a run) or --adapter"),
        (["--run_dir", "RUN"], "no users given: give one of"),
        (["--run_dir", "RUN", "--users", "all", "--history", "x"], "--history and --users are both given"),
        (["--run_dir", "RUN", "--users", "all"], "no place to write to: give --output"),
        (["--run_dir", "RUN", "--users", "all", "--output", "recs.xlsx"], "give a file that ends in .parquet"),
        (["--run_dir", "RUN", "--users", "all", "--output", "r.csv", "--ranker", "svd"], "has no ranker 'svd'"),
        (["--run_dir", "RUN", "--histories", "none.csv", "--output", "r.csv"], "none.csv does not exist"),
        (["--adapter", "./nothing", "--history", "x"], "'./nothing' does not exist"),
    ],
)
def test_errors_in_one_line(dense_run, flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recommend(*(dense_run if flag == "RUN" else flag for flag in flags), code=2)
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and not list(tmp_path.iterdir())


KILLED = """
import os, signal, sys
from bigrec_hf import cli
from bigrec_hf.common.shards import ShardFolder
left, write = 2, ShardFolder.write_table
def killed(self, *shard):
    global left
    write(self, *shard)
    left -= 1
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
ShardFolder.write_table = killed
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_job_is_resumed_with_the_same_rows(dense_run, users_file, tmp_path, capsys):
    def flags(name):
        return ["--run_dir", dense_run, "--histories", users_file, "--output", tmp_path / name, "--batch_users", 3]

    recommend(*flags("whole.csv"))
    done = run_python("-c", KILLED, "recommend", *flags("killed.csv"))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "killed.csv").exists()
    capsys.readouterr()
    recommend(*flags("killed.csv"))
    assert "resuming, 6 of 10 users are done" in capsys.readouterr().out
    assert (tmp_path / "killed.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_published_adapter_serves_new_users(hub, dense_run, tiny_model_dir, users_file, tmp_path):
    """Nothing but the adapter's repository is needed, for users without a known title either."""
    base, name = hub.new_id("tiny-llama"), hub.new_id("movies")
    hub.api().create_repo(base)
    hub.api().upload_folder(repo_id=base, folder_path=tiny_model_dir)
    flags = ["--run_dir", dense_run, "--base_model", base, "--repo_id", name, "--debug"]
    assert cli.main(["publish", "adapter", *map(str, flags)]) == 0
    for file, where in (("there.parquet", ["--adapter", name]), ("here.parquet", ["--run_dir", dense_run])):
        recommend(*where, "--histories", users_file, "--output", tmp_path / file)
    there, here = pl.read_parquet(tmp_path / "there.parquet"), pl.read_parquet(tmp_path / "here.parquet")
    assert there.equals(here) and there["fallback"].sum() == 10


# --- categories -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Items 1 to 20 with their genres, and one that the catalog lacks."""
    genres = [["Drama|Comedy", "Drama", "War"][row % 3] for row in range(len(TITLES))]
    table = pl.DataFrame({"movieId": [str(row + 1) for row in range(len(TITLES))], "genres": genres})
    table = pl.concat([table, pl.DataFrame({"movieId": ["999"], "genres": ["Comedy"]})])
    folder = tmp_path_factory.mktemp("shelf")
    table.write_csv(folder / "movies.csv")
    table.with_columns(kinds=pl.col("genres").str.split("|")).drop("genres").write_parquet(folder / "movies.parquet")
    return folder


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (("movies.csv", "--category", "comedy"), {0}),
        (("movies.csv", "--category", "Drama", "--category_column", "genres"), {0, 1}),
        (("movies.csv", "--category", "Comedy", "War"), {0, 2}),
        (("movies.parquet", "--category", "War", "--category_column", "kinds"), {2}),
    ],
)
@pytest.mark.parametrize("ranker", ["finetuned", "popularity"])
def test_only_items_of_a_category(dense_run, shelf, tmp_path, capsys, flags, kept, ranker):
    output = tmp_path / "recs.parquet"
    file, *rest = flags
    same = ["--run_dir", dense_run, "--users", "all", "--top_k", 20, "--ranker", ranker, "--include_seen"]
    recommend(*same, "--output", output, "--candidates", shelf / file, *rest)
    found = pl.read_parquet(output)
    wanted = {str(row + 1) for row in range(len(TITLES)) if row % 3 in kept}
    assert set(found["item_id"]) == wanted and found.group_by("user").len()["len"].unique().to_list() == [len(wanted)]
    said = f"recommend: {len(wanted)} items of {', '.join(rest[1:]).split(', --')[0]}"
    assert said + (", 1 are not in the catalog" if 0 in kept and "Drama" not in rest else "") in capsys.readouterr().out
    (tmp_path / "ids.txt").write_text("\n".join(sorted(wanted)))
    recommend(*same, "--output", tmp_path / "ids.parquet", "--candidates", tmp_path / "ids.txt")
    assert pl.read_parquet(tmp_path / "ids.parquet").equals(found)


def test_categories_that_are_not_there(dense_run, shelf, tmp_path, capsys):
    same = ["--run_dir", dense_run, "--history", TITLES[0], "--ranker", "popularity"]
    for flags, words in (
        (("--category", "Comedy"), "give --candidates FILE, a table of items with their categories"),
        (("--category_column", "genres", "--candidates", shelf / "movies.csv"), "give --category"),
        (
            ("--category", "Comdy", "--candidates", shelf / "movies.csv"),
            "no item has 'Comdy' in the column genres: did",
        ),
        (("--category", "Qqq", "--candidates", shelf / "movies.csv"), "it has Drama, Comedy, War"),
        (("--category", "War", "--candidates", shelf / "movies.parquet"), "name it with --category_column"),
    ):
        recommend(*same, *flags, code=2)
        assert words in capsys.readouterr().err
    (tmp_path / "other.csv").write_text("item_id,genre\n777,War\n")
    recommend(*same, "--category", "War", "--candidates", tmp_path / "other.csv", code=2)
    assert "none of the 1 items of War is in the catalog" in capsys.readouterr().err
