"""Evaluate: ground and score any prediction file, ours, the reference's or another system's (`prediction_files`).

Reads generations.parquet, a run folder, the reference's prediction JSON (an array of {"instruction", "input", "output",
"predict": [...]}), or folders of such files. For one input, results.json, per_example.parquet and rankings.parquet are
written to the output folder itself; for several, to a subfolder each, named after the file.

Half a surrogate pair in a prediction (`"\\ud83d"`, which no UTF-8 file can hold) is read as U+FFFD, and the number of
such predictions is printed. An `input` that is not a list of titles is an error only with --exclude history; otherwise
such records have no history, and their number is printed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, read_json_file, readable
from bigrec_hf.data.catalog import Catalog, catalog_source, load_catalog, semantic_ids
from bigrec_hf.data.earlier import with_seen
from bigrec_hf.data.examples import read_input
from bigrec_hf.data.generations import (
    GENERATE_FILE,
    GENERATIONS_FILE,
    Answers,
    read_generations,
    read_texts,
    resolve_targets,
)
from bigrec_hf.data.rankings import write_rankings
from bigrec_hf.data.run_folder import recorded_place
from bigrec_hf.ground.distance import ground_answers
from bigrec_hf.ground.hybrid import hybrid_rankings
from bigrec_hf.ground.index import open_index
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.score.lists import list_rankings
from bigrec_hf.score.prediction_files import (
    RUNS,
    TABLES,
    PredictionColumns,
    Predictions,
    read_prediction_table,
    read_records,
    read_run,
    read_scored_json,
    read_targets,
)
from bigrec_hf.score.stage import results_table, score_rankings, write_results
from bigrec_hf.settings import RankOptions

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings, EvaluateSettings, GroundSettings, ModelSettings, ScoreSettings


def find_generations(paths: Sequence[str]) -> dict[str, Path]:
    """Return every prediction file in `paths` (files, run folders, folders of files) by a distinct name.

    Raises BigrecError for a path that has none.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_file():
            files.append(path)
            continue
        if not path.is_dir():
            raise BigrecError(
                f"{path} does not exist: give generations.parquet, a prediction JSON, or a folder of them"
            )
        runs = [path / GENERATIONS_FILE, *sorted(path.glob(f"*/{GENERATIONS_FILE}"))]
        found = [file for file in runs if file.is_file()] or [f for f in sorted(path.glob("*.json")) if has_predict(f)]
        if not found:
            raise BigrecError(f"{path} holds neither {GENERATIONS_FILE} nor a JSON file with a `predict` field")
        files.extend(found)
    if not files:
        raise BigrecError("no predictions given: name them with --generations")
    named: dict[str, Path] = {}
    for file in files:
        base = file.parent.name if file.name == GENERATIONS_FILE else file.stem
        name, number = base or "predictions", 2
        while name in named:
            name, number = f"{base}-{number}", number + 1
        named[name] = file
    return named


def recorded_settings(
    files: Iterable[Path], data: DataSettings, model: ModelSettings
) -> tuple[DataSettings, ModelSettings]:
    """Return the settings with the catalog, data sets and base model that are not given taken from the records of the
    runs that generated the files (generate.json beside them). What no file has a record of stays as it is.

    Raises BigrecError if the files were generated for different data.
    """
    found: dict[str, tuple[str | None, list[str]]] = {}
    bases = set()
    for file in files:
        record = file.with_name(GENERATE_FILE)
        facts = read_json(record) if file.name == GENERATIONS_FILE else {}
        with readable(record):
            if facts:
                run_dir, named = file.absolute().parent.parent, facts["data"]
                sets = [recorded_place(name, run_dir, "data") for name in named["dataset"]]
                found[str(file)] = named["catalog"], sets
                bases.add(str(facts["base_model"]))
    if not (data.catalog or data.dataset) and found:
        (first, (catalog, dataset)), *others = found.items()
        for other, names in others:
            if names != (catalog, dataset):
                raise BigrecError(
                    f"{first} and {other} were generated for different data: evaluate them one by one, or name the "
                    "catalog with --catalog or --dataset"
                )
        data = replace(data, catalog=catalog, dataset=dataset)
        print(f"catalog: {catalog_source(catalog, dataset)} (of the run)")
    if model.base_model is None and len(bases) == 1:
        model = replace(model, base_model=bases.pop())
    return data, model


