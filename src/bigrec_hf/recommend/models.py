"""The models of a run that score every item for a history, fitted to the run's data as its stages fit them.

A score function takes histories of catalog rows, oldest first, and gives (n, n_items), larger is better; rows below 0
(items that are not in the catalog) are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json
from bigrec_hf.data.catalog import Catalog, catalog_sha256, load_catalog
from bigrec_hf.data.examples import load_config, read_train_counts
from bigrec_hf.data.generations import sample_examples
from bigrec_hf.data.rankings import target_rows
from bigrec_hf.data.sequences import ItemSequences, training_sequences
from bigrec_hf.hub.bundle import RECIPE_FILE
from bigrec_hf.rank.baselines.cooccurrence import cooccurrence_scores, count_neighbors
from bigrec_hf.rank.baselines.linear import Fitted, choose_model, history_matrix, linear_scores
from bigrec_hf.rank.baselines.stage import MODELS
from bigrec_hf.rank.item_models import VALIDATION_SAMPLE
from bigrec_hf.rank.model_selection import CHOICE_FILE
from bigrec_hf.settings import LinearSettings
from bigrec_hf.settings.recipes import read_recipe

Score = Callable[[Sequence[Sequence[int]]], np.ndarray]
POPULARITY, COOCCURRENCE, SASREC = "popularity", "cooccurrence", "sasrec"
NAMES = (*MODELS, POPULARITY, COOCCURRENCE, SASREC)


class ItemModels:
    """The models of one prepared set; those of a run with the parameters that the run chose."""

    def __init__(self, dataset: str, run_dir: Path | None) -> None:
        """`run_dir`: None for parameters chosen here, on the validation examples."""
        self.dataset, self.run_dir = dataset, run_dir

    @cached_property
    def catalog(self) -> Catalog:
        """The items of the prepared set."""
        return load_catalog(self.dataset)

    @cached_property
    def counts(self) -> np.ndarray:
        """(n_items,) int64: how often each item is a training target."""
        return read_train_counts(self.dataset)

    @cached_property
    def sequences(self) -> ItemSequences:
        """The training sequences."""
        return training_sequences(load_config(self.dataset, "default", "train").data.table)

    def score(self, name: str) -> Score:
        """The score function of a model, one of NAMES. Raises BigrecError for another name."""
        if name == POPULARITY:
            counts = self.counts.astype(np.float64)
            return lambda histories: np.broadcast_to(counts, (len(histories), len(counts)))
        if name == COOCCURRENCE:
            counts = self.counts.astype(np.float64)
            neighbors = count_neighbors(self.sequences.items, self.sequences.starts, len(self.catalog))
            return lambda histories: cooccurrence_scores(histories, neighbors, counts)
        if name == SASREC:
            return self._sasrec()
        if name not in MODELS:
            raise BigrecError(f"{name!r} is not a model that scores items: choose among {', '.join(NAMES)}")
        fitted, decay = self._linear(name)
        weights, n_items = fitted.weights(), len(self.catalog)
        return lambda histories: linear_scores(history_matrix(histories, n_items, decay), weights, self.counts)

    def _linear(self, name: str) -> tuple[Fitted, float]:
        """A linear model and its recency decay: those of the run, else chosen as the `linear` stage does."""
        file = self.run_dir / RECIPE_FILE if self.run_dir is not None else None
        recipe = read_recipe(file).get("linear", {}) if file is not None and file.is_file() else {}
        settings, n_items = LinearSettings(**recipe), len(self.catalog)
        chosen = read_json(self.run_dir / name / CHOICE_FILE).get("chosen") if self.run_dir is not None else None
        if chosen:
            if name == "ease":
                settings = replace(settings, ease_lambdas=[chosen["lambda"]])
            else:
                settings = replace(
                    settings,
                    itemknn_neighbors=[int(chosen["neighbors"])],
                    itemknn_shrinkages=[chosen["shrinkage"]],
                )
            return MODELS[name](self.sequences, n_items, settings)[0], chosen["decay"]
        examples = sample_examples(self.dataset, "validation", VALIDATION_SAMPLE)
        found = choose_model(
            MODELS[name](self.sequences, n_items, settings),
            settings.linear_decays,
            examples.histories,
            target_rows(examples.targets, self.catalog, "best"),
            self.counts,
        )
        shown = ", ".join(f"{key} {value:g}" for key, value in found.parameters.items())
        print(f"{name}: {shown} chosen on {len(examples.targets):,} validation examples of {self.dataset}")
        return found.fitted, found.decay

    def _sasrec(self) -> Score:
        from bigrec_hf.rank.sasrec.model import SasRecModel
        from bigrec_hf.rank.sasrec.trainer import score_histories

        folder = self.run_dir / SASREC / "model" if self.run_dir is not None else None
        if folder is None or not folder.is_dir():
            raise BigrecError(
                f"{self.run_dir or self.dataset} holds no trained SASRec: train one with `bigrec-hf sasrec`"
            )
        model = SasRecModel.from_pretrained(folder).eval()
        if model.config.catalog_sha256 != catalog_sha256(self.catalog):
            raise BigrecError(
                f"the SASRec model in {folder} belongs to another catalog than {self.dataset!r}: train it again"
            )
        return lambda histories: score_histories(model, _known(histories), counts=self.counts)


def _known(histories: Sequence[Sequence[int]]) -> list[list[int]]:
    return [[row for row in rows if row >= 0] for rows in histories]
