"""`Recommender`: the run's own recommendations bit for bit, batches, unknown titles, saving, and its errors."""

from __future__ import annotations

import functools
import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from bigrec_hf import Recommender, cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.hub import bundle
from bigrec_hf.hub.histories import nearest_titles
from tests.helpers.processes import run_python
from tests.helpers.tiny import TITLES, save_tiny_model
from tests.helpers.tiny_run import as_rows, rankings, run_histories, write_weights


@pytest.fixture(scope="module")
def run_dir(tiny_run):
    return tiny_run


@pytest.fixture(scope="module")
def recommender(run_dir):
    return Recommender.from_pretrained(run_dir)


def test_the_runs_rankings_bit_for_bit(run_dir, recommender):
    histories, _ = run_histories(run_dir)
    results = recommender.recommend(histories, top_k=5, exclude_seen=False)
    generated = pq.read_table(run_dir / "finetuned" / "generations.parquet")
    assert [r.texts for r in results] == generated["texts"].to_pylist()
    assert [r.text for r in results] == [texts[0] for texts in generated["texts"].to_pylist()]
    assert as_rows(results) == rankings(run_dir)
    assert all(item.title == TITLES[item.row] for r in results for item in r.items)


def test_one_by_one_gives_the_same_items(run_dir, recommender):
    histories, _ = run_histories(run_dir)
    for history, (rows, distances) in zip(histories, rankings(run_dir), strict=True):
        result = recommender.recommend(history, top_k=5, exclude_seen=False)
        assert [item.row for item in result.items] == rows
        assert [item.distance for item in result.items] == pytest.approx(distances, rel=1e-5)


def copy_of(run_dir, folder, *flags):
    """The run in another place, its answers generated and grounded again with other settings."""
    shutil.copytree(run_dir, folder)
    places = ["--run_dir", str(folder), "--dataset", str(folder / "data")]
    recipe = ["--config", str(run_dir.parent / "recipe.yaml"), "--debug"]
    for stage in ("generate", "ground"):
        own = [flag for flag in flags if flag[0] == stage]
        assert cli.main([stage, *recipe, *places, *(word for flag in own for word in flag[1:])]) == 0
    return folder


def test_sampled_answers_are_the_runs_with_its_example_ids(run_dir, tmp_path):
    flags = ("generate", "--decoding", "sample", "--temperature", "1.5", "--sample_top_k", "0")
    run_dir = copy_of(run_dir, tmp_path / "sampled", flags)
    histories, ids = run_histories(run_dir)
    recommender = Recommender.from_pretrained(run_dir / "adapter")
    own = recommender.recommend(histories, 5, example_ids=ids, exclude_seen=False)
    assert as_rows(own) == rankings(run_dir)
    own = recommender.recommend(histories, 5)
    assert [r.text for r in recommender.recommend(histories[::-1], 5)] == [r.text for r in own][::-1]


def test_unknown_titles_are_accepted_and_reported(recommender):
    result = recommender.recommend([TITLES[0], "A Film Nobody Knows (2031)", f'"{TITLES[3]}" '])
    assert result.unknown == ["A Film Nobody Knows (2031)"]
    assert len(result.items) == 10


def test_shapes_of_input(recommender):
    assert recommender.recommend([]) == []
    (alone,) = recommender.recommend([[]], top_k=3)
    assert len(alone.items) == 3 and alone.unknown == []
    assert len(recommender.recommend([TITLES[0]], top_k=1000).items) == len(TITLES) - 1
    assert len(recommender.recommend([TITLES[0]], top_k=1000, exclude_seen=False).items) == len(TITLES)
    assert len(recommender.recommend(np.array([TITLES[0]]), top_k=np.int64(2)).items) == 2
    assert recommender.recommend([TITLES[0]] * 3).unknown == []  # the same title several times
    assert len(recommender.recommend(["", "x" * 5000, "\U0001f600", 'a\n"</s>']).unknown) == 4


def test_seen_items_and_other_candidates_are_left_out_the_distances_stay(recommender):
    history = [TITLES[0], f'"{TITLES[3]}"']
    everything = recommender.recommend(history, 100, exclude_seen=False)
    unseen = recommender.recommend(history, 100)
    assert unseen.items == [item for item in everything.items if item.row not in (0, 3)]
    chosen = recommender.recommend([history, []], 100, candidates=[TITLES[7], "1", TITLES[12], "5"])
    assert chosen[0].items == [item for item in unseen.items if item.row in (4, 7, 12)]
    assert len(chosen[1].items) == 4


