"""Recommending by distance: the model writes titles, the catalog is ranked by the distance of its titles to the first
one, as `generate` and `ground` do."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bigrec_hf.data.prompts import fit_prompt
from bigrec_hf.generate.batches import decode_batches, plan_batches
from bigrec_hf.generate.constrained import Constraint, load_constraint
from bigrec_hf.generate.decoder import Decoder, common_prefix_length
from bigrec_hf.generate.strategy import Decoding
from bigrec_hf.ground.distance import embed_texts
from bigrec_hf.ground.hybrid import first_rows
from bigrec_hf.ground.index import CatalogIndex
from bigrec_hf.hub.config import RecommenderConfig
from bigrec_hf.hub.histories import Found, ItemChoice
from bigrec_hf.hub.items import Item, ranked_items
from bigrec_hf.metrics.ndcg_hr.ranking import rank_catalog
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.models.encoder import Encode


class GroundedTexts:
    """A model that writes titles, and the index in which they are grounded."""

    def __init__(
        self,
        config: RecommenderConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        index: CatalogIndex,
        encode: Encode,
    ) -> None:
        """`encode`: texts -> (n, d) float32, by the encoder that made the index."""
        self.config, self.model, self.tokenizer = config, model, tokenizer
        self.index, self.encode = index, encode
        self._constraint: Constraint | None = None  # the catalog's titles as a trie, built when first needed
        self._generation_config = copy.deepcopy(model.generation_config)  # the Decoder clears the model's own

    def with_config(self, config: RecommenderConfig) -> GroundedTexts:
        """The same model and index with another decoding."""
        other = copy.copy(self)
        other.config, other._constraint = config, None
        return other

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        ids: Sequence[str],
        choice: ItemChoice,
        *,
        quiet: bool = True,
        hybrid: bool = False,
    ) -> list[Found]:
        """The candidates nearest to the first text written for every history; no items for an empty text.

        `hybrid`: first those whose titles are among the texts, in the order of the texts, as `ground.hybrid` ranks.
        """
        texts, scores = self.generate(histories, ids, quiet=quiet)
        items = self._ground(texts, choice, hybrid)
        return [Found(*one) for one in zip(texts, scores, items, strict=True)]

    def generate(
        self, histories: Sequence[Sequence[str]], ids: Sequence[str], *, quiet: bool = True
    ) -> tuple[list[list[str]], list[list[float]]]:
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
        decode_batches(decoder, prompts, ids, batches, range(len(batches)), keep, label="recommend", quiet=quiet)
        return texts, scores

    def _ground(self, texts: list[list[str]], choice: ItemChoice, hybrid: bool) -> list[list[Item]]:
        """The nearest candidates for every first text; none for an empty one."""
        full = [i for i, row in enumerate(texts) if clean_title(row[0])]
        found: list[list[Item]] = [[] for _ in texts]
        if not full:
            return found
        own = choice.part(full)
        vectors = embed_texts([texts[i][0] for i in full], self.index, self.encode)
        embeddings = self.index.embeddings if own.candidates is None else self.index.embeddings[own.candidates]
        hidden = own.hidden or [[]] * len(full)
        heads = [
            own.places(first_rows(texts[i], self.index), left_out) if hybrid else []
            for i, left_out in zip(full, hidden, strict=True)
        ]
        excluded = [[*head, *left_out] for head, left_out in zip(heads, hidden, strict=True)]
        exclude = excluded if any(excluded) else None
        targets = [0] * len(full)
        ranking = rank_catalog(vectors, embeddings, targets, own.top_k, self.config.memory_mib, exclude=exclude)
        for at, i in enumerate(full):
            away = np.linalg.norm(embeddings[heads[at]].astype(np.float64) - vectors[at], axis=1)
            places = np.concatenate([np.array(heads[at], int), ranking.top_rows[at]])[: own.top_k]
            distances = np.concatenate([away.astype(np.float32), ranking.top_distances[at]])[: own.top_k]
            rows = own.catalog_rows(places).tolist()
            found[i] = ranked_items(self.index.catalog, rows, distances.tolist(), distances=True)
        return found
