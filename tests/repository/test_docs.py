"""The Markdown files: commands parse, settings named in prose exist, Python gives the values shown, links resolve.

The commands on the quickstart run and on the reader's own data are carried out on tiny ones;
tests/loopback_hub/test_docs.py runs those of the Hub.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from bigrec_hf import cli
from bigrec_hf.settings.recipes import build_settings, read_recipe

ROOT = Path(__file__).resolve().parents[2]
SKIPPED = {"runs", "data", "build", "node_modules"}
PAGES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in SKIPPED for part in path.relative_to(ROOT).parts)
)
FOREIGN_FLAGS = {"--num_processes", "--kill-on-bad-exit", "--tiny", "--dir"}  # accelerate, srun, benchmarks, tests
TAKEN = ("recipes/", "accelerate_configs/", "scripts/", "metrics/", "dataset_cards/", "docs/", ".ci/")


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[list[str]]:
    """Every shell command as words: from bash blocks and inline code; the page's own variables are put in."""
    shell = "\n".join(blocks(text, "bash"))
    variables = dict(re.findall(r"(?<![\w-])([A-Z]+)=(\S+)", shell))
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    lines = [*shell.replace("\\\n", " ").splitlines(), *inline]
    lines = [re.sub(r"\$([A-Z]+)", lambda found: variables.get(found[1], found[0]), line) for line in lines]
    starts = ("bigrec-hf ", "accelerate launch", "python ", "make ")
    lines = [
        re.sub(r"\{\{.*?\}\}", "user/name", line).removesuffix(" ...") for line in lines if line.startswith(starts)
    ]
    return [shlex.split(line, comments=True) for line in lines]


def stage_of(words: list[str]) -> tuple[str, list[str]] | None:
    """The stage of a command and its arguments; None for a command that runs no stage."""
    if words[0] == "bigrec-hf":
        return words[1], words[2:]
    for at, word in enumerate(words):
        if words[at - 1] == "-m" and word.startswith("bigrec_hf."):
            return word.removeprefix("bigrec_hf."), words[at + 1 :]
    return None


COMMANDS = [
    pytest.param(words, id=f"{path.relative_to(ROOT)}: {' '.join(words)[:70]}")
    for path in PAGES
    for words in commands(path.read_text(encoding="utf-8"))
    if words[-1] != "--help" and "STAGE" not in words
]


def test_the_pages_have_commands():
    assert len(COMMANDS) > 35
    assert {stage_of(item.values[0])[0] for item in COMMANDS if stage_of(item.values[0])} >= set(cli.STAGES) - {
        "keywords"
    }


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_parse(words, capsys):
    """Stages, flags and values are known, and the files of this project that are named are there; nothing runs."""
    for word in words:
        assert not word.startswith(TAKEN) or (ROOT / word).exists(), word
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", page("Makefile"), re.MULTILINE)
    found = stage_of(words)
    if found is None:
        return
    try:
        given = vars(cli.build_parser(found[0]).parse_args(found[1]))
    except SystemExit:
        pytest.fail(capsys.readouterr().err)
    given.pop("debug")
    recipe = given.pop("config")
    ours = recipe is not None and recipe.startswith("recipes/")  # else a placeholder, or a file that the reader writes
    build_settings(ROOT / recipe if ours else None, given)


FLAGS = {
    flag for name in cli.STAGES for action in cli.build_parser(name)._actions for flag in action.option_strings
} | FOREIGN_FLAGS


def unknown_flags(text: str) -> set[str]:
    """Flags in inline code (`--top_k 5`) that no stage has."""
    inline = re.findall(r"`(--[^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    return {word for code in inline for word in code.split() if word.startswith("--")} - FLAGS


@pytest.mark.parametrize(
    "path", [p for p in PAGES if p.parent.name != "benchmarks"], ids=lambda path: str(path.relative_to(ROOT))
)
def test_flags_named_in_prose_exist(path):
    assert unknown_flags(path.read_text(encoding="utf-8")) == set()
    assert unknown_flags("give `--top_k 5 --no_such 1`") == {"--no_such"}


@pytest.mark.parametrize("text", ["bigrec-hf run --no_such 1", "bigrec-hf nothing", "bigrec-hf run --config recipes/x"])
def test_a_wrong_command_would_be_found(text, capsys):
    (words,) = commands(f"see `{text}`")
    with pytest.raises((KeyError, AssertionError, pytest.fail.Exception)):
        test_commands_parse(words, capsys)


@pytest.mark.parametrize("name", ["metrics/ndcg_hr/README.md", "docs/guide.md"])
def test_the_metric_example_gives_the_values_shown(name, tiny_model_dir, monkeypatch):
    """The encoder is a tiny model here: `titles` must run, the other values are compared."""
    monkeypatch.chdir(ROOT)
    (block,) = (text for text in blocks(page(name), "python") if "evaluate.load" in text)
    lines = block.replace("sentence-transformers/all-MiniLM-L6-v2", tiny_model_dir).splitlines()
    scope: dict = {}
    compared = []
    for node in ast.parse("\n".join(lines)).body:
        if not isinstance(node, ast.Expr):
            exec(compile(ast.Module([node], []), name, "exec"), scope)
            continue
        value = eval(compile(ast.Expression(node.value), name, "eval"), scope)
        beside = lines[node.end_lineno] if node.end_lineno < len(lines) else ""
        if beside.startswith("# {"):
            assert value == ast.literal_eval(beside.removeprefix("# "))
            compared.append(value)
    assert len(compared) == block.count("# {") > 0
    if name.startswith("metrics"):
        assert len(compared) == 2 and set(value) == {"ndcg@1", "hr@1"}  # the last call's: titles


@pytest.mark.slow
def test_the_commands_on_the_quickstarts_run_work(tiny_model_dir, raw_movies, tmp_path, monkeypatch, capsys):
    """`Get better rankings`, every command in order, on a tiny run of the same shape."""
    from tests.helpers.tiny_run import make_run

    (block,) = (text for text in blocks(page("docs/guide.md"), "bash") if "bigrec-hf sasrec" in text)
    small = {"sasrec_dim": 8, "sasrec_epochs": 2}
    run_dir = make_run(tmp_path, raw_movies, tiny_model_dir, generate={"decoding": "greedy"})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(read_recipe(recipe) | {"sasrec": small}))
    monkeypatch.chdir(tmp_path)
    text = re.sub(r"^RECIPE=.*$", f"RECIPE={recipe} RUN={run_dir}", block, flags=re.MULTILINE)
    done = [stage_of(words)[0] for words in commands(f"```bash\n{text}```") if cli.main([*words[1:], "--debug"]) == 0]
    assert done == [words[1] for words in commands(f"```bash\n{block}```")] and len(done) == 15
    report = capsys.readouterr().out
    rows = (
        "SASRec",
        "history's titles, mix",
        "beams fused min",
        "constrained hybrid",
        "beams sasrec",
        "fine-tuned LM, debiased",
    )
    assert all(f"| {name}" in report for name in rows)
    assert (run_dir / "metrics.png").is_file()


