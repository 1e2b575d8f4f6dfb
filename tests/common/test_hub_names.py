"""Names on the Hub: what counts as one, pinning, the cache without a network, and every error in one line."""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass

import huggingface_hub
import pytest
from bigrec_hf.metrics.ndcg_hr.names import split_revision

from bigrec_hf import cli
from bigrec_hf.common import hub_names as hub
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.hub_names import fetch_file, fetch_folder, is_hub_id, pin, resolve_commit
from bigrec_hf.data.prepared import load_facts
from bigrec_hf.hub.download import named, parts_of
from bigrec_hf.settings import SECTIONS, DataSettings, GenerateSettings, GroundSettings, ModelSettings, SftSettings
from bigrec_hf.settings.field import setting

COMMIT, OTHER = "a" * 40, "b" * 40


def cache(folder, repo_id="user/set", kind="datasets", commit=COMMIT, refs=("main",), files=("facts.json",)):
    """A repository in the client's cache, as the client lays it out."""
    storage = folder / f"{kind}--{repo_id.replace('/', '--')}"
    for file in files:
        path = storage / "snapshots" / commit / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"name": repo_id, "noun": "films", "verb": "watched"}))
    for ref in refs:
        (storage / "refs").mkdir(parents=True, exist_ok=True)
        (storage / "refs" / ref).write_text(commit)


@pytest.fixture
def cached(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# --- what is a Hub name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["user/set", "user/set@v1", "Qwen/Qwen2.5-0.5B-Instruct", f"u/m@{COMMIT}", "user/set@feature/x"]
)
def test_hub_ids(name):
    assert is_hub_id(name) and is_hub_id(name, bare=True)


@pytest.mark.parametrize(
    "name",
    [
        "./user/set",
        "/user/set",
        "~/user/set",
        "../set",
        "data/raw/set",
        "data/movies.dat",
        "a/id2name.txt",
        "user/",
        "",
    ],
)
def test_paths_are_no_hub_ids(name):
    assert not is_hub_id(name) and not is_hub_id(name, bare=True)


def test_names_without_an_owner_are_models_only():
    assert is_hub_id("gpt2", bare=True) and not is_hub_id("gpt2")


def test_an_existing_folder_wins(tmp_path, monkeypatch):
    (tmp_path / "user" / "set@v1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("user/set@v1") and split_revision("user/set@v1") == ("user/set@v1", None)
    assert is_hub_id("user/other@v1") and split_revision("user/other@v1") == ("user/other", "v1")


# --- pinning --------------------------------------------------------------------------------------------------------


def test_names_are_pinned_to_the_cached_commit_without_a_network(cached):
    cache(cached, refs=("main", "v1"))
    cache(cached, "org/model", "models", OTHER)
    section = pin(DataSettings(dataset=["user/set", "user/set@v1", "./folder"], catalog="movies.dat"))
    assert section.dataset == [f"user/set@{COMMIT}"] * 2 + ["./folder"] and section.catalog == "movies.dat"
    assert pin(ModelSettings(base_model="org/model")).base_model == f"org/model@{OTHER}"
    assert pin(ModelSettings(base_model=f"org/model@{OTHER}")).base_model == f"org/model@{OTHER}"
    assert pin(ModelSettings()) == ModelSettings()


def test_the_word_base_is_no_repository(cached):
    assert pin(GroundSettings(encoder="base")).encoder == "base"


def test_an_index_that_is_not_on_the_hub_is_a_folder_to_make(cached, capsys):
    assert pin(GroundSettings(index_dir="indexes/games")).index_dir == "indexes/games"
    assert "treated as a folder to create" in capsys.readouterr().out
    with pytest.raises(BigrecError, match="not in the cache"):
        pin(GroundSettings(index_dir="indexes/games@v2"))


def test_only_the_last_known_commit_helps_when_the_network_fails(cached, monkeypatch, capsys):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", unreachable)
    cache(cached)
    assert resolve_commit("user/set", "dataset") == COMMIT
    assert "the Hub cannot be reached: using user/set as last fetched" in capsys.readouterr().out
    with pytest.raises(BigrecError, match="cannot be reached, and 'user/unknown' is not in the cache"):
        resolve_commit("user/unknown", "dataset")


def test_what_was_resolved_is_known_later_without_a_network(cached, monkeypatch):
    @dataclass
    class Info:
        sha: str = COMMIT

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", lambda *args, **kwargs: Info())
    assert resolve_commit("user/set@v2", "dataset") == COMMIT
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert resolve_commit("user/set@v2", "dataset") == COMMIT


def test_files_and_folders(cached, tmp_path):
    cache(cached)
    assert fetch_file("user/set", "facts.json", "dataset").is_file()
    assert fetch_file(f"user/set@{COMMIT}", "other.json", "dataset", optional=True) is None
    with pytest.raises(BigrecError, match="HF_HUB_OFFLINE=1"):
        fetch_file("user/set", "other.json", "dataset")
    assert load_facts("user/set") == {"name": "user/set", "noun": "films", "verb": "watched"}
    (tmp_path / "local").mkdir()
    assert fetch_file(str(tmp_path / "local"), "facts.json", "dataset") is None
    assert fetch_folder(str(tmp_path / "local"), "model") == tmp_path / "local"


# --- errors ---------------------------------------------------------------------------------------------------------


def response(status, code=None, message=None):
    import httpx2

    headers = {"X-Error-Code": code, "X-Error-Message": message}
    request = httpx2.Request("GET", "https://huggingface.co/api/models/user/model/resolve/main/config.json?sig=secret")
    return httpx2.Response(status, headers={k: v for k, v in headers.items() if v}, request=request)


def hub_error(*answer):
    with pytest.raises(Exception) as caught:
        huggingface_hub.utils.hf_raise_for_status(response(*answer))
    return caught.value


def wrapped(error):
    """As transformers and datasets do: their own error, raised from the Hub's."""
    try:
        raise OSError("Can't load the configuration, here is a long story") from error
    except OSError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ((403, "GatedRepo", "gated"), "is gated: accept its terms at"),
        ((404, "RepoNotFound"), "does not exist on the Hub or is private"),
        ((401, None, None), "does not exist on the Hub or is private"),
        ((404, "RevisionNotFound"), "has no revision 'v1'"),
        ((404, "EntryNotFound"), "lacks a required file (config.json)"),
        ((401, None, "Invalid credentials in Authorization header"), "rejects the token"),
        ((401, None, "Access token is expired"), "rejects the token"),
        ((403, None, "Forbidden"), "the token lacks permission for"),
        ((429,), "returned 429"),
        ((502,), "returned 502"),
    ],
)
@pytest.mark.parametrize("outer", [lambda error: error, wrapped], ids=["bare", "wrapped"])
def test_answers_of_the_hub(error, expected, outer):
    message = hub.explain(outer(hub_error(*error)), "user/model@v1")
    assert expected in message and "\n" not in message and "secret" not in message


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on the disk"),
        (huggingface_hub.errors.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE=1"),
        (huggingface_hub.errors.LocalEntryNotFoundError("nothing"), "HF_HUB_OFFLINE=1"),
        (TimeoutError("slow"), "cannot be reached"),
        (ConnectionRefusedError("no"), "cannot be reached"),
        (huggingface_hub.errors.HFValidationError("bad"), "neither a folder nor a Hub id"),
    ],
)
@pytest.mark.parametrize("outer", [lambda error: error, wrapped], ids=["bare", "wrapped"])
def test_other_failures(error, expected, outer):
    assert expected in hub.explain(outer(error), "user/model")


