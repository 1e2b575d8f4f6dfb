"""Keywords: what counts as an answer, then the stage with a tiny chat model, kept rows and a restart after a kill."""

import json
import signal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bigrec_hf import cli
from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.shards import ShardFolder
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.data.generations import GENERATIONS_SCHEMA
from bigrec_hf.data.prompts import KEYWORDS_PLACEHOLDERS, keywords_prompt_ids
from bigrec_hf.generate.decoder import Decoder
from bigrec_hf.generate.keywords import (
    keyword_catalog,
    keywords_table,
    look_up,
    parse_keywords,
    read_keywords,
    wanted_titles,
)
from bigrec_hf.generate.strategy import Decoding
from bigrec_hf.ground.index import build_index
from tests.helpers.processes import KILLED_AFTER_SHARDS, run_python
from tests.helpers.tiny import TITLES, save_tiny_model, tiny_model, tiny_tokenizer, write_tiny_catalog


@pytest.mark.parametrize(
    ("answer", "keywords"),
    [
        ('{"keywords": "toys, friendship,  animation "}', ["toys", "friendship", "animation"]),
        ('{"keywords": ["toys", "a, b"]}', ["toys", "a", "b"]),
        ('```json\n{\n  "Keywords": "toys,\\n toys, Toys, boats"\n}\n```', ["toys", "boats"]),
        ('Sure! {"note": 1} Here: {"keywords": "x"} and {"keywords": "y"}', ["x"]),
        ('{"answer": {"keywords": "inner"}}', ["inner"]),
        ('{"keywords": "Amélie, 東京"}', ["Amélie", "東京"]),
        ('{"keywords": "\\"quoted\\", \\""}', ["quoted"]),
        ("", None),
        ("toys, friendship", None),
        ('{"keywords": "toys', None),
        ("{'keywords': 'toys'}", None),
        ('{"keywords": ""}', None),
        ('{"keywords": " , ,"}', None),
        ('{"keywords": 3}', None),
        ('{"keywords": ["toys", 3]}', None),
        ('{"keywords": null}', None),
        ('{"tags": "toys"}', None),
        ('["keywords"]', None),
        ('{"keywords": "\\ud800"}', None),  # would not fit into any UTF-8 file
        ('{"keywords": "first, second, third"}', None),  # the question's own words
        ('{"keywords": "first, second, third"} {"keywords": "first, last"}', ["first", "last"]),
        ('{"a":' * 3000, None),
        ("{" * 3000, None),
    ],
)
def test_parsing(answer, keywords):
    assert parse_keywords(answer) == keywords


