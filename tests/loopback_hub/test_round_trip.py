"""Published and consumed again, through the real clients: what comes back is what went out."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path

import datasets
import evaluate
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from huggingface_hub import DatasetCard, HfApi, ModelCard, hf_hub_download, snapshot_download
from peft import AutoPeftModelForCausalLM

from bigrec_hf import Recommender, cli
from bigrec_hf.data.examples import load_examples
from bigrec_hf.hub import commit as push
from tests.helpers.tiny_run import as_rows, rankings, run_histories, with_forbidden_terms

CONFIGS = {"default": 3, "items": 1, "interactions": 1, "text": 3}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(push, "FIRST_WAIT", 0.02)


@pytest.fixture(scope="module")
def places():
    """Repository ids of this module's published things; filled by the first test that needs them."""
    return {}


def publish(*arguments, code=0):
    assert cli.main(["publish", *map(str, arguments), *(["--debug"] if code == 0 else [])]) == code


def push_model(hub, folder, name):
    repo_id = hub.new_id(name)
    api = hub.api()
    api.create_repo(repo_id)
    api.upload_folder(repo_id=repo_id, folder_path=folder)
    return repo_id


@pytest.fixture
def base(hub, places, tiny_model_dir):
    """The run's base model as a repository on the hub."""
    if "base" not in places:
        places["base"] = push_model(hub, tiny_model_dir, "tiny-llama")
    return places["base"]


@pytest.fixture
def published(hub, places, base, tiny_run):
    """The tiny run, published whole."""
    if "run" not in places:
        places["run"] = hub.new_id("movies")
        names = ["--dataset_repo_id", places["run"] + "-data", "--metric_repo_id", hub.new_id("ndcg")]
        publish("run", "--run_dir", tiny_run, "--repo_id", places["run"], "--base_model", base, *names)
        places["metric"] = names[-1]
    return places["run"]


# --- the data set ---------------------------------------------------------------------------------------------------


def test_a_data_set_comes_back_row_by_row(hub, tiny_prepared, tmp_path):
    repo_id = hub.new_id("set")
    publish("dataset", "--dataset", tiny_prepared, "--repo_id", repo_id)
    sha = hub.api().dataset_info(repo_id).sha
    assert set(datasets.get_dataset_config_names(repo_id)) == set(CONFIGS)
    for config, n_splits in CONFIGS.items():
        loaded = datasets.load_dataset(repo_id, config, cache_dir=tmp_path / "cache")
        assert len(loaded) == n_splits
        for split, rows in loaded.items():
            own = pq.read_table(f"{tiny_prepared}/data/{config}/{split}.parquet")
            assert rows.to_list() == own.to_pylist()
            assert rows.features == datasets.Features.from_arrow_schema(own.schema)
            streamed = datasets.load_dataset(repo_id, config, split=split, streaming=True)
            assert list(streamed) == own.to_pylist()
            pinned = datasets.load_dataset(repo_id, config, split=split, revision=sha, cache_dir=tmp_path / "pinned")
            assert pinned.to_list() == own.to_pylist()
    # our own loader: whole examples by Hub id
    assert load_examples(repo_id, "test").to_list() == load_examples(tiny_prepared, "test").to_list()
    assert load_examples(f"{repo_id}@{sha}", "test", sample=3).to_list() == (
        load_examples(tiny_prepared, "test", sample=3).to_list()
    )
    mapped = load_examples(f"{repo_id}@{sha}", "train", seed=0, cache_dir=tmp_path / "mapped")
    assert list(mapped) == load_examples(tiny_prepared, "train", seed=0).to_list()


def with_five_items(prepared, folder: Path) -> Path:
    """A copy of a prepared set whose items are its first five."""
    shutil.copytree(prepared, folder)
    items = folder / "data/items/train.parquet"
    pq.write_table(pq.read_table(items).slice(0, 5), items)
    return folder


def test_a_pinned_revision_stays_when_the_set_changes(hub, tiny_prepared, tmp_path):
    repo_id = hub.new_id("set")
    publish("dataset", "--dataset", tiny_prepared, "--repo_id", repo_id)
    first = hub.api().dataset_info(repo_id).sha
    changed = with_five_items(tiny_prepared, tmp_path / "changed")
    facts = json.loads((changed / "facts.json").read_text())
    (changed / "facts.json").write_text(json.dumps(facts | {"items": 5}))
    publish("dataset", "--dataset", changed, "--repo_id", repo_id)
    assert len(datasets.load_dataset(repo_id, "items", split="train")) == 5
    assert len(datasets.load_dataset(repo_id, "items", split="train", revision=first)) == 20


