"""The recipes that come with the package: found by name, also where only the wheel is installed."""

from __future__ import annotations

import difflib
from pathlib import Path

from bigrec_hf.common.errors import BigrecError

PACKAGED = "recipes_data"  # the folder in the wheel; in a checkout it is `recipes` at the top


def recipes_folder() -> Path:
    """Return the folder of the shipped recipes."""
    package = Path(__file__).parents[1]
    packaged = package / PACKAGED
    return packaged if packaged.is_dir() else package.parents[1] / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes that can be run, by name (`quickstart/movielens_dense`); their shared parents are left out."""
    folder = recipes_folder()
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}
    return {name: path for name, path in found.items() if not name.startswith("_")}


def shipped_recipe(given: str) -> Path | None:
    """Return the shipped recipe of this name, with or without `.yaml`, or None."""
    return shipped_recipes().get(given.removesuffix(".yaml").removeprefix("recipes/"))


def find_recipe(given: str) -> Path:
    """Return the path of a recipe, given as a file or by the name of a shipped one, with or without `.yaml`.

    A file comes first. Raises BigrecError if there is neither.
    """
    path = Path(given)
    if path.is_file():
        return path
    shipped = shipped_recipe(given)
    if shipped is not None:
        return shipped
    name = given.removesuffix(".yaml").removeprefix("recipes/")
    near = difflib.get_close_matches(name, shipped_recipes(), n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]}?" if near else "`bigrec-hf recipes` lists the shipped ones"
    raise BigrecError(f"recipe {given!r} does not exist: {remedy}")


def describe(path: Path) -> list[str]:
    """Return the lines of the comment at the top of a recipe."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.removeprefix("#").strip())
    return lines


def main() -> None:
    """The `recipes` command: print every shipped recipe and what it is for."""
    for name, path in shipped_recipes().items():
        print("\n    ".join([name, *describe(path)]))
    print("\nrun one with `bigrec-hf run --config NAME`; copy its file to change it:", recipes_folder())
