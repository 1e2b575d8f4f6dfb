"""Fusion: one exact ranking of the catalog from all texts of an example, or from two indexes.

With d_b(i) the Euclidean distance (float64) of item i to the example's b-th text, the cost of an item, ascending is
better, is

- `min`: min_b d_b(i), over the first `beams` texts;
- `rrf`: -sum_b 1 / (k0 + rank_b(i)), rank_b the exact 1-based rank by d_b (reciprocal-rank fusion, Cormack, Clarke and
  Buettcher 2009). Terms are rounded to multiples of 2^-44, so that a sum does not depend on the order of the texts;
- `keywords`: a * rank(i) + b * keyword_rank(i), 0-based ranks by the first text and by its keywords in a keyword index
  (the reference's merged evaluation).

Equal costs are in catalog order. Empty texts are skipped; an example without any other text is a miss. `beams`,
`k0`, `a` and `b` are parameters: `choose_parameters` takes the best ones on the examples it is given.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.ground.from_scores import rank_scores
from bigrec_hf.metrics.ndcg_hr.distances import squared_distances
from bigrec_hf.metrics.ndcg_hr.ranking import Ranking
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.rank.model_selection import mean_metrics, split_key

FUSIONS = ("min", "rrf", "keywords")
RRF_UNIT = 2.0**44  # sums of up to 512 such terms are whole numbers below 2^53, so they are exact in any order
MIX_STEPS = 10  # a + b of the keyword mix

Parameters = dict[str, float | int]


@dataclass(frozen=True)
class Beams:
    """The texts of n examples, as positions among the distinct texts."""

    texts: list[str]  # distinct, cleaned (titles.clean_title), none empty
    places: np.ndarray  # (n, B) int32, index into `texts`, best text first; -1 = empty or absent


def gather_beams(texts: Sequence[Sequence[str | None]]) -> Beams:
    """`Beams` of the texts of a generations.parquet; rows may have different lengths."""
    width = max((len(row) for row in texts), default=0)
    places = np.full((len(texts), max(width, 1)), -1, np.int32)
    known: dict[str, int] = {}
    for i, row in enumerate(texts):
        for b, text in enumerate(row):
            if cleaned := clean_title(text or ""):
                places[i, b] = known.setdefault(cleaned, len(known))
    return Beams(list(known), places)


@dataclass(frozen=True)
class Fused:
    """Fused costs of n examples, computed on demand: what `ground`'s distances are for a single text."""

    costs: Callable[[int, int], np.ndarray]  # (start, stop) -> (stop - start, n_items) float64, finite, ascending
    empty: np.ndarray  # (n,) bool: no text to use; such an example has costs 0 and counts as a miss
    n_items: int


@dataclass(frozen=True)
class Evidence:
    """Distances of every item of a catalog to the texts of n examples; large arrays may be on disk (`row_store`)."""

    beams: Beams
    distances: np.ndarray  # (distinct texts, n_items) float64, Euclidean
    keyword_places: np.ndarray | None = None  # (n,) int32, row of `keyword_ranks` of the first text, -1 = empty
    keyword_distances: np.ndarray | None = None  # (distinct keyword texts, n_items) float64
    memory_mib: int = 256
    spill_dir: str | Path | None = None

    @cached_property
    def ranks(self) -> np.ndarray:
        """Ranks of all items by distance, (distinct texts, n_items) int32, 0-based, ties by row."""
        return row_ranks(self.distances, self.memory_mib, self.spill_dir)

    @cached_property
    def keyword_ranks(self) -> np.ndarray:
        """As `ranks`, by the keywords' distances. Raises BigrecError without keywords."""
        if self.keyword_distances is None:
            raise BigrecError("the keyword fusion needs keywords: write them with `bigrec-hf keywords`")
        return row_ranks(self.keyword_distances, self.memory_mib, self.spill_dir)


def row_store(shape: tuple[int, int], dtype: Any, memory_mib: int, spill_dir: str | Path | None = None) -> np.ndarray:
    """Return an empty array, in memory if it needs at most `memory_mib`, otherwise mapped to an unnamed file.

    The file is in `spill_dir` (by default the temporary folder of the system) and disappears with the array, even if
    the process is killed.
    """
    n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if n_bytes <= memory_mib * 2**20:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(dir=spill_dir) as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def text_distances(
    vectors: np.ndarray,
    items: np.ndarray,
    memory_mib: int = 256,
    spill_dir: str | Path | None = None,
    *,
    quiet: bool = True,
) -> np.ndarray:
    """Return the Euclidean distance of every text to every item, (t, m) float64: the distance that defines ranks.

    It is computed from the differences of the vectors (ndcg_hr/distances.py), so that nothing cancels and equal vectors
    tie. `vectors` (t, d), `items` (m, d) float32.
    """
    out = row_store((len(vectors), len(items)), np.float64, memory_mib, spill_dir)
    rows = np.arange(len(items))
    for t in tqdm(range(len(vectors)), desc="distances", unit=" texts", disable=quiet):
        out[t] = np.sqrt(squared_distances(vectors, items, np.full(len(items), t), rows))
    return out


def row_ranks(costs: np.ndarray, memory_mib: int = 256, spill_dir: str | Path | None = None) -> np.ndarray:
    """Return the 0-based rank of every item by ascending cost, ties by row, (t, m) int32. `costs` (t, m) float64."""
    out = row_store(costs.shape, np.int32, memory_mib, spill_dir)
    places = np.arange(costs.shape[1], dtype=np.int32)
    for row, cost in zip(out, costs, strict=True):
        row[np.argsort(cost, kind="stable")] = places
    return out