@pytest.mark.parametrize(
    ("candidates", "message"),
    [
        ("Toy Story (1995)", "give a list of item ids or titles"),
        ([], "candidates is empty"),
        (
            ["1", "toy story", "99"],
            r"'toy story' is neither .* \(2 of 3 are unknown\); did you mean 'Toy Story \(1995\)'",
        ),
    ],
)
def test_candidates_that_the_catalog_lacks(recommender, candidates, message):
    with pytest.raises(BigrecError, match=message):
        recommender.recommend([TITLES[0]], candidates=candidates)


def test_the_nearest_titles_of_an_unknown_one(recommender):
    near = functools.partial(nearest_titles, catalog=recommender.catalog)
    assert near("heat") == ["Heat (1995)"]  # shorter
    assert near("Twelve Monkees (1995)")[0] == "Twelve Monkeys (1995)"  # misspelled
    assert near("\U0001f600") == [] and near("") == []


A = TITLES[0]


@pytest.mark.parametrize("history", [A, None, 3, {A}, {A: 1}, [None], [[A], A], [A, [A]], [[A, None]], [[1]], [1, 2]])
def test_what_is_no_history_is_refused(recommender, history):
    with pytest.raises(BigrecError, match=r"cannot recommend from|which is not a title"):
        recommender.recommend(history)


def test_half_a_surrogate_pair_and_too_many_ids_are_refused(recommender):
    with pytest.raises(BigrecError, match="half of a character: correct that text"):
        recommender.recommend([A, "\ud83d"])
    with pytest.raises(BigrecError, match="2 example_ids for 1 histories: give one for each"):
        recommender.recommend([A], example_ids=["a", "b"])


@pytest.mark.parametrize("top_k", [0, -1, 2.5, "3", True, None])
def test_what_is_no_number_of_items_is_refused(recommender, top_k):
    with pytest.raises(BigrecError, match="top_k is"):
        recommender.recommend([A], top_k=top_k)


def test_an_empty_text_gets_no_items(recommender, monkeypatch):
    from bigrec_hf.generate.decoder import Decoder

    monkeypatch.setattr(Decoder, "_text", lambda self, answer: '""')
    assert recommender.recommend([TITLES[0]]).items == []


def test_a_catalog_title_comes_first_at_distance_zero(recommender, monkeypatch):
    from bigrec_hf.generate.decoder import Decoder

    monkeypatch.setattr(Decoder, "_text", lambda self, answer: TITLES[7])
    first = recommender.recommend([TITLES[0]], top_k=2).items[0]
    assert (first.row, first.item_id, first.title, first.distance) == (7, "8", TITLES[7], 0.0)


def test_constrained_beams_are_the_runs(run_dir, tmp_path):
    run_dir = copy_of(run_dir, tmp_path / "constrained", ("generate", "--decoding", "constrained"))
    histories, _ = run_histories(run_dir)
    results = Recommender.from_pretrained(run_dir).recommend(histories, 5, exclude_seen=False)
    assert as_rows(results) == rankings(run_dir)
    assert all(result.text in TITLES and result.items[0].distance == 0 for result in results)


def test_a_run_of_several_seeds_needs_one_to_be_named(run_dir, tmp_path):
    for seed in (0, 1):
        shutil.copytree(run_dir, tmp_path / f"seed-{seed}")
    shutil.copyfile(run_dir / "recipe.yaml", tmp_path / "recipe.yaml")
    with pytest.raises(BigrecError, match="seed-0"):
        Recommender.from_pretrained(tmp_path)


def test_the_history_is_left_out_as_where_the_run_does(run_dir, tmp_path):
    run_dir = copy_of(run_dir, tmp_path / "excluding", ("ground", "--exclude_history"))
    histories, _ = run_histories(run_dir)
    results = Recommender.from_pretrained(run_dir).recommend(histories, 5)
    assert as_rows(results) == rankings(run_dir)
    assert not any(item.title in history for r, history in zip(results, histories, strict=True) for item in r.items)


def test_saved_and_loaded_again(run_dir, recommender, tmp_path):
    folder = recommender.save_pretrained(tmp_path / "saved")
    assert (folder / "bigrec.json").is_file() and (folder / "index" / "embeddings.safetensors").is_file()
    histories, _ = run_histories(run_dir)
    again = Recommender.from_pretrained(folder)
    assert again.recommend(histories, 5) == recommender.recommend(histories, 5)
    values = json.loads((folder / "bigrec.json").read_text())
    (folder / "bigrec.json").write_text(json.dumps(values | {"gamma": {"m": {"formula": "mix"}}}))  # an older release's
    shutil.move(folder, tmp_path / "moved")
    assert Recommender.from_pretrained(tmp_path / "moved").recommend(histories[0], 5).items