def test_unchanged_content_makes_no_commit(hub, tiny_prepared, capsys):
    repo_id = hub.new_id("set")
    for _ in range(2):
        publish("dataset", "--dataset", tiny_prepared, "--repo_id", repo_id)
    assert "is unchanged" in capsys.readouterr().out
    assert len(hub.requests(f"/api/datasets/{repo_id}/commit/*", "POST")) == 1


KILLED_BEFORE_THE_COMMIT = """
import os, signal, sys
from huggingface_hub import HfApi
from bigrec_hf import cli
upload = HfApi.preupload_lfs_files
def killed(*rest, **more):
    upload(*rest, **more)
    os.kill(os.getpid(), signal.SIGKILL)
HfApi.preupload_lfs_files = killed
cli.main(["publish", "dataset", *sys.argv[1:], "--debug"])
"""


@pytest.mark.slow
def test_a_push_that_is_killed_leaves_the_previous_revision(hub, tiny_prepared, tmp_path):
    repo_id = hub.new_id("killed")
    publish("dataset", "--dataset", tiny_prepared, "--repo_id", repo_id)
    before = hub.api().dataset_info(repo_id).sha
    changed = with_five_items(tiny_prepared, tmp_path / "changed")
    log = hub.requests(f"*{repo_id}.git/lfs/*", "PUT")
    where = ["--dataset", changed, "--repo_id", repo_id]
    killed = hub.run_python(KILLED_BEFORE_THE_COMMIT, *where, check=False, TMPDIR=str(tmp_path))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(hub.requests(f"*{repo_id}.git/lfs/*", "PUT")) > len(log)
    assert hub.api().dataset_info(repo_id).sha == before
    assert len(datasets.load_dataset(repo_id, "items", split="train", cache_dir=tmp_path / "a")) == 20
    publish("dataset", "--dataset", changed, "--repo_id", repo_id)  # and can be repeated
    assert len(datasets.load_dataset(repo_id, "items", split="train", cache_dir=tmp_path / "b")) == 5
    assert hub.api().list_repo_commits(repo_id, repo_type="dataset")[1].commit_id == before


def test_a_branch_and_a_pull_request(hub, tiny_prepared, tmp_path, capsys):
    repo_id = hub.new_id("set")
    publish("dataset", "--dataset", tiny_prepared, "--repo_id", repo_id, "--revision", "v1", "--message", "First")
    assert hub.api().list_repo_commits(repo_id, repo_type="dataset", revision="v1")[0].title == "First"
    assert "facts.json" not in hub.api().list_repo_files(repo_id, repo_type="dataset")
    publish("dataset", "--dataset", tiny_prepared, "--repo_id", repo_id, "--create_pr")
    assert "pull request" in capsys.readouterr().out
    assert "facts.json" not in hub.api().list_repo_files(repo_id, repo_type="dataset")
    assert "facts.json" in hub.api().list_repo_files(repo_id, repo_type="dataset", revision="refs/pr/1")
    # the same again opens no second request; once it is closed, or with other content, one is opened
    publish("dataset", "--dataset", tiny_prepared, "--repo_id", repo_id, "--create_pr")
    assert (
        f"the open pull request {hub.endpoint}/datasets/{repo_id}/discussions/1 has the same" in capsys.readouterr().out
    )
    hub.api().change_discussion_status(repo_id, 1, "closed", repo_type="dataset")
    publish("dataset", "--dataset", tiny_prepared, "--repo_id", repo_id, "--create_pr")
    changed = shutil.copytree(tiny_prepared, tmp_path / "changed")
    (changed / "facts.json").write_text((changed / "facts.json").read_text() + "\n")
    publish("dataset", "--dataset", changed, "--repo_id", repo_id, "--create_pr")
    assert [item.num for item in hub.api().get_repo_discussions(repo_id, repo_type="dataset")] == [3, 2, 1]


