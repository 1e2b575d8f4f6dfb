"""Publishing without a network: the folders of a dry run, their cards, what is refused, what is never written."""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path

import httpx2
import pytest
import yaml
from bigrec_hf.metrics import ndcg_hr
from huggingface_hub import DatasetCard, ModelCard
from huggingface_hub.errors import HfHubHTTPError
from safetensors.numpy import load_file

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.prepared import PREPARED_FILES
from bigrec_hf.ground.index import load_index
from bigrec_hf.hub import commit as push
from bigrec_hf.hub.cards import eval_results
from bigrec_hf.hub.contents import METRIC_FILES, check_nothing_private, new_folder
from bigrec_hf.prepare.card import dataset_card
from bigrec_hf.report.rows import METRICS, Row
from tests.helpers.tiny import TITLES
from tests.helpers.tiny_run import with_forbidden_terms

METHODS = ("finetuned", "random", "popularity")


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)


@pytest.fixture(scope="module")
def dry(tiny_run, tmp_path_factory):
    """Everything of the run as a dry run writes it: the folder that holds models/, datasets/ and spaces/."""
    place = tmp_path_factory.mktemp("dry")
    names = ["--repo_id", "alice/movies", "--dataset_repo_id", "alice/movies-data", "--base_model", "alice/tiny-llama"]
    flags = ["--run_dir", str(tiny_run), "--output_dir", str(place), "--dry_run", "--license", "apache-2.0", "--debug"]
    assert cli.main(["publish", "run", *names, *flags]) == 0
    return place


@pytest.fixture
def adapter(dry):
    return dry / "models" / "alice" / "movies"


def results_of(run):
    return {method: json.loads((run / method / "results.json").read_text()) for method in METHODS}


# --- the adapter ----------------------------------------------------------------------------------------------------


def test_the_card_is_read_by_the_hubs_own_class(adapter):
    card = ModelCard.load(adapter / "README.md")
    data = card.data
    assert (data.base_model, data.library_name, data.pipeline_tag) == ("alice/tiny-llama", "peft", "text-generation")
    assert (data.license, data.datasets, data.metrics) == ("apache-2.0", ["alice/movies-data"], ["alice/ndcg_hr"])
    assert "bigrec" in data.tags
    card.validate  # noqa: B018  (needs a network: the round trip validates)


def test_every_metric_and_k_is_an_eval_result_equal_to_results_json(adapter, tiny_run):
    own = results_of(tiny_run)["finetuned"]
    found = ModelCard.load(adapter / "README.md").data.eval_results
    assert len(found) == 2 * 2  # NDCG and HR at 1 and 5
    for entry in found:
        k = entry.metric_args["k"]
        assert entry.metric_value == own[f"{entry.metric_type}@{k}"]
        assert entry.metric_name == f"{METRICS[entry.metric_type]}@{k}"
        assert (entry.dataset_type, entry.dataset_split) == ("alice/movies-data", "test")
        assert isinstance(entry.metric_value, float)


def test_the_tables_show_the_results_files_numbers(adapter, tiny_run):
    text = (adapter / "README.md").read_text()
    for results in results_of(tiny_run).values():
        for key in ("ndcg@5", "hr@5"):
            assert f"{results[key]:.4f} [{results[f'{key}_low']:.4f}, {results[f'{key}_high']:.4f}]" in text
    facts = json.loads((tiny_run / "data" / "facts.json").read_text())
    assert f"Evaluated on 10 of the {facts['examples']['test']} examples of the test split" in text
    assert "published by Bi-Step-Rec" in text and "0.0266" in text
    training = json.loads((tiny_run / "adapter" / "training.json").read_text())
    shown = json.loads((adapter / "training.json").read_text())["history"]  # without the history of a user
    assert len(shown) < len(training["history"]) and shown == [e for e in training["history"] if "sample" not in e]
    assert f"| trainable parameters | {training['trainable_parameters']:,} |" in text
    assert f"| learning rate | {training['settings']['learning_rate']:g} |" in text
    assert f"| torch | {training['environment']['packages']['torch']} |" in text


