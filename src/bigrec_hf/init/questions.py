"""Questions at a terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from bigrec_hf.common.errors import BigrecError

Value = TypeVar("Value")
TRIES = 3


def ask(question: str, default: str | None, read: Callable[[str], Value]) -> Value:
    """The answer as `read` understands it; an empty one is the default.

    After an answer that `read` refuses with a BigrecError the question is asked again. Raises BigrecError for the
    third such answer, and if the input ends.
    """
    shown = f"{question} [{default}] " if default is not None else f"{question} "
    for left in range(TRIES - 1, -1, -1):
        try:
            answer = input(shown).strip() or default or ""
        except EOFError:
            raise BigrecError(f"the input ended at the question {question!r}: answer it, or give flags") from None
        try:
            return read(answer)
        except BigrecError as error:
            if not left:
                raise
            print(f"  {error}")
    raise AssertionError  # the loop returns or raises


def existing_file(answer: str) -> str:
    """A file's name. Raises BigrecError if there is no such file."""
    if not answer or not Path(answer).expanduser().is_file():
        raise BigrecError(f"{answer or 'nothing'!r} is not a file: give a table (.csv, .tsv, .jsonl, .parquet)")
    return str(Path(answer).expanduser())


def noun_and_verb(answer: str) -> tuple[str, str]:
    """`video games played` -> ("video games", "played"). Raises BigrecError for a single word."""
    *noun, verb = answer.split() or [""]
    if not noun:
        raise BigrecError(f"{answer!r} is one word: give what they are and what was done, e.g. books read")
    return " ".join(noun), verb


def positive(answer: str) -> float:
    """A number above 0. Raises BigrecError for anything else."""
    try:
        value = float(answer.replace(",", "."))
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise BigrecError(f"{answer!r} is not a number of minutes above 0: give one, e.g. 20")
    return value