def test_forbidden_terms_need_a_private_repository(hub, tiny_prepared, tmp_path, capsys):
    dataset = with_forbidden_terms(tiny_prepared, tmp_path)
    repo_id = hub.new_id("ml")
    publish("dataset", "--dataset", dataset, "--repo_id", repo_id, code=2)
    assert hub.repo("dataset", repo_id) is None
    publish("dataset", "--dataset", dataset, "--repo_id", repo_id, "--private")
    assert hub.api().dataset_info(repo_id).private
    open_id = hub.new_id("ml-open")
    hub.api().create_repo(open_id, repo_type="dataset")
    capsys.readouterr()
    publish("dataset", "--dataset", dataset, "--repo_id", open_id, "--private", code=2)
    assert "exists and is public" in capsys.readouterr().err
    assert "facts.json" not in hub.api().list_repo_files(open_id, repo_type="dataset")


# --- the run --------------------------------------------------------------------------------------------------------


def test_the_published_run_recommends_the_same_bit_for_bit(hub, published, tiny_run):
    histories, _ = run_histories(tiny_run)
    recommender = Recommender.from_pretrained(published)
    results = recommender.recommend(histories, top_k=5, exclude_seen=False)
    assert as_rows(results) == rankings(tiny_run)
    generated = pq.read_table(tiny_run / "finetuned" / "generations.parquet")
    assert [r.texts for r in results] == generated["texts"].to_pylist()
    assert recommender.config.base_weights == "same"  # the repository holds the very files


def test_everything_is_linked_at_the_commits_that_were_pushed(hub, published, base):
    api = hub.api()
    card = ModelCard.load(published)
    card.validate()
    data_sha = api.dataset_info(published + "-data").sha
    assert all(entry.dataset_revision == data_sha for entry in card.data.eval_results)
    config = json.loads((snapshot := snapshot_path(published, "bigrec.json")).read_text())
    assert config["index"] == f"{published}-index@{api.dataset_info(published + '-index').sha}"
    assert config["base_model"] == f"{base}@{api.model_info(base).sha}"
    assert snapshot.is_file()
    DatasetCard.load(published + "-data").validate(repo_type="dataset")
    DatasetCard.load(published + "-index").validate(repo_type="dataset")
    catalog = datasets.load_dataset(published + "-index", split="train")
    assert catalog.column_names == ["row", "item_id", "title"] and len(catalog) == 20
    for text in (
        card.content,
        DatasetCard.load(published + "-data").content,
        DatasetCard.load(published + "-index").content,
    ):
        for kind, repo_id in re.findall(
            rf"\]\({re.escape(hub.endpoint)}/(datasets/|spaces/|)([\w.-]+/[\w.-]+)\)", text
        ):
            assert api.repo_exists(repo_id, repo_type=kind.strip("/").removesuffix("s") or "model"), repo_id


def snapshot_path(repo_id, file):
    return Path(hf_hub_download(repo_id, file))


def test_publishing_the_run_again_changes_nothing(hub, published, base, places, tiny_run, capsys):
    names = ["--dataset_repo_id", published + "-data", "--metric_repo_id", places["metric"], "--base_model", base]
    publish("run", "--run_dir", tiny_run, "--repo_id", published, *names)
    assert capsys.readouterr().out.count("is unchanged") == 4
    assert hub.requests("*/commit/*", "POST") == []


@pytest.mark.slow
def test_the_cards_snippet_runs_in_a_fresh_process(hub, published):
    code = re.findall(r"```python\n(.*?)```", ModelCard.load(published).text, re.DOTALL)
    done = hub.run_python("\n".join(code), user=None)
    lines = done.stdout.strip().splitlines()
    assert len(lines) == 1 + 10 and "Failed" not in lines[0]


def test_peft_alone_loads_the_adapter(hub, published, tiny_run):
    import torch

    model = AutoPeftModelForCausalLM.from_pretrained(published)
    local = Recommender.from_pretrained(tiny_run).model
    ids = torch.arange(3, 20)[None]
    with torch.inference_mode():
        assert torch.allclose(model(ids).logits, local(ids).logits, atol=1e-4)


