"""The rankers of a run, each as a function from histories to recommendations: the language model (with each decoding
that the run has ranked), the models that score items, and the combinations of both whose weights the run has chosen on
validation (`rerank`, `pool`).

For the histories of the run's test examples a ranker gives the run's own rankings. Another weight of what is combined
with the language model can be asked for (`priors.py`).
"""

from __future__ import annotations

from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json
from bigrec_hf.common.fingerprints import file_fingerprint
from bigrec_hf.common.hub_names import pin_name
from bigrec_hf.data.catalog import Catalog, read_items_parquet
from bigrec_hf.data.generations import GENERATE_FILE
from bigrec_hf.data.prepared import data_mark
from bigrec_hf.data.rankings import HYBRID, RANKINGS_FILE
from bigrec_hf.generate.strategy import Decoding
from bigrec_hf.ground.index import CATALOG_FILE
from bigrec_hf.hub.bundle import CONFIG_FILE, METHOD, Bundle, config_of_method, locate
from bigrec_hf.hub.by_score import best_items
from bigrec_hf.hub.config import RecommenderConfig
from bigrec_hf.hub.histories import Found, ItemChoice
from bigrec_hf.hub.items import bundle_catalog
from bigrec_hf.hub.recommender import Recommender
from bigrec_hf.models.identity import TRAINING_FILE, adapter_fingerprint
from bigrec_hf.rank.model_selection import CHOICE_FILE
from bigrec_hf.recommend.mixes import Engine, Histories, Rank, by_texts, in_pool, reranked
from bigrec_hf.recommend.models import NAMES, POPULARITY, SASREC, ItemModels, Score
from bigrec_hf.recommend.priors import Prior, plain_choice, prior_of, with_weight
from bigrec_hf.settings import DataSettings, PipelineSettings

ADAPTER_CONFIG = "adapter_config.json"  # PEFT's
CONSTRAINED = f"{METHOD}_constrained"  # as the ranker of `run` names it


