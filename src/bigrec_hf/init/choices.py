"""The recipe that `init` writes: what it takes from the machine, the data and the base model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from bigrec_hf.init.machine import Machine
from bigrec_hf.settings import PrepareSettings

PARENT = "own_data/smollm2_dense"  # the shipped recipe that every other setting comes from
MOST_EASE_ITEMS = 20_000  # the largest catalog that EASE takes
LARGE, VERY_LARGE = 1e9, 3e9  # parameters from which a lower learning rate, and less memory, are needed
PROCESS_GIB = 2.0  # libraries, tables and activations besides the weights
BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "4bit": 0.6}  # of a parameter


def memory_formula(n_parameters: float, dtype: str) -> float:
    """GiB that training takes: the weights, a tenth of them for the adapter, and PROCESS_GIB. Not measured."""
    return 1.1 * n_parameters * BYTES[dtype] / 2**30 + PROCESS_GIB


@dataclass(frozen=True)
class Fit:
    """Settings by section, and what they were chosen by."""

    sections: dict[str, dict[str, Any]]
    parameters: int | None  # of the base model; None if unknown
    weights: str  # their type, one of BYTES
    warnings: list[str]  # a model that is too large for this machine


def fit_to(machine: Machine, base_model: str, parameters: int | None, facts: dict[str, Any]) -> Fit:
    """The settings that differ from the parent recipe's. `facts`: those of the prepared set.

    On a CPU the batches are the parent's, two rows. A GPU gets larger ones, and 4-bit weights if those of 16 bits do
    not fit. A catalog that is too large for EASE is pooled with ItemKNN.
    """
    model: dict[str, Any] = {"base_model": base_model, "dtype": machine.dtype}
    sections: dict[str, dict[str, Any]] = {"model": model}
    sft: dict[str, Any] = {}
    size = machine.dtype
    if machine.gpu:
        sections["prompt"] = {"max_length": 256}
        sft |= {"global_batch_size": 8, "micro_batch_size": 8}
        if parameters is not None and memory_formula(parameters, size) > machine.room:
            size = model["quantization"] = "4bit"
        if parameters is not None and parameters >= VERY_LARGE:
            sft |= {"micro_batch_size": 4, "activation_checkpointing": True}
    if parameters is not None and parameters >= LARGE:
        sft["learning_rate"] = 2e-4
    if sft:
        sections["sft"] = sft
    if facts["items"] > MOST_EASE_ITEMS or facts["items"] ** 2 * 8 / 2**30 > machine.memory / 2:
        sections |= {"linear": {"linear_models": ["itemknn"]}, "pool": {"pool_models": ["itemknn"]}}
    if facts["items"] < 10:
        sections["score"] = {"ks": [k for k in (1, 3, 5) if k <= facts["items"]]}
    warnings = []
    if parameters is not None and (needed := memory_formula(parameters, size)) > machine.room:
        warnings = [
            f"Warning: {base_model} takes about {needed:.0f} GiB in {size}, more than the {machine.room:.0f} GiB here: "
            "choose a smaller one with --base_model, or run the recipe on another machine."
        ]
    return Fit(sections, parameters, size, warnings)


def prepare_section(prepare: PrepareSettings) -> dict[str, Any]:
    """What the settings say that is not the default, in the order of their declaration."""
    usual = PrepareSettings()
    return {
        item.name: getattr(prepare, item.name)
        for item in fields(prepare)
        if getattr(prepare, item.name) != getattr(usual, item.name)
    }


def recipe_text(comments: list[str], sections: dict[str, dict[str, Any]]) -> str:
    """The recipe: comments, the parent, and the settings."""
    order = ("prepare", "data", "model", "prompt", "sft", "generate", "score", "pipeline", "linear", "pool")
    content = {name: sections[name] for name in order if sections.get(name)}
    body = yaml.safe_dump({"extends": PARENT} | content, sort_keys=False, allow_unicode=True, width=110)
    return "".join(f"# {line}\n" for line in comments) + body


def source_name(prepare: PrepareSettings) -> str:
    """The file, folder or data set that the ratings come from, without the folders above it."""
    source = prepare.ratings_file or prepare.raw_dir or str(prepare.hub_dataset)
    return Path(source.partition("@")[0]).resolve().name


def recipe_name(prepare: PrepareSettings) -> str:
    """The default file name of the recipe: that of the ratings."""
    return f"{source_name(prepare).partition('.')[0] or 'recipe'}.yaml"
