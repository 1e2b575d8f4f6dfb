"""The demo: its HTTP answers are the recommender's, and a visitor's way through the page."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.demo import stage
from bigrec_hf.demo.app import answer, build, popular_titles, records
from bigrec_hf.demo.table import CSS, table
from bigrec_hf.recommend.rankers import Rankers
from bigrec_hf.settings import DemoSettings

CLIENTS, REQUESTS = 16, 64


@pytest.fixture(scope="module")
def recommenders(dense_run, tiny_run):
    return {"dense": Rankers(dense_run), "pairs": Rankers(tiny_run)}


@pytest.fixture(scope="module")
def url(recommenders):
    page = build(recommenders)
    _, address, _ = page.launch(prevent_thread_lock=True, quiet=True, server_port=None, css=CSS)
    yield address
    page.close()


def connect(url: str) -> Client:
    return Client(url, verbose=False, httpx_kwargs={"timeout": 300})  # only a hang takes that long


@pytest.fixture(scope="module")
def history(recommenders):
    return list(recommenders["dense"].catalog.titles[:3])


@pytest.mark.parametrize("name", ["dense", "pairs"])
def test_the_api_answers_as_the_recommender_does(url, recommenders, history, name):
    client = connect(url)
    found = client.predict([*history, "Nowhere (1900)"], 4, True, "finetuned", name, api_name="/recommend")
    expected = recommenders[name].recommender.recommend([*history, "Nowhere (1900)"], 4)
    assert found["text"] == expected.text
    assert [item["title"] for item in found["items"]] == [item.title for item in expected.items]
    assert [item["rank"] for item in found["items"]] == [1, 2, 3, 4]
    assert found["unknown"] == ["Nowhere (1900)"]
    assert not set(history) & {item["title"] for item in found["items"]}


@pytest.mark.parametrize("language", ["python", "bash"])
def test_the_documented_requests(url, recommenders, language):
    text = (Path(__file__).resolve().parents[2] / "docs/guide.md").read_text()
    address, own = "http://127.0.0.1:7860", url.rstrip("/")
    blocks = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    (block,) = (block.replace(address, own) for block in blocks if address in block and "bigrec-hf" not in block)
    if language == "python":
        *lines, last = [line for line in block.splitlines() if line and not line.startswith("#")]
        names: dict[str, object] = {}
        exec("\n".join(lines), names)
        found = eval(last, names)
    else:
        if shutil.which("curl") is None:
            pytest.skip("no curl on this machine")
        out = subprocess.run(["bash", "-c", block], capture_output=True, text=True, check=True, timeout=300).stdout
        assert "event: complete" in out
        (found,) = json.loads(out.split("data: ", 1)[1].splitlines()[0])
    expected = recommenders["dense"].recommender.recommend(["Toy Story (1995)", "Heat (1995)"], 10)
    assert found["text"] == expected.text and found["unknown"] == []
    assert [item["item_id"] for item in found["items"]] == [item.item_id for item in expected.items]
    described = connect(url).view_api(return_format="dict")["named_endpoints"]["/recommend"]["parameters"]
    table = text[text.index("### HTTP API") :]
    assert [row["parameter_name"] for row in described] == re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)[:6]


def test_wrong_requests_are_one_line(url, history):
    client = connect(url)
    with pytest.raises(AppError, match="top_k"):
        client.predict(history, 0, True, api_name="/recommend")
    with pytest.raises(AppError, match="no 'other' here: choose among dense, pairs"):
        client.predict(history, 3, True, "finetuned", "other", api_name="/recommend")


def test_many_clients_lose_nothing(url, recommenders):
    titles = recommenders["dense"].catalog.titles
    histories = [[titles[i % len(titles)], titles[(3 * i + 1) % len(titles)]] for i in range(REQUESTS)]
    clients = [connect(url) for _ in range(CLIENTS)]
    with ThreadPoolExecutor(CLIENTS) as pool:
        jobs = [
            pool.submit(clients[i % CLIENTS].predict, one, 3, True, api_name="/recommend")
            for i, one in enumerate(histories)
        ]
        found = [[item["item_id"] for item in job.result()["items"]] for job in jobs]
    expected = recommenders["dense"].recommender.recommend(histories, 3)
    assert found == [[item.item_id for item in one.items] for one in expected]


def test_tables_show_what_is_known(recommenders, history):
    dense = recommenders["dense"]
    found = answer(dense, "finetuned", history, 2, True)
    (first, *_) = records(dense, "finetuned", found)
    assert first["probability"] == pytest.approx(np.exp(found.items[0].score), rel=1e-3)
    row = dense.catalog.titles.index(first["title"])
    assert first["train_count"] == dense.train_counts[row]
    popular = popular_titles(dense, 2)
    assert dense.train_counts[dense.catalog.titles.index(popular[0])] == dense.train_counts.max()
    pairs = recommenders["pairs"]
    (near, *_) = records(pairs, "finetuned", answer(pairs, "finetuned", history, 2, True))
    assert near["distance"] == -near["score"] and "probability" not in near
    (scored, *_) = records(dense, "ease", answer(dense, "ease", history, 2, True))
    assert not {"probability", "distance"} & set(scored)
    unknown = SimpleNamespace(train_counts=None, catalog=dense.catalog)
    assert popular_titles(unknown, 2) == list(dense.catalog.titles[:2])
    with pytest.raises(gr.Error):
        answer(dense, "finetuned", history, 0, True)


def test_every_ranker_of_a_run_can_be_chosen(recommenders, history):
    dense = recommenders["dense"]
    assert {"finetuned", "ease", "popularity"} <= set(dense.names())
    popular = popular_titles(dense, 6)
    found = answer(dense, "popularity", [popular[0]], 3, True)
    assert [item.title for item in found.items] == popular[1:4] and found.text == ""
    nothing_known = answer(dense, "ease", ["Nowhere (1900)"], 3, True)  # popularity then, as `recommend` does
    assert [item.title for item in nothing_known.items] == popular[:3]
    with pytest.raises(gr.Error, match="no ranker 'oracle'"):
        answer(dense, "oracle", history, 3, True)


def test_an_answer_is_a_table_and_titles_are_text():
    row = {"rank": 1, "item_id": "1", "title": "<img src=x>", "score": -4.5, "probability": 0.0111, "train_count": 1234}
    shown = table("<b>", [row])
    assert "<img" not in shown and "&lt;img src=x&gt;" in shown and "<b>&lt;b&gt;</b>" in shown
    assert re.findall(r"<th[^>]*>([^<]+)", shown) == ["#", "title", "probability", "in training"]
    assert re.findall(r"<td>([^<]+)", shown) == ["1", "&lt;img src=x&gt;", "1.1 %", "1,234"]
    assert "no item is left" in table("", [])
    assert "not in the catalog: <i>a; &lt;b&gt;</i>" in table("", [row], ["a", "<b>"])


@pytest.mark.parametrize("name", ["dense", "pairs"])
def test_the_weight_of_popularity_moves_the_list(url, recommenders, history, name):
    """Nothing at 0, as the model alone; the most popular items first where it is large."""
    rankers = recommenders[name]
    client = connect(url)

    def ask(weight):
        found = client.predict(history, 20, False, "finetuned", name, weight, api_name="/recommend")
        return [item["title"] for item in found["items"]]

    expected = [item.title for item in rankers.recommender.recommend(history, 20, exclude_seen=False).items]
    assert ask(None) == ask(0) == expected
    counts = dict(zip(rankers.catalog.titles, rankers.train_counts.tolist(), strict=True))
    at = 0 if name == "dense" else 1  # Eq. 3 leaves the closest title, whose distance is 0, where it is
    for titles, sorted_ in ((expected, False), (ask(100), True)):
        found = [counts[title] for title in titles[at:]]
        assert (found == sorted(found, reverse=True)) is sorted_
    with pytest.raises(AppError, match="prior_weight is -1: give a number from 0"):
        ask(-1)
    with pytest.raises(AppError, match="the ranker ease mixes nothing with the language model"):
        client.predict(history, 3, True, "ease", "", 0.5, api_name="/recommend")


def test_a_runs_examples_are_its_first_histories(dense_run, recommenders, tmp_path):
    examples = stage.example_histories(dense_run, recommenders["dense"])
    assert len(examples) == stage.N_EXAMPLES and all(examples)
    assert stage.example_histories(tmp_path, recommenders["dense"]) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (DemoSettings(), "nothing to show"),
        (DemoSettings(demo_runs=["a/x", "b/x"]), "same name"),
        (DemoSettings(demo_adapters=["nowhere/at/all"]), "nowhere"),
    ],
)
def test_what_cannot_be_shown_is_said(settings, words):
    with pytest.raises(BigrecError, match=words):
        stage.main(settings)


def test_the_command_serves_what_it_is_given(dense_run, monkeypatch, capsys):
    served = {}
    monkeypatch.setattr(gr.Blocks, "launch", lambda self, **options: served.update(options))
    assert cli.main(["demo", "--run_dir", str(dense_run), "--port", "1234"]) == 0
    assert served["server_port"] == 1234 and served["server_name"] == "127.0.0.1"


@pytest.mark.slow
@pytest.mark.parametrize("width", [1200, 390])
def test_a_visitors_way_through_the_page(url, recommenders, width):
    """Choose a title, see both tables; then another rule, weight and ranker, each shown at once; no error in the
    console, nothing wider than the screen or cut."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no Chromium on this machine")
    dense, pairs = recommenders.values()
    title = dense.catalog.titles[7]
    history = [*popular_titles(dense, 3), title]
    first = answer(dense, "finetuned", history, 10, True), answer(pairs, "finetuned", history, 10, True)
    # before the page computes: a model does one thing at a time
    with_seen = answer(dense, "finetuned", history, 10, False)
    with_popularity = answer(dense, "finetuned", history, 10, False, 2.0)
    by_ease = answer(dense, "ease", history, 10, False)
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        errors: list[str] = []
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(url)
        box = page.locator("#history input")
        box.press_sequentially(title)
        page.get_by_role("option", name=title).first.wait_for()  # the only one left
        box.press("Enter")
        box.press("Escape")

        def shown(expected, at=0):
            wanted = "|".join(item.title for item in expected.items)
            titles = f"[...[...document.querySelectorAll('.answer')][{at}]?.querySelectorAll('td:nth-child(2)') ?? []]"
            page.wait_for_function(f"{titles}.map(t => t.textContent).join('|') == {json.dumps(wanted)}")

        for at, found in enumerate(first):  # at once, too
            shown(found, at)
        page.click("#recommend")
        shown(first[0])
        page.locator("#exclude_seen input").click()
        shown(with_seen)
        weight = page.locator(".prior").first.locator("input[type=number]")
        weight.fill("2")
        weight.press("Tab")
        shown(with_popularity)
        page.get_by_label("dense: ranked by").click()
        page.get_by_role("option", name="EASE", exact=True).click()
        shown(by_ease)
        assert sum(slider.is_visible() for slider in page.locator(".prior").all()) == 1  # that of pairs
        cut = "[...document.querySelectorAll('.answer table')].filter(t => t.scrollWidth > t.parentElement.clientWidth)"
        assert page.evaluate(f"{cut}.length") == 0
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert errors == []
        browser.close()