def test_what_was_not_recorded_is_left_out():
    row = Row("run", "finetuned", [Path()], [{"hr@1": 0.5, "ndcg@1": 0.5}])
    (first, _) = eval_results(row, {"type": "set", "name": "set"})
    assert (first.dataset_split, first.dataset_revision, first.dataset_config) == (None, None, None)


def test_a_run_without_records_has_a_shorter_card(tiny_run, tmp_path):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "adapter" / "training.json").unlink()
    flags = ["--repo_id", "alice/x", "--base_model", "alice/b", "--output_dir", str(tmp_path / "out")]
    assert cli.main(["publish", "adapter", "--run_dir", str(run), *flags, "--debug"]) == 0
    folder = tmp_path / "out" / "models" / "alice" / "x"
    text = (folder / "README.md").read_text()
    assert "## Environment" not in text and "learning rate" not in text and "None" not in text
    assert not (folder / "training.json").exists()
    assert ModelCard.load(folder / "README.md").data.license is None
    assert (folder / "index" / "embeddings.safetensors").is_file()  # `publish adapter` takes the index along


def test_peft_files_name_the_base_by_its_hub_id(adapter, tiny_run):
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "alice/tiny-llama"
    own, published = (load_file(folder / "adapter_model.safetensors") for folder in (tiny_run / "adapter", adapter))
    assert all((own[name] == published[name]).all() for name in own)
    assert (adapter / "tokenizer.json").is_file()


def test_no_local_path_and_no_index_without_need(dry, tiny_run):
    for file in dry.rglob("*"):
        if file.is_file() and file.suffix in (".json", ".md", ".py", ".jinja"):
            text = file.read_text()
            assert str(tiny_run.parent.parent) not in text and str(Path.home()) + "/" not in text, file
    config = json.loads((dry / "models/alice/movies/bigrec.json").read_text())
    assert config["index"] == "alice/movies-index" and config["base_weights"] == "not compared"
    assert "was not compared with the repository's weights" in (dry / "models/alice/movies/README.md").read_text()


def test_a_local_base_needs_its_name_on_the_hub(tiny_run, tmp_path, capsys):
    flags = ["--run_dir", str(tiny_run), "--repo_id", "alice/x", "--output_dir", str(tmp_path)]
    assert cli.main(["publish", "adapter", *flags]) == 2
    assert "is a copy of (--base_model)" in capsys.readouterr().err
    assert cli.main(["publish", "adapter", *flags, "--base_model", "./folder"]) == 2
    assert "is not a Hub id" in capsys.readouterr().err


