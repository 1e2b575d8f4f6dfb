"""Names of settings in earlier releases, which are accepted with one line of warning for a release."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, NamedTuple

RETIRED = {  # setting that is ignored -> advice
    "streaming": "training reads its examples from disk whatever the size of the split",
    "shuffle_buffer": "training shuffles all examples",
    "search": "the search is exact",
    "n_probe": "the search is exact",
    "fusion_penalties": "the weighted fusion is gone, it ranked as min does",
}


class NewName(NamedTuple):
    """What an old name has become; `values`: what a switch now says for true and false, None for a list as before."""

    name: str
    values: dict[bool, str] | None = None


RENAMED = {  # section -> old name -> new one
    "ground": {"exclude_history": NewName("exclude", {True: "history", False: "none"})},
    "download": {"include": NewName("include_files"), "exclude": NewName("exclude_files")},
}


@cache
def warn_retired(key: str, where: str) -> None:
    """Print, once, that a setting is ignored."""
    print(f"warning: {key} {where} is ignored, remove it: {RETIRED[key]}", file=sys.stderr, flush=True)


def renamed(section: str, key: str, value: Any, where: str) -> tuple[str, Any]:
    """Return the new name and value of an old setting, and print a line of warning."""
    name, values = RENAMED[section][key]
    if values is None:
        shown = name
    else:
        value = values[value]
        shown = f"{name}: {value}"
    print(f"warning: {key} {where} is now {shown}", file=sys.stderr, flush=True)
    return name, value
