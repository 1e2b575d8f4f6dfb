"""The demo of a published adapter as a Space: what is pushed, that its app serves, and what is refused."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import gradio as gr
import pytest
from gradio_client import Client
from huggingface_hub import SpaceCard, hf_hub_download, snapshot_download

from bigrec_hf import Recommender, cli
from bigrec_hf.common.version import __version__
from tests.loopback_hub.fixtures import online


def publish(*arguments: object, code: int = 0) -> None:
    assert cli.main(["publish", *map(str, arguments), *(["--debug"] if code == 0 else [])]) == code


@pytest.fixture(scope="module")
def adapter(hub_server, dense_run, tiny_model_dir):
    """The adapter of a run and its base model, published."""
    with online(hub_server):
        base, name = hub_server.new_id("base"), hub_server.new_id("films")
        hub_server.api().create_repo(base)
        hub_server.api().upload_folder(repo_id=base, folder_path=tiny_model_dir)
        links = ["--dataset_repo_id", hub_server.new_id("data")]
        publish("dataset", "--run_dir", dense_run, "--repo_id", links[-1])
        publish("adapter", "--run_dir", dense_run, "--repo_id", name, "--base_model", base, *links)
    return name, base, links[-1]


def test_the_space_names_what_it_shows_and_serves_it(hub, adapter, monkeypatch, capsys):
    name, base, data = adapter
    space = hub.new_id("demo")
    publish("demo", "--adapter", name, "--repo_id", space)
    commit = hub.api().model_info(name).sha
    folder = snapshot_download(space, repo_type="space")
    card = SpaceCard.load(f"{folder}/README.md")
    metadata = card.data.to_dict()
    assert (metadata["sdk"], metadata["sdk_version"], metadata["app_file"]) == ("gradio", gr.__version__, "app.py")
    assert (metadata["models"], metadata["datasets"]) == ([name, base], [data])
    assert f"# Recommendations by {name.split('/')[1]}\n" in card.content
    assert "recommendation" in metadata["tags"] and f"commit `{commit}`" in card.content
    assert Path(folder, "requirements.txt").read_text() == f"bigrec_hf[demo]=={__version__}\n"
    capsys.readouterr()
    publish("demo", "--adapter", name, "--repo_id", space)
    assert "is unchanged" in capsys.readouterr().out

    served = {}
    launch = gr.Blocks.launch
    monkeypatch.setattr(gr.Blocks, "launch", lambda page, **options: served.update(options, page=page))
    runpy.run_path(f"{folder}/app.py", run_name="__main__")
    page = served["page"]
    _, url, _ = launch(page, prevent_thread_lock=True, quiet=True)
    try:
        (code,) = re.findall(r"```python\n(.*?)```", card.content, re.DOTALL)
        assert f'Client("{space}")' in code
        lines = code.strip().replace(f'Client("{space}")', f'Client("{url}", verbose=False)').splitlines()
        given = {"Client": Client}
        exec("\n".join(lines[:-1]), given)
        found = eval(lines[-1], given)
    finally:
        page.close()
    expected = Recommender.from_pretrained(f"{name}@{commit}").recommend(["First title", "Second title"], 10)
    assert [item["title"] for item in found["items"]] == [item.title for item in expected.items]
    assert found["unknown"] == ["First title", "Second title"] and found["text"] == expected.text
    for parameter in ("history", "top_k", "exclude_seen"):  # as documented
        assert f"| `{parameter}` |" in card.content


def test_an_adapter_that_is_not_on_the_hub(hub, dense_run, adapter, capsys):
    _, base, _ = adapter
    for given in ([], ["--adapter", dense_run / "adapter"]):
        publish("demo", "--repo_id", "alice/demo", *given, code=2)
        assert "publish the adapter first" in capsys.readouterr().err
    publish("demo", "--repo_id", "alice/demo", "--adapter", base, code=2)
    assert "has no bigrec.json: publish it with `bigrec-hf publish adapter`" in capsys.readouterr().err
    publish("demo", "--repo_id", "alice", "--adapter", base, code=2)
    assert "--repo_id is 'alice'" in capsys.readouterr().err


def test_titles_that_may_not_be_shown(hub, adapter, capsys):
    name = hub.new_id("closed")
    config = json.loads(Path(hf_hub_download(adapter[0], "bigrec.json")).read_text())
    config["licence"] = {"name": "no redistribution", "redistribution": "forbidden"}
    hub.api().create_repo(name, private=True)
    hub.api().upload_file(repo_id=name, path_in_repo="bigrec.json", path_or_fileobj=json.dumps(config).encode())
    names = ["--adapter", name, "--repo_id", hub.new_id("demo")]
    publish("demo", *names, code=2)
    assert "the demo (it shows the catalog) is not published" in capsys.readouterr().err
    publish("demo", *names, "--private")
    assert hub.api().space_info(names[-1]).private
