"""Hostile inputs: recipes, raw files, and the artifacts of a run, damaged byte by byte or value by value.

Whatever is tried either works or ends with one line: a BigrecError, which names the file and the remedy.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hypothesis
import yaml
from hypothesis import strategies as st

from bigrec_hf import Recommender, cli
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.prepare.stage import prepare_dataset
from bigrec_hf.settings import SECTIONS
from bigrec_hf.settings.recipes import build_settings, field_types

UNCLEAR = re.compile(r"Traceback|error: \w*(Error|Exception|Exit|Interrupt|Panic)\b")


@dataclass
class Count:
    """What was tried, how much of it ended with a clear line, and what did not."""

    tried: int = 0
    refused: int = 0
    unclear: list[str] = field(default_factory=list)

    def attempt(self, what: str, action: Callable[[], Any]) -> None:
        """Count one attempt; anything but success and a BigrecError of one line is unclear."""
        self.tried += 1
        try:
            action()
        except BigrecError as error:
            self.refused += 1
            if "\n" in str(error):
                self.unclear.append(f"{what}: several lines: {error}")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | hypothesis.errors.HypothesisException):
                raise
            self.unclear.append(f"{what}: {type(error).__name__}: {str(error)[:300]}")

    def __str__(self) -> str:
        return f"{self.tried} inputs tried, {self.refused} refused, tracebacks: {len(self.unclear)}"


# --- what is put in -------------------------------------------------------------------------------------------------

SPECIAL = [
    "",
    "/etc",
    "../x",
    "~",
    "a/b",
    "null",
    "nan",
    "\udcff",
    "\ud800",
    "x" * 200,
    "beam",
    "exact",
    "index",
    "none",
]
WEIRD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(SPECIAL),
    st.lists(st.integers(-3, 3), max_size=3),
    st.dictionaries(st.text(max_size=4), st.integers(-3, 3), max_size=3),
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """Where a JSON value has others inside."""
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    return [found for key, inner in items for found in ((*path, key), *places(inner, (*path, key)))]


@st.composite
def changed_json(draw: Any, value: Any) -> Any:
    """The value with one to three parts replaced or removed."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        found = places(value)
        if not found:
            return draw(WEIRD)
        *outer, last = draw(st.sampled_from(found))
        inner = value
        for key in outer:
            inner = inner[key]
        if isinstance(inner, dict) and draw(st.booleans()):
            del inner[last]
        else:
            inner[last] = draw(WEIRD)
    return value


@st.composite
def changed_bytes(draw: Any, data: bytes) -> bytes:
    """The bytes cut, overwritten, extended, or replaced as a whole."""
    at = draw(st.integers(0, len(data)))
    other = draw(st.binary(max_size=40) | st.sampled_from([b"\0" * 64, b"[" * 5000, b"\r", b'"', b"\xff\xfe", b"{}"]))
    kind = draw(st.sampled_from(["cut", "overwrite", "insert", "replace", "start"]))
    whole = {"cut": data[:at], "overwrite": data[:at] + other + data[at + len(other) :], "replace": other}
    return whole.get(kind, data[:at] + other + data[at:] if kind == "insert" else other + data)


@st.composite
def changed_file(draw: Any, file: Path) -> bytes:
    """The content of a file, changed as JSON where it is JSON, or as bytes."""
    if file.suffix == ".json" and draw(st.booleans()):
        return json.dumps(draw(changed_json(json.loads(file.read_text(encoding="utf-8"))))).encode()
    return draw(changed_bytes(file.read_bytes()))


@st.composite
def recipes(draw: Any) -> str:
    """A recipe: sections and keys that exist and others, values of any kind, or no YAML at all."""
    if draw(st.integers(0, 4)) == 0:
        return draw(st.text(max_size=80))
    content: dict[Any, Any] = {}
    for _ in range(draw(st.integers(0, 4))):
        section = draw(st.sampled_from(sorted(SECTIONS)))
        key = draw(st.sampled_from(sorted(field_types(section))) | st.sampled_from(SPECIAL))
        values = content.setdefault(section, {})
        if isinstance(values, dict):
            values[key] = draw(WEIRD)
        if draw(st.integers(0, 9)) == 0:
            content[draw(st.text(max_size=5) | st.sampled_from(["extends", section]))] = draw(WEIRD)
    text = yaml.safe_dump(content, allow_unicode=draw(st.booleans()))
    return (
        draw(changed_bytes(text.encode("utf-8", "surrogatepass"))).decode("utf-8", "replace")
        if draw(st.booleans())
        else text
    )