def test_a_recommender_pushed_from_python(hub, base, tiny_run, tmp_path):
    first, second = hub.new_id("pushed"), hub.new_id("again")
    recommender = Recommender.from_pretrained(tiny_run)
    commit = recommender.push_to_hub(first, base_model=base, private=True)
    assert hub.api().model_info(first).sha == commit and hub.api().model_info(first).private
    loaded = Recommender.from_pretrained(f"{first}@{commit}")
    assert loaded.recommend(["Toy Story (1995)"]) == recommender.recommend(["Toy Story (1995)"])
    loaded.push_to_hub(second)
    assert Recommender.from_pretrained(second).recommend(["Heat (1995)"]) == recommender.recommend(["Heat (1995)"])


def test_a_base_whose_weights_differ_is_said_to(hub, tiny_run, tmp_path):
    from tests.helpers.tiny import save_tiny_model

    other = push_model(hub, save_tiny_model(tmp_path / "other", spread=0.06), "other-llama")
    repo_id = hub.new_id("differs")
    publish("adapter", "--run_dir", tiny_run, "--repo_id", repo_id, "--base_model", other)
    assert "weights it was trained on differ from those of" in ModelCard.load(repo_id).text
    with pytest.warns(UserWarning, match="differ from the repository's"):
        Recommender.from_pretrained(repo_id)


# --- the metric -----------------------------------------------------------------------------------------------------


def test_the_published_metric_equals_the_local_one(hub):
    repo_id = "acme/ndcg_hr"
    publish("metric", "--repo_id", repo_id)
    rng = np.random.default_rng(0)
    values = {
        "predictions": rng.normal(size=(6, 4)).tolist(),
        "references": list(range(6)),
        "item_embeddings": rng.normal(size=(9, 4)).tolist(),
        "ks": [1, 5],
        "bootstrap": 20,
    }
    there = evaluate.load(repo_id, config_name="embeddings").compute(**values)
    here = evaluate.load("metrics/ndcg_hr", config_name="embeddings").compute(**values)
    assert there == here and set(there) >= {"ndcg@5", "hr@5_low"}


def test_downloading_a_metric_does_not_run_its_code(hub, tmp_path, monkeypatch):
    repo_id, marker = hub.new_id("metric"), tmp_path / "has run"
    hub.api().create_repo(repo_id, repo_type="space", space_sdk="gradio")
    code = f"import pathlib\nimport evaluate\npathlib.Path({str(marker)!r}).touch()\n" + METRIC_OF_ONE
    hub.api().upload_file(
        path_or_fileobj=code.encode(), path_in_repo=f"{repo_id.split('/')[1]}.py", repo_id=repo_id, repo_type="space"
    )
    assert cli.main(["download", "--metric", repo_id]) == 0
    assert not marker.exists()
    monkeypatch.setattr("evaluate.config.HF_EVALUATE_OFFLINE", True)
    assert evaluate.load(repo_id).compute(predictions=[1], references=[1]) == {"one": 1}
    assert marker.exists()


METRIC_OF_ONE = """
import datasets


class One(evaluate.Metric):
    def _info(self):
        numbers = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(description="", citation="", features=datasets.Features(numbers))

    def _compute(self, predictions, references):
        return {"one": 1}
"""


# --- a run by Hub names ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_by_hub_names_equals_the_local_run(hub, published, base, tiny_run, tmp_path):
    recipe = yaml.safe_load((tiny_run.parent / "recipe.yaml").read_text())
    del recipe["prepare"]
    recipe["run"]["run_dir"] = str(tmp_path / "run")
    recipe["data"]["dataset"] = [published + "-data"]
    recipe["model"]["base_model"] = base
    recipe["ground"]["index_dir"] = published + "-index"
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    assert cli.main(["run", "--config", str(path), "--debug"]) == 0
    for method in ("finetuned", "random", "popularity"):
        ours, theirs = (pq.read_table(run / method / "rankings.parquet") for run in (tmp_path / "run", tiny_run))
        assert ours.to_pylist() == theirs.to_pylist()
        results = [json.loads((run / method / "results.json").read_text()) for run in (tmp_path / "run", tiny_run)]
        for values in results:
            for name in ("encoder", "revision"):
                values.pop(name, None)
        assert results[0] == results[1]
    commit, data_commit = hub.api().model_info(base).sha, hub.api().dataset_info(published + "-data").sha
    training = json.loads((tmp_path / "run" / "adapter" / "training.json").read_text())
    assert training["settings"]["base_model"] == f"{base}@{commit}"
    assert training["settings"]["dataset"] == [f"{published}-data@{data_commit}"]
    generate = json.loads((tmp_path / "run" / "finetuned" / "generate.json").read_text())
    assert generate["base_fingerprint"] == commit and generate["data"]["dataset"] == [f"{published}-data@{data_commit}"]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["names"] == {
        "dataset": [f"{published}-data@{data_commit}"],
        "base_model": f"{base}@{commit}",
        "index_dir": f"{published}-index@{hub.api().dataset_info(published + '-index').sha}",
    }
    # and what was made from Hub names can be published without naming the base
    repo_id = hub.new_id("hub-run")
    publish("adapter", "--run_dir", tmp_path / "run", "--repo_id", repo_id)
    assert ModelCard.load(repo_id).data.datasets == [published + "-data"]


