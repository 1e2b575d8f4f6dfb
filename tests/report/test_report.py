"""The report over hand-made runs: marks, references, several runs, seeds, README tables, plots."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys

import pyarrow.parquet as pq
import pytest

from bigrec_hf import cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.report.differences import Differences, compare_rows
from bigrec_hf.report.page import learning_history
from bigrec_hf.report.plot_files import differences_figure, metrics_figure, plot_rows
from bigrec_hf.report.plots import draw_learning, figure_of, reward_drawings
from bigrec_hf.report.readme_tables import replace_block
from bigrec_hf.report.rows import Row, format_score, load_rows, row_labels, spread
from bigrec_hf.report.stage import build_report
from tests.helpers.run_folders import make_run

N = 60
# of 60 examples: the fine-tuned model finds 30 at rank 0, a better one 55, a worse one 5, one of equal merit 30 others
FINETUNED = [0] * 30 + [15] * 30
BETTER, WORSE, SAME = [0] * 55 + [15] * 5, [0] * 5 + [15] * 55, [15] * 30 + [0] * 30


@pytest.fixture
def run(tmp_path):
    methods = {"finetuned": FINETUNED, "popularity": WORSE, "our_method": BETTER, "random": SAME}
    return make_run(tmp_path / "study", methods)


ALL = ["ndcg@1", "hr@1", "ndcg@10", "hr@10"]


def rows_of(text: str, label: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(f"| {label} |")]


def test_real_differences_are_marked_and_the_test_is_named(run):
    text = build_report([run])  # NDCG@10 in the first table, HR@10 in the second
    assert all(line.count("▲") == 1 for line in rows_of(text, "our method")[:2])
    assert all(line.count("▼") == 1 for line in rows_of(text, "popularity")[:2])
    for label in ("random", "fine-tuned LM"):
        assert not any(mark in line for line in rows_of(text, label) for mark in "▲▼")
    assert "better / worse than *fine-tuned LM* (corrected p < 0.05); tested: NDCG@10 and HR@10." in text
    assert "60 examples" in text and "Holm's correction over these 6 tests" in text
    every = build_report([run], test_metrics=ALL)
    assert all(line.count("▲") == 2 for line in rows_of(every, "our method")[:2])
    assert "tested: NDCG@1 and HR@1 and NDCG@10 and HR@10" in every and "over these 12 tests" in every
    labels = [
        line.split("|")[1].strip()
        for line in text.splitlines()
        if line.startswith("| ") and "@" not in line and "---" not in line
    ]
    assert labels[:4] == ["random", "popularity", "fine-tuned LM", "our method"]  # baselines first, then what is new


def test_results_of_a_replaced_adapter_are_called_stale(run):
    weights = run / "adapter" / "adapter_model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"first")
    made_by = {"adapter_sha256": hashlib.sha256(b"first").hexdigest()}
    (run / "finetuned" / "generate.json").write_text(json.dumps(made_by))
    assert "Stale" not in build_report([run])
    weights.write_bytes(b"second")
    assert "**Stale: fine-tuned LM came from another adapter" in build_report([run])


def test_any_row_can_be_the_reference(run):
    text = build_report([run], compare_to="our_method", differences=True, test_metrics=ALL)
    assert "worse than *our method*" in text
    assert rows_of(text, "fine-tuned LM")[0].count("▼") == 2
    table = text[text.index("Differences to *our method*") :]
    assert f"{(30 - 55) / N:+.4f} [-0." in rows_of(table, "fine-tuned LM")[1]  # HR@1
    assert "p < 0.0001 ▼" in rows_of(table, "popularity")[0] or "p = 0.00" in rows_of(table, "popularity")[0]
    assert "▼" not in build_report([run], compare_to="none")
    with pytest.raises(BigrecError, match="'oracle', which is not a row: choose from study/random"):
        build_report([run], compare_to="oracle")
    with pytest.raises(BigrecError, match="significance_level=5"):
        build_report([run], significance_level=5)


def test_a_looser_level_marks_more(tmp_path):
    # nine of ten differing examples in favor: p = 22 / 1024 for each of four comparisons, 0.086 corrected
    run = make_run(tmp_path / "r", {"finetuned": [15] * 9 + [0] * 21, "m": [0] * 9 + [15] + [0] * 20})
    assert not any("▲" in line for line in rows_of(build_report([run], test_metrics=ALL), "m"))
    assert rows_of(build_report([run], significance_level=0.1, test_metrics=ALL), "m")[0].count("▲") == 2


def test_fewer_tests_are_corrected_less(tmp_path):
    # as above: 0.043 corrected for the two tests of the default
    run = make_run(tmp_path / "r", {"finetuned": [15] * 9 + [0] * 21, "m": [0] * 9 + [15] + [0] * 20})
    assert rows_of(build_report([run]), "m")[0].count("▲") == 1
    table = build_report([run], differences=True)
    assert rows_of(table[table.index("Differences to") :], "m")[0].count("p = ") == 1  # K = 1 has an interval alone
    with pytest.raises(BigrecError, match="'ndgc@10' is not a metric"):
        build_report([run], test_metrics=["ndgc@10"])


def test_metrics_that_were_not_measured_give_way_to_the_largest_cut_off(run):
    text = build_report([run], test_metrics=["hr@7"])
    assert "tested: NDCG@10 and HR@10." in text


def test_several_runs_share_one_reference(run, tmp_path):
    other = make_run(tmp_path / "other", {"finetuned": BETTER})
    text = build_report([run, other], test_metrics=ALL)
    assert "than *study: fine-tuned LM*" in text
    assert rows_of(text, "other: fine-tuned LM")[0].count("▲") == 2
    assert rows_of(build_report([run, other], compare_to="other/finetuned"), "study: fine-tuned LM")[0].count("▼") == 1


def test_rows_over_other_examples_are_not_compared(run, tmp_path):
    other = make_run(tmp_path / "other", {"finetuned": BETTER}, ids=[f"x{i}" for i in range(N)])
    text = build_report([run, other])
    assert "Not compared: other: fine-tuned LM (other/finetuned and study/finetuned are not over the same" in text
    assert "▲" not in rows_of(text, "other: fine-tuned LM")[0] and "▲" in rows_of(text, "study: our method")[0]
    (run / "finetuned" / "per_example.parquet").unlink()
    text = build_report([run])
    assert "Not compared: fine-tuned LM" in text and "▲" not in text


# --- several seeds --------------------------------------------------------------------------------------------------


def test_candidates_are_stated(run):
    def change(settings, *methods):
        for method in methods:
            file = run / method / "results.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | settings))

    assert "Candidates: all items." in build_report([run])
    change({"exclude_history": True}, "our_method")  # as earlier releases said it
    change({"exclude": "seen"}, "random")
    text = build_report([run])
    assert (
        "Candidates differ, and so does the task: all items except those that the user had before the target in "
        in text
    )
    assert "all items except those of the example's history in our method" in text
    change({"exclude": "seen"}, *(folder.parent.name for folder in run.glob("*/results.json")))
    assert "Candidates: all items except those that the user had before the target." in build_report([run])


def test_seeds_are_summarized_by_mean_and_spread(tmp_path):
    hits = {0: 30, 1: 36, 10: 33}
    for seed, n in hits.items():
        make_run(
            tmp_path / "s" / f"seed-{seed}", {"finetuned": [0] * n + [15] * (N - n), "popularity": [15] * 50 + [0] * 10}
        )
    text = build_report([tmp_path / "s"])
    # 0.50, 0.60, 0.55: mean 0.55, sample standard deviation 0.05
    assert "0.5500 ± 0.0500 (0.5000..0.6000)" in rows_of(text, "fine-tuned LM")[1]
    assert "0.1667 ± 0.0000 (0.1667..0.1667) ▼" in rows_of(text, "popularity")[1]
    assert "- seeds: 0, 1, 10" in text and "averaged over the row's seeds first" in text
    assert "mean ± standard deviation (least..greatest) over the seeds" in text
    # the manifest names the seeds that count; without it all do
    (tmp_path / "s" / "manifest.json").write_text(json.dumps({"seeds": [0, 1]}))
    assert "0.5500 ± 0.0707 (0.5000..0.6000)" in build_report([tmp_path / "s"])
    make_run(tmp_path / "s" / "seed-0", {"extra": FINETUNED})
    rows = rows_of(build_report([tmp_path / "s"]), "extra (1 seed)")
    assert "0.5000 [" in rows[0]


def test_spread_by_hand():
    assert spread([2.0, 4.0]) == pytest.approx((3.0, 2**0.5, 2.0, 4.0))
    assert spread([2.0]) == (2.0, 0.0, 2.0, 2.0)


# --- README ---------------------------------------------------------------------------------------------------------


def test_readme_tables_come_from_the_runs_files(run, tmp_path, capsys):
    readme = tmp_path / "README.md"
    before, after = "# Title\r\n\r\nIntro ü\r\n<!-- results:study -->", "<!-- /results -->\r\n\r\nOutro, no newline"
    readme.write_bytes((before + "\r\nold\r\n" + after).encode())
    command = ["report", str(run), "--update_readme", str(readme), "--readme_columns", "hr@1", "ndcg@10"]
    assert cli.main(command) == 0
    text = readme.read_bytes().decode()
    assert text.startswith(before + "\r\n|") and text.endswith("\r\n" + after) and "old" not in text
    results = json.loads((run / "our_method" / "results.json").read_text())
    row = rows_of(text, "our method")[0]
    assert f"{results['hr@1']:.4f} [{results['hr@1_low']:.4f}, {results['hr@1_high']:.4f}] ▲" in row
    assert f"Made by `bigrec-hf report {run} --readme_columns hr@1 ndcg@10 --update_readme {readme}`" in text
    assert "Holm" in text
    assert cli.main(command) == 0 and readme.read_bytes().decode() == text  # nothing to change
    capsys.readouterr()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "contains the marker '<!-- results:study -->' 0 times"),
        ("<!-- results:study -->", "is not closed"),
        ("<!-- results:study --><!-- results:other --><!-- /results -->", "is not closed"),
        (
            "<!-- results:study --><!-- /results --><!-- results:study --><!-- /results -->",
            "<!-- results:study -->' 2 times",
        ),
    ],
)
def test_missing_marks_are_errors_and_change_nothing(run, tmp_path, capsys, text, message):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    columns = ["--readme_columns", "hr@1"]
    assert cli.main(["report", str(run), "--update_readme", str(readme), *columns]) == 2
    assert message in capsys.readouterr().err and readme.read_text() == text


def test_readme_faults(run, tmp_path, capsys):
    assert cli.main(["report", str(run), "--update_readme", str(tmp_path / "none.md")]) == 2
    assert "does not exist" in capsys.readouterr().err
    (tmp_path / "r.md").write_text("<!-- results:study -->\n<!-- /results -->")
    assert cli.main(["report", str(run), "--update_readme", str(tmp_path / "r.md"), "--readme_columns", "hr@2"]) == 2
    assert "'hr@2', which no row has: choose from hr@1, hr@10" in capsys.readouterr().err


def test_a_table_of_some_rows_tests_only_these(run, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:study -->\n<!-- /results -->")
    command = [
        "report",
        str(run),
        "--update_readme",
        str(readme),
        "--readme_columns",
        "hr@1",
        "--compare_to",
        "popularity",
    ]
    assert cli.main([*command, "--readme_rows", "our_method", "popularity"]) == 0
    lines = readme.read_text().splitlines()
    assert "NDCG@10 less that of popularity" in lines[1] and len([line for line in lines if line[:1] == "|"]) == 4
    assert (
        lines[3].startswith("| our method ")
        and lines[4].startswith("| popularity ")
        and lines[4].split("|")[3] == " - "
    )
    assert "Holm's correction over these 2 tests" in readme.read_text()
    assert "--readme_rows our_method popularity" in readme.read_text()
    difference = lines[3].split("|")[3].split()[0]
    ours, theirs = (
        json.loads((run / name / "results.json").read_text())["ndcg@10"] for name in ("our_method", "popularity")
    )
    assert float(difference) == pytest.approx(ours - theirs, abs=1e-4)
    capsys.readouterr()
    assert cli.main([*command, "--readme_rows", "our_method"]) == 2  # the reference is not among them
    assert cli.main([*command, "--readme_rows", "nobody"]) == 2
    assert "readme_rows names 'nobody', which is not a row: choose from" in capsys.readouterr().err


def test_only_the_named_block_changes():
    text = "<!-- results:a -->\n1\n<!-- /results -->\n<!-- results:b -->\n2\n<!-- /results -->\n"
    changed = replace_block(text, "b", "x\ny", "README")
    assert changed == text.replace("2", "x\ny")


# --- plots ----------------------------------------------------------------------------------------------------------


def test_plots(run, capsys):
    pytest.importorskip("matplotlib")
    assert cli.main(["report", str(run), "--plots"]) == 0
    assert f"plot: {run / 'metrics.png'}" in capsys.readouterr().out
    assert (run / "metrics.png").read_bytes().startswith(b"\x89PNG")
    axes = metrics_figure(load_rows([run])).axes
    lines = {line.get_label(): line.get_ydata().tolist() for line in axes[1].get_lines()}
    assert lines["our method"] == pytest.approx([55 / N, 55 / N]) and len(lines) == 4


def test_the_plot_of_differences_has_the_intervals_of_the_table(run, capsys):
    pytest.importorskip("matplotlib")
    command = ["report", str(run), "--plots"]
    assert cli.main([*command, "--compare_to", "popularity"]) == 0
    assert f"plot: {run / 'differences.png'}" in capsys.readouterr().out
    assert (run / "differences.png").read_bytes().startswith(b"\x89PNG")
    rows = load_rows([run])
    compared = compare_rows(rows, "popularity")
    labels = row_labels(rows)
    panels = differences_figure(rows, compared).axes
    assert len(panels) == len(compared.tested)
    for axes, metric in zip(panels, compared.tested, strict=True):
        names = [label.get_text() for label in axes.get_yticklabels()]
        drawn = {}
        for container in axes.containers:
            (x,), (y,) = container.lines[0].get_data()
            (segment,) = container.lines[2][0].get_segments()
            drawn[names[round(y)]] = (segment[0][0], x, segment[1][0])
        found = {labels[key]: one for (key, name), one in compared.comparisons.items() if name == metric}
        assert drawn == {name: pytest.approx((one.low, one.difference, one.high)) for name, one in found.items()}
    assert differences_figure(rows, Differences(0.05)) is None
    assert cli.main([*command, "--compare_to", "none"]) == 0
    assert not (run / "differences.png").exists()  # not that of another reference


def test_readme_rows_choose_the_rows_of_the_plots_alone(run, capsys):
    pytest.importorskip("matplotlib")
    chosen = ["--readme_rows", "our_method", "--compare_to", "popularity"]
    assert cli.main(["report", str(run), *chosen]) == 0  # no plots, no README: they do not matter
    assert "| popularity |" in capsys.readouterr().out
    assert cli.main(["report", str(run), *chosen, "--plots"]) == 2
    (line,) = plot_rows(run, [], Differences(0.05))
    assert line == f"no plots in {run}: it has none of the rows of readme_rows"


def test_the_learning_curve_counts_targets(run, capsys):
    """Half an epoch of a training with 300 targets per epoch is 150 targets."""
    pytest.importorskip("matplotlib")
    history = [{"epoch": 0.5, "loss": 7.0}, {"epoch": 1.0, "loss": 6.0}, {"epoch": 1.0, "eval_loss": 6.5}]
    (run / "adapter").mkdir()
    record = {"history": history, "n_train": 10, "n_train_targets": 300}
    (run / "adapter" / "training.json").write_text(json.dumps(record))
    assert [entry["targets"] for entry in learning_history(run)] == [150, 300, 300]
    assert cli.main(["report", str(run), "--plots"]) == 0
    assert f"plot: {run / 'learning.png'}" in capsys.readouterr().out
    assert (run / "learning.png").read_bytes().startswith(b"\x89PNG")
    figure = figure_of(lambda axes: draw_learning(axes, {"a run": learning_history(run)}))
    assert figure.axes[0].get_xlabel() == "targets seen"
    assert figure.axes[0].get_lines()[0].get_xdata() == pytest.approx([150, 300])


def test_figures_of_reinforcement_learning(run, capsys):
    """The groups' figures and, where validation examples were ranked, NDCG and HR; the page shows both."""
    pytest.importorskip("matplotlib")
    steps = [{"epoch": e, "loss": 0.1, "reward": e, "hit_rate": 0.5, "zero_advantage": 0.5} for e in (0.5, 1.0)]
    evaluations = [{"epoch": e, "eval_loss": 5.0, "eval_ndcg@10": 0.1 * e, "eval_hr@10": 0.2} for e in (0.5, 1.0)]
    (run / "grpo_adapter").mkdir()
    (run / "grpo_adapter" / "training.json").write_text(json.dumps({"history": steps + evaluations, "n_train": 10}))
    assert cli.main(["report", str(run), "--plots"]) == 0
    out = capsys.readouterr().out
    assert f"plot: {run / 'rewards.png'}" in out and f"plot: {run / 'validation.png'}" in out
    (_, _, of_groups), (_, title, of_ranks) = reward_drawings({"a run": learning_history(run, "grpo_adapter")})
    assert title == "Validation examples, all titles ranked"
    lines = {line.get_label(): line.get_ydata().tolist() for line in figure_of(of_ranks).axes[0].get_lines()}
    assert lines == {"hr@10": [0.2, 0.2], "ndcg@10": [0.05, 0.1]}
    drawn = figure_of(of_ranks).axes[0]
    assert drawn.get_xlabel() == "examples seen" and drawn.get_lines()[0].get_xdata() == pytest.approx([5, 10])
    labels = [line.get_label() for line in figure_of(of_groups).axes[0].get_lines()]
    assert labels == ["reward", "target in the group", "groups without advantage"]
    assert cli.main(["report", str(run), "--format", "html"]) == 0
    assert "Validation examples, all titles ranked" in (run / "report.html").read_text()
    only_steps = reward_drawings({"one": steps, "two": steps})
    assert [file for file, _, _ in only_steps] == ["rewards.png"]
    assert len(figure_of(only_steps[0][2]).axes[0].get_lines()) == 6
    assert reward_drawings({"none": []}) == []


