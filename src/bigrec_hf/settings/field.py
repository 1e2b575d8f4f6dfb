"""How one setting is declared."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(default: Any, help: str, **more: Any) -> Any:
    """A dataclass field with its help text; mutable defaults are copied.

    `more`: `choices`, `positional`, `flag`; `hub`: the field may name a Hub repository of this type (`words`: values
    that do not; `creates`: where there is no such repository, a folder to make).
    """
    metadata = {"help": help, **more}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
