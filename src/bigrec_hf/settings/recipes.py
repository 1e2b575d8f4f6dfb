"""Recipes: one YAML file is one run. Parsed strictly; the command line overrides the file.

A recipe holds sections (`settings.SECTIONS`), each a mapping of that section's fields, and may name parents with
`extends: PATH` or `extends: [PATH, ...]` (relative to the recipe, or the name of a shipped one). Later parents override
earlier ones, and the recipe's own values override all parents, so what several recipes share is written once.
"""

from __future__ import annotations

import difflib
import os
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.hub_names import SECRET_KEY, redact
from bigrec_hf.settings import SECTIONS
from bigrec_hf.settings.field import check_value
from bigrec_hf.settings.former import RENAMED, RETIRED, renamed, warn_retired
from bigrec_hf.settings.shipped import PACKAGED, shipped_recipe

METHOD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
TAKEN_NAMES = {
    "adapter",
    "checkpoints",
    "data",
    "grpo_adapter",
    "index",
    "keywords",
    "keywords_index",
    "validation",
}  # in a run folder


FOLDERS = (("sft", "adapter_dir"), ("grpo", "grpo_adapter_dir"), ("evaluate", "output_dir"))  # to write into
YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError)  # the last: nested thousands of levels deep


class RecipeLoader(yaml.SafeLoader):
    """YAML 1.1 as `safe_load` reads it, except that a duplicate key in a mapping is an error, and so is an alias, as a
    few of them can stand for gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> yaml.Node | None:
        """Raise a ComposerError for an alias."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            problem = f"the alias *{event.anchor} is not supported: write its value out, or use `extends`"
            raise yaml.composer.ComposerError(None, None, problem, event.start_mark)
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Raise a ComposerError if a key occurs twice."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    problem = f"the key {key.value!r} occurs twice: remove one"
                    raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
                seen.add(key.value)
        return node


def field_types(section: str) -> dict[str, Any]:
    """Return the resolved type of each field of a section."""
    return typing.get_type_hints(SECTIONS[section])


def _section_of(key: str) -> str | None:
    return next((name for name, cls in SECTIONS.items() if key in {f.name for f in fields(cls)}), None)


def _unknown_key(key: str, valid: list[str], where: str) -> BigrecError:
    near = difflib.get_close_matches(str(key), valid, n=1, cutoff=0.5)
    home = _section_of(str(key))
    if home is not None:
        remedy = f"it belongs in section `{home}`"
    elif near:
        remedy = f"did you mean {near[0]!r}?"
    else:
        remedy = f"valid keys: {', '.join(valid)}"
    return BigrecError(f"unknown key {key!r} in {where}: {remedy}")


