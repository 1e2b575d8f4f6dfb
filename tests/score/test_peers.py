"""Each peer's own metric on its own file, written here from its definition, against `evaluate` and `evaluate_frame`.

Equal to 1e-9 where the definitions are the same; where they are not, the test shows the difference that the guide
explains.
"""

from __future__ import annotations

import json
import math
import random

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from bigrec_hf import cli, evaluate_frame
from tests.helpers.encoders import save_lm

KS = (1, 3, 5, 10)
LETTERS = "abcdef"
TITLES = [f"{a} {b} {c}" for a in LETTERS for b in LETTERS for c in "ab"][:40]


@pytest.fixture(scope="module")
def lists():
    """Users, their lists of ten titles without repetition, and their targets, half of them in the list."""
    draw = random.Random(0)
    users = [f"u{number}" for number in range(80)]
    found = {user: draw.sample(TITLES, 10) for user in users}
    targets = {user: draw.choice(found[user] if draw.random() < 0.5 else TITLES) for user in users}
    return users, found, targets


@pytest.fixture
def place(tmp_path):
    (tmp_path / "id2name.txt").write_text("".join(f"{title}\t{row}\n" for row, title in enumerate(TITLES)))
    return tmp_path


def evaluated(place, file, *flags):
    """results.json of `evaluate` on one file."""
    command = ["evaluate", "--generations", place / file, "--catalog", place / "id2name.txt", "--bootstrap", 0]
    command += ["--output_dir", place / "out", "--debug", "--ks", *KS, *flags]
    assert cli.main([str(part) for part in command]) == 0
    return json.loads((place / "out/results.json").read_text())


def assert_equal(results, peer):
    """`peer`: K -> (HR, NDCG)."""
    for k, (hr, ndcg) in peer.items():
        assert results[f"hr@{k}"] == pytest.approx(hr, abs=1e-9)
        assert results[f"ndcg@{k}"] == pytest.approx(ndcg, abs=1e-9)
    assert any(0 < hr < 1 for hr, _ in peer.values())


def of_ranks(ranks):
    """HR and NDCG as the scripts of BIGRec, D3, ReRe and MiniOneRec sum them, ranks from 0."""
    peer = {}
    for k in KS:
        found = [rank for rank in ranks if rank < k]
        gain = sum(1 / math.log(rank + 2) for rank in found)
        peer[k] = len(found) / len(ranks), gain / len(ranks) / (1 / math.log(2))
    return peer


# --- generated texts, grounded by distance --------------------------------------------------------------------------


def bigrec_embeddings(folder, texts):
    """As BIGRec embeds: left-padded batches, the last layer at the last position."""
    model, tokenizer = LlamaForCausalLM.from_pretrained(folder).eval(), PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.padding_side = "left"
    parts = []
    for start in range(0, len(texts), 16):
        batch = tokenizer(texts[start : start + 16], return_tensors="pt", padding=True)
        with torch.no_grad():
            out = model(batch.input_ids, attention_mask=batch.attention_mask, output_hidden_states=True)
        parts.append(out.hidden_states[-1][:, -1, :])
    return torch.cat(parts)


def bigrec_ranks(folder, catalog, records):
    """The ranks of `data/game/evaluate.py`: places in the sorted distances, the best one of rows with one title."""
    texts = [record["predict"][0].strip('"') for record in records]
    distances = torch.cdist(bigrec_embeddings(folder, texts), bigrec_embeddings(folder, catalog), p=2)
    places = distances.argsort(dim=-1).argsort(dim=-1)
    rows = {title: [row for row, name in enumerate(catalog) if name == title] for title in catalog}
    return [
        min(int(places[number, row]) for row in rows[record["output"].strip('"').strip(" ")])
        for number, record in enumerate(records)
    ]


@pytest.fixture
def generated(place):
    """Predictions of BIGRec's kind, and the catalog, in which three titles occur twice."""
    save_lm(place / "lm")
    catalog = [*TITLES, *TITLES[:3]]
    (place / "id2name.txt").write_text("".join(f"{title}\t{row}\n" for row, title in enumerate(catalog)))
    draw = random.Random(1)
    records = []
    for _ in range(60):
        target = draw.choice(TITLES)
        text = draw.choice([target, draw.choice(TITLES), " ".join(draw.choices(LETTERS, k=3))])
        records.append({"instruction": "", "input": "", "output": f'"{target}"', "predict": [f'"{text}"', "b"]})
    return catalog, records