class Rankers:
    """All rankers of a run; of an adapter that lies elsewhere, or of a prepared set alone, those that are possible."""

    def __init__(self, name: str | Path | Recommender | None, dataset: str | None = None, **options: Any) -> None:
        """`name`: as for `Recommender.from_pretrained`, which gets the `options` when the model is first needed, or
        such a recommender; with a `dataset` also a run without a language model, or None. `dataset`: the prepared set
        that the models of items are fitted to (default: the run's)."""
        self.given = name if isinstance(name, Recommender) else None
        self.name = self.given.bundle.adapter if self.given else str(name or dataset)
        if self.given is not None:
            self.bundle: Bundle | None = self.given.bundle
        elif dataset is not None and (name is None or has_no_language_model(Path(str(name)))):
            self.bundle = None
        else:
            self.bundle = locate(pin_name(str(name), "model"))
        self.run_dir = self.bundle.run_dir if self.bundle else Path(str(name)) if name else None
        self.options = options
        self.ranks: dict[str, Rank] = {}
        self.fitted: dict[str, Score] = {}
        self.dataset = dataset or (self.bundle.dataset if self.bundle else None)

    @cached_property
    def recommender(self) -> Recommender:
        """The language model, loaded when first needed."""
        if self.given is not None:
            return self.given
        if self.bundle is None:
            raise BigrecError(f"{self.name} holds no language model: train one with `bigrec-hf run`")
        return Recommender.from_pretrained(self.name, **self.options)

    @cached_property
    def models(self) -> ItemModels:
        """The models that score items. Raises BigrecError if no prepared set is known, or that of other items."""
        if self.dataset is None:
            raise BigrecError(f"{self.name} names no prepared set to fit other models to: name it with --dataset")
        models = ItemModels(self.dataset, self.run_dir)
        if self.bundle is not None and models.catalog.titles != self.catalog.titles:
            raise BigrecError(
                f"the items of {self.dataset!r} are not the catalog of {self.name}: name its own prepared set"
            )
        return models

    @cached_property
    def catalog(self) -> Catalog:
        """The items that are recommended."""
        if self.bundle is None:
            return self.models.catalog
        if self.given is None and self.bundle.config.by_score:
            return bundle_catalog(self.bundle)
        if self.given is None and self.bundle.index is not None and Path(self.bundle.index).is_dir():
            return read_items_parquet(Path(self.bundle.index) / CATALOG_FILE)  # without the embeddings
        return self.recommender.catalog

    @cached_property
    def train_counts(self) -> np.ndarray | None:
        """(n_items,) int64: how often each item is a training target; None if nothing says so."""
        if self.dataset is not None:
            return self.models.counts
        return self.recommender.train_counts

    def names(self) -> list[str]:
        """The rankers that can be asked for; sasrec only where the run has trained it."""
        files = sorted(self.run_dir.glob(f"*/{CHOICE_FILE}")) if self.run_dir is not None else []
        mixes = [file.parent.name for file in files if self._is_mix(read_json(file))]
        trained = self.run_dir is not None and (self.run_dir / SASREC / "model").is_dir()
        own = [name for name in NAMES if name != SASREC or trained] if self.dataset else []
        return [*([METHOD] if self.bundle else ()), *own, *mixes, *self.decodings]

    @cached_property
    def decodings(self) -> dict[str, RecommenderConfig]:
        """Rankings by titles that the same model writes with another decoding, such as constrained beams; by distance,
        or (HYBRID) the titles of the beams first. Those of the run, and constrained beams for any such model."""
        if self.bundle is None or self.bundle.config.by_score:
            return {}
        found: dict[str, RecommenderConfig] = {}
        run_dir = self.run_dir
        for file in sorted(run_dir.glob(f"*/{GENERATE_FILE}")) if run_dir is not None else ():
            config = config_of_method(self.bundle, file.parent)
            for name in (file.parent.name, file.parent.name + HYBRID):
                if config is not None and name != METHOD and (file.parents[1] / name / RANKINGS_FILE).is_file():
                    found[name] = config
        decoding = Decoding(**self.bundle.config.decoding)
        made = run_dir is not None and (run_dir / CONSTRAINED).is_dir()  # by this model or another
        if not made and not decoding.is_constrained:
            beams = PipelineSettings().constrained_beams
            decoding = replace(decoding, strategy="constrained", num_beams=beams, num_return_sequences=0)
            found[CONSTRAINED + HYBRID] = replace(self.bundle.config, decoding=asdict(decoding))
        return found

    def _is_mix(self, choice: dict[str, Any]) -> bool:
        """Whether `rerank` has chosen this for the texts of the model, or `pool` for its probabilities."""
        by_score = self.bundle is not None and self.bundle.config.by_score
        if "weights" in choice:
            return by_score or METHOD not in choice["weights"]
        return "formula" in choice and not by_score

    def facts(self, ranker: str) -> dict[str, Any]:
        """What a ranker's results depend on; no model is loaded. Raises BigrecError for an unknown ranker."""
        if ranker not in self.names():
            more = ", or train one with `bigrec-hf sasrec`" if ranker == SASREC else ""
            raise BigrecError(f"{self.name} has no ranker {ranker!r}: choose among {', '.join(self.names())}{more}")
        found: dict[str, Any] = {"ranker": ranker, "dataset": self.dataset}
        if self.bundle is not None and ranker not in NAMES:
            config = self.decodings.get(ranker, self.bundle.config)
            found |= {"adapter_sha256": adapter_fingerprint(self.bundle.adapter), "config": asdict(config)}
        if ranker != METHOD and self.dataset is not None:
            found["data"] = data_mark(DataSettings(dataset=[self.dataset]))
        if ranker != METHOD and self.run_dir is not None:
            files = sorted([*self.run_dir.glob(f"*/{CHOICE_FILE}"), *self.run_dir.glob(f"{SASREC}/{TRAINING_FILE}")])
            found["chosen"] = {file.parent.name: file_fingerprint(file) for file in files}
        return found

    def prior(self, ranker: str) -> Prior | None:
        """What a ranker mixes with the language model; None for one of which that is not known, or nothing."""
        choice = self._choice(ranker)
        return prior_of(choice) if choice else None

    def _choice(self, ranker: str) -> dict[str, Any]:
        if ranker == METHOD and self.bundle is not None:
            known = self.train_counts is not None
            return plain_choice(by_score=self.bundle.config.by_score) if known else {}
        if ranker in NAMES or self.run_dir is None:
            return {}
        return read_json(self.run_dir / ranker / CHOICE_FILE)

    def rank(self, ranker: str, prior_weight: float | None = None) -> Rank:
        """The function of a ranker, one of `names`; fitted or read when it is first asked for.

        `prior_weight`: of what it mixes with the language model (None = the run's choice; without a mix, popularity is
        given this weight). Raises BigrecError for another ranker, for one that needs what is known of the run's
        examples only, and for a weight out of range or of nothing.
        """
        if prior_weight is not None:
            self.facts(ranker)
            choice = self._choice(ranker)
            if not choice:
                raise BigrecError(f"prior_weight: the ranker {ranker} mixes nothing with the language model")
            chosen = with_weight(choice, prior_weight)
            if (ranker, prior_weight) != (METHOD, 0.0):
                return self._pool(chosen) if "weights" in chosen else self._rerank(ranker, chosen)
        if ranker not in self.ranks:
            self.ranks[ranker] = self._rank(ranker)
        return self.ranks[ranker]

    def _rank(self, ranker: str) -> Rank:
        self.facts(ranker)
        if ranker == METHOD:
            return self._language_model
        if ranker in NAMES:
            return self._by_model(ranker)
        if ranker in self.decodings:
            return by_texts(self._engine(), self.decodings[ranker], hybrid=ranker.endswith(HYBRID))
        choice = self._choice(ranker)
        return self._pool(choice) if "weights" in choice else self._rerank(ranker, choice)

    def popularity(self, n: int, choice: ItemChoice) -> list[Found]:
        """The most popular items, for `n` users without a known item. BigrecError if no counts are known."""
        counts = self._counts()
        scores = np.broadcast_to(counts.astype(np.float64), (n, len(counts)))
        return [Found([], [], items) for items in best_items(scores, self.catalog, choice)]

    def _counts(self) -> np.ndarray:
        if self.train_counts is None:
            raise BigrecError(
                f"{self.name} says nothing of popularity, which users without a known title get: name the prepared set "
                "with --dataset"
            )
        return self.train_counts

    def _engine(self) -> Engine:
        return self.recommender.engine

    def _language_model(self, histories: Histories, choice: ItemChoice) -> list[Found]:
        return self._engine().recommend(histories.titles, histories.ids(), choice)

    def _score(self, name: str) -> Score:
        """The score function of a model of items, fitted when it is first needed."""
        if name not in self.fitted:
            self.fitted[name] = self.models.score(name)
        return self.fitted[name]

    def _by_model(self, name: str) -> Rank:
        score = self._score(name)

        def rank(histories: Histories, choice: ItemChoice) -> list[Found]:
            return [Found([], [], items) for items in best_items(score(histories.rows), self.catalog, choice)]

        return rank

    def _rerank(self, ranker: str, choice: dict[str, Any]) -> Rank:
        """Distances combined with popularity or a model's scores, as `rerank` chose."""
        weights, facts = choice["weighted_by"], choice.get("validation_scores", {})
        if choice["base_method"] != METHOD or (weights != POPULARITY and facts.get("model") not in NAMES):
            raise BigrecError(
                f"the ranker {ranker} is made of {choice['base_method']} and scores of {facts.get('model')!r}, which "
                f"are known for the run's examples only: choose another of {', '.join(self.names())}"
            )
        score = self._score(facts["model"]) if weights != POPULARITY else None
        counts = self._counts() if weights != "scores" else None
        return reranked(choice, self._engine, self.catalog, counts=counts, score=score)

    def _pool(self, choice: dict[str, Any]) -> Rank:
        """The weighted sum of log-probabilities and other models' scores, as `pool` fitted it."""
        weights = choice["weights"]
        scores = {name: self._score(name) for name in weights if name not in (METHOD, POPULARITY)}
        counts = self._counts() if POPULARITY in weights else None
        return in_pool(weights, self._engine, self.catalog, counts=counts, scores=scores)


def has_no_language_model(folder: Path) -> bool:
    """Whether a folder holds neither an adapter nor answers of one, such as that of `bigrec-hf baselines`."""
    parts = (f"{METHOD}/{GENERATE_FILE}", CONFIG_FILE, ADAPTER_CONFIG)
    return folder.is_dir() and not any((folder / part).is_file() for part in parts)
