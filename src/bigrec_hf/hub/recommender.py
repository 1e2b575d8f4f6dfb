"""A whole recommender in one object: history titles in, catalog items out.

    from bigrec_hf import Recommender
    recommender = Recommender.from_pretrained("user/adapter")  # a Hub id, an adapter folder or a run folder
    recommender.recommend(["Toy Story (1995)", "Heat (1995)"], top_k=10)

It takes the steps of a run (prompt, decoding, embedding, exact ranks) with the same functions. On a CPU the same
histories in the same order reproduce the run's `rankings.parquet` bit for bit.
"""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, overload

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.hub_names import fetch_folder, pin_name
from bigrec_hf.data.catalog import load_catalog
from bigrec_hf.data.prompts import fit_prompt
from bigrec_hf.generate.batches import decode_batches, plan_batches
from bigrec_hf.generate.constrained import Constraint, load_constraint
from bigrec_hf.generate.decoder import Decoder, common_prefix_length
from bigrec_hf.generate.strategy import Decoding
from bigrec_hf.ground.distance import embed_texts
from bigrec_hf.ground.index import CatalogIndex, build_index, differences, load_index, write_index
from bigrec_hf.hub.bundle import (
    ADAPTER_PATTERNS,
    CONFIG_FILE,
    INDEX_FOLDER,
    TOKENIZER_PATTERNS,
    Bundle,
    RecommenderConfig,
    load_source_index,
    locate,
    write_config,
)
from bigrec_hf.hub.histories import as_histories, check_top_k
from bigrec_hf.metrics.ndcg_hr.names import split_revision
from bigrec_hf.metrics.ndcg_hr.ranking import rank_catalog
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.models.encoder import Encode, encoder_fingerprint, lazy_encode
from bigrec_hf.models.loading import load_generator, load_tokenizer

RECORDS = (
    "README.md",
    "training.json",
    "results.json",
)  # in a published adapter: the card, and the records it refers to
PROGRESS_FROM = 32  # number of histories from which a progress bar is shown


@dataclass(frozen=True)
class Item:
    """One recommended item: its catalog row (0-based), id, title, and Euclidean distance to the generated title."""

    row: int
    item_id: str
    title: str
    distance: float


@dataclass(frozen=True)
class Recommendation:
    """The result for one history: items, nearest first (none for an empty text), and the text they are grounded in."""

    text: str
    items: list[Item]
    texts: list[str] = field(default_factory=list)  # all generated texts, best first; `text` is the first
    scores: list[float] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)  # history titles that are not in the catalog