@pytest.mark.slow
def test_own_data_takes_three_commands(tiny_model_dir, tmp_path, monkeypatch, capsys):
    """`Use your own data`: the commands as written, on a table of twelve invented readers, with a tiny model."""
    text = page("docs/guide.md").partition("## Use your own data")[2].partition("\n## ")[0]
    (table,), (block, instead) = blocks(text, "csv"), blocks(text, "bash")
    monkeypatch.chdir(tmp_path)
    titles = ["Emma", "Persuasion", "Dracula", "Walden", "Ulysses", "Middlemarch", "Utopia", "Candide", "Kim", "Hamlet"]
    rows = [
        (user, 3 * user + step * step, f"2024-{1 + step:02}-{1 + user:02}") for user in range(12) for step in range(6)
    ]
    lines = [f"reader {user},978{book % 10},{titles[book % 10]},{date}" for user, book, date in rows]
    Path("books.csv").write_text("\n".join([table.splitlines()[0], *lines]) + "\n")
    small = {"run": ["--base_model", tiny_model_dir, "--dtype", "float32"]}
    for words in commands(f"```bash\n{block}```"):
        assert cli.main([*words[1:], *small.get(words[1], []), "--debug"]) == 0
    out = capsys.readouterr().out
    assert "| fine-tuned LM" in out and "| EASE" in out
    written = Path("recs.csv").read_text().splitlines()
    (header,) = re.findall(r"`(user,rank[^`]*)`", text)
    assert written[0] == header
    read = {f"reader {user}": {f"978{book % 10}" for other, book, _ in rows if other == user} for user in range(12)}
    found = [line.split(",")[:3] for line in written[1:]]
    assert [user for user, rank, _ in found if rank == "1"] == list(read)
    assert all(item not in read[user] for user, _, item in found)
    assert len(found) == sum(10 - len(items) for items in read.values())
    (words,) = commands(f"```bash\n{instead}```")
    assert cli.main([*words[1:], "--base_model", tiny_model_dir, "--measure", "false", "--debug"]) == 0
    printed = capsys.readouterr().out.splitlines()[-2:]
    prose = " ".join(text.split())
    assert all(f"`{line}`" in prose for line in printed)


def test_evaluate_reads_the_references_json(tiny_model_dir, tmp_path, monkeypatch):
    (words,) = (words for words in commands(page("docs/guide.md")) if "predictions.json" in words)
    monkeypatch.chdir(tmp_path)
    Path("movies.dat").write_text("1::Toy Story (1995)::Comedy\n2::Heat (1995)::Action\n")
    records = [{"input": "", "output": '"Heat (1995)"', "predict": ["Heat (1995)"]}]
    Path("predictions.json").write_text(json.dumps(records))
    words = [tiny_model_dir if word == "huggyllama/llama-7b" else word for word in words[1:]]
    assert cli.main([*words, "--ks", "1", "--debug"]) == 0
    assert json.loads(Path("results/results.json").read_text())["hr@1"] == 1.0


def test_the_readme_is_short_and_in_order():
    """A sentence, a picture, two commands, from a table to recommendations, one small table of results, then links."""
    lines = page("README.md").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []
    begins = ("![", "make quickstart ", "bigrec-hf prepare ", "bigrec-hf run ", "bigrec-hf recommend ", "|", "- ")
    at = [next(n for n, line in enumerate(lines) if line.startswith(begin)) for begin in begins]
    assert at == sorted(at)
    assert at[4] - at[2] < 10
    table = [n for n, line in enumerate(lines) if line.startswith("|")]
    assert len(table) <= 8 and table == list(range(table[0], table[0] + len(table)))
    assert "**" in lines[table[2]]  # what works comes first


# --- links ----------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    links = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "{{" not in target]
    for target in links:
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name) if name else path
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target
