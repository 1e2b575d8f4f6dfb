"""The published rows: figures compared by eye with the source, contradictions marked, a table that stays readable."""

from __future__ import annotations

from collections import Counter

import pytest

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.report.published import FIGURES, contradictions, published_rows, published_table
from tests.helpers.run_folders import make_run

SOUND = {  # of 10,000 rankings 100 hits at rank 1, 60 more at rank 3, 40 at 4, 30 at 10, 20 at 20, 10 at 50
    "train_samples": "8",
    "epoch": "1",
    "train_prompt": "basic",
    **dict(zip(FIGURES[:6], ["0.0100", "0.0130", "0.0147", "0.0156", "0.0160", "0.0162"], strict=True)),
    **dict(zip(FIGURES[6:], ["0.0100", "0.0160", "0.0200", "0.0230", "0.0250", "0.0260"], strict=True)),
}


def find(rows, **wanted):
    found = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    assert len(found) == 1
    return found[0]


def test_every_row_is_there():
    game, movie = published_rows("game"), published_rows("movie")
    assert (len(movie), len(game)) == (1, 112)
    assert Counter(row["model"] for row in game) == {
        "llama-7b": 15,
        "llama-7b-instruct": 15,
        "Qwen2.5-0.5B-Instruct": 42,
        "Qwen2.5-1.5B-Instruct": 16,
        "Qwen2.5-3B-Instruct": 13,
        "Qwen2.5-7B-Instruct": 11,
    }
    assert Counter(row["method"] for row in game) == {"sft": 71, "grpo": 31, "zero-shot": 8, "sft+grpo": 1, "latent": 1}
    figures = [row[key] for row in game + movie for key in FIGURES]
    assert all(len(figure) == 6 and figure.startswith("0.0") for figure in figures)


@pytest.mark.parametrize(
    ("wanted", "figures"),
    [
        # the two rows that an earlier version of the source had wrong
        (
            {"model": "llama-7b", "epoch": "5", "train_prompt": "enhanced"},
            "0.0128 0.0168 0.0187 0.0222 0.0248 0.0291 0.0128 0.0196 0.0242 0.0352 0.0456 0.0672",
        ),
        (
            {"model": "llama-7b", "epoch": "6"},
            "0.0139 0.0181 0.0207 0.0235 0.0264 0.0308 0.0139 0.0211 0.0275 0.0362 0.0480 0.0700",
        ),
        (
            {"model": "Qwen2.5-1.5B-Instruct", "train_samples": "10000", "epoch": "5"},
            "0.0108 0.0145 0.0162 0.0184 0.0219 0.0264 0.0108 0.0172 0.0214 0.0282 0.0420 0.0648",
        ),
        (
            {"model": "Qwen2.5-3B-Instruct", "method": "grpo"},
            "0.0042 0.0056 0.0070 0.0086 0.0111 0.0156 0.0042 0.0066 0.0100 0.0146 0.0248 0.0476",
        ),
        (
            {"beta": "0.5", "reward": "similarity", "epoch": "5"},
            "0.0080 0.0115 0.0128 0.0152 0.0181 0.0210 0.0080 0.0142 0.0174 0.0248 0.0364 0.0512",
        ),
        (
            {"method": "latent", "model": "Qwen2.5-0.5B-Instruct"},
            "0.0084 0.0114 0.0127 0.0149 0.0178 0.0209 0.0084 0.0140 0.0170 0.0240 0.0356 0.0512",
        ),
    ],
)
def test_rows_read_from_the_source(wanted, figures):
    row = find(published_rows("game"), **wanted)
    assert [row[key] for key in FIGURES] == figures.split()
    assert row["marks"] == ""


