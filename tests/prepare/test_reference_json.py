"""The reference's JSON arrays: read back what was exported, and what such files can hold besides."""

from __future__ import annotations

import json

import polars as pl
import pytest

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.prompts import build_input, build_instruction
from bigrec_hf.prepare.stage import prepare_dataset

TITLES = ["Zelda", '"Mario"', "None", "Zelda"]


def record(history, target, noun="video games", verb="played"):
    return {
        "instruction": build_instruction(noun, verb),
        "input": build_input(noun, verb, history),
        "output": f'"{target}"',
    }


@pytest.fixture
def folder(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    write(raw / "train.json", [record(["Zelda"], "Mario"), record([], "nan"), record(["None", "Zelda"], "Zelda")])
    write(raw / "test.json", [record(['"Mario"'], "Zelda")])
    lines = "".join(f"{title}\t{row}\n" for row, title in enumerate(TITLES))
    (raw / "id2name.txt").write_text(lines, encoding="utf-8")
    return raw


def write(path, records):
    path.write_text(json.dumps(records), encoding="utf-8")


def rows_of(prepared, split="train"):
    frame = pl.read_parquet(prepared / f"data/default/{split}.parquet")
    return list(zip(frame["history"].to_list(), frame["target"].to_list(), strict=True))


def test_titles_become_rows_of_the_given_catalog(folder, tmp_path):
    prepared = prepare_dataset("reference-json", folder, tmp_path / "p", items_file=str(folder / "id2name.txt"))
    # "nan" is what pandas made of the title None; of two rows with one title the first is meant
    assert rows_of(prepared) == [([0], 1), ([], 2), ([2, 0], 0)]
    assert rows_of(prepared, "validation") == []
    assert rows_of(prepared, "test") == [([1], 0)]
    facts = json.loads((prepared / "facts.json").read_text())
    assert (facts["noun"], facts["noun_singular"], facts["verb"]) == ("video games", "video game", "played")
    assert (facts["preset"], facts["max_history"], facts["examples"]["train"]) == ("given", 2, 3)
    assert facts["notes"]['targets "nan" read as the title None'] == 1
    assert facts["empty_histories"] == 1


def test_ambiguous_titles_are_counted_unless_ids_tell_them_apart(folder, tmp_path, capsys):
    options = {"items_file": str(folder / "id2name.txt")}
    prepared = prepare_dataset("reference-json", folder, tmp_path / "p", **options)
    facts = json.loads((prepared / "facts.json").read_text())
    assert facts["notes"]["titles of several catalog rows, read as the first"] == "1 titles (4 places)"
    assert "warning: 1 titles (4 places) occur in several rows" in capsys.readouterr().err
    ids = [(["3"], 1), ([], 2), ([2, 0.0], "3")]
    records = json.loads((folder / "train.json").read_text())
    for record, (history, target) in zip(records, ids, strict=True):
        record |= {"history_item_id": history, "item_id": target}
    write(folder / "train.json", records)
    (folder / "test.json").unlink()
    prepared = prepare_dataset("reference-json", folder, tmp_path / "q", **options)
    assert rows_of(prepared) == [([3], 1), ([], 2), ([2, 0], 3)]
    assert "titles of several" not in (prepared / "facts.json").read_text()
    records[0]["item_id"] = 2
    write(folder / "train.json", records)
    with pytest.raises(BigrecError, match=r"train.json: record 0: the item id '2' is 'None' in .*, not 'Mario'"):
        prepare_dataset("reference-json", folder, tmp_path / "r", **options)
    records[0]["history_item_id"] = []
    write(folder / "train.json", records)
    with pytest.raises(BigrecError, match=r"train.json: record 0: 0 ids for 1 history titles"):
        prepare_dataset("reference-json", folder, tmp_path / "r", **options)


def test_the_card_counts_no_users_and_interactions_that_the_files_do_not_name(folder, tmp_path, capsys):
    prepared = prepare_dataset("reference-json", folder, tmp_path / "p")
    facts = json.loads((prepared / "facts.json").read_text())
    assert (facts["users"], facts["interactions"]["raw"], facts["notes"]["records"]) == (None, None, 4)
    card, shown = (prepared / "README.md").read_text(), capsys.readouterr().out
    assert "| users | unknown: the files name none" in card and "raw interactions" not in card
    assert "users                                        unknown" in shown and "raw interactions" not in shown


def test_without_a_catalog_titles_count_in_order_of_first_appearance(folder, tmp_path):
    prepared = prepare_dataset("reference-json", folder, tmp_path / "p")
    items = pl.read_parquet(prepared / "data/items/train.parquet")
    assert items["title"].to_list() == ["Zelda", "Mario", "nan", "None"]
    assert rows_of(prepared) == [([0], 1), ([], 2), ([3, 0], 0)]


def test_export_and_import_give_the_same_records(folder, tmp_path):
    prepared = prepare_dataset("reference-json", folder, tmp_path / "p", export_reference_json=str(tmp_path / "json"))
    assert json.loads((tmp_path / "json/train.json").read_text())[0] == record(["Zelda"], "Mario")
    again = prepare_dataset("reference-json", tmp_path / "json", tmp_path / "q")
    assert rows_of(again) == rows_of(prepared)
    assert (tmp_path / "json/valid.json").read_text() == "[]"


def test_unknown_titles_are_an_error_or_a_counted_drop(folder, tmp_path):
    write(folder / "train.json", [record(["Zelda"], "Mario"), record(["Tetris"], "Zelda")])
    options = {"items_file": str(folder / "id2name.txt")}
    with pytest.raises(BigrecError, match=r"train.json: record 1: the title 'Tetris' is not in .*--drop_untitled"):
        prepare_dataset("reference-json", folder, tmp_path / "p", **options)
    prepared = prepare_dataset("reference-json", folder, tmp_path / "p", drop_untitled=True, **options)
    assert rows_of(prepared) == [([0], 1)]
    facts = json.loads((prepared / "facts.json").read_text())
    assert facts["notes"]["records dropped, a title is not in the catalog"] == 1


def test_an_empty_title_is_no_title(folder, tmp_path):
    write(folder / "train.json", [record(["Zelda"], "Mario"), record(["Zelda", " "], "Mario")])
    with pytest.raises(BigrecError, match=r"train.json: record 1: a title is empty: .*--drop_untitled"):
        prepare_dataset("reference-json", folder, tmp_path / "p")
    prepared = prepare_dataset("reference-json", folder, tmp_path / "p", drop_untitled=True)
    assert rows_of(prepared) == [([0], 1)]
    assert pl.read_parquet(prepared / "data/items/train.parquet")["title"].to_list() == ["Zelda", "Mario"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"instruction": "a", "input": "x:\\"A", "output": "\\"A\\""}]', "train.json: record 0: the input"),
        ("", "train.json: the file is empty"),
        ("[{]", "train.json:1: not valid JSON"),
        ("{}", "train.json: expected a JSON array"),
        ('[{"instruction": "a", "input": "b"}]', "train.json: record 0: the text field output is missing"),
        ('["a"]', "train.json: record 0: the text field instruction is missing"),
        (
            '[{"instruction": "a", "input": "x:\\"A\\"", "output": "A"}]',
            "record 0: output 'A' is not a title in double",
        ),
    ],
)
def test_faults_name_file_and_record(folder, tmp_path, text, message):
    (folder / "train.json").write_text(text)
    with pytest.raises(BigrecError, match=message):
        prepare_dataset("reference-json", folder, tmp_path / "p")


def test_a_folder_without_such_files_or_records(folder, tmp_path):
    write(folder / "train.json", [])
    write(folder / "test.json", [])
    with pytest.raises(BigrecError, match=r"train\.json, test\.json: none of 0 records can be used"):
        prepare_dataset("reference-json", folder, tmp_path / "p")
    with pytest.raises(BigrecError, match=r"found none of train\.json, valid\.json, test\.json"):
        prepare_dataset("reference-json", tmp_path, tmp_path / "p")
