"""Settings as flags of the command line."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, fields
from typing import Any

import yaml

from bigrec_hf.common.hub_names import redact
from bigrec_hf.settings import SECTIONS
from bigrec_hf.settings.field import limits_text
from bigrec_hf.settings.former import RENAMED, RETIRED
from bigrec_hf.settings.recipes import YAML_ERRORS, RecipeLoader, field_types, flag_of


def _parse_bool(text: str) -> bool:
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _parse_choice(former: dict[str, str]) -> Callable[[str], str]:
    """Refuses the values in `former` with what to use instead; argparse checks the others."""

    def parse(text: str) -> str:
        if text in former:
            raise argparse.ArgumentTypeError(f"{text!r}: {former[text]}")
        return text

    return parse


def _parse_mapping(text: str) -> dict[str, Any]:
    try:
        value = yaml.load(text, RecipeLoader)
    except YAML_ERRORS as error:
        reason = " ".join(str(error).split())
        raise argparse.ArgumentTypeError(redact(f"{text!r} is not valid YAML: {reason}")) from None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(redact(f"{text!r} is not a mapping: expected e.g. '{{max_grad_norm: 0.3}}'"))
    return value


def add_section_arguments(
    parser: argparse.ArgumentParser, section: str, aliases: dict[str, str], skip: Collection[str] = ()
) -> None:
    """Add one flag per field, its help text with the default. `aliases`: field -> second flag; `skip`: no such flag.

    A flag that is not given leaves no attribute in the parsed namespace.
    """
    cls = SECTIONS[section]
    group = parser.add_argument_group(section, (cls.__doc__ or "").strip())
    hints = field_types(section)
    for item in fields(cls):
        if item.name in skip:
            continue
        kind = hints[item.name]
        if typing.get_origin(kind) is types.UnionType:
            kind = next(k for k in typing.get_args(kind) if k is not type(None))
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        shown = item.metadata["help"].replace("%", "%%")
        if {"above", "most", "below"} & set(item.metadata):  # "at least 0" or "at least 1" need not be spelled out
            shown += f"; {limits_text(item.metadata)}"
        if default not in (None, [], {}):
            shown_default = " ".join(map(str, default)) if isinstance(default, list) else default
            shown += f" (default: {str(shown_default).lower() if isinstance(default, bool) else shown_default})"
        options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": shown}
        if kind is bool:
            options |= {"type": _parse_bool, "nargs": "?", "const": True, "metavar": "true|false"}
        elif typing.get_origin(kind) is list:
            options |= {"nargs": "*", "type": typing.get_args(kind)[0], "metavar": item.name.upper()}
        elif typing.get_origin(kind) is dict:
            options |= {"type": _parse_mapping, "metavar": "YAML"}
        else:
            options |= {"type": kind}
            if item.metadata.get("choices"):
                options["choices"] = item.metadata["choices"]
                if "former" in item.metadata:
                    options["type"] = _parse_choice(item.metadata["former"])
            else:
                options["metavar"] = kind.__name__.upper()
        if item.metadata.get("positional"):
            group.add_argument(item.name, **options)
        else:
            flags = [flag_of(section, item.name)]
            if item.name in aliases:
                flags.append(aliases[item.name])
            group.add_argument(*flags, dest=item.name, **options)


def add_arguments(parser: argparse.ArgumentParser, sections: Sequence[str], aliases: dict[str, str]) -> None:
    """Add the flags of all sections of a stage, and those of earlier releases, about which `build_settings` warns.

    Where an old name has since become a setting of another section (`exclude` of `download`), the old meaning is kept.
    """
    old = {name for section in sections for name in RENAMED.get(section, {})}
    for section in sections:
        add_section_arguments(parser, section, aliases, old)
    for key in RETIRED:
        parser.add_argument(f"--{key}", nargs="*", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    for section in sections:
        for key, new in RENAMED.get(section, {}).items():
            options: dict[str, Any] = {"dest": f"{section}.{key}", "default": argparse.SUPPRESS}
            options |= {"type": _parse_bool, "nargs": "?", "const": True} if new.values else {"nargs": "*"}
            parser.add_argument(f"--{key}", help=argparse.SUPPRESS, **options)