@given(st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs", "Zs", "Cc"], exclude_characters=',"'))))
def test_written_keywords_are_read_back(words):
    words = [" ".join(word.split()) for word in words]
    expected = list({word.casefold(): word for word in reversed([word for word in words if word])}.values())
    found = parse_keywords("Here you are: " + json.dumps({"keywords": ", ".join(words)})) or []
    assert sorted(found) == sorted(expected)


def test_an_answer_that_does_not_parse_falls_back_to_the_title():
    table = keywords_table(["Heat", "Babe"], ['{"keywords": "crime, heist"}', "a film about a pig"])
    assert table.to_pylist() == [
        {"title": "Heat", "keywords": "crime, heist", "parsed": True},
        {"title": "Babe", "keywords": "Babe", "parsed": False},
    ]


def test_look_up_and_a_keyword_catalog():
    keywords = {"Heat": "crime, heist", "Babe": "pig", "odd": '"'}
    catalog = Catalog(["i0", "i1", "i2"], ['"Heat" ', "Babe", "Heat"])
    assert keyword_catalog(catalog, keywords).titles == ["crime, heist", "pig", "crime, heist"]
    assert keyword_catalog(catalog, keywords).item_ids == ["i0", "i1", "i2"]
    assert look_up(["odd", ""], keywords, "x") == ["odd", ""]
    with pytest.raises(BigrecError, match="2 titles of the catalog have no keywords, such as 'Heat'"):
        keyword_catalog(catalog, {})


def test_question():
    tokenizer = tiny_tokenizer()
    text = tokenizer.decode(keywords_prompt_ids("Heat (1995)", "movie", tokenizer))
    assert f'{{"keywords": "{", ".join(KEYWORDS_PLACEHOLDERS)}"}}' in text and 'The movie: "Heat (1995)"' in text
    assert text.endswith("assistant\n")
    alpaca = tiny_tokenizer(chat=False)
    assert alpaca.decode(keywords_prompt_ids("Heat", "movie", alpaca)).endswith("### Response:\n")


def test_whole_answers_go_on_after_a_line_break():
    """The decoder cuts titles at a line break; JSON may hold some."""
    tokenizer = tiny_tokenizer(padding_side="left")
    prompts = [keywords_prompt_ids(title, "movie", tokenizer) for title in TITLES[:6]]
    decoding = Decoding("greedy", max_new_tokens=24)
    whole, _ = Decoder(tiny_model(seed=8), tokenizer, decoding, single_line=False).decode(prompts, list(TITLES[:6]))
    titles, _ = Decoder(tiny_model(seed=8), tokenizer, decoding).decode(prompts, list(TITLES[:6]))
    whole, titles = [text for (text,) in whole], [text for (text,) in titles]
    assert any("\n" in text.strip() for text in whole)
    for text, title in zip(whole, titles, strict=True):
        assert text.replace("\r", "\n").split("\n")[0].strip().strip('"').strip() == title


def write_generations(path, texts):
    path.parent.mkdir(parents=True)
    n = len(texts)
    columns = {
        C.EXAMPLE_ID: [f"u{i}:1" for i in range(n)],
        C.TARGET: [0] * n,
        C.TARGET_TITLE: [TITLES[0]] * n,
        C.HISTORY: [[]] * n,
        C.TEXTS: texts,
        C.SCORES: [[0.0] * len(row) for row in texts],
        **{flag: [False] * n for flag in (C.EMPTY, C.IN_CATALOG, C.IN_HISTORY)},
    }
    pq.write_table(pa.table(columns, schema=GENERATIONS_SCHEMA), path)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny", seed=5)


def arguments(run, model, *more):
    where = ["--run_dir", str(run), "--base_model", model, "--catalog", write_tiny_catalog(run.parent / "items.csv")]
    return ["keywords", *where, "--keywords_tokens", "8", "--keywords_batch_size", "4", "--dtype", "float32", *more]


def test_stage(tmp_path, model, capsys):
    run = tmp_path / "run"
    assert cli.main(arguments(run, model)) == 0
    table = pq.read_table(run / "keywords/keywords.parquet")
    assert table.column_names == ["title", "keywords", "parsed"]
    assert table["title"].to_pylist() == list(TITLES)
    assert not any(table["parsed"].to_pylist())  # a random model writes no JSON
    assert table["keywords"].to_pylist() == list(TITLES)
    summary = json.loads((run / "keywords/keywords.json").read_text(encoding="utf-8"))
    assert summary["n_titles"] == summary["n_fallback"] == 20 and len(summary["unparsed_answers"]) == 5
    assert summary["noun"] == "item" and not (run / "keywords/shards").exists()

    # what is there is kept, edits included; only new first texts are asked, of both splits
    edited = pa.table({**table.to_pydict(), "keywords": ["x"] * 20}, schema=table.schema)
    pq.write_table(edited, run / "keywords/keywords.parquet")
    write_generations(
        run / "finetuned/generations.parquet", [['"Heat (1995)"', "second"], ["A new one", ""], ["", "b"]]
    )
    write_generations(run / "validation/finetuned/generations.parquet", [["Another", "c"], ["A new one", "d"]])
    capsys.readouterr()
    assert cli.main(arguments(run, model)) == 0
    assert "20 titles are done, 2 remain" in capsys.readouterr().out
    table = pq.read_table(run / "keywords/keywords.parquet")
    assert table["title"].to_pylist() == [*TITLES, "A new one", "Another"]
    assert table["keywords"].to_pylist() == ["x"] * 20 + ["A new one", "Another"]
    assert cli.main(arguments(run, model)) == 0 and "0 remain" in capsys.readouterr().out

    # another question makes all of them new
    assert cli.main(arguments(run, model, "--keywords_noun", "film")) == 0
    assert "0 titles are done, 22 remain" in capsys.readouterr().out
    keywords = read_keywords(run / "keywords/keywords.parquet")
    assert keywords["Babe (1995)"] == "Babe (1995)"

    index = build_index(
        tmp_path / "index",
        keyword_catalog(Catalog([f"i{i}" for i in range(20)], list(TITLES)), keywords),
        lambda texts: np.array([[len(text)] for text in texts], np.float32),
        {"encoder": "length", "revision": "1", "kind": "x", "dtype": "float32"},
        progress=False,
    )
    assert index.embeddings[:, 0].tolist() == [len(title) for title in TITLES]


def taught_model(path, answers):
    """A checkpoint that has learned these answers (title -> answer) by heart."""
    tokenizer, model = tiny_tokenizer(), tiny_model(seed=0, spread=0.05).train()
    prompts = [keywords_prompt_ids(title, "movie", tokenizer) for title in answers]
    ends = [tokenizer(answer)["input_ids"] + [tokenizer.eos_token_id] for answer in answers.values()]
    width = max(len(prompt) + len(end) for prompt, end in zip(prompts, ends, strict=True))
    ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
    labels = torch.full_like(ids, -100)
    for row, (prompt, end) in enumerate(zip(prompts, ends, strict=True)):
        ids[row, : len(prompt) + len(end)] = torch.tensor(prompt + end)
        labels[row, len(prompt) : len(prompt) + len(end)] = torch.tensor(end)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(200):
        loss = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=labels).loss
        if loss < 0.02:
            break
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def test_a_model_that_writes_json_for_some_titles(tmp_path):
    answers = {
        "Heat (1995)": '```json\n{\n"keywords": "crime, heist"}\n```',
        "Babe (1995)": "a pig",
        "Amélie (2001)": '{"keywords": "Paris, whimsy, Paris"}',
    }
    model = taught_model(tmp_path / "taught", answers)
    catalog = tmp_path / "id2name.txt"
    catalog.write_text("".join(f"{title}\t{row}\n" for row, title in enumerate(answers)), encoding="utf-8")
    where = ["--run_dir", str(tmp_path / "run"), "--catalog", str(catalog), "--keywords_model", model]
    assert cli.main(["keywords", *where, "--keywords_noun", "movie", "--dtype", "float32"]) == 0
    rows = [list(row.values()) for row in pq.read_table(tmp_path / "run/keywords/keywords.parquet").to_pylist()]
    assert rows == [
        ["Heat (1995)", "crime, heist", True],
        ["Babe (1995)", "Babe (1995)", False],
        ["Amélie (2001)", "Paris, whimsy", True],
    ]
    summary = json.loads((tmp_path / "run/keywords/keywords.json").read_text(encoding="utf-8"))
    assert summary["n_fallback"] == 1 and summary["unparsed_answers"] == ["a pig"]