def fuse(
    name: str, parameters: Parameters, evidence: Evidence, exclude: Sequence[Sequence[int]] | None = None
) -> Fused:
    """The fused costs of one of FUSIONS. Raises BigrecError for an unknown name or missing keywords.

    `exclude`: rows of each example that are not candidates: ranks are those among the others.
    """
    if name == "min":
        return _nearest(evidence, int(parameters["beams"]))
    if name == "rrf":
        return _reciprocal(evidence, int(parameters["beams"]), float(parameters["k0"]), exclude)
    if name == "keywords":
        return _mixed(evidence, float(parameters["a"]), float(parameters["b"]), exclude)
    raise BigrecError(f"fusion is {name!r}: choose one of {', '.join(FUSIONS)}")


def _by_example(places: np.ndarray, n_items: int, cost: Callable[[int, np.ndarray], np.ndarray]) -> Fused:
    """`cost(i, used)` gives the (n_items,) costs of example i from its texts, the non-negative ones of `places` (n, b);
    it is not asked for an example without any."""
    empty = np.asarray((places < 0).all(axis=1))

    def costs(start: int, stop: int) -> np.ndarray:
        out = np.zeros((stop - start, n_items))
        for i in range(start, stop):
            if not empty[i]:
                out[i - start] = cost(i, places[i, places[i] >= 0])
        return out

    return Fused(costs, empty, n_items)


def _nearest(evidence: Evidence, n_beams: int) -> Fused:
    distances = evidence.distances
    return _by_example(
        evidence.beams.places[:, :n_beams], distances.shape[1], lambda i, used: distances[used].min(axis=0)
    )


def candidate_ranks(ranks: np.ndarray, excluded: Sequence[int] | None) -> np.ndarray:
    """(b, m) ranks of all items, 0-based -> among the items that are not `excluded`, whose own ranks mean nothing."""
    if excluded is None or len(excluded) == 0:
        return ranks
    hidden = np.sort(ranks[:, np.unique(np.asarray(excluded, np.int64))], axis=1)
    return ranks - np.stack([np.searchsorted(own, row) for own, row in zip(hidden, ranks, strict=True)])


def _reciprocal(evidence: Evidence, n_beams: int, k0: float, exclude: Sequence[Sequence[int]] | None) -> Fused:
    ranks = evidence.ranks
    terms = -np.rint(RRF_UNIT / (k0 + 1.0 + np.arange(ranks.shape[1]))) / RRF_UNIT  # by 0-based rank

    def cost(i: int, used: np.ndarray) -> np.ndarray:
        return terms[candidate_ranks(ranks[used], None if exclude is None else exclude[i])].sum(axis=0)

    return _by_example(evidence.beams.places[:, :n_beams], ranks.shape[1], cost)


def _mixed(evidence: Evidence, a: float, b: float, exclude: Sequence[Sequence[int]] | None) -> Fused:
    ranks, keyword_ranks = evidence.ranks, evidence.keyword_ranks
    written = np.asarray(evidence.keyword_places)

    def cost(i: int, used: np.ndarray) -> np.ndarray:
        both = np.stack([ranks[used[0]], keyword_ranks[written[i]]])
        one, other = candidate_ranks(both, None if exclude is None else exclude[i])
        return a * one + b * other.astype(np.float64)

    return _by_example(evidence.beams.places[:, :1], ranks.shape[1], cost)


def rank_fused(
    fused: Fused,
    targets: Sequence[Sequence[int]],
    top_k: int = 50,
    exclude: Sequence[Sequence[int]] | None = None,
) -> Ranking:
    """Return exact ranks by ascending fused cost, ties by row; an example without a text is a miss (rank n_items).

    `top_distances` holds the costs. `targets` and `exclude` as in `from_scores.rank_scores`.
    """
    ranking = rank_scores(lambda start, stop: -fused.costs(start, stop), targets, fused.n_items, top_k, exclude)
    ranking.rank[fused.empty] = fused.n_items
    ranking.top_rows[fused.empty] = -1
    ranking.top_distances[fused.empty] = np.inf
    return ranking


def parameter_grid(name: str, n_beams: int, k0s: Sequence[int] = (60,)) -> list[Parameters]:
    """Return every combination of parameters to try for one fusion, those with the fewest texts first."""
    if any(k0 < 0 for k0 in k0s):
        raise BigrecError(f"rrf constants {list(k0s)} must be at least 0")
    beams = range(1, n_beams + 1)
    if name == "min":
        return [{"beams": b} for b in beams]
    if name == "rrf":
        return [{"beams": b, "k0": int(k0)} for b in beams for k0 in k0s]
    if name == "keywords":
        return [{"a": MIX_STEPS - b, "b": b} for b in range(MIX_STEPS + 1)]
    raise BigrecError(f"fusion is {name!r}: choose one of {', '.join(FUSIONS)}")


def choose_parameters(
    name: str,
    grid: Sequence[Parameters],
    evidence: Evidence,
    targets: Sequence[Sequence[int]],
    metric: str,
    exclude: Sequence[Sequence[int]] | None = None,
    *,
    quiet: bool = True,
) -> dict[str, Any]:
    """Return the first best combination of the grid on these (validation) examples: {"parameters", "value", "table"}.

    The table holds every combination with its `metric`.
    """
    split_key(metric)  # report an unknown metric before the search
    if not grid:
        raise BigrecError(f"the grid of fusion {name!r} is empty: give at least one value per parameter")
    table = []
    for parameters in tqdm(grid, desc=f"choose {name}", unit=" settings", disable=quiet):
        ranks = rank_fused(fuse(name, parameters, evidence, exclude), targets, 0, exclude).rank
        table.append({**parameters, metric: float(mean_metrics(ranks[:, None], metric)[0])})
    best = max(range(len(table)), key=lambda i: table[i][metric])  # max returns the first of equals
    return {"parameters": dict(grid[best]), "value": table[best][metric], "table": table}
