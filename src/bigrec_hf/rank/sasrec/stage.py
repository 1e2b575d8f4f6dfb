"""The `sasrec` stage: train SASRec once per run, then rank and score the same examples as the language model.

Writes `<run_dir>/sasrec/model/` (a `PreTrainedModel` folder) and `training.json`; and, for the evaluated split in
`<run_dir>/sasrec/` and for validation in `<run_dir>/validation/sasrec/`: `rankings.parquet`, `scores.safetensors`, and
what `score` writes.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigrec_hf.common.environment import environment, measured
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_record, write_json
from bigrec_hf.common.fingerprints import fingerprint
from bigrec_hf.data.catalog import Catalog, catalog_sha256, load_catalog
from bigrec_hf.data.examples import load_config, read_train_counts
from bigrec_hf.data.run_folder import run_folder
from bigrec_hf.data.sequences import training_sequences
from bigrec_hf.models.identity import TRAINING_FILE
from bigrec_hf.rank.item_models import choosing_examples, rank_by_model, training_set
from bigrec_hf.rank.sasrec.model import SasRecModel
from bigrec_hf.rank.sasrec.trainer import score_histories, train_sasrec
from bigrec_hf.score.stage import results_table

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings, GroundSettings, RankOptions, RunSettings, SasrecSettings, ScoreSettings


NAME = "sasrec"


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
    folder, dataset = Path(folder), training_set(data)
    train = load_config(dataset, "default", "train").data.table
    if not train.num_rows:
        raise BigrecError(f"the train split of {dataset!r} is empty, so SASRec cannot learn: prepare more data")
    sequences = training_sequences(train)
    validation = choosing_examples(data, options)
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
    if read_record(folder / TRAINING_FILE).get("fingerprint") == mark and (folder / "model").is_dir():
        print(f"SASRec in {folder} is trained and its settings are unchanged: kept")
        return SasRecModel.from_pretrained(folder / "model").eval()
    checkpoints = folder / "checkpoints"
    if read_record(checkpoints / "settings.json").get("fingerprint") != mark and checkpoints.exists():
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


def check_catalog(model: SasRecModel, catalog: Catalog) -> None:
    """Raise BigrecError if the model belongs to another catalog."""
    if model.config.catalog_sha256 != catalog_sha256(catalog):
        raise BigrecError(
            f"the SASRec model belongs to another catalog ({model.config.n_items:,} items; this one has "
            f"{len(catalog):,}): train it on this data set with `bigrec-hf sasrec`"
        )


def main(
    run: RunSettings, data: DataSettings, ground: GroundSettings, score: ScoreSettings, sasrec: SasrecSettings
) -> None:
    """Train, then rank and score the evaluated examples and those of the validation split; print one table."""
    folder, dataset = run_folder(run), training_set(data)
    catalog = load_catalog(dataset)
    if data.catalog and catalog_sha256(load_catalog(data.catalog)) != catalog_sha256(catalog):
        raise BigrecError(f"catalog {data.catalog!r} is not that of {dataset!r}, which SASRec scores: omit --catalog")
    model = trained_model(folder / NAME, data, catalog, sasrec, ground.options, seed=run.seed)
    check_catalog(model, catalog)
    counts = read_train_counts(dataset)
    scorer = partial(score_histories, model, counts=counts, progress=True)
    results = rank_by_model(NAME, scorer, run, data, ground, score, catalog)
    print(results_table(results, sorted(set(score.ks))))