def check_going_on(command, cut, whole, monkeypatch):
    """The next run asks only for what is missing of the 20 titles and gives the same file."""
    done = len(list(cut.glob("keywords/shards/*/batch-*.parquet")))
    assert done == 3 and not (cut / "keywords/keywords.parquet").exists()
    written = []
    original = ShardFolder.write_table

    def write(self, number, *rest):
        written.append(number)
        original(self, number, *rest)

    monkeypatch.setattr(ShardFolder, "write_table", write)
    assert cli.main(command) == 0
    assert len(written) == 20 - done
    assert pq.read_table(cut / "keywords/keywords.parquet").equals(pq.read_table(whole / "keywords/keywords.parquet"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    run = tmp_path_factory.mktemp("keywords") / "whole"
    assert cli.main(arguments(run, model, "--keywords_batch_size", "1")) == 0
    return run


def test_an_interrupted_run_goes_on(tmp_path, model, whole, monkeypatch):
    command = arguments(tmp_path / "cut", model, "--keywords_batch_size", "1")
    left = iter([False, False, True])
    original = ShardFolder.write_table

    def write(self, *shard):
        original(self, *shard)
        if next(left):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(ShardFolder, "write_table", write)
        assert cli.main(command) == 130
    check_going_on(command, tmp_path / "cut", whole, monkeypatch)


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path, model, whole, monkeypatch):
    command = arguments(tmp_path / "cut", model, "--keywords_batch_size", "1")
    (tmp_path / "killed.py").write_text(KILLED_AFTER_SHARDS)
    assert run_python(tmp_path / "killed.py", 3, *command).returncode == -signal.SIGKILL
    check_going_on(command, tmp_path / "cut", whole, monkeypatch)


def test_faults(tmp_path, capsys):
    catalog = Catalog(["i0"], ["Heat"])
    assert wanted_titles(catalog, [tmp_path / "none.parquet"]) == ["Heat"]
    with pytest.raises(BigrecError, match="bigrec-hf keywords"):
        read_keywords(tmp_path / "keywords.parquet")
    pq.write_table(pa.table({"title": ["a"]}), tmp_path / "keywords.parquet")
    with pytest.raises(BigrecError, match="lacks the column 'keywords'"):
        read_keywords(tmp_path / "keywords.parquet")
    assert cli.main(["keywords"]) == 2 and "no run folder" in capsys.readouterr().err
    assert cli.main(["keywords", "--run_dir", str(tmp_path)]) == 2 and "--keywords_model" in capsys.readouterr().err