def test_results_of_another_adapter_are_not_published(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    weights = run / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    flags = ["--run_dir", str(run), "--repo_id", "alice/x", "--base_model", "alice/b", "--output_dir", str(tmp_path)]
    assert cli.main(["publish", "adapter", *flags]) == 2
    assert "newer than its results" in capsys.readouterr().err


# --- the data set, the index, the metric ----------------------------------------------------------------------------


def test_the_data_sets_card(dry):
    folder = dry / "datasets" / "alice" / "movies-data"
    facts = json.loads((folder / "facts.json").read_text())
    card = DatasetCard.load(folder / "README.md")
    infos = {info["config_name"]: info for info in card.data.dataset_info}
    assert set(infos) == {"default", "items", "interactions", "text"}
    assert {s["name"]: s["num_examples"] for s in infos["default"]["splits"]} == facts["examples"]
    assert all(split["num_bytes"] > 0 for info in infos.values() for split in info["splits"])
    assert {"name": "history", "list": "int32"} in infos["default"]["features"]
    text = card.content
    assert 'load_dataset("alice/movies-data"' in text and "PATH" not in text
    assert "harper2015movielens" in text and "window 10" in text and facts["sha256"]["ratings.csv"] in text
    assert "[`alice/movies`]" in text  # the adapter trained on it


def test_the_data_sets_card_says_what_holds_for_this_set(tiny_prepared):
    facts = json.loads((Path(tiny_prepared) / "facts.json").read_text())
    assert "nobody rated" not in dataset_card(facts) and "whatever their value" in dataset_card(facts)
    other = {"items": facts["items"] + 1_000, "protocol": facts["protocol"] | {"min_rating": 4.0}, "source": "table"}
    text = dataset_card(facts | other)
    assert "nobody rated 1,000 of its films" in text and "whatever their value" not in text and "Matrix" not in text


def test_the_index(dry, tiny_run):
    own, published = load_index(tiny_run / "index"), load_index(dry / "datasets" / "alice" / "movies-index")
    assert (own.embeddings == published.embeddings).all() and published.catalog.titles == list(TITLES)
    assert published.fingerprint["encoder"] == "alice/tiny-llama"
    assert published.fingerprint["revision"] == own.fingerprint["revision"]  # the digest of the copy that was used
    card = DatasetCard.load(dry / "datasets" / "alice" / "movies-index" / "README.md")
    assert card.data.configs[0]["data_files"][0]["path"] == "catalog.parquet"
    assert (card.data.license, card.data.license_name) == ("other", "movielens-terms")  # it holds the titles


def test_the_metric_is_a_space_with_its_own_id_in_the_examples(dry, tmp_path):
    folder = dry / "spaces" / "alice" / "ndcg_hr"
    card = DatasetCard.load(folder / "README.md")
    assert card.data.to_dict()["sdk"] == "gradio" and "metric" in card.data.tags
    assert 'evaluate.load("alice/ndcg_hr")' in card.content and "metrics/ndcg_hr" not in card.content
    assert (folder / "app.py").is_file() and (folder / "requirements.txt").is_file()
    assert cli.main(["publish", "metric", "--repo_id", "bob/ranks", "--output_dir", str(tmp_path)]) == 0
    assert (tmp_path / "spaces" / "bob" / "ranks" / "ranks.py").is_file()


BAD_NAMES = (
    "alice",
    "alice/a b",
    "alice/mövies",
    "../etc",
    "alice/..",
    "alice/a--b",
    "a/b/c",
    "",
    "alice/x@v1",
    "alice/x.git",
)


@pytest.mark.parametrize("name", [*BAD_NAMES, "alice/" + "x" * 97])
def test_a_repository_name_that_the_hub_does_not_allow(name, tmp_path, capsys):
    assert cli.main(["publish", "metric", f"--repo_id={name}", "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "--repo_id is" in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_run_names_all_its_repositories_well_before_anything_is_written(tiny_run, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    common = ["publish", "run", "--run_dir", str(tiny_run), "--base_model", "alice/b", "--output_dir", str(out)]
    assert cli.main([*common, "--repo_id", "alice/x", "--dataset_repo_id", "../../x"]) == 2
    assert cli.main([*common, "--repo_id", "alice/" + "x" * 92]) == 2  # x...x-index is too long
    errors = capsys.readouterr().err
    assert "--dataset_repo_id is '../../x'" in errors and "--index_repo_id is" in errors and not out.exists()
    (tmp_path / "alice" / "ranks").mkdir(parents=True)  # a folder of the same name is no obstacle
    monkeypatch.chdir(tmp_path)
    assert cli.main(["publish", "metric", "--repo_id", "alice/ranks", "--output_dir", str(out)]) == 0


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    def full(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))

    monkeypatch.setattr(shutil, "copyfile", full)
    assert cli.main(["publish", "metric", "--repo_id", "alice/ranks", "--output_dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "no space left on the disk" in error and "TMPDIR" in error and str(tmp_path / "out") in error


def test_terms_that_forbid_redistribution(tiny_prepared, tmp_path, capsys):
    dataset = with_forbidden_terms(tiny_prepared, tmp_path)
    flags = ["--dataset", str(dataset), "--repo_id", "alice/ml", "--output_dir", str(tmp_path / "out")]
    assert cli.main(["publish", "dataset", *flags]) == 2
    error = capsys.readouterr().err
    assert "no redistribution" in error and "--private" in error and "--i_have_permission" in error
    assert not (tmp_path / "out").exists()
    card = tmp_path / "out" / "datasets" / "alice" / "ml" / "README.md"
    assert cli.main(["publish", "dataset", *flags, "--private"]) == 0
    assert "**Keep this repository private:**" in card.read_text()
    assert cli.main(["publish", "dataset", *flags, "--i_have_permission"]) == 0
    assert "declares to have permission" in card.read_text() and "Keep this repository private" not in card.read_text()


def test_an_index_of_forbidden_titles_is_refused_too(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    facts = json.loads((run / "data" / "facts.json").read_text())
    facts["licence"] = {"name": "no redistribution", "redistribution": "forbidden"}
    (run / "data" / "facts.json").write_text(json.dumps(facts))
    generate = json.loads((run / "finetuned" / "generate.json").read_text())
    generate["data"]["dataset"] = [str(run / "data")]
    (run / "finetuned" / "generate.json").write_text(json.dumps(generate))
    flags = ["--run_dir", str(run), "--repo_id", "alice/x", "--base_model", "alice/b", "--output_dir", str(tmp_path)]
    for kind in ("index", "adapter", "run"):
        assert cli.main(["publish", kind, *flags]) == 2
        assert "forbid redistribution" in capsys.readouterr().err
    assert cli.main(["publish", "adapter", *flags, "--with_index", "false"]) == 0
    folder = tmp_path / "models" / "alice" / "x"
    assert not (folder / "index").exists() and "is not part of this repository" in (folder / "README.md").read_text()


def test_the_card_of_a_prepared_folder_still_fills_in(tiny_prepared):
    facts = json.loads((Path(tiny_prepared) / "facts.json").read_text())
    assert "PATH" in dataset_card(facts)  # until it has a place on the Hub


# --- dry runs, errors, secrets --------------------------------------------------------------------------------------


def test_without_a_token_it_is_a_dry_run(tiny_prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["publish", "dataset", "--dataset", tiny_prepared, "--repo_id", "alice/set"]) == 0
    out = capsys.readouterr().out
    assert "dry run: would push one commit to main of the public dataset alice/set" in out and "no token found" in out
    assert (tmp_path / "published" / "datasets" / "alice" / "set" / "facts.json").is_file()
    # again: the same folder, replaced
    assert cli.main(["publish", "dataset", "--dataset", tiny_prepared, "--repo_id", "alice/set", "--create_pr"]) == 0
    assert "would push a pull request" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adapter"], "--repo_id is None"),
        (["adapter", "--repo_id", "alice/x@main"], "give a branch with --revision"),
        (["adapter", "--repo_id", "alice/x"], "give --run_dir"),
        (["dataset", "--repo_id", "alice/x"], "--run_dir or --dataset"),
        (["dataset", "--repo_id", "alice/x", "--dataset", "./nowhere"], "is not a folder"),
        (["adapter", "--repo_id", "alice/x", "--run_dir", "nowhere"], "lacks a finished generate or ground"),
        (["everything", "--repo_id", "alice/x"], "invalid choice"),
    ],
)
def test_errors_in_one_line(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["publish", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_a_folder_of_somebody_else_is_never_replaced(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(BigrecError, match="choose another --output_dir"):
        new_folder(tmp_path / "mine")


def test_tokens_and_local_paths_stop_publishing(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    check_nothing_private(folder, [])
    token = "hf_" + "a1B2" * 8
    (folder / "training.json").write_text(json.dumps({"trainer_args": {"hub_token": token}}))
    with pytest.raises(BigrecError, match=r"training\.json contains an access token") as caught:
        check_nothing_private(folder, [])
    assert token not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "some-other-secret")
    (folder / "training.json").write_text("some-other-secret")
    with pytest.raises(BigrecError, match="access token"):
        check_nothing_private(folder, [])
    (folder / "training.json").write_text(f'"{tmp_path / "data"}/x"')
    (tmp_path / "data").mkdir()
    with pytest.raises(BigrecError, match="contains the local path"):
        check_nothing_private(folder, [str(tmp_path / "data")])


def test_only_the_files_of_a_prepared_set_are_published(tiny_prepared, tmp_path, capsys):
    dataset = shutil.copytree(tiny_prepared, tmp_path / "set")
    secrets = [".env", "data/.env", "data/id_rsa", "data/default/notes.parquet", "data/test.parquet", "data/x/y.bin"]
    for name in secrets:
        (dataset / name).parent.mkdir(exist_ok=True)
        (dataset / name).write_text("secret")
    flags = ["--repo_id", "alice/set", "--output_dir", str(tmp_path / "out"), "--debug"]
    assert cli.main(["publish", "dataset", "--dataset", str(dataset), *flags]) == 0
    out = tmp_path / "out/datasets/alice/set"
    files = {file.relative_to(out).as_posix() for file in out.rglob("*") if file.is_file()}
    assert files == {"README.md", "facts.json", *PREPARED_FILES}
    told = capsys.readouterr().out
    assert "not published" in told and all(name in told for name in secrets[1:])


@pytest.mark.parametrize("name", ["data/items/train.parquet", "data/items", "data", "facts.json"])
def test_links_are_not_followed(tiny_prepared, tmp_path, capsys, name):
    dataset = shutil.copytree(tiny_prepared, tmp_path / "set")
    (dataset / name).rename(tmp_path / "elsewhere")
    (dataset / name).symlink_to(tmp_path / "elsewhere")
    flags = ["--repo_id", "alice/set", "--output_dir", str(tmp_path / "out")]
    assert cli.main(["publish", "dataset", "--dataset", str(dataset), *flags]) == 2
    assert f"{dataset / name} is a link" in capsys.readouterr().err


def test_of_an_adapter_only_its_own_files_are_published(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    for name in ("tokenizer_secret.txt", "tokenizer.pem", "vocab.env", "adapter_model.key", ".env", "mine.jinja"):
        (run / "adapter" / name).write_text("secret")
    flags = ["--run_dir", str(run), "--repo_id", "alice/x", "--base_model", "alice/b", "--output_dir", str(tmp_path)]
    assert cli.main(["publish", "adapter", *flags, "--debug"]) == 0
    files = [file for file in (tmp_path / "models/alice/x").rglob("*") if file.is_file()]
    assert len(files) > 5 and not any(file.read_bytes() == b"secret" for file in files)
    (run / "adapter/tokenizer.json").rename(tmp_path / "elsewhere")
    (run / "adapter/tokenizer.json").symlink_to(tmp_path / "elsewhere")
    assert cli.main(["publish", "adapter", *flags]) == 2
    assert "tokenizer.json is a link" in capsys.readouterr().err


def test_damaged_records_are_named(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    facts = json.loads((run / "data/facts.json").read_text())
    (run / "data/facts.json").write_text(json.dumps({key: facts[key] for key in facts if key != "name"}))
    results = json.loads((run / "finetuned/results.json").read_text())
    (run / "finetuned/results.json").write_text(
        json.dumps({key: results[key] for key in results if key != "n_examples"} | {"confidence": [1]})
    )
    flags = ["--repo_id", "alice/x", "--output_dir", str(tmp_path / "out")]
    for command in (["publish", "dataset", "--dataset", str(run / "data"), *flags], ["report", str(run)]):
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert str(run) in error and "KeyError: " not in error.split("(")[0]
    (run / "finetuned/results.json").write_text(json.dumps(results))
    (run / "random/results.json").write_text(
        json.dumps(results | dict.fromkeys(("hr@5_low", "hr@5_high", "ndcg@5_low"), "x"))
    )
    assert cli.main(["report", str(run)]) == 2
    assert f"the records of {run} are damaged (ValueError" in capsys.readouterr().err


def test_an_adapter_without_results_is_refused(tiny_run, tmp_path, capsys):
    run = shutil.copytree(tiny_run, tmp_path / "run")
    (run / "finetuned/results.json").unlink()
    flags = ["--run_dir", str(run), "--repo_id", "alice/x", "--base_model", "alice/b", "--output_dir", str(tmp_path)]
    assert cli.main(["publish", "adapter", *flags]) == 2
    assert "finetuned/results.json): make them with `bigrec-hf score`" in capsys.readouterr().err


def test_the_metrics_files_are_all_listed():
    folder = Path(ndcg_hr.__file__).parent
    assert sorted(METRIC_FILES) == sorted(file.name for file in folder.iterdir() if file.is_file())


@pytest.mark.parametrize("name", ["notes", "x.xyz", "data.parquet", ".hidden", "model.bin"])
@pytest.mark.parametrize(
    "secret",
    [
        "hf_" + "a1B2" * 8,
        "ghp_" + "a1B2" * 9,
        "sk-proj-" + "a1B2" * 8,
        "AKIA" + "A1B2" * 4,
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
def test_tokens_are_found_in_any_file(tmp_path, name, secret):
    (tmp_path / name).write_bytes(b"\xff\x00 key=" + secret.encode() + b"\n\x80")
    with pytest.raises(BigrecError, match="contains an access token") as caught:
        check_nothing_private(tmp_path, [])
    assert secret not in str(caught.value)


def test_at_the_root_of_the_disk_an_address_is_no_local_path(tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("https://example.org")
    monkeypatch.chdir("/")
    check_nothing_private(tmp_path, [])


def test_a_token_in_a_recipe_is_refused_before_it_is_recorded(tiny_prepared, tiny_model_dir, tmp_path, capsys):
    token = "hf_" + "z9Y8" * 8
    flags = ["--dataset", tiny_prepared, "--base_model", tiny_model_dir, "--run_dir", str(tmp_path / "run")]
    assert cli.main(["sft", *flags, "--trainer_args", f"{{hub_token: {token}}}"]) == 2
    captured = capsys.readouterr()
    assert "HF_TOKEN" in captured.err and token not in captured.err + captured.out
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"sft": {"trainer_args": {"push_to_hub_token": token}}}))
    assert cli.main(["run", "--config", str(recipe), *flags]) == 2
    captured = capsys.readouterr()
    assert token not in captured.err + captured.out
    assert not any(token in file.read_text(errors="replace") for file in (tmp_path / "run").rglob("*.*"))


def test_error_texts_hide_tokens(capsys, monkeypatch):
    token = "hf_" + "q7W6" * 8
    assert cli.main(["publish", "metric", "--repo_id", f"alice/{token}/x"]) == 2
    assert token not in capsys.readouterr().err
    monkeypatch.setenv("HF_TOKEN", "plain-secret-word")
    assert cli.main(["publish", "metric", "--repo_id", "alice/plain-secret-word/x"]) == 2
    assert "plain-secret-word" not in capsys.readouterr().err


# --- retries --------------------------------------------------------------------------------------------------------


def http_error(status, headers=None):
    request = httpx2.Request("POST", "http://127.0.0.1/api")
    return HfHubHTTPError("no", response=httpx2.Response(status, request=request, headers=headers or {}))


@pytest.fixture
def pauses(monkeypatch):
    found = []
    monkeypatch.setattr(push.time, "sleep", found.append)
    return found


def test_retries_wait_longer_each_time_or_as_the_hub_says(pauses, capsys):
    outcomes = iter([http_error(503), http_error(429, {"Retry-After": "7"}), httpx2.ReadError("cut"), "done"])

    def action():
        outcome = next(outcomes)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    assert push.retry(action) == "done"
    assert pauses == [1.0, 7.0, 4.0]
    out = capsys.readouterr().out
    assert "the Hub returned 503" in out and "the connection broke (ReadError)" in out


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_will_not_pass_is_not_retried(status, pauses):
    with pytest.raises(HfHubHTTPError):
        push.retry(lambda: (_ for _ in ()).throw(http_error(status)))
    assert pauses == []


def test_retries_end(pauses):
    with pytest.raises(HfHubHTTPError):
        push.retry(lambda: (_ for _ in ()).throw(http_error(500)))
    assert len(pauses) == push.ATTEMPTS - 1


def test_links_of_the_cards_are_repositories_or_pages(dry):
    for card in dry.rglob("README.md"):
        for target in re.findall(r"\]\((http[^)]+)\)", card.read_text()):
            assert re.search(r"arxiv\.org|grouplens\.org|/alice/", target), (card, target)