def test_without_matplotlib_a_line_says_so(run, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    (line,) = plot_rows(run, load_rows([run]), Differences(0.05))
    assert line == "no plots: matplotlib is not installed (pip install matplotlib)"
    assert not (run / "metrics.png").exists()


def test_the_report_needs_no_matplotlib(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "fine-tuned LM" in build_report([run])


@pytest.mark.parametrize(
    ("method", "label"),
    [
        ("finetuned", "fine-tuned LM"),
        ("finetuned_mix_popularity", "fine-tuned LM, mix popularity"),
        ("zero_shot_hybrid", "zero-shot LM, hybrid"),
        ("sasrec", "SASRec"),
        ("randomized", "randomized"),
    ],
)
def test_labels(method, label):
    assert Row("run", method, [], []).label == label


def test_figures_that_are_not_there_are_a_dash(run):
    row = load_rows([run])[0]
    assert format_score(row, "hr@99") == "-"


def test_the_first_examples_are_told_in_words(tiny_run):
    text = build_report([tiny_run])
    rankings = pq.read_table(tiny_run / "finetuned" / "rankings.parquet").to_pylist()
    generations = pq.read_table(tiny_run / "finetuned" / "generations.parquet").to_pylist()
    titles = pq.read_table(tiny_run / "data" / "data" / "items" / "train.parquet")["title"].to_pylist()
    assert "The first 3 examples" in text
    for example, ranking in list(zip(generations, rankings, strict=True))[:3]:
        assert f"next in truth: {example['target_title']} (rank {ranking['rank'] + 1})" in text
        assert "; ".join(titles[row] for row in ranking["top_rows"][:5]) in text


def test_a_run_without_its_data_has_no_examples(tiny_run, tmp_path):
    shutil.copytree(tiny_run, tmp_path / "moved")
    facts = json.loads((tmp_path / "moved" / "finetuned" / "generate.json").read_text())
    facts["data"] |= {"dataset": [str(tmp_path / "gone")], "catalog": None}
    (tmp_path / "moved" / "finetuned" / "generate.json").write_text(json.dumps(facts))
    assert "The first" not in build_report([tmp_path / "moved"])