def test_rows_that_contradict_themselves_are_marked():
    names = ("model", "train_samples", "epoch", "train_prompt")
    fall = "NDCG falls from K = 3 to 5"
    marked = {tuple(row[name] for name in names): row["marks"] for row in published_rows("game") if row["marks"]}
    twins = "Qwen2.5-1.5B-Instruct, SFT on 10000 examples, epoch {}, enhanced + enhanced in 11 of 12 figures"
    assert marked == {
        ("llama-7b", "1024", "5", "basic"): "HR falls from K = 10 to 20; NDCG@20 and NDCG@50 do not fit HR",
        ("llama-7b-instruct", "1024", "0", "none"): "1024 examples, but no epoch",
        ("llama-7b-instruct", "1024", "1", "none"): "trained, but without a training prompt",
        (
            "Qwen2.5-0.5B-Instruct",
            "1024",
            "7",
            "enhanced",
        ): f"NDCG@1 and NDCG@3 do not fit HR; {fall}",
        ("Qwen2.5-7B-Instruct", "1024", "0", "none"): "1024 examples, but no epoch",
        ("Qwen2.5-1.5B-Instruct", "1024", "0", "none"): "1024 examples, but no epoch",
        ("Qwen2.5-1.5B-Instruct", "1024", "1", "none"): "trained, but without a training prompt",
        ("Qwen2.5-1.5B-Instruct", "10000", "1", "enhanced"): "equals " + twins.format(3),
        ("Qwen2.5-1.5B-Instruct", "10000", "3", "enhanced"): "equals " + twins.format(1),
    }


@pytest.mark.parametrize(
    ("change", "mark"),
    [
        ({}, []),
        ({"hr@1": "0.0101"}, ["HR@1 and NDCG@1 differ"]),  # as an earlier version of the source had it
        ({"hr@20": "0.0220"}, ["HR falls from K = 10 to 20", "NDCG@20 and NDCG@50 do not fit HR"]),
        ({"ndcg@3": "0.0147"}, ["NDCG@1 and NDCG@3 do not fit HR", "NDCG@3 and NDCG@5 do not fit HR"]),
        ({"epoch": "0"}, ["8 examples, but no epoch"]),
        ({"train_prompt": "none"}, ["trained, but without a training prompt"]),
    ],
)
def test_contradictions_by_hand(change, mark):
    assert contradictions(SOUND | change) == mark


def test_the_table_shows_the_best_rows_all_or_those_of_a_model():
    def rows(text):
        return [line for line in text.splitlines() if line.endswith("|") and "---" not in line and "NDCG@1" not in line]

    best = published_table("game")
    assert len(rows(best)) == 6 + 6 + 2 + 1 + 1 and "Of 112 published rows, the best of each model and method" in best
    assert rows(best)[1].startswith("| llama-7b, SFT on 1024 examples, epoch 9, enhanced + enhanced | 0.0147 |")
    assert len(rows(published_table("game", "all"))) == 112 and "Of 112" not in published_table("game", "all")
    one = published_table("game", "qwen2.5-3b-instruct")
    assert len(rows(one)) == 13 and "Qwen2.5-3B-Instruct, SFT + GRPO on 1024 examples, epoch 4 | 0.0118" in one
    assert len(rows(published_table("movie"))) == 1 and "Of 1 " not in published_table("movie")
    with pytest.raises(BigrecError, match="'gpt' is neither best, all nor a model with published rows: llama-7b, "):
        published_table("game", "gpt")


def test_report_takes_the_rows_to_show(tmp_path, capsys):
    run = make_run(tmp_path / "study", {"finetuned": [0] * 30 + [15] * 30})
    command = ["report", str(run), "--published", "game"]
    assert cli.main(command) == 0
    best = capsys.readouterr().out
    assert cli.main([*command, "--published_rows", "all"]) == 0
    everything = capsys.readouterr().out
    row = "| Qwen2.5-0.5B-Instruct, SFT on 1024 examples, epoch 7, enhanced + enhanced † | 0.0092 | 0.0136 | 0.0126 |"
    assert row in everything and row not in best and "llama-7b, SFT" in best
    assert cli.main([*command, "--published_rows", "gpt"]) == 2