def coerce(value: Any, kind: Any, where: str) -> Any:
    """Return `value` as `kind` (str, int, float, bool, list[...], dict, or one of these | None).

    Raises BigrecError, naming `where`, if it cannot be converted.
    """
    origin = typing.get_origin(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        kind = next(k for k in typing.get_args(kind) if k is not type(None))
        origin = typing.get_origin(kind)
    if origin is list:
        items = value if isinstance(value, list) else [value]
        return [coerce(item, typing.get_args(kind)[0], where) for item in items]
    if (origin or kind) is dict and isinstance(value, dict):
        return value
    if kind is bool and isinstance(value, bool):
        return value
    if kind is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if kind in (int, float) and isinstance(value, str | int | float) and not isinstance(value, bool):
        try:  # YAML 1.1 reads 1e-4 as a string
            number = float(value)
        except (ValueError, OverflowError):
            number = None
        if number is not None and (kind is float or (number.is_integer() and abs(number) < 2**63)):
            return kind(number)
    name = getattr(origin or kind, "__name__", str(kind))
    raise BigrecError(f"{where} is {value!r}: expected {name}")


def read_recipe(path: str | Path, _seen: tuple[Path, ...] = ()) -> dict[str, dict[str, Any]]:
    """Return the merged sections of a recipe and its parents, every key and value checked.

    Raises BigrecError for a missing file, invalid YAML, an unknown key, or a value of the wrong type or range.
    """
    path = Path(path)
    if not os.path.isfile(path):  # noqa: PTH113 (false for a name that is too long)
        raise BigrecError(f"recipe {str(path)!r} does not exist: recipes/README.md lists the shipped ones")
    if path.resolve() in _seen:
        raise BigrecError(f"recipe {str(path)!r} extends itself, directly or through a parent: remove one `extends`")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), RecipeLoader) or {}
    except RecursionError as error:
        raise BigrecError(
            f"recipe {str(path)!r} is nested too deep: it has sections, and settings inside them; look for brackets "
            "that are not closed"
        ) from error
    except YAML_ERRORS as error:
        raise BigrecError(f"recipe {str(path)!r} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise BigrecError(f"recipe {str(path)!r} must map sections to settings, but holds a {type(content).__name__}")
    merged: dict[str, dict[str, Any]] = {}
    parents = content.pop("extends", None) or []
    parents = [parents] if isinstance(parents, str) else parents
    if not isinstance(parents, list) or not all(isinstance(parent, str) for parent in parents):
        raise BigrecError(f"`extends` of {path} is {parents!r}: expected a path or a list of paths")
    for parent in parents:
        for section, values in read_recipe(_parent_of(path, parent), (*_seen, path.resolve())).items():
            merged.setdefault(section, {}).update(values)
    for section, values in content.items():
        if section not in SECTIONS:
            suggested = [name for name in SECTIONS if name != "init"]  # which writes recipes and reads none
            raise _unknown_key(section, [*suggested, "extends"], str(path))
        hints = field_types(section)
        if not isinstance(values, dict):
            raise BigrecError(f"section `{section}` of {path} must be a mapping of settings, but is {values!r}")
        for key, value in values.items():
            where = f"section `{section}` of {path}"
            if key in RETIRED:
                warn_retired(key, f"in {where}")
                continue
            if key in RENAMED.get(section, {}):
                kind = bool if RENAMED[section][key].values else list[str]
                key, value = renamed(section, key, coerce(value, kind, f"{key} in {where}"), f"in {where}")
            if key not in hints:
                raise _unknown_key(key, list(hints), where)
            checked = coerce(value, hints[key], f"{key} in {where}")
            check_value(SECTIONS[section], key, checked, f"{key} in {where}")
            merged.setdefault(section, {})[key] = checked
    return merged


def _parent_of(path: Path, parent: str) -> Path:
    """The file that a recipe's `extends` means: one beside it, else a shipped recipe of that name."""
    beside = path.parent / parent
    is_beside = os.path.isfile(beside)  # noqa: PTH113 (false for a name that is too long)
    return beside if is_beside else shipped_recipe(parent) or beside


def flag_of(section: str, key: str) -> str:
    """Return the flag that sets a field on the command line."""
    return next(f for f in fields(SECTIONS[section]) if f.name == key).metadata.get("flag", f"--{key}")


def default_run_dir(recipe: Path, changed: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Return the default run folder: `recipes/movie/llama-7b/sft_8bit.yaml` -> `runs/movie-llama-7b-sft_8bit`.

    `changed`: settings that differ from the recipe's, whose names and values are appended (of a path its last part):
    {"sample": 64} -> `...-sample-64`.
    """
    parts = recipe.with_suffix("").parts
    folders = [place for place, part in enumerate(parts) if part in ("recipes", PACKAGED)]
    parts = parts[folders[-1] + 1 :] if folders else parts[-1:]
    values = {key: re.sub(r"[^\w.-]", "_", str(value).rstrip("/").rsplit("/")[-1]) for key, value in changed.items()}
    return str(Path("runs") / "-".join([*parts, *(f"{key}-{value}" for key, value in values.items())]))


def _check_folder(folder: Path, flag: str) -> None:
    """Raise BigrecError if a folder to write into is a file or lies inside one; it need not exist."""
    file = next((path for path in (folder, *folder.parents) if path.is_file()), None)
    if file is not None:
        raise BigrecError(f"{flag} is {str(folder)!r}, but {file} is a file: name another folder")


def build_settings(
    recipe: str | Path | None, overrides: dict[str, Any], names_run: Sequence[str] = ()
) -> dict[str, Any]:
    """Return all sections as settings objects: defaults, then the recipe, then `overrides` (field name -> value).

    Paths that depend on others are filled in here: the run folder from the name of the recipe (and the overrides among
    `names_run` that differ from it), the prepared data set and the adapter inside the run folder. Raises BigrecError
    for whatever `read_recipe` refuses, an unknown override, a folder that is a file, a method name that cannot be a
    folder, and a token in `trainer_args`.
    """
    merged = read_recipe(recipe) if recipe is not None else {}
    changed = {}
    for key, value in overrides.items():
        if key in RETIRED:
            warn_retired(key, "on the command line")
            continue
        former, _, old = key.rpartition(".")
        if former:  # a flag of an earlier release, see `flags.add_arguments`
            key, value = renamed(former, old, value, "on the command line")
        section = _section_of(key)
        if section is None:
            raise _unknown_key(key, [f.name for cls in SECTIONS.values() for f in fields(cls)], "the command line")
        check_value(SECTIONS[section], key, value, flag_of(section, key))
        if key in names_run and value != merged.get(section, {}).get(key, getattr(SECTIONS[section](), key)):
            changed[key] = value
        merged.setdefault(section, {})[key] = value
    run = merged.setdefault("run", {})
    if run.get("run_dir") is None and recipe is not None:
        run["run_dir"] = default_run_dir(Path(recipe), {key: changed[key] for key in names_run if key in changed})
    if run.get("run_dir") is not None:
        folder = Path(run["run_dir"])
        prepare = merged.setdefault("prepare", {})
        if prepare.get("source") and not prepare.get("prepared_dir"):
            prepare["prepared_dir"] = str(folder / "data")
        data = merged.setdefault("data", {})
        if prepare.get("source") and not data.get("dataset"):
            # a data set that does not exist yet must not be mistaken for a Hub id such as run/data
            prepared = Path(prepare["prepared_dir"])
            data["dataset"] = [str(prepared) if len(prepared.parts) > 2 else f"./{prepared}"]
        sft = merged.setdefault("sft", {})
        sft["adapter_dir"] = sft.get("adapter_dir") or str(folder / "adapter")
        grpo = merged.setdefault("grpo", {})
        grpo["grpo_adapter_dir"] = grpo.get("grpo_adapter_dir") or str(folder / "grpo_adapter")
        merged.setdefault("publish", {}).setdefault("published_run", str(folder))
        merged.setdefault("recommend", {}).setdefault("recommend_run", str(folder))
    for section, key in (("run", "run_dir"), *FOLDERS):
        if merged.get(section, {}).get(key) is not None:
            _check_folder(Path(merged[section][key]), flag_of(section, key))
    method = run.get("method", "finetuned")
    if not METHOD_NAME.fullmatch(method) or method in TAKEN_NAMES:
        raise BigrecError(
            f"method {method!r} cannot name a method's folder in the run: use letters, digits, - and _, and none of "
            f"{', '.join(sorted(TAKEN_NAMES))}"
        )
    for section, values in merged.items():
        for key, value in values.items():
            check_no_secret(value, f"{key} (section {section})")
    return {name: cls(**merged.get(name, {})) for name, cls in SECTIONS.items()}


def check_no_secret(value: Any, where: str) -> None:
    """Raise BigrecError for an access token in a setting, by its form or the name of its key: the settings are written
    into the records of a run. The message does not repeat it. Likewise for a request to run a repository's code."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "trust_remote_code" and inner:
                raise BigrecError(
                    f"{where}: trust_remote_code is {inner!r}, but code of a repository is never run: remove it"
                )
            if SECRET_KEY.search(str(key)) and isinstance(inner, str) and inner:
                raise _secret(f"{where}, {redact(str(key))!r}")
            check_no_secret(inner, f"{where}, {redact(str(key))!r}")
            check_no_secret(key, where)
    elif isinstance(value, list):
        for inner in value:
            check_no_secret(inner, where)
    elif isinstance(value, str) and redact(value) != value:
        raise _secret(where)


def _secret(where: str) -> BigrecError:
    return BigrecError(
        f"{where} is an access token, which would be written into the run's records: remove it, and set HF_TOKEN or "
        "`hf auth login` instead"
    )


def to_yaml(sections: Mapping[str, Any]) -> str:
    """Return settings by section as a recipe with every value, sections and keys in the order given."""
    plain = {name: asdict(settings) for name, settings in sections.items()}
    return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
