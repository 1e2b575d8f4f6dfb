"""No stage that chooses a parameter takes examples of another split, shared ones, or another adapter's."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bigrec_hf import cli
from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.examples import load_examples
from bigrec_hf.data.generations import read_ids
from bigrec_hf.rank.model_selection import check_disjoint, check_same_adapter, check_validation
from bigrec_hf.settings import DataSettings


def test_only_the_validation_split_is_chosen_on(tiny_prepared):
    data = DataSettings(dataset=[tiny_prepared])
    ids = {split: list(load_examples(tiny_prepared, split)[C.EXAMPLE_ID]) for split in ("train", "validation", "test")}
    check_validation(ids["validation"], data)
    for split in ("train", "test"):
        with pytest.raises(BigrecError, match=f"{len(ids[split])} of {len(ids[split])} examples to choose on"):
            check_validation(ids[split], data)
    with pytest.raises(BigrecError, match="split is 'validation'"):
        check_validation(ids["validation"], DataSettings(dataset=[tiny_prepared], split="validation"))


def test_shared_examples_and_other_adapters():
    check_disjoint(["a", "b"], ["c"])
    with pytest.raises(BigrecError, match="1 of 2 validation examples are also evaluated"):
        check_disjoint(["a", "b"], ["b", "c"])


def test_adapters_are_compared_where_they_are_known(tmp_path):
    files = [tmp_path / name / "generations.parquet" for name in ("validation", "test")]
    for file, adapter in zip(files, "ab", strict=True):
        file.parent.mkdir()
        pq.write_table(pa.table({C.EXAMPLE_ID: [adapter]}), file)
    assert [read_ids(file) for file in files] == [["a"], ["b"]]
    check_same_adapter(*files)
    for file, adapter in zip(files, "ab", strict=True):
        file.with_name("generate.json").write_text(json.dumps({"adapter_sha256": adapter}))
    with pytest.raises(BigrecError, match="different adapters"):
        check_same_adapter(*files)


def test_fuse_refuses_training_examples(tiny_prepared, tiny_model_dir, tmp_path, capsys):
    ids = list(load_examples(tiny_prepared, "train")[C.EXAMPLE_ID])[:2]
    file = tmp_path / "validation" / "finetuned" / "generations.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.table({C.EXAMPLE_ID: ids}), file)
    evaluated = tmp_path / "finetuned" / "generations.parquet"
    evaluated.parent.mkdir()
    pq.write_table(pa.table({C.EXAMPLE_ID: ["other"]}), evaluated)
    flags = ["--output_dir", str(tmp_path), "--dataset", tiny_prepared, "--base_model", tiny_model_dir]
    assert cli.main(["fuse", *flags]) == 2
    assert "not in the validation split" in capsys.readouterr().err
