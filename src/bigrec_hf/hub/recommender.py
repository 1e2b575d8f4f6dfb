"""A whole recommender in one object: history titles in, catalog items out.

    from bigrec_hf import Recommender
    recommender = Recommender.from_pretrained("user/adapter")  # a Hub id, an adapter folder or a run folder
    recommender.recommend(["Toy Story (1995)", "Heat (1995)"], top_k=10)

It takes the steps of a run with the same functions: `by_distance` (prompt, decoding, embedding, exact ranks) or, for
decoding exact, `by_score` (prompt, probabilities of all titles). With `exclude_seen=False`, on a CPU, the same
histories in the same order reproduce the run's `rankings.parquet` bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import temporary_folder
from bigrec_hf.common.hub_names import fetch_folder, pin_name
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.ground.index import CatalogIndex, build_index, differences, load_index, write_index
from bigrec_hf.hub.bundle import Bundle, load_source_index, locate, named_damage
from bigrec_hf.hub.by_distance import GroundedTexts
from bigrec_hf.hub.by_score import ScoredTitles
from bigrec_hf.hub.config import CATALOG_FILE, CONFIG_FILE, INDEX_FOLDER, RecommenderConfig, write_config
from bigrec_hf.hub.histories import as_histories, candidate_rows, check_top_k, choose_items
from bigrec_hf.hub.items import Item, bundle_catalog, bundle_train_counts, write_items
from bigrec_hf.metrics.ndcg_hr.names import split_revision
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.models.encoder import Encode, encoder_fingerprint, lazy_encode
from bigrec_hf.models.identity import ADAPTER_CONTENT
from bigrec_hf.models.loading import load_generator, load_tokenizer

RECORDS = (
    "README.md",
    "training.json",
    "results.json",
)  # in a published adapter: the card, and the records it refers to
PROGRESS_FROM = 32  # number of histories from which a progress bar is shown


@dataclass(frozen=True)
class Recommendation:
    """The result for one history: items, best first (none for an empty text), and the text they are grounded in.

    Where the catalog is ranked by probability, the text is the likeliest title of all, seen or not.
    """

    text: str
    items: list[Item]
    texts: list[str] = field(default_factory=list)  # all generated texts, best first; `text` is the first
    scores: list[float] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  # history titles that are not in the catalog


class Recommender:
    """A fine-tuned language model, its prompt, and the catalog that it recommends from."""

    def __init__(self, config: RecommenderConfig, engine: GroundedTexts | ScoredTitles, bundle: Bundle) -> None:
        """Use `from_pretrained`."""
        self.config, self.engine, self.bundle = config, engine, bundle
        self.model, self.tokenizer = engine.model, engine.tokenizer
        self.index = engine.index if isinstance(engine, GroundedTexts) else None
        self.catalog: Catalog = engine.index.catalog if isinstance(engine, GroundedTexts) else engine.catalog

    @classmethod
    @named_damage
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        device: str | None = None,
        quantization: str | None = None,
        dtype: str | None = None,
        attn_implementation: str | None = None,
        base_model: str | None = None,
    ) -> Recommender:
        """Load a recommender from a Hub id (`user/name[@revision]`), an adapter folder or a run folder.

        `device` defaults to the GPU if there is one; `quantization` (none, 8bit, 4bit), `dtype` and
        `attn_implementation` default to those the run generated with. `base_model`: another location of the same base
        model. Raises BigrecError if the name is none of the three, or if the index was made by another encoder.
        """
        bundle = locate(pin_name(str(name), "model"))
        changes: dict[str, Any] = {
            "quantization": quantization,
            "dtype": dtype,
            "attn_implementation": attn_implementation,
        }
        config = replace(bundle.config, **{key: value for key, value in changes.items() if value is not None})
        base = base_model or config.base_model
        encode = lazy_encode(config.encoder or base, config.encoder_dtype, config.encode_batch_tokens, device)
        index = None if config.by_score else _checked_index(str(name), bundle, config.encoder or base, encode)
        catalog = bundle_catalog(bundle) if index is None else index.catalog
        tokenizer = load_tokenizer(base, padding_side="left")
        model = load_generator(
            base,
            bundle.adapter,
            dtype=config.dtype,
            quantization=config.quantization,
            attn_implementation=config.attn_implementation,
            device=device,
        )
        if index is None:
            counts = bundle_train_counts(bundle, catalog)
            return cls(config, ScoredTitles(config, model, tokenizer, catalog, counts), bundle)
        return cls(config, GroundedTexts(config, model, tokenizer, index, encode), bundle)

    # the overloads overlap for a str, which is a Sequence[str] to a type checker; `as_histories` refuses it
    @overload
    def recommend(  # type: ignore[overload-overlap]
        self,
        history: Sequence[str],
        top_k: int = ...,
        *,
        exclude_seen: bool = ...,
        candidates: Iterable[str] | None = ...,
        example_ids: Sequence[str] | None = ...,
    ) -> Recommendation: ...
    @overload
    def recommend(
        self,
        history: Sequence[Sequence[str]],
        top_k: int = ...,
        *,
        exclude_seen: bool = ...,
        candidates: Iterable[str] | None = ...,
        example_ids: Sequence[str] | None = ...,
    ) -> list[Recommendation]: ...
    def recommend(
        self,
        history: Sequence[str] | Sequence[Sequence[str]],
        top_k: int = 10,
        *,
        exclude_seen: bool = True,
        candidates: Iterable[str] | None = None,
        example_ids: Sequence[str] | None = None,
    ) -> Recommendation | list[Recommendation]:
        """The `top_k` items for one history (titles, oldest first), or for each of a list of histories.

        Items of the history are left out, unless `exclude_seen` is false. `candidates`: item ids or titles; only these
        are recommended, in the order and with the scores that they have among all items.

        Titles that are not in the catalog are used verbatim, and listed in `unknown`. An empty batch gives an empty
        list; `[[]]` is one user without a history. `example_ids` (one per history) seed sampled generations; by default
        the history does, so that the samples are the same in any batch. In float32 the items do not depend on the
        batch, only the last bits of the scores do; in 16 bits, near-tied tokens may come out differently. Raises
        BigrecError for a string instead of a list, a title that is not a string, a `top_k` below 1, or candidates that
        the catalog lacks.
        """
        top_k = check_top_k(top_k)
        histories, single = as_histories(history)
        rows = None if candidates is None else candidate_rows(candidates, self.catalog)
        if not histories:
            return []
        ids = list(example_ids) if example_ids is not None else [history_id(titles) for titles in histories]
        if len(ids) != len(histories):
            raise BigrecError(f"{len(ids)} example_ids for {len(histories)} histories: give one for each")
        choice = choose_items(histories, self.catalog, top_k, exclude_seen=exclude_seen, candidates=rows)
        found = self.engine.recommend(histories, ids, choice, quiet=len(histories) < PROGRESS_FROM)
        known = self.catalog.rows_by_title
        results = [
            Recommendation(
                one.texts[0],
                one.items,
                one.texts,
                one.scores,
                [title for title in titles if clean_title(title) not in known],
            )
            for one, titles in zip(found, histories, strict=True)
        ]
        return results[0] if single else results

    @cached_property
    def train_counts(self) -> np.ndarray | None:
        """(n_items,) int64: how often each item is a training target; None if nothing says so."""
        return bundle_train_counts(self.bundle, self.catalog)

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write adapter, tokenizer, settings, index and catalog to `folder`, for `from_pretrained` (and PEFT).

        For a published adapter also its card and records, so that pushing it back changes nothing.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        patterns = [*ADAPTER_CONTENT]
        origin = fetch_folder(self.bundle.adapter, "model", [*patterns, *RECORDS, CONFIG_FILE])
        if (origin / CONFIG_FILE).is_file():  # published: unlike a run's, its records contain no local paths
            patterns += RECORDS
        for file in (file for pattern in patterns for file in origin.glob(pattern)):
            if file.resolve() != (folder / file.name).resolve():
                shutil.copyfile(file, folder / file.name)
        if not (folder / "tokenizer_config.json").is_file():
            self.tokenizer.save_pretrained(folder)
        if self.index is not None:
            (folder / INDEX_FOLDER).mkdir(exist_ok=True)
            write_index(folder / INDEX_FOLDER, self.index.catalog, self.index.embeddings, self.index.fingerprint)
        if self.index is None or self.train_counts is not None:
            write_items(folder, self.catalog, self.train_counts)
        index, catalog = (INDEX_FOLDER, None) if self.index is not None else (None, CATALOG_FILE)
        write_config(replace(self.bundle.config, index=index, catalog=catalog), folder)
        return folder

    def push_to_hub(self, repo_id: str, *, base_model: str | None = None, **options: Any) -> str:
        """Publish to the Hub in one commit, and return the commit.

        `options` are those of `bigrec-hf publish adapter` (private, revision, create_pr, message, license,
        i_have_permission). If this was loaded from a run folder, the card shows the run's results. If the base model is
        a local folder, `base_model` must be its id on the Hub. Raises BigrecError if anything prevents publishing.
        """
        from bigrec_hf.hub.publish import publish_adapter, publish_saved

        if self.bundle.run_dir is not None:
            return publish_adapter(str(self.bundle.run_dir), repo_id, base_model=base_model, **options)
        with temporary_folder() as temporary:
            return publish_saved(self.save_pretrained(temporary), repo_id, base_model=base_model, **options)


def history_id(titles: Sequence[str]) -> str:
    """An id of a history, by its titles."""
    return hashlib.sha256(json.dumps(titles, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _checked_index(name: str, bundle: Bundle, encoder: str, encode: Encode) -> CatalogIndex:
    """The bundle's index. Warns if it was made by other weights of the encoder; BigrecError for another encoder."""
    expected = encoder_fingerprint(encoder, bundle.config.encoder_dtype)
    index = _open_index(bundle, encode, expected)
    wrong = [field for field in differences(index.fingerprint, expected) if field != "encoder"]
    weights = bundle.config.base_weights
    if wrong == ["revision"] and weights in ("differ", "not compared"):
        how = "differ from" if weights == "differ" else "were not compared with"
        warnings.warn(
            f"the catalog was encoded by a local copy of {split_revision(encoder)[0]}, whose weights {how} the "
            "repository's: distances of texts other than catalog titles are approximate",
            stacklevel=3,
        )
    elif wrong:
        raise BigrecError(
            f"the index of {name} was made with {wrong[0]} {index.fingerprint.get(wrong[0])!r}, but its encoder "
            f"has {expected[wrong[0]]!r}: give the base model it was made with (base_model=)"
        )
    return index


def _open_index(bundle: Bundle, encode: Encode, encoder: dict[str, str]) -> CatalogIndex:
    """The bundle's index; if it has none, one built from its catalog."""
    if bundle.index is not None:
        return load_source_index(bundle.index)
    if bundle.config.index == INDEX_FOLDER:  # in the adapter's own repository
        return load_index(fetch_folder(bundle.adapter, "model", [f"{INDEX_FOLDER}/*"]) / INDEX_FOLDER)
    with temporary_folder() as temporary:
        return build_index(temporary, bundle_catalog(bundle), encode, encoder)