def has_predict(file: Path) -> bool:
    """Return whether a JSON file looks like the reference's predictions: an array whose first record has `predict`.

    Raises BigrecError for a file that is not JSON: it may be a truncated prediction file.
    """
    records = read_json_file(file)
    return isinstance(records, list) and bool(records) and isinstance(records[0], dict) and C.PREDICT in records[0]


def read_predictions(path: Path, catalog: Catalog, *, need_history: bool = False) -> Answers:
    """Read the reference's prediction JSON; ids are `{file stem}#{record number}`, as in `load_json_examples`.

    The first text of `predict` is grounded (without surrounding spaces and quotes, as in the reference); history titles
    that are not in the catalog are dropped. Raises BigrecError naming file and record; for an unreadable history
    only if it is needed.
    """
    records = read_json_file(path)
    if not isinstance(records, list) or not records:
        raise BigrecError(f"{path} must hold a JSON array of at least one record with `output` and `predict`")
    known = catalog.rows_by_title
    texts, outputs, histories = [], [], []
    n_repaired = n_unread = 0
    for number, record in enumerate(records):
        place = f"{path}, record {number}"
        text = next(iter(_texts(record, place)), "")
        texts.append(_repaired(text))
        n_repaired += texts[-1] != text
        outputs.append(clean_title(record[C.OUTPUT]))
        try:
            titles = _history(record, place)
        except BigrecError:
            if need_history:
                raise
            titles, n_unread = [], n_unread + 1
        histories.append([known[clean_title(title)][0] for title in titles if clean_title(title) in known])
    for n, what in (
        (n_repaired, "predictions hold half a surrogate pair, read as U+FFFD"),
        (n_unread, "records have no readable history and are evaluated without one"),
    ):
        if n:
            print(f"evaluate: {path}: {n} of {len(records)} {what}", file=sys.stderr)
    targets = resolve_targets(outputs, None, catalog, str(path))
    return Answers([f"{path.stem}#{number}" for number in range(len(records))], texts, targets, histories)


def _history(record: dict[str, Any], place: str) -> list[str]:
    """Return the history titles in the `input` of a record."""
    if not isinstance(record.get(C.INPUT), str):
        raise BigrecError(f"{place}: no text field 'input': --exclude history needs it")
    return read_input(record, place)[1]


def _repaired(text: str) -> str:
    """Return the text with U+FFFD for each half of a surrogate pair."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _texts(record: Any, place: str) -> list[str]:
    """Return the texts of `predict` (a list or a single string), best first; the first is grounded."""
    if not isinstance(record, dict) or not isinstance(record.get(C.OUTPUT), str):
        raise BigrecError(f"{place}: no text field 'output': expected instruction, input, output and predict")
    predict = record.get(C.PREDICT)
    predict = [predict] if isinstance(predict, str) else predict
    if not isinstance(predict, list) or not all(isinstance(text, str) for text in predict):
        raise BigrecError(f"{place}: 'predict' must be a list of texts: run the inference that writes it first")
    return [clean_title(text) for text in predict]


def evaluate_file(path: Path, catalog: Catalog, *, need_history: bool) -> Answers:
    """Read one prediction file, by its suffix."""
    if path.suffix == ".parquet":
        return read_generations(path, catalog)
    return read_predictions(path, catalog, need_history=need_history)


def all_texts(path: Path) -> list[list[str]]:
    """All texts of one prediction file, best first, one list per example: what a hybrid ranking puts first."""
    if path.suffix == ".parquet":
        return read_texts(path)
    records = read_json_file(path)
    return [[_repaired(text) for text in _texts(record, f"{path}, record {i}")] for i, record in enumerate(records)]


def other_predictions(file: Path, evaluate: EvaluateSettings) -> Predictions | None:
    """The predictions of a file that is neither a generations.parquet nor the reference's JSON (unless as `lists`)."""
    named = PredictionColumns(
        evaluate.predictions_user,
        evaluate.predictions_item,
        evaluate.predictions_text,
        evaluate.predictions_score,
        evaluate.predictions_rank,
        evaluate.predictions_target,
    )
    if file.suffix in RUNS:
        return read_run(file)
    if file.suffix == ".parquet":
        ours = {C.EXAMPLE_ID, C.TARGET_TITLE, C.TEXTS} <= set(pl.read_parquet_schema(file))
        return None if ours else read_prediction_table(file, named)
    if file.suffix in TABLES:
        return read_prediction_table(file, named)
    if file.suffix not in (".json", ""):
        kinds = ", ".join((".json", *TABLES, *RUNS))
        raise BigrecError(f"{file}: predictions are read from files that end in {kinds}: convert it")
    content = read_json_file(file)
    if isinstance(content, dict):
        return read_scored_json(file, content)
    return read_records(file, content) if evaluate.lists and isinstance(content, list) and content else None


