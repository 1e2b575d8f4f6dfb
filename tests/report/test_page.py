"""The report as one HTML file: nothing from outside, hostile names escaped, at most six rows and lines, edges."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from bigrec_hf import cli
from bigrec_hf.common.files import write_table
from bigrec_hf.report import page, plots
from bigrec_hf.report.plots import COLORS, leading_rows, smoothed
from bigrec_hf.report.rows import load_rows
from bigrec_hf.report.samples import hits_and_misses
from tests.helpers.run_folders import make_run

VOID = {"meta", "br", "hr", "img", "input", "link"}
HOSTILE = [
    "<script>alert(1)</script>",
    '" onmouseover="alert(2)',
    "</ul></main><iframe src='https://example.org'>",
    "🎬 Amélie & Co. $x^2$ {{ 7 * 7 }}",
    "]]><svg onload=alert(3)>",
]
N = 60


class Page(HTMLParser):
    """Tags that are open and closed in order, attributes, texts by the tags around them, tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []  # innermost tag, text
        self.tables: list[list[list[str]]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))
        if self.open and {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def all_text(self):
        return "".join(text for tag, text in self.texts if tag != "style")

    def count(self, tag):
        return sum(name == tag for name, _ in self.tags)


def check_alone(text: str) -> Page:
    """Well nested, and nothing that a browser would load or run."""
    read = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in read.tags}
    for _, attributes in read.tags:
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in ("href", "src", "xlink:href") or value.startswith("#")
            assert all(found.startswith("#") for found in re.findall(r"url\(([^)]*)", value or ""))
    for tag, content in read.texts:
        assert tag != "style" or not re.search(r"@import|url\(|http", content)
    ids = [attributes["id"] for _, attributes in read.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {found for _, attributes in read.tags for found in re.findall(r"#([\w.-]+)", attributes.get("href", ""))}
    assert used <= set(ids)
    return read


def write_html(*runs, **options) -> Page:
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    assert cli.main(["report", *map(str, runs), "--format", "html", "--debug", *flags]) == 0
    return check_alone((runs[0] / "report.html").read_text(encoding="utf-8"))


def write_texts(folder: Path, titles: list[str], targets: list[int], catalog: Path) -> None:
    """What `generate` writes beside rankings, in words of this catalog."""
    catalog.write_text(
        "item_id,title\n" + "".join(f'{i},"{title.replace(chr(34), chr(34) * 2)}"\n' for i, title in enumerate(titles)),
        encoding="utf-8",
    )
    table = {
        "example_id": [f"e{i}" for i in range(len(targets))],
        "target_title": [titles[target] for target in targets],
        "history": [[0, 1, 2]] * len(targets),
        "texts": [[titles[-1]]] * len(targets),
    }
    write_table(pa.table(table), folder / "generations.parquet")
    data = {"catalog": str(catalog), "dataset": []}
    (folder / "generate.json").write_text(json.dumps({"data": data, "n_distinct": 1}))


@pytest.fixture
def hostile(tmp_path):
    """A run whose name, titles, settings and stages are all meant to break the page."""
    run = tmp_path / '<b onclick="x()">&amp; $x$ 🎬'
    targets = [i % len(HOSTILE) for i in range(N)]
    ranks = {"finetuned": [0] * 25 + [15] * 35, "popularity": [15] * 55 + [0] * 5, "<i>m": [0] * N}
    make_run(run, ranks, targets=targets, top_rows=[[4, 3, 2, 1, 0]] * N)
    write_texts(run / "finetuned", HOSTILE, targets, tmp_path / "catalog.csv")
    (run / "recipe.yaml").write_text(yaml.safe_dump({"run": {"run_dir": HOSTILE[0]}, "sft": {"lora_r": 8}}))
    stage = {"seconds": 1.25, "process_peak_memory_mib": 1234}
    environment = {"cpus": 2, "packages": {"torch": "1", "trl": HOSTILE[0]}}
    (run / "manifest.json").write_text(json.dumps({"environment": environment, "stages": {HOSTILE[2]: stage}}))
    return run


def test_hostile_names_and_titles_are_text(hostile):
    read = write_html(hostile)
    text = read.all_text()
    for title in HOSTILE:
        assert text.count(title) > 3
    assert hostile.name in text and "<i>m" in text
    assert "49" not in re.findall(r"Amélie & Co. \$x\^2\$ (.*?)[·→\n]", text)  # not evaluated
    labels = [attributes["aria-label"] for tag, attributes in read.tags if tag == "svg"]
    assert len(labels) >= 4 and all(labels)


def test_the_page_holds_what_was_asked_for(hostile):
    text = write_html(hostile).all_text()
    for heading in ("Results", "Differences to fine-tuned LM", "Metric against K", "Reach", "For whom it works"):
        assert heading in text
    for heading in ("Examples", "Stages, time and memory", "All settings", "Manifest"):
        assert heading in text
    assert "the first 10 of 25 hits and 10 of 35 misses" in text
    assert text.count("hit, rank 1") == 10 and text.count("miss, rank 16") == 10
    assert "Settings that differ" not in text and "Learning curve" not in text
    assert "1,234" in text and "sft.lora_r" in text


def test_at_most_six_rows_and_lines_and_the_rest_folded(tmp_path):
    methods = {f"m{number}": [0] * number + [15] * (N - number) for number in range(1, 12)}
    run = make_run(tmp_path / "run", {"finetuned": [15] * N, **methods})
    read = write_html(run)
    short, every = read.tables[0], read.tables[1]
    assert [row[0] for row in short[1:]] == ["fine-tuned LM", "m10", "m11", "m7", "m8", "m9"]
    assert len(every) == 1 + 12
    assert short[0][1:] == ["NDCG@1", "NDCG@10", "HR@1", "HR@10"]
    assert "6 of 12 rows" in read.all_text()
    text = (run / "report.html").read_text()
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        drawn = set(re.findall(r"#[0-9a-fA-F]{6}", svg))
        assert drawn <= {color.lower() for color in COLORS} | {"#000000", "#ffffff"}
        assert not {"m1", "m6"} & set(re.findall(r">([^<>]+)</text>", svg))
    assert "▲" in short[3][2] and all("[" in row[2] for row in short[1:])


def test_one_row_one_cut_off(tmp_path):
    run = make_run(tmp_path / "run", {"popularity": [0, 3, 15]}, ks=(5,))
    read = write_html(run)
    assert len(read.tables[0]) == 2
    text = read.all_text()
    assert "Differences to" not in text and "Metric against K" not in text and "Examples" not in text


def test_a_folder_without_results_writes_nothing(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    assert cli.main(["report", str(tmp_path / "run"), "--format", "html"]) == 2
    assert "contains no results" in capsys.readouterr().err
    assert not (tmp_path / "run" / "report.html").exists()


def test_several_runs_show_the_settings_that_differ_and_both_trainings(tmp_path):
    runs = []
    for number, name in enumerate(["one", "two"]):
        run = make_run(tmp_path / name, {"finetuned": [number, 15] * 20, "ease": [0] * 40})
        sft = {"lora_r": 8 * (1 + number), "epochs": 1}
        (run / "recipe.yaml").write_text(yaml.safe_dump({"sft": sft, "run": {"seed": 0}}))
        history = [{"epoch": i / 100, "loss": 2.0 - i / 100} for i in range(200)] + [{"epoch": 2.0, "eval_loss": 1.0}]
        if number:  # the second is still training
            state = run / "adapter" / "checkpoints" / "checkpoint-3" / "trainer_state.json"
            state.parent.mkdir(parents=True)
            state.write_text(json.dumps({"log_history": history}))
        else:
            (run / "adapter").mkdir()
            (run / "adapter" / "training.json").write_text(json.dumps({"history": history}))
        runs.append(run)
    read = write_html(*runs, compare_to="two/ease")
    assert [row for row in read.tables if row[0][0] == "setting" and len(row[0]) == 3] == [
        [["setting", "one", "two"], ["sft.lora_r", "8", "16"]]
    ]
    text = read.all_text()
    assert "Differences to two: EASE" in text
    assert "one: training" in text and "two: validation" in text
    assert not (runs[1] / "report.html").exists()


def test_seeds_are_means_of_which_the_first_is_shown(tmp_path):
    for seed in (0, 1):
        make_run(tmp_path / "run" / f"seed-{seed}", {"finetuned": [seed, 15] * 20, "ease": [0] * 40})
    read = write_html(tmp_path / "run")
    assert "±" in read.tables[0][-1][1] and "are those of the first" in read.all_text()


def test_without_matplotlib_the_page_has_no_plots_and_says_so(tmp_path, monkeypatch, capsys):
    run = make_run(tmp_path / "run", {"finetuned": [0, 15] * 20, "ease": [0] * 40})
    monkeypatch.setattr(plots, "has_matplotlib", lambda: False)
    read = write_html(run)
    assert read.count("svg") == 0 and plots.MISSING in read.all_text()
    assert capsys.readouterr().out.splitlines()[-2:] == [plots.MISSING, f"report: {run / 'report.html'}"]


def test_lost_files_cost_their_section_alone(hostile):
    (hostile / "finetuned" / "generations.parquet").unlink()
    (hostile / "popularity" / "rankings.parquet").unlink()
    (hostile / "manifest.json").unlink()
    text = write_html(hostile).all_text()
    assert "Reach" in text and "Metric against K" in text
    assert "Examples" not in text and "Manifest" not in text


def test_a_surrogate_does_not_stop_the_page(hostile):
    (hostile / "recipe.yaml").write_text('run: {run_dir: "\\uD800"}\n')
    assert "run.run_dir" in write_html(hostile).all_text()


def test_leading_rows_keep_the_reference_and_the_order(tmp_path):
    methods = {f"m{number}": [0] * number + [15] * (N - number) for number in range(8)}
    rows = load_rows([make_run(tmp_path / "run", methods)])
    assert [row.method for row in leading_rows(rows, rows[0], "hr@1", 3)] == ["m0", "m6", "m7"]
    assert [row.method for row in leading_rows(rows, None, "hr@1", 2)] == ["m6", "m7"]
    assert leading_rows(rows, None, "hr@7", 2) == rows[:2]  # not scored: as they come


def test_smoothing_is_the_mean_of_stretches():
    assert smoothed([(0, 4.0), (1, 2.0), (2, 1.0), (3, 3.0)], 2) == ([0.5, 2.5], [3.0, 2.0])
    assert smoothed([(0, 4.0)], 2) == ([0.0], [4.0])
    assert smoothed([], 2) == ([], [])


def test_hits_and_misses_fill_up_each_other(tmp_path):
    run = make_run(tmp_path / "run", {"finetuned": [0] * 3 + [15] * 50}, targets=[0] * 53)
    write_texts(run / "finetuned", ["a", "b", "c"], [0] * 53, tmp_path / "catalog.csv")
    hits, misses, n_hits, n_misses = hits_and_misses(run / "finetuned", 20, 10)
    assert (len(hits), len(misses), n_hits, n_misses) == (3, 17, 3, 50)
    hits, misses, *_ = hits_and_misses(run / "finetuned", 20, 100)  # no miss at all
    assert (len(hits), len(misses)) == (20, 0)
    assert hits_and_misses(tmp_path, 20, 10) == ([], [], 0, 0)


def test_shown_cut_offs():
    assert page.shown_ks([1, 3, 5, 10, 20, 50]) == [1, 10, 50]
    assert page.shown_ks([3, 5]) == [3, 5] and page.shown_ks([1, 5]) == [1, 5] and page.shown_ks([7]) == [7]
