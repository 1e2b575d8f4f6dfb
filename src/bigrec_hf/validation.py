"""Parameters are chosen on validation examples: where those of a run lie, and the checks that no test example is among
them. Every stage with something to choose (`rerank`, `fuse`) calls them before it reads a test target."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from bigrec_hf.columns import Columns as C
from bigrec_hf.data import load_config
from bigrec_hf.errors import BigrecError
from bigrec_hf.runs import read_json

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings

VALIDATION_DIR = "validation"  # in a run's folder: the same method folders, for validation examples


def read_ids(generations: Path) -> list[str]:
    """The example ids of a generations.parquet, and nothing else of it."""
    return pq.read_table(generations, columns=[C.EXAMPLE_ID])[C.EXAMPLE_ID].to_pylist()


def check_validation(validation_ids: Sequence[str], data: DataSettings) -> None:
    """Raise BigrecError where the examples to choose on are not of the validation split, as far as the data tell."""
    if data.split == "validation":
        raise BigrecError(
            "split is 'validation': a parameter chosen there cannot be evaluated there; evaluate on --split test"
        )
    if data.dataset and not (data.test_json or data.validation_json):
        known = set(load_config(data.dataset[0], "default", "validation")[C.EXAMPLE_ID])
        other = [example_id for example_id in validation_ids if example_id not in known]
        if other:
            raise BigrecError(
                f"{len(other)} of {len(validation_ids)} examples to choose on (such as {other[0]!r}) are not in the "
                f"validation split of {data.dataset[0]!r}: generate {VALIDATION_DIR}/ with --split validation"
            )


def check_disjoint(validation_ids: Sequence[str], test_ids: Sequence[str]) -> None:
    """Raise BigrecError where an example to choose on is one to be evaluated."""
    shared = sorted(set(validation_ids) & set(test_ids))
    if shared:
        raise BigrecError(
            f"{len(shared)} of {len(validation_ids)} validation examples are evaluated, too (such as {shared[0]!r}): "
            "parameters are never chosen on what they are evaluated on; generate for the validation split"
        )


def check_same_adapter(validation: Path, test: Path) -> None:
    """Raise BigrecError where two generations files were written by different adapters (generate.json tells)."""
    facts = [read_json(path.with_name("generate.json")) for path in (validation, test)]
    if all(facts) and facts[0].get("adapter_sha256") != facts[1].get("adapter_sha256"):
        raise BigrecError(
            f"{validation} and {test} were written by different adapters: generate the validation examples again"
        )