@pytest.mark.slow
def test_download_then_everything_offline(hub, published, places, base, tiny_run, tmp_path):
    recipe = yaml.safe_load((tiny_run.parent / "recipe.yaml").read_text())
    del recipe["prepare"]
    recipe["run"]["run_dir"] = str(tmp_path / "run")
    recipe["data"]["dataset"] = [published + "-data"]
    recipe["model"]["base_model"] = base
    recipe["sft"]["sample"] = 8
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    home = tmp_path / "home"
    code = (
        "import sys; from bigrec_hf import cli; "
        f"sys.exit(cli.main(['download', '--config', {str(tmp_path / 'recipe.yaml')!r}, '--adapter', {published!r}]))"
    )
    hub.run_python(code, home=home)
    offline = (
        "import sys; from bigrec_hf import cli, Recommender; "
        f"code = cli.main(['run', '--config', {str(tmp_path / 'recipe.yaml')!r}, '--debug']); "
        f"print(len(Recommender.from_pretrained({published!r}).recommend(['Heat (1995)']).items)); sys.exit(code)"
    )
    before = len(hub.requests())
    done = hub.run_python(offline, home=home, HF_HUB_OFFLINE="1", HF_EVALUATE_OFFLINE="1")
    assert done.stdout.strip().endswith("10") and len(hub.requests()) == before
    # another machine without the cache: one line that says what to do
    done = hub.run_python(offline, home=tmp_path / "empty", HF_HUB_OFFLINE="1", check=False)
    assert done.returncode != 0 and "run `bigrec-hf download` while online" in done.stderr


def test_download_to_a_folder(hub, base, tmp_path, capsys):
    flags = ["--base_model", base, "--local_dir", str(tmp_path / "models")]
    assert cli.main(["download", *flags, "--debug"]) == 0
    folder = tmp_path / "models" / base.split("/")[1]
    assert (folder / "model.safetensors").is_file() and f"use --base_model {folder}" in capsys.readouterr().out
    assert (
        cli.main(["download", *flags[:2], "--include_files", "config.json", "--local_dir", str(tmp_path / "few")]) == 0
    )
    few = tmp_path / "few" / base.split("/")[1]
    assert (few / "config.json").is_file() and not (few / "model.safetensors").exists()


@pytest.mark.slow
def test_checkpoints_pushed_by_the_trainer_can_be_resumed_from(hub, base, tiny_prepared, tmp_path):
    repo_id = hub.new_id("checkpoints")
    trainer = {
        "push_to_hub": True,
        "hub_model_id": repo_id,
        "hub_strategy": "all_checkpoints",
        "hub_private_repo": True,
    }
    flags = ["--base_model", base, "--dataset", tiny_prepared, "--sample", "16", "--validation_sample", "8"]
    flags += ["--epochs", "2", "--global_batch_size", "8", "--micro_batch_size", "4", "--dtype", "float32", "--debug"]
    trained = tmp_path / "trained"
    assert cli.main(["sft", *flags, "--run_dir", str(trained), "--trainer_args", json.dumps(trainer)]) == 0
    files = hub.api().list_repo_files(repo_id)
    steps = sorted({name.split("/")[0] for name in files if name.startswith("checkpoint-")})
    assert steps, files
    mark = json.loads((trained / "adapter" / "training.json").read_text())
    # another machine: only the first checkpoint of the repository, in a run of the same settings
    again = tmp_path / "again"
    snapshot_download(repo_id, allow_patterns=f"{steps[0]}/*", local_dir=again / "adapter" / "checkpoints")
    settings = {"fingerprint": mark["fingerprint"]}
    (again / "adapter" / "checkpoints" / "settings.json").write_text(json.dumps(settings))
    assert cli.main(["sft", *flags, "--run_dir", str(again), "--trainer_args", json.dumps(trainer)]) == 0
    resumed = json.loads((again / "adapter" / "training.json").read_text())
    assert resumed["optimizer_steps"] == mark["optimizer_steps"] == 4
    from safetensors.numpy import load_file

    ours, theirs = (load_file(run / "adapter" / "adapter_model.safetensors") for run in (again, trained))
    assert all(np.allclose(ours[name], theirs[name], atol=1e-6) for name in theirs)


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def before(hub, tiny_prepared):
    """A set that is published already, and the folder of a changed one to publish over it."""
    repo_id = hub.new_id("faulty")
    publish("dataset", "--dataset", tiny_prepared, "--repo_id", repo_id)
    return repo_id, hub.api().dataset_info(repo_id).sha


