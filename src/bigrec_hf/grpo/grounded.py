"""Rewards of written titles.

Each text is grounded as in evaluation: the catalog is ranked by distance to its embedding. The text stands for the
nearest row, and rewards are those of rows, with targets looked up by example id.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.prompts import parse_answer
from bigrec_hf.ground.distance import embed_texts
from bigrec_hf.ground.index import CatalogIndex
from bigrec_hf.grpo.groups import Groups
from bigrec_hf.grpo.rewards import WeightedRewards
from bigrec_hf.metrics.ndcg_hr.ranking import rank_catalog
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.models.encoder import Encode


def grounded_ndcg(groups: Groups) -> np.ndarray:
    """NDCG of the list that grounds the text: 1 / log2(r + 1) with the target at rank r, from 1."""
    return 1 / np.log2(groups.target_ranks[:, None] + 1)


@dataclass(frozen=True)
class Grounding:
    """Rewards of texts; targets and histories are catalog rows, by example id."""

    index: CatalogIndex
    encode: Encode
    rewards: WeightedRewards
    targets: dict[str, int]
    histories: dict[str, list[int]]

    def groups(self, ids: Sequence[str], texts: Sequence[str]) -> Groups:
        """Return the nearest item of each of n texts that are not empty, each as a group of its own, (n, 1)."""
        vectors = embed_texts(texts, self.index, self.encode)
        catalog = self.index.catalog
        same = [catalog.rows_by_title[clean_title(catalog.titles[self.targets[name]])] for name in ids]
        try:
            ranking = rank_catalog(vectors, self.index.embeddings, same, top_k=1)
        except ValueError as error:
            raise BigrecError(f"grounding: {error}") from error
        nearest = ranking.top_rows[:, 0].tolist()
        one = np.ones((len(ids), 1))
        return Groups(
            ids,
            [self.histories[name] for name in ids],
            np.array([rows[0] for rows in same], np.int64),
            ranking.rank + 1,
            np.array([[catalog.rows_by_title[clean_title(catalog.titles[row])][0]] for row in nearest], np.int64),
            one.astype(np.int64),
            np.nan * one,  # no reward may use it
            one,
        )

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[str],
        *,
        example_id: Sequence[str],
        log_metric: Callable[[str, float], None],
        **others: Any,
    ) -> list[float | None]:
        """Return the reward of each completion, as TRL asks for it; for one without a title 0 or, if it is less, the
        lowest of the others."""
        titles = [clean_title(parse_answer(text)) for text in completions]
        full = [i for i, title in enumerate(titles) if title]
        known = self.index.catalog.rows_by_title
        values = np.zeros(len(titles))
        sums = dict.fromkeys(["hit_rate", *(f"reward_{name}" for name in self.rewards.parts)], 0.0)
        if full:
            groups = self.groups([example_id[i] for i in full], [titles[i] for i in full])
            total, parts = self.rewards(groups)
            values[:] = min(0.0, total.min())  # to write nothing is never the best
            values[full] = total[:, 0]
            sums = {"hit_rate": groups.is_target.sum(), **{f"reward_{name}": own.sum() for name, own in parts.items()}}
        for name, value in {"in_catalog": sum(title in known for title in titles), **sums}.items():
            log_metric(name, float(value) / len(titles))
        return [*values.tolist()]
