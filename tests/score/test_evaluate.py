"""`evaluate`: every kind of prediction file, against scores computed by hand, and its one-line errors."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bigrec_hf.metrics.ndcg_hr.titles import clean_title

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import write_table
from bigrec_hf.data.catalog import load_catalog
from bigrec_hf.score import evaluate as evaluation
from bigrec_hf.score.evaluate import find_generations, read_predictions
from bigrec_hf.settings import DataSettings, EvaluateSettings, GroundSettings, ModelSettings, ScoreSettings
from tests.helpers.encoders import save_lm
from tests.helpers.line import write_generations

DATA = os.environ.get("BIGREC_HF_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="BIGREC_HF_DATA is unset: no real catalogs")
RECORDS = [
    {"instruction": "i", "input": 'played:"f", "zz"\n ', "output": '"a b"', "predict": [' "a b"', "f"]},
    {"instruction": "i", "input": 'played:"a b"\n ', "output": '"f"', "predict": "f"},
    {"instruction": "i", "input": "", "output": '" c d e"', "predict": [""]},
    {"instruction": "i", "input": "", "output": '"f"', "predict": []},
]


def write_json(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(records), encoding="utf-8")
    return path


@pytest.fixture
def place(tmp_path):
    """A tiny encoder and a catalog with a duplicate title and a leading space."""
    save_lm(tmp_path / "lm")
    (tmp_path / "id2name.txt").write_text("a b\t0\n c d e\t1\na b\t2\nf\t3\n")
    return tmp_path


def run(place, generations, encoder="lm", **changes):
    settings = {
        "evaluate": EvaluateSettings(generations=[str(g) for g in generations], output_dir=str(place / "out")),
        "data": DataSettings(catalog=str(place / "id2name.txt")),
        "model": ModelSettings(),
        "ground": GroundSettings(encoder=str(place / encoder)),
        "score": ScoreSettings(ks=[1, 4], bootstrap=10),
        **changes,
    }
    evaluation.main(**settings)


def test_reads_the_references_predictions(place):
    answers = read_predictions(write_json(place / "p.json", RECORDS), load_catalog(place / "id2name.txt"))
    assert answers.example_ids == ["p#0", "p#1", "p#2", "p#3"]
    assert answers.texts == ["a b", "f", "", ""]
    assert answers.targets == [0, 3, 1, 3]
    assert answers.histories == [[3], [0], [], []]  # "zz" is in no row


def test_one_file(place, capsys):
    run(place, [write_json(place / "p.json", RECORDS)])
    out = place / "out"
    results = json.loads((out / "results.json").read_text())
    assert (results["hr@1"], results["ndcg@4"], results["n_examples"], results["n_empty"]) == (0.5, 0.5, 4, 2)
    assert (results["encoder"], results["n_items"], results["in_catalog"]) == (str(place / "lm"), 4, 0.5)
    assert pq.read_table(out / "rankings.parquet")["rank"].to_pylist() == [0, 0, 4, 4]
    assert pq.read_table(out / "per_example.parquet")["hr@1"].to_pylist() == [1, 1, 0, 0]
    assert "| p | 0.5000 | 0.5000 | 0.5000 | 0.5000 | 4 | 2 | 50.0% |" in capsys.readouterr().out


def test_the_same_answers_from_parquet_give_the_same_scores(place):
    write_generations(place / "run/finetuned/generations.parquet", (0, 3), ("a b", "f"), (["a b"], ["f"]))
    run(place, [place / "run"])
    assert json.loads((place / "out/results.json").read_text())["hr@1"] == 1.0


def test_a_folder_of_files_and_a_run_give_a_table(place, capsys):
    write_json(place / "preds/epoch1.json", RECORDS)
    write_json(place / "preds/epoch2.json", RECORDS[:2])
    write_json(place / "preds/config.json", {"not": "predictions"})
    write_generations(place / "run/finetuned/generations.parquet", (0, 3), ("a b", "f"), (["a b"], [""]))
    run(place, [place / "preds", place / "run"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| epoch1", "| epoch2", "| finetuned"]
    assert json.loads((place / "out/epoch2/results.json").read_text())["hr@1"] == 1.0
    assert (place / "out/finetuned/rankings.parquet").is_file()


def test_a_run_names_its_own_catalog_and_base_model(place, capsys):
    for name, catalog in (("run", "id2name.txt"), ("other", "more.txt")):
        write_generations(place / name / "finetuned/generations.parquet", (0, 3), ("a b", "f"), (["a b"], [""]))
        facts = {"base_model": str(place / "lm"), "data": {"catalog": str(place / catalog), "dataset": []}}
        write_json(place / name / "finetuned/generate.json", facts)
    nothing = {"data": DataSettings(), "ground": GroundSettings()}
    for generations in (place / "run", place / "run/finetuned/generations.parquet"):
        run(place, [generations], **nothing)
        assert f"catalog: {place / 'id2name.txt'} (of the run)" in capsys.readouterr().out
        assert json.loads((place / "out/results.json").read_text())["hr@1"] == 0.5
    with pytest.raises(BigrecError, match="were generated for different data"):
        run(place, [place / "run", place / "other"], **nothing)
    with pytest.raises(BigrecError, match="no catalog given"):
        run(place, [write_json(place / "p.json", RECORDS)], **nothing)


def test_a_run_that_was_moved_brings_its_data(place):
    recorded = {"base_model": "lm", "data": {"catalog": None, "dataset": ["old/run/data"]}}
    write_json(place / "run/finetuned/generate.json", recorded)
    (place / "run/data").mkdir()
    files = [place / "run/finetuned/generations.parquet"]
    data, model = evaluation.recorded_settings(files, DataSettings(), ModelSettings(base_model="mine"))
    assert (data.dataset, model.base_model) == ([str(place / "run/data")], "mine")
    given = DataSettings(catalog="mine.csv")
    assert evaluation.recorded_settings(files, given, ModelSettings())[0] == given


@pytest.mark.parametrize(("content", "message"), [(b"[{", "not valid JSON"), (b'["\xe9"]', "not UTF-8")])
def test_a_file_of_a_folder_that_cannot_be_read_is_not_left_out_in_silence(place, content, message):
    write_json(place / "preds/epoch1.json", RECORDS)
    (place / "preds/epoch2.json").write_bytes(content)
    with pytest.raises(BigrecError, match=rf"epoch2\.json.*{message}"):
        run(place, [place / "preds"])


def test_a_byte_order_mark_is_no_part_of_the_json(place):
    file = place / "preds/p.json"
    write_json(file, RECORDS[:2])
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    run(place, [place / "preds"])
    assert json.loads((place / "out/results.json").read_text())["hr@1"] == 1.0


def test_half_a_surrogate_pair_is_replaced_and_counted(place, capsys):
    run(place, [write_json(place / "p.json", [{**RECORDS[0], "predict": ["\ud83d a"]}, RECORDS[1]])])
    assert "p.json: 1 of 2 predictions hold half a surrogate pair, read as U+FFFD" in capsys.readouterr().err
    answers = read_predictions(place / "p.json", load_catalog(place / "id2name.txt"))
    assert answers.texts == ["\ufffd a", "f"]


@pytest.mark.parametrize("odd", ['before:"Heat', 5, None])
def test_an_odd_input_matters_only_where_the_history_does(place, odd, capsys):
    file = write_json(place / "p.json", [RECORDS[0], {**RECORDS[1], "input": odd}])
    run(place, [file])
    assert json.loads((place / "out/results.json").read_text())["hr@1"] == 1.0
    assert "p.json: 1 of 2 records have no readable history" in capsys.readouterr().err
    with pytest.raises(BigrecError, match=r"p\.json, record 1: "):
        run(place, [file], ground=GroundSettings(encoder=str(place / "lm"), exclude="history"))


def test_a_hybrid_ranking_puts_all_the_texts_titles_first(place):
    records = [{"input": "", "output": '"f"', "predict": [" c d e", "zz", '"f"', "a b"]}]  # "a b" is in rows 0 and 2
    write_json(place / "p.json", records)
    write_generations(place / "run/finetuned/generations.parquet", (3,), ("f",), [["c d e", "f", "a b"]])
    for source in (place / "p.json", place / "run"):
        run(place, [source], ground=GroundSettings(encoder=str(place / "lm"), ranking="hybrid"))
        table = pq.read_table(place / "out/rankings.parquet")
        assert table["top_rows"].to_pylist() == [[1, 3, 0, 2]]
        assert json.loads((place / "out/results.json").read_text())["hr@1"] == 0.0
        assert table["rank"].to_pylist() == [1]


def test_seen_items_are_looked_up_in_the_prepared_set(place):
    interactions = {"user_id": ["u"] * 4, "row": pa.array([3, 1, 0, 2], pa.int32()), "timestamp": [1, 2, 3, 4]}
    write_table(pa.table(interactions), place / "set/data/interactions/train.parquet")
    generations = place / "run/finetuned/generations.parquet"
    write_generations(generations, (2,), ("a b",), [["a b"]], example_id=["u:3"])
    settings = GroundSettings(encoder=str(place / "lm"), exclude="seen", duplicates="exact")
    data = DataSettings(catalog=str(place / "id2name.txt"), dataset=[str(place / "set")])
    run(place, [generations], ground=settings, data=data)
    assert pq.read_table(place / "out/rankings.parquet")["top_rows"].to_pylist() == [[2]]  # 3, 1, 0 were seen
    results = json.loads((place / "out/results.json").read_text())
    assert (results["hr@1"], results["exclude"]) == (1.0, "seen")
    with pytest.raises(BigrecError, match="name it with --dataset"):
        run(place, [generations], ground=settings)


def test_the_catalogs_encoding(place):
    (place / "id2name.txt").write_bytes("é\t0\nf\t1\na\t2\nb\t3\n".encode("latin-1"))
    file = write_json(place / "p.json", [{"input": "", "output": '"é"', "predict": ["é"]}])
    with pytest.raises(BigrecError, match="--encoding latin-1"):
        run(place, [file])
    settings = EvaluateSettings(generations=[str(file)], output_dir=str(place / "out"), catalog_encoding="latin-1")
    run(place, [file], evaluate=settings)
    assert json.loads((place / "out/results.json").read_text())["hr@1"] == 1.0


def test_titles_decoded_otherwise_than_the_catalog_name_the_encoding(place):
    """The reference reads the UTF-8 catalog as latin-1: its predictions hold `WALL\u00c2\u00b7E`."""
    (place / "id2name.txt").write_text("WALL·E\t0\nf\t1\na\t2\nb\t3\n", encoding="utf-8")
    mojibake = "WALL·E".encode().decode("latin-1")
    file = write_json(place / "p.json", [{"input": "", "output": f'"{mojibake}"', "predict": [mojibake]}])
    with pytest.raises(BigrecError, match=r"read as latin-1: give --encoding latin-1 to") as caught:
        run(place, [file])
    assert "--catalog" not in str(caught.value)
    settings = EvaluateSettings(generations=[str(file)], output_dir=str(place / "out"), catalog_encoding="latin-1")
    run(place, [file], evaluate=settings)
    assert json.loads((place / "out/results.json").read_text())["hr@1"] == 1.0
    write_json(file, [{"input": "", "output": '"WALL·E"', "predict": ["WALL·E"]}])
    with pytest.raises(BigrecError, match=r"catalog was read as latin-1: .*--encoding utf-8"):
        run(place, [file], evaluate=settings)


def test_names_are_distinct(place):
    for folder in ("a", "b"):
        write_json(place / folder / "p.json", RECORDS)
    assert list(find_generations([str(place / "a"), str(place / "b/p.json")])) == ["p", "p-2"]


def test_the_index_is_reused(place, monkeypatch):
    file = write_json(place / "p.json", RECORDS[:2])
    run(place, [file])
    monkeypatch.setattr("bigrec_hf.metrics.ndcg_hr.encoders.load_encoder", lambda *args: pytest.fail("loaded"))
    run(place, [file])  # only catalog titles: nothing to encode


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{**RECORDS[0], "output": '"zz"'}], "target 'zz' is not in the catalog"),
        ([{"input": "", "output": "a"}], "record 0: 'predict' must be a list of texts"),
        ([RECORDS[0], {"predict": ["a"]}], "record 1: no text field 'output'"),
        ([], "at least one record"),
        ([{**RECORDS[0], "predict": [3]}], "record 0: 'predict'"),
    ],
)
def test_faults_of_a_file(place, records, message):
    with pytest.raises(BigrecError, match=message) as caught:
        run(place, [write_json(place / "p.json", records)])
    assert "\n" not in str(caught.value)
    assert not (place / "out").exists()


def test_faults_of_settings(place):
    file = write_json(place / "p.json", RECORDS)
    (place / "broken.json").write_text("[{")
    (place / "latin.json").write_bytes(b'[{"output": "\xe9"}]')
    (place / "nothing").mkdir()
    for generations, message in (
        ([place / "none.json"], "does not exist"),
        ([place / "nothing"], "holds neither"),
        ([], "name them with --generations"),
        ([place / "broken.json"], "broken.json:1: not valid JSON"),
        ([place / "latin.json"], "not UTF-8"),
    ):
        with pytest.raises(BigrecError, match=message):
            run(place, generations)
    (place / "book.xlsx").write_bytes(b"PK")
    with pytest.raises(BigrecError, match=r"book\.xlsx: predictions are read from files that end in \.json, \.csv"):
        run(place, [place / "book.xlsx"])
    with pytest.raises(BigrecError, match="no output folder"):
        run(place, [], evaluate=EvaluateSettings(generations=[str(file)]))
    with pytest.raises(BigrecError, match="does not exist"):
        run(place, [file], encoder="no-encoder")


def test_an_index_folder_of_the_users_own_is_not_overwritten(place):
    file = write_json(place / "p.json", RECORDS)
    own = GroundSettings(encoder=str(place / "lm"), index_dir=str(place / "index"))
    run(place, [file], ground=own)
    save_lm(place / "other", bos=False)
    with pytest.raises(BigrecError, match="has encoder"):
        run(place, [file], ground=GroundSettings(encoder=str(place / "other"), index_dir=str(place / "index")))


@needs_data
def test_real_game_catalog_duplicates_count_at_their_best_row(tmp_path):
    source = Path(DATA) / "titles" / "game.id2name.txt"
    catalog = load_catalog(source)
    assert len(catalog) == 17408
    repeated = [rows for rows in catalog.rows_by_title.values() if len(rows) > 1]
    assert (len(repeated), sum(map(len, repeated))) == (383, 871)
    save_lm(tmp_path / "lm")
    title = catalog.titles[repeated[0][-1]]
    write_json(tmp_path / "p.json", [{"input": "", "output": f'"{title}"', "predict": [title]}])
    run(tmp_path, [tmp_path / "p.json"], data=DataSettings(catalog=str(source)))
    table = pq.read_table(tmp_path / "out/rankings.parquet")
    assert table["target"].to_pylist() == [repeated[0][0]]
    assert table["top_distances"].to_pylist()[0][0] == 0.0


@needs_data
@pytest.mark.parametrize("name", ["game.id2name.txt", "movies.dat"])
def test_real_titles_match_themselves_in_quotes(tmp_path, name):
    catalog = load_catalog(Path(DATA) / "titles" / name)
    records = [{"input": "", "output": f'"{title}"', "predict": []} for title in catalog.titles]
    answers = read_predictions(write_json(tmp_path / "p.json", records), catalog)
    assert answers.targets == [catalog.rows_by_title[clean_title(title)][0] for title in catalog.titles]
