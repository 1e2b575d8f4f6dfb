"""Settings of `init`, which writes a recipe."""

from __future__ import annotations

from dataclasses import dataclass

from bigrec_hf.settings.field import setting


@dataclass(frozen=True)
class InitSettings:
    """Write a recipe for a table of ratings and this machine. Without any flag, at a terminal, `init` asks."""

    recipe_file: str | None = setting(
        None, "recipe to write, .yaml (default: named after the ratings file, in this folder)", flag="--output"
    )
    recipe_model: str | None = setting(
        None,
        "causal LM: folder or Hub id, `@revision` allowed (default: HuggingFaceTB/SmolLM2-135M-Instruct, or its copy "
        "in .assets, where `make quickstart` puts it)",
        flag="--base_model",
    )
    recipe_minutes: float = setting(
        0.0,
        "minutes to train for; 0 = one pass over the data, at most an hour",
        flag="--max_minutes",
        least=0,
    )
    measure: bool = setting(
        True,
        "time a few steps of training and scoring, for at most a minute, if the base model is on this machine; false = "
        "estimate time and memory by a formula",
    )
    overwrite_recipe: bool = setting(False, "replace an existing recipe", flag="--overwrite")
