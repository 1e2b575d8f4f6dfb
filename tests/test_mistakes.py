"""Plausible mistakes of a new user: each is answered by one line that says what is wrong and what to do."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from bigrec_hf import cli

FILES = {
    "books.csv": "user,isbn,title,date\n"
    + "".join(f"u{i % 12},{i * 7 % 9},Book {i * 7 % 9},2024-{1 + i // 28:02d}-{1 + i % 28:02d}\n" for i in range(108)),
    "no_user.csv": "isbn,title,date\n1,A,2024-01-01\n",
    "no_title.csv": "user,isbn,date\nu,1,2024-01-01\n",
    "empty.csv": "",
    "header.csv": "user,isbn,title,date\n",
    "bad_date.csv": "user,isbn,title,date\nu,1,A,yesterday\nu,2,B,2024-01-01\n",
    "german.csv": "user,isbn,title,date\nu,1,A,31.01.2024\nu,2,B,28.02.2024\n",
    "spaces.csv": "user,isbn,the title of it,day read\nu,1,A,2024-01-01\n",
    "future.csv": "user,isbn,title,date\nu,1,A,99999999999999\nu,2,B,99999999999998\n",
    "key.yaml": "sft: {learning_rat: 1}\n",
    "twice.yaml": "sft: {sample: 1}\nsft: {sample: 2}\n",
    "tab.yaml": "sft:\n\tsample: 1\n",
    "list.yaml": "- a\n",
    "section.yaml": "trainig: {a: 1}\n",
    "elsewhere.yaml": "sft: {num_beams: 1}\n",
    "negative.yaml": "sft: {sample: -1}\n",
    "text.yaml": "sft: {sample: many}\n",
    "broken.json": '[{"predict": ',
    "histories.csv": "user,history\na,Book 1|Book 2\n",
    "a_file": "x",
}
TABLE = "prepare --source tabular --ratings_file"
MISTAKES = {
    "prepar": "unknown stage 'prepar': did you mean prepare?",
    "train": "unknown stage 'train': choose one of prepare, sft",
    "prepare": "source is not set: give it with --source",
    "prepare --source tabular": "give it with --output_dir",
    f"{TABLE} nowhere.csv --output_dir o": "nowhere.csv: no such file: check --ratings_file",
    f"{TABLE} no_user.csv --output_dir o": "no column for the user among isbn, title, date: give --user_column NAME",
    f"{TABLE} no_title.csv --output_dir o": "give --title_column NAME, or give titles in a separate file",
    f"{TABLE} empty.csv --output_dir o": "empty.csv: the file is empty",
    f"{TABLE} header.csv --output_dir o": "header.csv: the file contains no data lines: replace it",
    f"{TABLE} german.csv --output_dir o": "date is '31.01.2024', neither a number nor an ISO date such as 2024-01-31: ",
    f"{TABLE} spaces.csv --output_dir o": "give --title_column 'the title of it', or give titles",
    f"{TABLE} bad_date.csv --output_dir o": "bad_date.csv:2: date is 'yesterday'",
    f"{TABLE} future.csv --output_dir o": "in no unit (s, ms, us, ns) are these times between 1990 and 2100",
    f"{TABLE} books.csv --output_dir a_file": "a_file is not a folder: choose another",
    f"{TABLE} books.csv --user_column person --output_dir o": "no column for 'person' (--user_column) among user, isbn",
    f"{TABLE} books.csv --preset bigrec --output_dir o": "invalid choice: 'bigrec' (choose from 'bigrec-movie'",
    f"{TABLE} books.csv --min_rating x --output_dir o": "argument --min_rating: invalid float value: 'x'",
    f"{TABLE} books.csv --date_from 01.02.2024 --output_dir o": "give an ISO date such as 2017-10-01",
    f"{TABLE} books.csv --k_core 50 --output_dir o": "is left after dropping",
    "prepare --source movielens --raw_dir . --output_dir o": "expected one items file, found none of movies.dat",
    "generate --engine ray": "work in actors on a Ray cluster too: give --num_actors",
    "rerank --texts scores": "'scores': the stage `pool` combines title probabilities",
    f"{TABLE} books.csv --output_dir taken": "taken is neither empty nor a prepared set",
    "sft --config key.yaml": "did you mean 'learning_rate'?",
    "sft --config twice.yaml": "the key 'sft' occurs twice: remove one",
    "sft --config tab.yaml": "recipe 'tab.yaml' is not valid YAML",
    "sft --config list.yaml": "must map sections to settings, but holds a list",
    "sft --config section.yaml": "unknown key 'trainig' in section.yaml: valid keys: run, pipeline",
    "sft --config elsewhere.yaml": "it belongs in section `generate`",
    "sft --config negative.yaml": "is -1: expected at least 0",
    "sft --config text.yaml": "is 'many': expected int",
    "sft --config nowhere.yaml": "`bigrec-hf recipes` lists the shipped ones",
    "sft --learning_rate fast": "argument --learning_rate: invalid float value: 'fast'",
    "sft --learing_rate 1": "unknown argument --learing_rate: did you mean --learning_rate?",
    "sft --dataset o --run_dir r": "no base model given: set base_model",
    "sft --dataset o --base_model ./none --run_dir r": "base model folder './none' does not exist",
    "run --config quickstart/movielens --run_dir r": "did you mean quickstart/movielens_dense?",
    "run --config quickstart/movielens_dense --run_dir r": "(`make quickstart` downloads that of the quickstart)",
    "run --dataset o --run_dir r --baselines popular": "unknown baseline 'popular': choose among random, popularity",
    "run --config a_file": "must map sections to settings, but holds a str",
    "generate --num_beams 0": "--num_beams is 0: expected at least 1",
    "ground --run_dir r --dataset o": "no catalog at o: give a prepared set (folder or Hub id)",
    "score --run_dir r": "run `bigrec-hf ground` first",
    "score": "no run folder given: name one with --output_dir or --config RECIPE",
    "report": "no run given: give one or more run folders",
    "report nowhere": "contains no results: create them with `bigrec-hf run --config RECIPE`",
    "evaluate": "no output folder given: name one with --output_dir",
    "recommend --history 'Book 1'": "nothing to recommend with: give --run_dir",
    "baselines --dataset data/nowhere --run_dir r": "or check the path if a folder is meant (there is none)",
    "init": "no table of ratings: give it with --ratings_file",
    "init --ratings_file nowhere.csv": "nowhere.csv: no such file",
    "init --ratings_file books.csv --output list.yaml": "list.yaml exists: name another recipe with",
    "init --ratings_file books.csv --output books": "'books' does not end in .yaml",
    "init --ratings_file books.csv --base_model ./none": "base model folder './none' does not exist",
    "init --ratings_file no_user.csv --base_model a/b": "no column for the user among isbn, title, date",
    "recommend --run_dir nowhere --history 'Book 1'": "run folder 'nowhere' does not exist",
    "recommend --run_dir . --histories histories.csv": "no place to write to: give --output recs.parquet",
    "baselines --dataset o": "no run folder given",
    "publish": "arguments are required: publish_kind",
    "publish everything": "invalid choice: 'everything' (choose from 'dataset', 'adapter'",
    "publish run --run_dir nowhere --repo_id a/b": "finish it with `bigrec-hf run`",
    "publish dataset --dataset o --repo_id 'my data'": "--repo_id is 'my data': expected user/name",
    "demo": "there is nothing to show: name a run with --run_dir or an adapter with --adapter",
    "demo --run_dir nowhere": "run folder 'nowhere' does not exist",
    "pool --run_dir r --dataset o": "no catalog at o: give a prepared set (folder or Hub id)",
    "rerank --run_dir r --formulas average": "formulas: 'average': choose among reweight, mix, rrf",
    "fuse --run_dir r --fusion mean": "invalid choice: 'mean' (choose from 'min', 'rrf'",
    "sasrec --run_dir r": "no data set given",
    "download": "nothing to download",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_answered_in_one_line(line, tmp_path, monkeypatch, capfd):
    for name, content in FILES.items():
        Path(tmp_path / name).write_text(content)
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.tex").write_text("x")
    monkeypatch.chdir(tmp_path)
    assert cli.main(shlex.split(line)) == 2
    said = capfd.readouterr().err.strip().splitlines()
    assert MISTAKES[line] in said[-1]
    assert said[-1].startswith("bigrec-hf")
    assert not any("Traceback" in one for one in said)
    assert sum(one.startswith("bigrec-hf") for one in said) == 1