def test_bigrec(place, generated):
    catalog, records = generated
    (place / "game.json").write_text(json.dumps(records))
    ranks = bigrec_ranks(place / "lm", catalog, records)
    assert_equal(evaluated(place, "game.json", "--encoder", place / "lm"), of_ranks(ranks))


def test_empty_texts_are_misses_or_left_out_as_bi_step_rec_does(place, generated):
    catalog, records = generated
    with_empty = [*records, *({**records[0], "predict": [text]} for text in ("", '""', " "))]
    (place / "game.json").write_text(json.dumps(with_empty))
    ranks = bigrec_ranks(place / "lm", catalog, records)
    assert_equal(evaluated(place, "game.json", "--encoder", place / "lm"), of_ranks([*ranks, *[math.inf] * 3]))
    left_out = evaluated(place, "game.json", "--encoder", place / "lm", "--drop_empty", "true")
    assert_equal(left_out, of_ranks(ranks))


# --- lists of titles, matched exactly -------------------------------------------------------------------------------


def calc_ranks(records, *, last):
    """The ranks of `calc.py`: the first entry equal to the target in ReRe and MiniOneRec, the `last` one in D3."""
    ranks = []
    for record in records:
        output = record["output"][0] if isinstance(record["output"], list) else record["output"]
        target = output.strip(' \n"')
        found = [at for at, text in enumerate(record["predict"]) if text.strip('"\n').strip() == target]
        ranks.append(math.inf if not found else found[-1 if last else 0])
    return ranks


def as_records(lists):
    users, found, targets = lists
    quoted = [[f'"{title}"\n' if at % 3 else title for at, title in enumerate(found[user])] for user in users]
    outputs = [f'"{targets[user]}"\n' if number % 2 else [targets[user]] for number, user in enumerate(users)]
    return [{"output": output, "predict": texts} for output, texts in zip(outputs, quoted, strict=True)]


@pytest.mark.parametrize("last", [False, True], ids=["ReRe and MiniOneRec", "D3"])
def test_lists_of_titles(place, lists, last):
    records = as_records(lists)
    (place / "result.json").write_text(json.dumps(records))
    assert_equal(evaluated(place, "result.json", "--lists"), of_ranks(calc_ranks(records, last=last)))


def test_of_a_target_that_occurs_twice_the_first_place_counts(place, lists):
    records = as_records(lists)
    records[0]["predict"] = [lists[2][lists[0][0]], TITLES[0], TITLES[1], lists[2][lists[0][0]]]
    (place / "result.json").write_text(json.dumps(records))
    first, last = (calc_ranks(records, last=last) for last in (False, True))
    assert (first[0], last[0], first[1:]) == (0, 3, last[1:])
    assert_equal(evaluated(place, "result.json", "--lists"), of_ranks(first))


# --- runs and frames ------------------------------------------------------------------------------------------------


def recbole_metrics(hits):
    """RecBole's Hit and NDCG before their rounding. `hits` (n, 10) bool: whether the item of a place is the target."""
    n_positive = np.ones(len(hits), int)
    discount = 1 / np.log2(np.arange(1, hits.shape[1] + 1) + 1)
    ideal = np.cumsum(np.tile(discount, (len(hits), 1)), axis=1)
    for row, n in enumerate(np.minimum(n_positive, hits.shape[1])):
        ideal[row, n:] = ideal[row, n - 1]
    ndcg = np.cumsum(np.where(hits, discount, 0), axis=1) / ideal
    hit = np.cumsum(hits, axis=1) > 0
    return {k: (hit[:, k - 1].mean(), ndcg[:, k - 1].mean()) for k in KS}


def trec_metrics(run, qrels):
    """trec_eval's success_k and ndcg_cut_k: by score, equal scores by item id from the last to the first."""
    ranks = []
    for user, scores in run.items():
        order = sorted(scores, key=lambda item: (scores[item], item), reverse=True)
        ranks.append(order.index(qrels[user]) if qrels[user] in order else math.inf)
    return of_ranks(ranks)


