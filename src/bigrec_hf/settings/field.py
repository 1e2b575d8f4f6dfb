"""How one setting is declared, and the limits of its value."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import field, fields
from typing import Any

from bigrec_hf.common.errors import BigrecError

LIMITS = {  # in the words of an error and of `--help`
    "least": ("at least", lambda value, limit: value >= limit),
    "above": ("above", lambda value, limit: value > limit),
    "most": ("at most", lambda value, limit: value <= limit),
    "below": ("below", lambda value, limit: value < limit),
}


def setting(default: Any, help: str, **more: Any) -> Any:
    """Return a dataclass field with its help text; mutable defaults are copied.

    `more`: `choices`, `positional`, `flag`; `former`: values that are no choice, or no longer -> what to use instead;
    `least`, `above`, `most`, `below`: limits of a number, or of every element of a list; `hub`: the field may name a
    Hub repository of this type (`words`: values that are not names; `creates`: if there is no such repository, the
    value is a folder to create).
    """
    metadata = {"help": help, **more}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def limits_text(metadata: Mapping[str, Any]) -> str:
    """Return the limits in words: "at least 0, at most 1"; "" if there are none."""
    return ", ".join(f"{words} {metadata[name]}" for name, (words, _) in LIMITS.items() if name in metadata)


def check_value(cls: type, key: str, value: Any, where: str) -> None:
    """Raise BigrecError if `value` of the field `key` of `cls` is not one of its choices, or is outside its limits.

    A value that used to be one, or is one elsewhere, is answered with what to use instead.
    """
    metadata = next(f for f in fields(cls) if f.name == key).metadata
    if value in metadata.get("former", ()):
        raise BigrecError(f"{where} is {value!r}: {metadata['former'][value]}")
    choices = metadata.get("choices")
    if choices and value is not None and value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(choices)}"
        raise BigrecError(f"{where} is {value!r}: {hint}")
    check_limits(metadata, value, where)


def check_limits(metadata: Mapping[str, Any], value: Any, where: str) -> None:
    """Raise BigrecError if a number, or one in a list, is outside the limits; NaN and infinity always are."""
    for number in value if isinstance(value, list) else [value]:
        if not isinstance(number, int | float):
            continue
        within = all(holds(number, metadata[name]) for name, (_, holds) in LIMITS.items() if name in metadata)
        if not (within and math.isfinite(number)):
            held = f"holds {number!r}" if isinstance(value, list) else f"is {number!r}"
            raise BigrecError(f"{where} {held}: expected {limits_text(metadata) or 'a finite number'}")