def test_an_adapter_that_was_only_trained(run_dir, recommender, tmp_path, monkeypatch):
    """No generations, no index: prompt and base from training.json, the catalog encoded on loading."""
    shutil.copytree(run_dir / "adapter", tmp_path / "adapter")
    histories, _ = run_histories(run_dir)
    alone = Recommender.from_pretrained(tmp_path / "adapter")
    assert alone.config.decoding["num_beams"] == 4 and len(alone.index) == len(TITLES)
    assert [item.row for item in alone.recommend(histories[0], 5).items]


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_bases(run_dir, quantization):
    recommender = Recommender.from_pretrained(run_dir, quantization=quantization, device="cpu")
    result = recommender.recommend([TITLES[0], TITLES[1]], top_k=3)
    assert len(result.items) == 3 and recommender.config.quantization == quantization


def test_another_base_is_refused(run_dir, tmp_path):
    other = save_tiny_model(tmp_path / "other", seed=9)
    with pytest.raises(BigrecError, match=r"index of .* was made with revision"):
        Recommender.from_pretrained(run_dir, base_model=other)


def test_errors_of_loading(run_dir, tmp_path):
    with pytest.raises(BigrecError, match="neither a run folder"):
        Recommender.from_pretrained(tmp_path)
    with pytest.raises(BigrecError, match="does not exist"):
        Recommender.from_pretrained("./nowhere")
    with pytest.raises(BigrecError, match="not in the cache"):
        Recommender.from_pretrained("nobody/nothing")
    shutil.copytree(run_dir, tmp_path / "half")
    (tmp_path / "half" / "finetuned" / "rankings.parquet").unlink()
    with pytest.raises(BigrecError, match="lacks a finished generate or ground"):
        Recommender.from_pretrained(tmp_path / "half")
    saved = tmp_path / "newer"
    saved.mkdir()
    (saved / "bigrec.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(BigrecError, match="newer bigrec_hf"):
        Recommender.from_pretrained(saved)


@pytest.fixture(scope="module")
def saved(recommender, tmp_path_factory):
    return recommender.save_pretrained(tmp_path_factory.mktemp("saved") / "adapter")


@pytest.mark.parametrize(
    "changes",
    [
        {"quantization": "5bit"},
        {"dtype": "float12"},
        {"dtype": None},
        {"template": "no-such"},
        {"base_model": 3.5},
        {"base_model": ["a"]},
        {"max_length": -1},
        {"max_length": "long"},
        {"max_history": -3},
        {"batch_size": 0},
        {"batch_tokens": 10.5},
        {"memory_mib": None},
        {"memory_mib": 1e308},
        {"exclude_history": "maybe"},
        {"decoding": None},
        {"decoding": []},
        {"decoding": {}, "template": []},
        {"decoding": {"strategy": "oracle"}},
        {"decoding": {"strategy": "beam", "num_beams": 10**9}},
        {"decoding": {"strategy": "beam", "num_beams": "many"}},
        {"decoding": {"strategy": "sample", "max_new_tokens": 10**9}},
        {"decoding": {"strategy": "beam", "code": "x"}},
        {"decoding": {"strategy": "beam", "length_penalty": 1e30}},
        {"decoding": {"strategy": "beam", "length_penalty": float("nan")}},
        {"decoding": {"strategy": "sample", "num_return_sequences": -1}},
        {"decoding": {"strategy": "beam", "num_beams": 3, "num_return_sequences": -3}},
        {"decoding": {"strategy": "sample", "seed": -5}},
        {"decoding": {"strategy": "exact", "width": 0, "n_texts": 1}},
        {"format": "new"},
        {"licence": "mine"},
        {"index": "/etc"},
        {"index": "no/such-index"},
        {"index": None, "catalog": None},
        {"index": None, "catalog": "/etc/passwd"},
        {"encoder": "/etc"},
        {"instruction": None},
    ],
)
def test_hostile_settings_are_refused_in_one_line(saved, tmp_path, changes):
    folder = shutil.copytree(saved, tmp_path / "adapter")
    values = json.loads((folder / "bigrec.json").read_text()) | changes
    (folder / "bigrec.json").write_text(json.dumps(values))
    with pytest.raises(BigrecError) as caught:
        Recommender.from_pretrained(folder)
    assert "\n" not in str(caught.value)


FILES = ("bigrec.json", "adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json")
FILES += ("index/embeddings.safetensors", "index/catalog.parquet", "index/fingerprint.json")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"null", b"[" * 100_000, b"\xff\xfe", None, "cut"])
@pytest.mark.parametrize("name", FILES)
def test_damaged_files_are_refused_in_one_line(saved, tmp_path, name, content):
    folder = shutil.copytree(saved, tmp_path / "adapter")
    file = folder / name
    if content is None:
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2] if content == "cut" else content)
    try:
        loaded = Recommender.from_pretrained(folder)
    except BigrecError as error:
        assert "\n" not in str(error)
    else:  # of the tokenizer's files only: the base model has its own
        assert name.startswith("tokenizer") and loaded.recommend([TITLES[0]]).items