def are_items(found: Predictions, catalog: Catalog) -> bool:
    """Whether most of a file's first texts are item ids of the catalog, and so not to be grounded."""
    first = [own[0] for own in found.entries if own]
    ids = set(catalog.item_ids) - set(catalog.rows_by_title)
    return 2 * sum(text in ids for text in first) > len(first)


def as_answers(
    found: Predictions, catalog: Catalog, data: DataSettings, truth: Mapping[str, str] | None, place: str
) -> Answers:
    """Generated texts of a table, to be grounded; the truth as in `list_rankings`."""
    table = list_rankings(found, catalog, RankOptions(), data, targets=truth, place=place)
    texts = [clean_title(own[0]) if own else "" for own in found.entries]
    return Answers(table[C.EXAMPLE_ID].to_pylist(), texts, table[C.TARGET].to_pylist(), [[] for _ in texts])


def main(
    evaluate: EvaluateSettings,
    data: DataSettings,
    model: ModelSettings,
    ground: GroundSettings,
    score: ScoreSettings,
) -> None:
    """Ground and score every prediction file; print one table."""
    if evaluate.output_dir is None:
        raise BigrecError("no output folder given: name one with --output_dir")
    if ground.ranking == "scores":
        raise BigrecError("ranking scores needs a run's item scores: use `bigrec-hf ground`, then `bigrec-hf score`")
    output = Path(evaluate.output_dir)
    files = find_generations(evaluate.generations)
    data, model = recorded_settings(files.values(), data, model)
    catalog = load_catalog(catalog_source(data.catalog, data.dataset), evaluate.catalog_encoding)
    semantic = semantic_ids(data.catalog, evaluate.catalog_encoding)
    truth = read_targets(Path(evaluate.targets_file)) if evaluate.targets_file else None
    # read all files before loading the model
    answers: dict[str, Answers] = {}
    texts: dict[str, list[list[str]]] = {}
    tables: dict[str, pa.Table] = {}
    for name, file in files.items():
        found = other_predictions(file, evaluate)
        if found is None:
            answers[name] = evaluate_file(file, catalog, need_history=ground.exclude == "history")
            texts[name] = all_texts(file)
        elif found.texts and not evaluate.lists and not are_items(found, catalog):
            answers[name] = as_answers(found, catalog, data, truth, str(file))
            texts[name] = found.entries
        else:
            if ground.exclude != "none":
                raise BigrecError(f"{file} is ranked already: --exclude cannot leave items out, omit it")
            tables[name] = list_rankings(
                found, catalog, ground.options, data, targets=truth, semantic_ids=semantic, place=file
            )
    if answers:
        answers = {name: with_seen(answer, ground.options, data) for name, answer in answers.items()}
        index, encode = open_index(catalog, model, ground, output / "index")
    rows = {}
    for name in files:
        folder = output if len(files) == 1 else output / name
        if name in tables:
            table = tables[name]
        elif ground.ranking == "hybrid":
            table = hybrid_rankings(texts[name], answers[name], index, encode, ground.options)
        else:
            table = ground_answers(answers[name], index, encode, ground.options)
        rows[name], per_example = score_rankings(table, **vars(score))
        write_rankings(table, folder)
        write_results(rows[name], per_example, folder)
    print(results_table(rows, sorted(set(score.ks))))