def changed_set(tiny_prepared, folder):
    target = shutil.copytree(tiny_prepared, folder / "changed")
    facts = json.loads((target / "facts.json").read_text())
    (target / "facts.json").write_text(json.dumps(facts | {"name": "renamed"}))
    items = pq.read_table(target / "data/items/train.parquet")
    pq.write_table(items, target / "data/items/train.parquet", compression="gzip")
    return target


def whole(hub, repo_id, commit):
    """Whether a repository serves exactly one published state: `commit`."""
    folder = snapshot_download(repo_id, repo_type="dataset", force_download=True)
    return folder.endswith(commit)


def but_one_slow(names, one):
    return [name if name == one else pytest.param(name, marks=pytest.mark.slow) for name in names]


FAULTS = {
    "5xx on the commit": [{"kind": "status", "path": "*/commit/*", "status": 503, "count": 2}],
    "429 with Retry-After": [{"kind": "status", "path": "*/commit/*", "status": 429, "retry_after": 1, "count": 1}],
    "409 on the commit": [{"kind": "status", "path": "*/commit/*", "status": 409, "count": 1}],
    "connection cut in the commit": [{"kind": "drop_upload", "path": "*/commit/*", "after": 50, "count": 2}],
    "answer of the commit lost": [{"kind": "lose", "path": "*/commit/*", "count": 1}],
    "preupload broken": [{"kind": "status", "path": "*/preupload/*", "status": 500, "count": 2}],
    "create refused for a while": [{"kind": "status", "path": "/api/repos/create", "status": 502, "count": 2}],
    "large file cut": [{"kind": "drop_upload", "path": "*lfs*", "after": 100, "count": 1}],
}


@pytest.mark.parametrize("name", but_one_slow(FAULTS, "answer of the commit lost"))
def test_a_passing_fault_is_overcome_by_one_commit(hub, before, tiny_prepared, tmp_path, name):
    repo_id, first = before
    for fault in FAULTS[name]:
        hub.faults.add(**fault)
    publish("dataset", "--dataset", changed_set(tiny_prepared, tmp_path), "--repo_id", repo_id)
    assert any(fault["hits"] for fault in hub.faults.all()) or name == "large file cut"
    hub.faults.clear()
    commits = hub.api().list_repo_commits(repo_id, repo_type="dataset")
    at = [commit.commit_id for commit in commits]
    assert at.index(first) == 1  # exactly one commit more
    assert json.loads(open_facts(repo_id))["name"] == "renamed"


def open_facts(repo_id):
    return Path(hf_hub_download(repo_id, "facts.json", repo_type="dataset", force_download=True)).read_text()


LASTING = {
    "5xx": ({"kind": "status", "status": 503}, "returned 503"),
    "429": ({"kind": "status", "status": 429}, "returned 429"),
    "409": ({"kind": "status", "status": 409}, "being changed by someone else"),
    "412": ({"kind": "status", "status": 412}, "being changed by someone else"),
    "cut": ({"kind": "drop_upload", "after": 10}, "cannot be reached"),
}