@pytest.fixture
def run_files(place, lists):
    """A TREC run and the same as a table with scores, in any order, and the truth as qrels."""
    users, found, targets = lists
    (place / "items.csv").write_text("item_id,title\n" + "".join(f"i{row},{t}\n" for row, t in enumerate(TITLES)))
    rows = [(user, f"i{TITLES.index(title)}", at) for user in users for at, title in enumerate(found[user])]
    run = {user: {item: 20.5 - at for who, item, at in rows if who == user} for user in users}
    random.Random(2).shuffle(rows)
    lines = [f"{user} Q0 {item} {at + 1} {20.5 - at} system\n" for user, item, at in rows]
    (place / "system.run").write_text("".join(lines))
    table = pl.DataFrame(
        [(user, item, 20.5 - at) for user, item, at in rows], schema=["user_id", "item_id", "score"], orient="row"
    )
    table.write_csv(place / "topk.csv")
    qrels = {user: f"i{TITLES.index(targets[user])}" for user in users}
    (place / "test.qrels").write_text("".join(f"{user} 0 {item} 1\n" for user, item in qrels.items()))
    return run, qrels


@pytest.mark.parametrize("file", ["system.run", "topk.csv"])
def test_runs(place, run_files, lists, file):
    run, qrels = run_files
    users, found, targets = lists
    flags = ["--catalog", place / "items.csv", "--targets", place / "test.qrels"]
    results = evaluated(place, file, *flags)
    assert_equal(results, trec_metrics(run, qrels))
    assert_equal(results, recbole_metrics(np.array([[t == targets[user] for t in found[user]] for user in users])))


def test_equal_scores_go_by_rank_and_not_by_item_id(place):
    (place / "items.csv").write_text("item_id,title\na,A\nb,B\nc,C\nd,D\ne,E\nf,F\ng,G\nh,H\ni,I\nj,J\n")
    (place / "tied.run").write_text("u Q0 a 1 5 t\nu Q0 b 2 5 t\n")
    (place / "q").write_text("u 0 a 1\n")
    results = evaluated(place, "tied.run", "--catalog", place / "items.csv", "--targets", place / "q")
    assert results["hr@1"] == 1.0
    assert trec_metrics({"u": {"a": 5, "b": 5}}, {"u": "a"})[1] == (0, 0)


def rectools_metrics(reco, interactions, *, achievable):
    """RecTools' HitRate and NDCG: means over the users of the interactions."""
    merged = interactions.merge(reco[["user_id", "item_id", "rank"]], on=["user_id", "item_id"], how="left")
    peer = {}
    for k in KS:
        merged["gain"] = (merged["rank"] <= k).astype(int) / np.log2(merged["rank"] + 1)
        merged["hit"] = (merged["rank"] <= k).astype(float)
        ideal = 1.0 if achievable else sum(1 / math.log2(place + 1) for place in range(1, k + 1))
        by_user = merged.groupby("user_id").agg(hit=("hit", "max"), gain=("gain", "sum"))
        peer[k] = by_user["hit"].mean(), (by_user["gain"] / ideal).mean()
    return peer


def test_rectools(lists):
    users, found, targets = lists
    rows = [(number, title, at) for number, user in enumerate(users) for at, title in enumerate(found[user], start=1)]
    reco = pd.DataFrame(rows, columns=["user_id", "item_id", "rank"]).sample(frac=1, random_state=0)
    following = pd.DataFrame({"user_id": range(len(users)), "item_id": [targets[user] for user in users]})
    results, _ = evaluate_frame(reco, following, ks=KS, bootstrap=0)
    assert_equal(results, rectools_metrics(reco, following, achievable=True))
    # by default RecTools divides by the gain of K relevant items, which one target cannot reach
    for k, (_, ndcg) in rectools_metrics(reco, following, achievable=False).items():
        most = sum(1 / math.log2(place + 1) for place in range(1, k + 1))
        assert results[f"ndcg@{k}"] == pytest.approx(ndcg * most, abs=1e-9)


def test_users_without_a_list_do_not_count_and_are_misses_in_rectools(lists, capsys):
    reco = pd.DataFrame({"user_id": [1], "item_id": ["x"], "rank": [1]})
    following = pd.DataFrame({"user_id": [1, 2], "item_id": ["x", "x"]})
    results, _ = evaluate_frame(reco, following, ks=[1], bootstrap=0)
    assert results["hr@1"] == 1.0 and "1 of 2 users with a target have no list" in capsys.readouterr().err
    assert rectools_metrics(reco, following, achievable=True)[1] == (0.5, 0.5)
