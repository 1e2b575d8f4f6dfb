"""The command line: `bigrec-hf STAGE ...`. Stages are imported only when they run, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.progress import settle_bars
from bigrec_hf.common.version import __version__
from bigrec_hf.settings import RUN_SECTIONS
from bigrec_hf.settings.flags import add_arguments
from bigrec_hf.settings.recipes import build_settings
from bigrec_hf.settings.shipped import find_recipe

NAMES_RUN = ("base_model", "sample")  # flags that give `run` a folder of its own where they differ from the recipe
# warnings of libraries about themselves, or about what they set right
NOISE = (".*is_gradient_checkpointing.*", "fan_in_fan_out is set to .* but the target module is .*")


@dataclass(frozen=True)
class Stage:
    """One subcommand: its module, its sections of settings, and the setting that `--output_dir` sets."""

    module: str
    sections: tuple[str, ...]
    summary: str
    output: str | None = None
    aliases: tuple[tuple[str, str], ...] = ()  # further flags: setting, flag


STAGES = {
    "prepare": Stage(
        "prepare.stage",
        ("prepare",),
        "raw ratings or reviews -> prepared data set",
        "prepared_dir",
        (("hub_dataset", "--dataset"), ("overwrite_prepared", "--overwrite")),
    ),
    "sft": Stage("sft.stage", ("run", "data", "model", "prompt", "sft"), "LoRA fine-tuning -> adapter", "adapter_dir"),
    "grpo": Stage(
        "grpo.stage",
        ("run", "data", "model", "prompt", "grpo"),
        "adapter of the objective dense -> adapter trained with rewards (experimental)",
        "grpo_adapter_dir",
    ),
    "generate": Stage(
        "generate.stage",
        ("run", "data", "model", "prompt", "generate", "ray"),
        "generate titles with the language model",
        "run_dir",
    ),
    "ground": Stage(
        "ground.stage",
        ("run", "data", "model", "ground", "ray"),
        "generated titles -> rankings of the catalog",
        "run_dir",
    ),
    "score": Stage("score.stage", ("run", "score"), "rankings -> NDCG@K and HR@K with intervals", "run_dir"),
    "rerank": Stage(
        "rank.rerank.stage",
        ("run", "data", "model", "ground", "score", "rerank"),
        "distances combined with popularity or a collaborative model",
        "run_dir",
    ),
    "debias": Stage(
        "rank.debias",
        ("run", "data", "model", "prompt", "generate", "ground", "score", "debias"),
        "D3 decoding: beams mixed with a collaborative model's scores",
        "run_dir",
    ),
    "keywords": Stage(
        "generate.keywords", ("run", "data", "model", "keywords"), "describe titles by keywords, for `fuse`", "run_dir"
    ),
    "fuse": Stage(
        "rank.fuse.stage",
        ("run", "data", "model", "ground", "score", "fuse"),
        "all generated titles of an example -> one ranking",
        "run_dir",
    ),
    "evaluate": Stage(
        "score.evaluate",
        ("evaluate", "data", "model", "ground", "score"),
        "ground and score any prediction file, including the reference's JSON",
    ),
    "baselines": Stage(
        "rank.without_lm",
        ("run", "data", "ground", "score", "baselines", "linear", "sasrec"),
        "train and score everything that needs no language model",
        "run_dir",
    ),
    "linear": Stage(
        "rank.baselines.stage",
        ("run", "data", "ground", "score", "linear"),
        "EASE and ItemKNN baselines: choose parameters on validation, rank, score",
        "run_dir",
    ),
    "sasrec": Stage(
        "rank.sasrec.stage",
        ("run", "data", "ground", "score", "sasrec"),
        "train SASRec, rank and score",
        "run_dir",
    ),
    "pool": Stage(
        "rank.pool.stage",
        ("run", "data", "ground", "score", "pool"),
        "title probabilities and other models' scores in one distribution, weights fitted on validation",
        "run_dir",
    ),
    "run": Stage("pipeline.run", RUN_SECTIONS, "all stages from one recipe; done stages are skipped", "run_dir"),
    "init": Stage("init.stage", ("init", "prepare"), "write a recipe for a table of ratings and this machine"),
    "recipes": Stage("settings.shipped", (), "list the shipped recipes, which `--config` finds by name"),
    "report": Stage("report.stage", ("report",), "one table of runs, baselines and published rows", "report_path"),
    "recommend": Stage(
        "recommend.stage", ("recommend", "ray"), "the best items for a file of users, by a run or an adapter"
    ),
    "demo": Stage("demo.stage", ("demo",), "a page in the browser to try a run or an adapter on"),
    "publish": Stage(
        "hub.publish",
        ("publish",),
        "publish a data set, adapter, index, metric, a whole run or a demo on the Hub",
        "publish_dir",
    ),
    "download": Stage(
        "hub.download",
        ("download", "data", "model", "sft", "generate", "ground"),
        "download what a recipe names on the Hub, for offline use",
    ),
}


def build_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of one stage: `--config`, `--debug` and one flag for every field of its sections."""
    stage = STAGES[name]
    parser = argparse.ArgumentParser(
        prog=f"bigrec-hf {name}",
        usage=f"bigrec-hf {name} [--config RECIPE] [--flag value ...]",
        description=f"{name}: {stage.summary}. Flags override the recipe.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config",
        metavar="RECIPE",
        default=None,
        help="recipe: a YAML file, or the name of a shipped one (`bigrec-hf recipes` lists them)",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    aliases = dict(stage.aliases) | ({stage.output: "--output_dir"} if stage.output else {})
    add_arguments(parser, stage.sections, aliases)
    return parser


def parse(name: str, words: list[str]) -> dict[str, Any]:
    """Return the settings given on the command line; `--learning-rate` is read as `--learning_rate`.

    Exits with a message for an unknown flag, naming the one that comes nearest to it.
    """
    parser = build_parser(name)
    for place, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and flag.replace("-", "_").strip("_") and flag not in parser._option_string_actions:
            spelled = "--" + flag[2:].replace("-", "_")
            if spelled in parser._option_string_actions:
                words = [*words[:place], spelled + equals + value, *words[place + 1 :]]
    given, unknown = parser.parse_known_args(words)
    if unknown:
        flag = next((word for word in unknown if word.startswith("--")), unknown[0]).partition("=")[0]
        near = difflib.get_close_matches(flag, parser._option_string_actions, n=1)
        parser.error(f"unknown argument {flag}: {f'did you mean {near[0]}?' if near else 'see --help'}")
    return vars(given)


def _usage() -> str:
    width = max(map(len, STAGES))
    lines = [f"  {name:<{width}}  {stage.summary}" for name, stage in STAGES.items()]
    return "\n".join(
        [
            "usage: bigrec-hf STAGE [--config RECIPE] [--flag value ...]",
            "",
            "Recommendation by language models: generate the next title, ground it to the catalog, score it.",
            "",
            "stages:",
            *lines,
            "",
            "`bigrec-hf STAGE --help` lists its settings with units and defaults; `--version` prints the version.",
        ]
    )


class Terminated(KeyboardInterrupt):
    """SIGTERM, as `kill` and job schedulers send it."""


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end this process as Ctrl-C does: what a command would leave behind is removed.

    Not in a job of several processes, which its launcher ends: one that waits for the others could not answer.
    """
    alone = int(os.environ.get("WORLD_SIZE", "1")) == 1
    if not alone or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def main(argv: list[str] | None = None) -> int:
    """Run one stage and return the exit code: 0 done, 1 unexpected error, 2 bad input or usage, 130 interrupted, 143
    terminated."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"bigrec-hf {__version__}")
        return 0
    if argv[0] not in STAGES:
        near = difflib.get_close_matches(argv[0], STAGES, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(STAGES)}"
        print(f"bigrec-hf: error: unknown stage {argv[0]!r}: {remedy}", file=sys.stderr)
        return 2
    stage = STAGES[argv[0]]
    try:
        given = parse(argv[0], argv[1:])
    except SystemExit as stop:  # argparse has printed help or an error message
        return int(stop.code or 0)
    debug = given.pop("debug")
    settle_bars()
    for pattern in NOISE:
        warnings.filterwarnings("ignore", message=pattern)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # forked data workers would warn and deadlock otherwise
    from bigrec_hf.common.files import remove_leftovers
    from bigrec_hf.common.hub_names import pin, redact
    from bigrec_hf.common.locks import locked

    try:
        config = given.pop("config")
        names_run = NAMES_RUN if argv[0] == "run" else ()
        settings = build_settings(find_recipe(config) if config is not None else None, given, names_run)
        module = importlib.import_module(f"bigrec_hf.{stage.module}")
        run = settings["run"]
        works_in = run.run_dir if "run" in stage.sections else None
        with ended_by_sigterm(), locked(works_in, argv[0], run.method) if works_in else contextlib.nullcontext():
            if works_in:
                remove_leftovers(works_in)
            module.main(**{section: pin(settings[section]) for section in stage.sections})
    except KeyboardInterrupt as stop:
        print(f"bigrec-hf: {'terminated' if isinstance(stop, Terminated) else 'interrupted'}", file=sys.stderr)
        return 143 if isinstance(stop, Terminated) else 130
    except Exception as error:
        if debug:
            raise
        expected = isinstance(error, BigrecError | OSError | ValueError)
        kind = "" if isinstance(error, BigrecError) else f"{type(error).__name__}: "
        message = redact(" ".join(str(error).split()))
        print(f"bigrec-hf {argv[0]}: error: {kind}{message} (--debug shows the traceback)", file=sys.stderr)
        return 2 if expected else 1
    return 0