@pytest.mark.parametrize("name", but_one_slow(LASTING, "5xx"))
def test_a_lasting_fault_leaves_the_previous_revision_whole(hub, before, tiny_prepared, tmp_path, name, capsys):
    repo_id, first = before
    fault, message = LASTING[name]
    hub.faults.add(path="*/commit/*", count=None, **fault)
    publish("dataset", "--dataset", changed_set(tiny_prepared, tmp_path), "--repo_id", repo_id, code=2)
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error and len(error.strip().splitlines()) == 1
    hub.faults.clear()
    assert hub.api().dataset_info(repo_id).sha == first and whole(hub, repo_id, first)
    assert len(datasets.load_dataset(repo_id, "items", split="train", revision=first)) == 20


def test_somebody_elses_commit_is_never_overwritten(hub, before, tiny_prepared, tmp_path, monkeypatch, capsys):
    repo_id, _ = before
    api = hub.api()

    create_commit = HfApi.create_commit

    def late(self, *arguments, **options):
        monkeypatch.setattr(HfApi, "create_commit", create_commit)
        api.upload_file(path_or_fileobj=b"x", path_in_repo="other.txt", repo_id=repo_id, repo_type="dataset")
        return create_commit(self, *arguments, **options)

    monkeypatch.setattr(HfApi, "create_commit", late)
    publish("dataset", "--dataset", changed_set(tiny_prepared, tmp_path), "--repo_id", repo_id, code=2)
    assert "changed by someone else" in capsys.readouterr().err
    assert "other.txt" in api.list_repo_files(repo_id, repo_type="dataset")


# --- names that do not work -----------------------------------------------------------------------------------------


def test_errors_of_names_in_one_line(hub, base, tiny_run, capsys, monkeypatch):
    api = hub.api("bob")
    secret = hub.new_id("secret", "bob")
    api.create_repo(secret, private=True)

    def error_of(name):
        assert cli.main(["generate", "--run_dir", str(tiny_run), "--base_model", name]) == 2
        error = capsys.readouterr().err.strip()
        assert len(error.splitlines()) == 1 and "Traceback" not in error
        return error

    assert "does not exist on the Hub or is private" in error_of("alice/never-made")
    assert "does not exist on the Hub or is private" in error_of(secret)
    assert "has no revision 'v9'" in error_of(f"{base}@v9")
    monkeypatch.setenv("HF_TOKEN", "hf_alice_expired")
    assert "rejects the token" in error_of(base)
    monkeypatch.setenv("HF_TOKEN", "hf_alice_write")
    hub.faults.add(kind="status", path=f"/api/models/{base}*", status=503, count=None)
    assert "returned 503" in error_of(base)


def test_an_expired_or_reading_token_cannot_publish(hub, tiny_prepared, capsys, monkeypatch):
    for token, message in (("hf_alice_expired", "rejects the token"), ("hf_alice_read", "lacks permission for")):
        monkeypatch.setenv("HF_TOKEN", token)
        publish("dataset", "--dataset", tiny_prepared, "--repo_id", hub.new_id("set"), code=2)
        error = capsys.readouterr().err
        assert message in error and token not in error


@pytest.mark.slow
def test_a_planted_token_is_nowhere(hub, published, places, base, tiny_run, tmp_path):
    """Everything that was printed, recorded, or published in this module, and what a failing command says."""
    token = hub.tokens["alice"]
    code = (
        "from bigrec_hf import cli; "
        f"cli.main(['publish', 'adapter', '--run_dir', {str(tiny_run)!r}, '--repo_id', {published!r}, "
        f"'--base_model', {base!r}]); "
        "cli.main(['generate', '--run_dir', 'x', '--base_model', 'alice/never-made', '--dataset', 'alice/no']); "
        "import logging; logging.basicConfig(level=logging.DEBUG); "
        f"cli.main(['publish', 'metric', '--repo_id', 'alice/{token}/x'])"
    )
    done = hub.run_python(code, cwd=tmp_path, HF_DEBUG="0")
    assert token not in done.stdout + done.stderr
    for repo_id, kind in ((published, "model"), (published + "-data", "dataset"), (published + "-index", "dataset")):
        folder = snapshot_download(repo_id, repo_type=kind)
        assert no_file_holds(token, folder)
    assert no_file_holds(token, tiny_run)


def no_file_holds(token, folder):
    return not any(token.encode() in file.read_bytes() for file in Path(folder).rglob("*") if file.is_file())
