"""Recommending by the probabilities of titles (decoding exact), as `generate` and `ground --ranking scores` do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bigrec_hf.data.catalog import Catalog
from bigrec_hf.generate.exact import CatalogTokens, catalog_tokens, likeliest_titles, score_batches
from bigrec_hf.ground.from_scores import rank_scores
from bigrec_hf.hub.config import RecommenderConfig
from bigrec_hf.hub.histories import Found, ItemChoice
from bigrec_hf.hub.items import Item, ranked_items


def best_items(scores: np.ndarray, catalog: Catalog, choice: ItemChoice) -> list[list[Item]]:
    """The candidates with the highest scores, (n, n_items), of every history, best first, ties by catalog row."""
    part = scores if choice.candidates is None else scores[:, choice.candidates]
    ranking = rank_scores(
        lambda start, stop: part[start:stop], [[0]] * len(part), part.shape[1], choice.top_k, choice.hidden
    )
    rows = choice.catalog_rows(ranking.top_rows)
    return [
        ranked_items(catalog, own, costs, distances=False)
        for own, costs in zip(rows, ranking.top_distances, strict=True)
    ]


class ScoredTitles:
    """A model that gives every title of the catalog a probability after a history."""

    def __init__(
        self,
        config: RecommenderConfig,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        catalog: Catalog,
        train_counts: np.ndarray | None,
    ) -> None:
        """`train_counts` (n_items,): as `generate` has them, so that scores are the same; None: unknown."""
        self.config, self.model, self.tokenizer, self.catalog = config, model, tokenizer, catalog
        self.train_counts = train_counts

    @cached_property
    def tokens(self) -> CatalogTokens:
        """The catalog's titles as token ids, made when first needed."""
        short = bool(self.config.short_titles)
        return catalog_tokens(self.tokenizer, self.catalog.titles, short=short, train_counts=self.train_counts)

    def scores(self, histories: Sequence[Sequence[str]], *, quiet: bool = True) -> np.ndarray:
        """log p of every title after every history, (n, n_items) float32."""
        scores = np.empty((len(histories), len(self.catalog)), np.float32)

        def keep(_: int, positions: list[int], part: np.ndarray) -> None:
            scores[positions] = part

        self._score(histories, keep, quiet)
        return scores

    def recommend(
        self, histories: Sequence[Sequence[str]], ids: Sequence[str], choice: ItemChoice, *, quiet: bool = True
    ) -> list[Found]:
        """The likeliest candidates of every history, and the likeliest titles of the whole catalog as texts."""
        found: list[Found | None] = [None] * len(histories)

        def keep(_: int, positions: list[int], scores: np.ndarray) -> None:
            texts, values = likeliest_titles(scores, self.catalog.titles, self.config.decoding["n_texts"])
            items = best_items(scores, self.catalog, choice.part(positions))
            for position, one in zip(positions, map(Found, texts, values, items), strict=True):
                found[position] = one

        self._score(histories, keep, quiet)
        return [one for one in found if one is not None]

    def _score(
        self, histories: Sequence[Sequence[str]], write: Callable[[int, list[int], np.ndarray], None], quiet: bool
    ) -> None:
        config, width = self.config, self.config.decoding["width"]
        prompts = [
            self.tokens.lists.prompt(
                config.input_prefix, titles, max_history=config.max_history, max_tokens=config.max_length
            )[0]
            for titles in histories
        ]
        batches = self.tokens.plan(prompts, width=width, batch_size=config.batch_size, batch_tokens=config.batch_tokens)
        numbers = range(len(batches))
        score_batches(
            self.model, self.tokens, prompts, batches, numbers, write, width=width, label="recommend", quiet=quiet
        )