def test_a_full_disk_while_fetching(cached, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", full)
    with pytest.raises(BigrecError, match="no space left on the disk while fetching 'user/set'"):
        fetch_file("user/set", "facts.json", "dataset")


def test_other_errors_pass_through_unchanged():
    with pytest.raises(ZeroDivisionError), hub.hub_errors("user/model"):
        raise ZeroDivisionError
    with pytest.raises(BigrecError, match="mine"), hub.hub_errors("user/model"):
        raise BigrecError("mine")


@pytest.mark.parametrize(
    "arguments",
    [
        ["sft", "--dataset", "user/set", "--base_model", "./x"],
        ["generate", "--run_dir", "x", "--base_model", "user/model", "--dataset", "user/set"],
        ["ground", "--run_dir", "x", "--encoder", "user/encoder", "--dataset", "./set"],
        ["evaluate", "--generations", "x", "--catalog", "user/set", "--encoder", "base"],
        ["download", "--base_model", "user/model"],
    ],
)
def test_commands_fail_at_once_and_in_one_line(arguments, cached, capsys):
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert "bigrec-hf download" in error and len(error.splitlines()) == 1


# --- settings and downloads -----------------------------------------------------------------------------------------


def test_every_setting_that_promises_a_hub_id_is_pinned():
    from dataclasses import fields

    promised = {
        (name, item.name)
        for name, section in SECTIONS.items()
        if name not in ("publish", "download", "init")  # `init` writes the name into a recipe as it is given
        for item in fields(section)
        if "Hub id" in item.metadata["help"]
    }
    pinned = {
        (name, item.name) for name, section in SECTIONS.items() for item in fields(section) if item.metadata.get("hub")
    }
    assert promised <= pinned
    assert setting(None, "x", hub="model").metadata["hub"] == "model"


def test_what_a_recipe_names_is_downloaded_once(tmp_path):
    found = named(
        DataSettings(dataset=["u/set", "./local"], catalog="u/set"),
        ModelSettings(base_model="gpt2"),
        SftSettings(init_adapter="u/first"),
        GenerateSettings(adapter="u/adapter"),
        GroundSettings(encoder="gpt2", index_dir="u/index"),
    )
    assert [part[1:] for part in found] == [
        ("u/set", "dataset"),
        ("gpt2", "model"),
        ("u/first", "model"),
        ("u/adapter", "model"),
        ("u/index", "dataset"),
    ]
    (tmp_path / "bigrec.json").write_text(json.dumps({"base_model": "u/base@v1", "index": "index"}))
    assert parts_of(tmp_path) == [("base_model", "u/base@v1", "model")]


def test_nothing_to_download(capsys):
    assert cli.main(["download", "--dataset", "./local"]) == 2
    assert "nothing to download" in capsys.readouterr().err