def test_a_wrong_quantization_is_an_error(run_dir):
    with pytest.raises(BigrecError, match="quantization of a recommender is '5bit'"):
        Recommender.from_pretrained(run_dir, quantization="5bit")


@pytest.mark.parametrize("key", ["base_model", "encoder", "index", "catalog"])
@pytest.mark.parametrize("place", ["/etc", "./model", "../model", "~/model", "model/a/b"])
def test_a_recommender_from_the_hub_names_no_place_on_this_machine(saved, monkeypatch, key, place):
    values = json.loads((saved / "bigrec.json").read_text()) | {"base_model": "user/base", key: place}
    (saved.parent / "bigrec.json").write_text(json.dumps(values))
    monkeypatch.setattr(bundle, "fetch_file", lambda *_: saved.parent / "bigrec.json")
    with pytest.raises(BigrecError, match=f"names '{place}' as its {key}, which is not a repository on the Hub"):
        bundle.locate("user/adapter")


def test_damaged_records_of_a_run_are_named(run_dir, tmp_path):
    for name in ("finetuned/generate.json", "finetuned/rankings.parquet", "data/facts.json", "recipe.yaml"):
        for content in (b"", b"{}", b"[]", b"{"):
            copy = shutil.copytree(run_dir, tmp_path / "run")
            shutil.rmtree(copy / "data") if name == "data/facts.json" else None
            (copy / name).parent.mkdir(exist_ok=True)
            (copy / name).write_bytes(content)
            generate = copy / "finetuned/generate.json"
            generate.write_text(generate.read_text().replace(str(run_dir), str(copy)))
            try:
                bundle.from_run(copy)
            except BigrecError as error:
                assert "\n" not in str(error)
            else:
                assert name == "recipe.yaml"  # an empty one is valid
            shutil.rmtree(copy)


def test_the_package_imports_nothing_heavy_until_asked():
    code = "import sys, bigrec_hf; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert run_python("-c", code).returncode == 0
    with pytest.raises(ImportError):
        from bigrec_hf import Nothing  # noqa: F401


def test_numbers_written_as_texts_are_numbers(saved, recommender, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "adapter")
    values = json.loads((folder / "bigrec.json").read_text())
    values["decoding"] |= {"num_beams": "2", "num_return_sequences": "0", "length_penalty": "1", "seed": 0.0}
    (folder / "bigrec.json").write_text(json.dumps(values))
    assert Recommender.from_pretrained(folder).recommend([TITLES[0]]) == recommender.recommend([TITLES[0]])


def test_an_adapter_that_needs_a_missing_package_is_refused_in_one_line(saved, tmp_path):
    folder = shutil.copytree(saved, tmp_path / "adapter")
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"megatron_config": {"a": 1}}))
    with pytest.raises(BigrecError, match=r"megatron.*install") as caught:
        Recommender.from_pretrained(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("strategy", ["beam", "greedy", "sample", "constrained"])
def test_weights_that_are_not_numbers_are_refused_in_one_line(saved, tmp_path, strategy, value):
    folder = shutil.copytree(saved, tmp_path / "adapter")
    write_weights(folder, value)
    values = json.loads((folder / "bigrec.json").read_text())
    values["decoding"] |= {"strategy": strategy, "num_return_sequences": 0}
    (folder / "bigrec.json").write_text(json.dumps(values))
    with pytest.raises(BigrecError, match="NaN instead of probabilities"):
        Recommender.from_pretrained(folder).recommend([TITLES[0]])