def times(n: int, seed: int) -> Callable[[Callable], Callable]:
    """A hypothesis test of `n` examples drawn by `seed`; an example that fails is counted, not minimized."""
    checks = list(hypothesis.HealthCheck)
    phases = (hypothesis.Phase.generate,)

    def decorate(test: Callable) -> Callable:
        options = hypothesis.settings(
            max_examples=n, database=None, deadline=None, phases=phases, suppress_health_check=checks
        )
        return hypothesis.seed(seed)(options(test))

    return decorate


# --- what is attacked -----------------------------------------------------------------------------------------------


def attack_recipes(n: int, seed: int) -> Count:
    """Settings from `n` recipes."""
    count = Count()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"

        @times(n, seed)
        @hypothesis.given(recipes())
        def attack(text: str) -> None:
            file.write_text(text, encoding="utf-8", errors="surrogatepass")
            with contextlib.redirect_stderr(io.StringIO()):
                count.attempt(f"recipe {text!r}", lambda: build_settings(file, {}))

        attack()
    return count


def attack_raw_files(raw: dict[str, Path], n: int, seed: int) -> Count:
    """`prepare` from `n` damaged copies of raw files. `raw`: source -> folder."""
    count = Count()
    with tempfile.TemporaryDirectory() as place:

        @times(n, seed)
        @hypothesis.given(st.data())
        def attack(data: st.DataObject) -> None:
            source = data.draw(st.sampled_from(sorted(raw)))
            folder = Path(place) / "raw"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(raw[source], folder)
            file = data.draw(st.sampled_from(sorted(folder.iterdir())))
            file.write_bytes(data.draw(changed_bytes(file.read_bytes())))
            options = {"overwrite_prepared": True}  # the set of the attempt before
            with contextlib.redirect_stdout(io.StringIO()):
                count.attempt(
                    f"{source} {file.name}", lambda: prepare_dataset(source, folder, Path(place) / "set", **options)
                )

        attack()
    return count


def attack_recommender(saved: Path, n: int, seed: int) -> Count:
    """`Recommender` from `n` damaged copies of a saved one."""
    return _damaged_copies(saved, n, seed, lambda copy: Recommender.from_pretrained(copy).recommend([["Heat (1995)"]]))


def attack_run(run_dir: Path, n: int, seed: int) -> Count:
    """Stages that read the artifacts of a run, from `n` damaged copies of it."""
    commands = [
        *(["score"], ["ground", "--index_dir", "{}/index"], ["ground"], ["report", "{}"]),
        ["publish", "dataset", "--dataset", "{}/data", "--repo_id", "a/b", "--output_dir", "{}/published"],
        ["publish", "run", "--repo_id", "a/b", "--base_model", "a/base", "--output_dir", "{}/published"],
    ]
    turn = iter(range(10**9))

    def call(copy: Path) -> None:
        words = [word.replace("{}", str(copy)) for word in commands[next(turn) % len(commands)]]
        config = [] if words[0] in ("report", "publish") else ["--config", str(copy / "recipe.yaml")]
        place = [] if words[0] == "report" or "dataset" in words else ["--run_dir", str(copy)]
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = cli.main([*words, *config, *place])
        line = said.getvalue().strip().splitlines()[-1:] or [""]
        if UNCLEAR.search(said.getvalue()) or code not in (0, 2):
            raise AssertionError(f"{words[:2]} ended with {code}: {line[0]}")
        if code:
            raise BigrecError(line[0])

    return _damaged_copies(run_dir, n, seed, call)


def _damaged_copies(origin: Path, n: int, seed: int, action: Callable[[Path], Any]) -> Count:
    count = Count()
    names = sorted(file.relative_to(origin).as_posix() for file in origin.rglob("*") if file.is_file())
    names = [name for name in names if not Path(name).name.startswith(".")]
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / origin.name

        @times(n, seed)
        @hypothesis.given(st.data())
        def attack(data: st.DataObject) -> None:
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(origin, copy)
            name = data.draw(st.sampled_from(names))
            if data.draw(st.integers(0, 9)) == 0:
                (copy / name).unlink()
            else:
                (copy / name).write_bytes(data.draw(changed_file(origin / name)))
            with contextlib.redirect_stdout(io.StringIO()):
                count.attempt(name, lambda: action(copy))

        attack()
    return count
