"""The reward `percentile`: where a collaborative model, which is given the history alone, ranks a title.

Both models are fitted to the training split. The epoch of a SASRec model was chosen on validation examples, as in the
`sasrec` stage; EASE has one fixed ridge and reads nothing but training sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json
from bigrec_hf.common.fingerprints import file_fingerprint
from bigrec_hf.data.catalog import load_catalog
from bigrec_hf.data.examples import read_train_counts
from bigrec_hf.data.sequences import ItemSequences
from bigrec_hf.grpo.groups import Groups
from bigrec_hf.rank.baselines.ease import check_size, ease_weights, interaction_matrix
from bigrec_hf.rank.baselines.linear import history_matrix
from bigrec_hf.rank.sasrec.model import SasRecConfig, SasRecModel
from bigrec_hf.rank.sasrec.stage import check_catalog
from bigrec_hf.rank.sasrec.trainer import score_histories

EASE = "ease"
EASE_RIDGE = 500.0
MODEL_FILES = ("config.json", "model.safetensors")

ItemScores = Callable[[Sequence[Sequence[int]]], np.ndarray]
"""(n,) histories of catalog rows, oldest first -> (n, n_items), higher is better."""


@dataclass(frozen=True)
class Percentile:
    """The fraction of the other catalog rows that a model scores lower than the title.

    Ties count half. Every title has a reward, so no group is without any.
    """

    scores: ItemScores

    def __call__(self, groups: Groups) -> np.ndarray:
        """Return rewards from 0 to 1, (B, G)."""
        scores = np.asarray(self.scores(groups.histories))
        return np.stack([percentiles(row, rows) for row, rows in zip(scores, groups.rows, strict=True)])


def percentiles(scores: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the fraction of the other scores, (n,), that are lower than those of these rows; ties count half."""
    order = np.sort(scores)
    lower, upto = (np.searchsorted(order, scores[rows], side=side) for side in ("left", "right"))
    return (lower + (upto - lower - 1) / 2) / max(len(scores) - 1, 1)


def item_scores(percentile_by: str, dataset: str, sequences: ItemSequences) -> ItemScores:
    """Return the scores of the model that the setting names; `sequences`: those of the training split of `dataset`.

    Raises BigrecError for a catalog too large for EASE, or a SASRec model of another catalog.
    """
    if percentile_by == EASE:
        return ease_scores(sequences, len(load_catalog(dataset)))
    model = SasRecModel.from_pretrained(percentile_by).eval()
    check_catalog(model, load_catalog(dataset))
    return partial(score_histories, model, counts=read_train_counts(dataset))


def ease_scores(sequences: ItemSequences, n_items: int) -> ItemScores:
    """Return the scores of EASE, fitted to training sequences. Raises BigrecError for a catalog too large for it."""
    check_size(n_items)
    weights = ease_weights(interaction_matrix(sequences, n_items), EASE_RIDGE)
    return lambda histories: np.asarray(history_matrix(histories, n_items) @ weights)


def model_mark(percentile_by: str) -> dict[str, Any]:
    """Return what identifies the model: nothing for EASE, which follows from the data, or the content of the files.

    Raises BigrecError for a name that is neither `ease` nor a folder of a SASRec model.
    """
    if percentile_by == EASE:
        return {}
    folder = Path(percentile_by)
    missing = [name for name in MODEL_FILES if not (folder / name).is_file()]
    if missing or read_json(folder / MODEL_FILES[0]).get("model_type") != SasRecConfig.model_type:
        why = f"it has no {missing[0]}" if missing else "its model is of another kind"
        raise BigrecError(
            f"percentile_by is {percentile_by!r}, which is neither {EASE} nor the folder of a SASRec model ({why}): "
            "name <run_dir>/sasrec/model, which `bigrec-hf sasrec` writes"
        )
    return {"percentile_by": file_fingerprint(*(folder / name for name in MODEL_FILES))}
