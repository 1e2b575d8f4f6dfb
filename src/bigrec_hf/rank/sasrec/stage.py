"""The `sasrec` stage: train SASRec once per run, then rank and score the same examples as the language model.

Writes `<run_dir>/sasrec/model/` (a `PreTrainedModel` folder) and `training.json`; and, for the evaluated split in
`<run_dir>/sasrec/` and for validation in `<run_dir>/validation/sasrec/`: `rankings.parquet`, `scores.safetensors`, and
what `score` writes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigrec_hf.common.environment import environment, measured
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, write_json
from bigrec_hf.common.fingerprints import fingerprint
from bigrec_hf.data.catalog import Catalog, catalog_sha256, load_catalog
from bigrec_hf.data.earlier import with_seen
from bigrec_hf.data.examples import load_config, read_train_counts
from bigrec_hf.data.generations import Examples, evaluated_examples, sample_examples
from bigrec_hf.data.item_scores import SCORES_FILE, write_scores
from bigrec_hf.data.rankings import write_rankings
from bigrec_hf.data.run_folder import VALIDATION_DIR
from bigrec_hf.data.sequences import training_sequences
from bigrec_hf.ground.from_scores import baseline_rankings
from bigrec_hf.models.identity import TRAINING_FILE
from bigrec_hf.rank.sasrec.model import SasRecModel
from bigrec_hf.rank.sasrec.trainer import score_histories, train_sasrec
from bigrec_hf.score.stage import results_table, score_folder

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings, GroundSettings, RankOptions, RunSettings, SasrecSettings, ScoreSettings


NAME = "sasrec"
VALIDATION_SAMPLE = 5000  # maximum number of validation examples that choose the epoch


def trained_model(
    folder: str | Path,
    data: DataSettings,
    catalog: Catalog,
    sasrec: SasrecSettings,
    options: RankOptions,
    *,
    seed: int,
) -> SasRecModel:
    """Return the SASRec of the first prepared data set, from `folder`/model if settings and data are unchanged.

    Otherwise it is trained, from the last checkpoint if there is one, with early stopping on validation examples that
    are ranked according to `options`. Raises BigrecError if the train split is empty.
    """
    folder, dataset = Path(folder), data.dataset[0]
    train = load_config(dataset, "default", "train").data.table
    if not train.num_rows:
        raise BigrecError(f"the train split of {dataset!r} is empty, so SASRec cannot learn: prepare more data")
    sequences = training_sequences(train)
    validation = with_seen(sample_examples(dataset, "validation", VALIDATION_SAMPLE), options, data)
    excluded = options.excluded(validation)
    counts = read_train_counts(dataset)
    content = hashlib.sha256()
    for part in (sequences.items, sequences.starts, counts):
        content.update(part.tobytes())
    content.update(json.dumps([validation.targets, validation.histories, excluded]).encode())
    catalog_sha = catalog_sha256(catalog)
    settings: dict[str, Any] = {key.removeprefix("sasrec_"): value for key, value in vars(sasrec).items()}
    settings |= {"seed": seed, "catalog_sha256": catalog_sha}
    mark = fingerprint(settings, content.hexdigest())
    if read_json(folder / TRAINING_FILE).get("fingerprint") == mark and (folder / "model").is_dir():
        print(f"SASRec in {folder} is trained and its settings are unchanged: kept")
        return SasRecModel.from_pretrained(folder / "model").eval()
    checkpoints = folder / "checkpoints"
    if read_json(checkpoints / "settings.json").get("fingerprint") != mark and checkpoints.exists():
        shutil.rmtree(checkpoints)  # checkpoints of other settings or data must not be resumed
    write_json(checkpoints / "settings.json", {"fingerprint": mark, **settings})
    print(f"SASRec: {len(sequences):,} training sequences, {len(sequences.items):,} entries, {len(counts):,} items")
    record: dict[str, Any] = {
        "fingerprint": mark,
        "settings": settings,
        "n_validation": len(validation.targets),
        "exclude": options.exclude,
    }
    timing: dict[str, Any] = {}
    with measured(timing):
        model, result = train_sasrec(
            sequences,
            counts,
            validation,
            checkpoints,
            sasrec,
            seed=seed,
            excluded=excluded,
            catalog_sha256=catalog_sha,
        )
    record |= {"sequences": len(sequences), "sequence_items": len(sequences.items), **timing, **result}
    model.save_pretrained(folder / "model")
    write_json(folder / TRAINING_FILE, record | {"environment": environment()})
    shutil.rmtree(checkpoints)
    print(f"SASRec written to {folder / 'model'} after {result['epochs_done']:g} epochs, {timing['seconds']:.0f} s")
    return model


def sasrec_tables(
    model: SasRecModel,
    catalog: Catalog,
    counts: np.ndarray,
    examples: Examples,
    folder: str | Path,
    options: RankOptions,
) -> None:
    """Write `folder`/scores.safetensors (`item_scores.write_scores`) and `folder`/rankings.parquet of the examples.

    Raises BigrecError if the model belongs to another catalog.
    """
    if model.config.catalog_sha256 != catalog_sha256(catalog):
        raise BigrecError(
            f"the SASRec model belongs to another catalog ({model.config.n_items:,} items; this one has "
            f"{len(catalog):,}): train it on this data set with `bigrec-hf sasrec`"
        )
    scores = score_histories(model, examples.histories, counts=counts, progress=True)
    table = baseline_rankings(NAME, lambda start, stop: scores[start:stop], catalog, examples, options)
    write_scores(Path(folder) / SCORES_FILE, scores, examples.example_ids, catalog, model=NAME)
    write_rankings(table, folder)


def main(
    run: RunSettings, data: DataSettings, ground: GroundSettings, score: ScoreSettings, sasrec: SasrecSettings
) -> None:
    """Train, then rank and score the evaluated examples and those of the validation split; print one table."""
    if run.run_dir is None:
        raise BigrecError("no run folder given: name one with --output_dir or --config RECIPE")
    if not data.dataset:
        raise BigrecError("no data set given: SASRec is trained on a prepared data set, name one with --dataset")
    folder, dataset = Path(run.run_dir), data.dataset[0]
    catalog = load_catalog(dataset)
    if data.catalog and catalog_sha256(load_catalog(data.catalog)) != catalog_sha256(catalog):
        raise BigrecError(f"catalog {data.catalog!r} is not that of {dataset!r}, which SASRec scores: omit --catalog")
    model = trained_model(folder / NAME, data, catalog, sasrec, ground.options, seed=run.seed)
    counts = read_train_counts(dataset)
    results: dict[str, dict[str, Any]] = {}
    for place, split in ((folder, data.split), (folder / VALIDATION_DIR, "validation")):
        examples = evaluated_examples(place, catalog, dataset, split, data.eval_sample)
        if not examples.example_ids:
            print(f"sasrec: the {split} split of {dataset} is empty: skipped")
            continue
        examples = with_seen(examples, ground.options, data)
        sasrec_tables(model, catalog, counts, examples, place / NAME, ground.options)
        results[split] = score_folder(place / NAME, **vars(score), seed=run.seed)
    print(results_table(results, sorted(set(score.ks))))