class Recommender:
    """A fine-tuned language model, its prompt, and the catalog index that grounds its generations."""

    def __init__(
        self,
        config: RecommenderConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        index: CatalogIndex,
        encode: Encode,
        bundle: Bundle,
    ) -> None:
        """Use `from_pretrained`. `encode`: texts -> (n, d) float32, by the encoder that made the index."""
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.index, self.encode, self.bundle = index, encode, bundle
        self._constraint: Constraint | None = None  # the catalog's titles as a trie, built when first needed
        self._generation_config = copy.deepcopy(model.generation_config)  # the Decoder clears the model's own

    @classmethod
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
        encoder = config.encoder or base
        encode = lazy_encode(encoder, config.encoder_dtype, config.encode_batch_tokens, device)
        expected = encoder_fingerprint(encoder, config.encoder_dtype)
        index = _open_index(bundle, encode, expected)
        wrong = [name for name in differences(index.fingerprint, expected) if name != "encoder"]
        if wrong == ["revision"] and config.base_weights in ("differ", "not compared"):
            warnings.warn(
                f"the catalog was encoded by a local copy of {split_revision(encoder)[0]}, whose weights "
                f"{'differ from' if config.base_weights == 'differ' else 'were not compared with'} the repository's: "
                "distances of texts other than catalog titles are approximate",
                stacklevel=2,
            )
        elif wrong:
            raise BigrecError(
                f"the index of {name} was made with {wrong[0]} {index.fingerprint.get(wrong[0])!r}, but its encoder "
                f"has {expected[wrong[0]]!r}: give the base model it was made with (base_model=)"
            )
        tokenizer = load_tokenizer(base, padding_side="left")
        model = load_generator(
            base,
            bundle.adapter,
            dtype=config.dtype,
            quantization=config.quantization,
            attn_implementation=config.attn_implementation,
            device=device,
        )
        return cls(config, model, tokenizer, index, encode, bundle)

    # the overloads overlap for a str, which is a Sequence[str] to a type checker; `as_histories` refuses it
    @overload
    def recommend(  # type: ignore[overload-overlap]
        self, history: Sequence[str], top_k: int = ..., *, example_ids: Sequence[str] | None = ...
    ) -> Recommendation: ...
    @overload
    def recommend(
        self, history: Sequence[Sequence[str]], top_k: int = ..., *, example_ids: Sequence[str] | None = ...
    ) -> list[Recommendation]: ...
    def recommend(
        self,
        history: Sequence[str] | Sequence[Sequence[str]],
        top_k: int = 10,
        *,
        example_ids: Sequence[str] | None = None,
    ) -> Recommendation | list[Recommendation]:
        """The `top_k` items for one history (titles, oldest first), or for each of a list of histories.

        Titles that are not in the catalog are used verbatim, and listed in `unknown`. An empty batch gives an empty
        list; `[[]]` is one user without a history. `example_ids` (one per history) seed sampled generations; by default
        the history does, so that the samples are the same in any batch. In float32 the items do not depend on the
        batch, only the last bits of the distances do; in 16 bits, near-tied tokens may come out differently. Raises
        BigrecError for a string instead of a list, a title that is not a string, or a `top_k` below 1.
        """
        top_k = check_top_k(top_k)
        histories, single = as_histories(history)
        if not histories:
            return []
        ids = list(example_ids) if example_ids is not None else [_history_id(titles) for titles in histories]
        texts, scores = self._generate(histories, ids)
        items = self._ground([row[0] for row in texts], histories, top_k)
        known = self.index.catalog.rows_by_title
        results = [
            Recommendation(row[0], found, row, score, [title for title in titles if clean_title(title) not in known])
            for row, score, found, titles in zip(texts, scores, items, histories, strict=True)
        ]
        return results[0] if single else results

    def _generate(self, histories: list[list[str]], ids: list[str]) -> tuple[list[list[str]], list[list[float]]]:
        """Texts and scores, each (n, n_texts), as the `generate` stage writes them."""
        config, decoding = self.config, Decoding(**self.config.decoding)
        if decoding.is_constrained:
            if self._constraint is None:
                self._constraint, _ = load_constraint(
                    decoding.strategy,
                    self.index.catalog,
                    config.template,
                    self.tokenizer,
                    [],
                    assistant_scores=None,
                    lm_weight=1.0,
                )
            decoding = replace(decoding, max_new_tokens=self._constraint.titles.trie.depth)
        prompts = [
            fit_prompt(
                config.template,
                config.instruction,
                config.input_prefix,
                titles,
                self.tokenizer,
                max_history=config.max_history,
                max_tokens=config.max_length - decoding.max_new_tokens,
            )[1]
            for titles in histories
        ]
        batches = plan_batches(
            [len(prompt) for prompt in prompts],
            batch_size=config.batch_size,
            batch_tokens=config.batch_tokens,
            extra_tokens=decoding.max_new_tokens,
            copies=decoding.rows_per_prompt,
        )
        texts: list[list[str]] = [[] for _ in prompts]
        scores: list[list[float]] = [[] for _ in prompts]

        def keep(_: int, positions: list[int], part: list[list[str]], part_scores: list[list[float]]) -> None:
            for position, row, score in zip(positions, part, part_scores, strict=True):
                texts[position], scores[position] = row, score

        self.model.generation_config = copy.deepcopy(self._generation_config)
        prefix = prompts[0][: common_prefix_length(prompts)]
        decoder = Decoder(self.model, self.tokenizer, decoding, shared_prefix=prefix, constraint=self._constraint)
        quiet = len(prompts) < PROGRESS_FROM
        decode_batches(decoder, prompts, ids, batches, range(len(batches)), keep, label="recommend", quiet=quiet)
        return texts, scores

    def _ground(self, texts: list[str], histories: list[list[str]], top_k: int) -> list[list[Item]]:
        """The nearest items for every text; none for an empty one."""
        catalog = self.index.catalog
        full = [i for i, text in enumerate(texts) if clean_title(text)]
        found: list[list[Item]] = [[] for _ in texts]
        if not full:
            return found
        exclude = None
        if self.config.exclude_history:  # every row with the title: nothing tells which of them was meant
            rows = catalog.rows_by_title
            exclude = [[row for title in histories[i] for row in rows.get(clean_title(title), [])] for i in full]
        vectors = embed_texts([texts[i] for i in full], self.index, self.encode)
        ranking = rank_catalog(
            vectors, self.index.embeddings, [0] * len(full), top_k, self.config.memory_mib, exclude=exclude
        )
        for i, rows, distances in zip(full, ranking.top_rows, ranking.top_distances, strict=True):
            found[i] = [
                Item(int(row), catalog.item_ids[row], catalog.titles[row], float(distance))
                for row, distance in zip(rows, distances, strict=True)
                if row >= 0
            ]
        return found

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write adapter, tokenizer, settings and index to `folder`, which `from_pretrained` (and PEFT) can load.

        For a published adapter also its card and records, so that pushing it back changes nothing.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        patterns = [*ADAPTER_PATTERNS, *TOKENIZER_PATTERNS]
        origin = fetch_folder(self.bundle.adapter, "model", [*patterns, *RECORDS, CONFIG_FILE])
        if (origin / CONFIG_FILE).is_file():  # published: unlike a run's, its records contain no local paths
            patterns += RECORDS
        for file in (file for pattern in patterns for file in origin.glob(pattern)):
            if file.resolve() != (folder / file.name).resolve():
                shutil.copyfile(file, folder / file.name)
        if not (folder / "tokenizer_config.json").is_file():
            self.tokenizer.save_pretrained(folder)
        (folder / INDEX_FOLDER).mkdir(exist_ok=True)
        write_index(folder / INDEX_FOLDER, self.index.catalog, self.index.embeddings, self.index.fingerprint)
        write_config(replace(self.bundle.config, index=INDEX_FOLDER, catalog=None), folder)
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
        with tempfile.TemporaryDirectory() as temporary:
            return publish_saved(self.save_pretrained(temporary), repo_id, base_model=base_model, **options)


def _history_id(titles: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(titles, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()


def _open_index(bundle: Bundle, encode: Encode, encoder: dict[str, str]) -> CatalogIndex:
    """The bundle's index; if it has none, one built from its catalog."""
    if bundle.index is not None:
        return load_source_index(bundle.index)
    if bundle.config.index == INDEX_FOLDER:  # in the adapter's own repository
        return load_index(fetch_folder(bundle.adapter, "model", [f"{INDEX_FOLDER}/*"]) / INDEX_FOLDER)
    if bundle.config.catalog is None:
        raise BigrecError(f"{bundle.adapter} names neither an index nor a catalog: publish its index with it")
    with tempfile.TemporaryDirectory() as temporary:
        return build_index(temporary, load_catalog(bundle.config.catalog), encode, encoder)
