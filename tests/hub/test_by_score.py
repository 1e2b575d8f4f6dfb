"""`Recommender` of a run that ranks by titles' probabilities: the run's own numbers, saved, published, loaded back."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from huggingface_hub import ModelCard

from bigrec_hf import Recommender, cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.examples import read_train_counts
from bigrec_hf.data.item_scores import read_scores
from tests.helpers.tiny import TITLES
from tests.helpers.tiny_run import as_rows, rankings, run_histories, write_weights


@pytest.fixture(scope="module")
def recommender(dense_run):
    return Recommender.from_pretrained(dense_run)


def test_the_runs_ranks_scores_and_texts_bit_for_bit(dense_run, recommender):
    histories, ids = run_histories(dense_run)
    results = recommender.recommend(histories, top_k=5, exclude_seen=False)
    assert as_rows(results) == rankings(dense_run)
    generated = pq.read_table(dense_run / "finetuned" / "generations.parquet")
    assert [r.texts for r in results] == generated["texts"].to_pylist()
    assert [np.float32(r.scores).tolist() for r in results] == generated["scores"].to_pylist()
    own = read_scores(dense_run / "finetuned" / "scores.safetensors", ids, recommender.catalog)
    np.testing.assert_array_equal(recommender.engine.scores(histories), own)
    assert all(item.distance is None and item.score < 0 for r in results for item in r.items)


def test_the_rank_of_every_target_is_the_runs(dense_run, recommender):
    histories, _ = run_histories(dense_run)
    table = pq.read_table(dense_run / "finetuned" / "rankings.parquet")
    results = recommender.recommend(histories, top_k=len(TITLES), exclude_seen=False)
    for result, rank, target in zip(results, table["rank"].to_pylist(), table["target"].to_pylist(), strict=True):
        assert [item.row for item in result.items].index(target) == rank


def test_seen_items_and_other_candidates_are_left_out_the_order_and_scores_stay(recommender):
    history = [TITLES[0], f'"{TITLES[3]}"', "A Film Nobody Knows (2031)"]
    everything = recommender.recommend(history, 100, exclude_seen=False)
    assert sorted(item.row for item in everything.items) == list(range(len(TITLES)))
    unseen = recommender.recommend(history, 100)
    assert unseen.items == [item for item in everything.items if item.row not in (0, 3)]
    assert unseen.unknown == ["A Film Nobody Knows (2031)"]
    wanted = [TITLES[7], "1", TITLES[12], "5"]  # ids are 1, 2, ...
    chosen = recommender.recommend(history, 100, candidates=wanted)
    assert chosen.items == [item for item in unseen.items if item.row in (4, 7, 12)]
    assert recommender.recommend([history, []], 2, candidates=wanted)[0].items == chosen.items[:2]
    assert recommender.recommend(history, 5, candidates=[TITLES[0], "4"]).items == []


def test_an_adapter_that_was_only_trained_and_one_that_was_saved(dense_run, recommender, tmp_path):
    histories, _ = run_histories(dense_run)
    shutil.copytree(dense_run / "adapter", tmp_path / "adapter")
    expected = recommender.recommend(histories, 5)
    alone = Recommender.from_pretrained(tmp_path / "adapter").recommend(histories, 5)  # in larger batches
    for one, other in zip(alone, expected, strict=True):
        assert [item.row for item in one.items] == [item.row for item in other.items]
        assert one.scores == pytest.approx(other.scores, rel=1e-5)
    folder = recommender.save_pretrained(tmp_path / "saved")
    assert not (folder / "index").exists()
    shutil.move(folder, tmp_path / "moved")
    again = Recommender.from_pretrained(tmp_path / "moved")
    assert again.recommend(histories, 5) == expected
    assert again.train_counts.tolist() == read_train_counts(str(dense_run / "data")).tolist()
    (tmp_path / "moved" / "catalog.parquet").unlink()
    with pytest.raises(BigrecError, match=r"lacks its catalog\.parquet"):
        Recommender.from_pretrained(tmp_path / "moved")


def test_published_with_its_card_and_loaded_back(hub, dense_run, tiny_model_dir):
    base, name, metric = hub.new_id("tiny-llama"), hub.new_id("dense"), hub.new_id("ndcg")
    hub.api().create_repo(base)
    hub.api().upload_folder(repo_id=base, folder_path=tiny_model_dir)
    flags = ["--run_dir", str(dense_run), "--base_model", base, "--repo_id", name, "--metric_repo_id", metric]
    for _ in range(2):
        assert cli.main(["publish", "run", *flags, "--debug"]) == 0
    assert len(hub.requests(f"/api/models/{name}/commit/*", "POST")) == 1
    assert hub.repo("dataset", f"{name}-index") is None
    text = ModelCard.load(name).text
    assert "gives every title of the\ncatalog its **probability**" in text and "item.score" in text
    assert "| strategy | exact |" in text and "encoder dtype" not in text and "item.distance" not in text
    histories, _ = run_histories(dense_run)
    loaded = Recommender.from_pretrained(name)
    assert as_rows(loaded.recommend(histories, 5, exclude_seen=False)) == rankings(dense_run)
    assert loaded.train_counts.tolist() == read_train_counts(str(dense_run / "data")).tolist()
    again = hub.new_id("again")
    loaded.push_to_hub(again)
    assert Recommender.from_pretrained(again).recommend(histories, 5) == loaded.recommend(histories, 5)


def test_what_cannot_be_published(dense_run, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    flags = ["--run_dir", str(dense_run), "--repo_id", "alice/x", "--base_model", "alice/b", "--output_dir"]
    assert cli.main(["publish", "index", *flags, str(tmp_path)]) == 2
    assert "has no index" in capsys.readouterr().err
    assert cli.main(["publish", "adapter", *flags, str(tmp_path), "--with_index", "false"]) == 0
    folder = tmp_path / "models" / "alice" / "x"
    assert not (folder / "catalog.parquet").exists() and "catalog" not in json.loads(
        (folder / "bigrec.json").read_text()
    )
    assert "The catalog is not part of this repository" in (folder / "README.md").read_text()
    with pytest.raises(BigrecError, match="neither an index nor a catalog"):
        Recommender.from_pretrained(folder)


def test_weights_that_are_not_numbers_are_refused_in_one_line(recommender, tmp_path):
    folder = recommender.save_pretrained(tmp_path / "adapter")
    write_weights(folder, float("nan"))
    with pytest.raises(BigrecError, match="NaN instead of probabilities"):
        Recommender.from_pretrained(folder).recommend([TITLES[0]])
