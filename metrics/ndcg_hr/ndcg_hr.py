"""NDCG@K and HR@K over a full catalog, as an `evaluate` module: from titles, from embeddings or from ranked lists."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import evaluate
import numpy as np

from .distances import check_vectors
from .encoders import Encoder, encode_texts, encode_with_known, load_encoder
from .examples import check_examples
from .names import split_revision
from .nearest import NearestPool
from .ranking import flat_rows, rank_catalog
from .scores import DEFAULT_KS, bootstrap_intervals, check_ks, mean_scores
from .titles import clean_title, read_titles

# `evaluate.load` copies only the siblings that this file imports, so it must import the indirect ones too
_SIBLINGS_OF_SIBLINGS = (NearestPool, split_revision)

_DESCRIPTION = """
Full-ranking NDCG@K and HR@K with one target per example: HR@K = mean(rank < K) and
NDCG@K = mean((rank < K) / log2(rank + 2)), where rank is the target's 0-based place among *all* catalog items (the
ideal DCG of one target is 1). Ranks are exact: Euclidean distance in float64 from the given float32 vectors, ties by
row.
"""

_CITATION = """
@article{bao2023bigrec,
  title={A Bi-Step Grounding Paradigm for Large Language Models in Recommendation Systems},
  author={Bao, Keqin and Zhang, Jizhi and Wang, Wenjie and Zhang, Yang and Yang, Zhengyi and Luo, Yancheng and
          Chen, Chong and Feng, Fuli and Tian, Qi},
  journal={arXiv preprint arXiv:2308.08434},
  year={2023}
}
"""

_KWARGS_DESCRIPTION = """
Configurations (`evaluate.load(..., config_name=...)`):

`titles` (default): each generated title is embedded and grounded to the nearest catalog titles.
    predictions: list of generated titles. references: list of true titles, each a title of the catalog.
    catalog: list of titles in catalog order, or a file of titles (movies.dat, id2name.txt, parquet or CSV with a title
        column, .txt with one title per line).
    encoder: a sentence-transformers or causal LM name or folder, or a function texts -> (n, d) array. It is loaded
        once per metric object.
    item_embeddings: the encoder's vectors of the catalog, (n_items, d), if they are known; else it encodes them.
    An empty prediction counts as a miss.
`embeddings`: predictions: list of vectors. references: catalog row of each target. item_embeddings: (n_items, d) array.
`rankings`: predictions: list of ranked id lists, best first; ids are whole numbers or texts. references: the target's
    id. An absent id is a miss at every K, however short the list; an empty list is an empty prediction.

Options:
    ks: cut-offs, default [1, 3, 5, 10, 20, 50]; none may exceed the catalog (`rankings` has none).
    duplicates: "best" (default) = a target whose title (`embeddings`: vector) occurs in several rows gets the best rank
        among them; "exact" = the rank of its own row (`titles`: of the first row with that title).
    drop_empty: exclude empty predictions from the mean, as Bi-Step-Rec's scripts do; else they are misses.
    bootstrap: resamples for percentile intervals; 0 (default) = none. confidence: their level (0.95). seed: 0.
    memory_mib: working memory of the ranking (256). batch_tokens: tokens encoded together (4096).

Returns: {"ndcg@1": ..., "hr@1": ..., ...}, floats; with bootstrap also "ndcg@1_low", "ndcg@1_high" and so on.

Examples:
    >>> metric = evaluate.load("metrics/ndcg_hr", config_name="rankings")
    >>> metric.compute(predictions=[[3, 1, 2], [2, 3, 1]], references=[1, 2], ks=[1, 3])
    {'ndcg@1': 0.5, 'ndcg@3': 0.8154648767857288, 'hr@1': 0.5, 'hr@3': 1.0}
"""

_FEATURES = {
    "titles": {"predictions": datasets.Value("string"), "references": datasets.Value("string")},
    "embeddings": {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")},
    "rankings": {"predictions": datasets.List(datasets.Value("int64")), "references": datasets.Value("int64")},
}
_TEXT_IDS = {"predictions": datasets.List(datasets.Value("string")), "references": datasets.Value("string")}


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class NdcgHr(evaluate.Metric):
    """NDCG@K and HR@K over a full catalog; wrong input raises a one-line ValueError."""

    def _info(self):
        if self.config_name == "default":
            self.config_name = "titles"
        if self.config_name not in _FEATURES:
            raise ValueError(f"config_name={self.config_name!r} is unknown: use one of {', '.join(_FEATURES)}")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=self._features(),
            reference_urls=["https://arxiv.org/abs/2308.08434"],
        )

    def _features(self):
        """The columns; `rankings` accepts either kind of ids, told by the first batch."""
        features = datasets.Features(_FEATURES[self.config_name])
        return [datasets.Features(_TEXT_IDS), features] if self.config_name == "rankings" else features

    def _loaded(self, name: str) -> Encoder:
        """The encoder of a name or folder, kept for the next `compute`."""
        if getattr(self, "_encoder_name", None) != name:
            self._encoder, self._encoder_name = load_encoder(name), name
        return self._encoder

    def compute(self, *, predictions=None, references=None, **kwargs):
        """Return the scores of the given examples, or of those added before."""
        try:
            return evaluate.Metric.compute(self, predictions=predictions, references=references, **kwargs)
        except Exception:
            # after an error the base class keeps its cache files locked, and the next metric would wait for them
            for lock in {id(lock): lock for lock in [*(self.filelocks or []), self.filelock] if lock}.values():
                lock.release()
            self.filelocks = self.filelock = self.writer = None
            raise

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Add several examples after checking them: the base class would turn 1.5 into 1 and "1" into 1."""
        check_examples(self.config_name, predictions, references)
        if not len(references):
            raise ValueError("predictions is empty: give at least one prediction and its reference")
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Add one example after checking it."""
        check_examples(self.config_name, [prediction], [reference])
        super().add(prediction=prediction, reference=reference, **kwargs)

    def _compute(
        self,
        predictions,
        references,
        *,
        ks=DEFAULT_KS,
        duplicates="best",
        drop_empty=False,
        bootstrap=0,
        confidence=0.95,
        seed=0,
        **inputs,
    ):
        if len(predictions) == 0:
            raise ValueError("predictions is empty: give at least one prediction and its reference")
        if duplicates not in ("best", "exact"):
            raise ValueError(f"duplicates={duplicates!r} is unknown: use 'best' or 'exact'")
        rank_examples = {"titles": ranks_of_titles, "embeddings": ranks_of_embeddings, "rankings": ranks_of_lists}
        accepted = {
            "titles": {"catalog", "encoder", "item_embeddings", "memory_mib", "batch_tokens"},
            "embeddings": {"item_embeddings", "memory_mib"},
            "rankings": set(),
        }[self.config_name]
        unknown = sorted(set(inputs) - accepted)
        if unknown:
            raise ValueError(
                f"{unknown[0]!r} is not an input of config {self.config_name!r}: besides the options it takes "
                f"{sorted(accepted) or 'none'}"
            )
        if self.config_name == "titles":
            inputs["load"] = self._loaded
        rank, empty = rank_examples[self.config_name](
            predictions, references, check_ks(ks), duplicates=duplicates, **inputs
        )
        if drop_empty:
            if empty.all():
                raise ValueError(
                    f"all {len(rank)} predictions are empty, so drop_empty leaves nothing to score: set it to false"
                )
            rank = rank[~empty]
        ks = check_ks(ks)
        scores = mean_scores(rank, ks)
        if bootstrap:
            scores |= bootstrap_intervals(rank, ks, bootstrap, confidence, seed)
        return scores


def ranks_of_titles(
    predictions: Sequence[str],
    references: Sequence[str],
    ks: Sequence[int],
    *,
    catalog: Sequence[str] | str | Path | None = None,
    encoder: Encoder | Callable[[list[str]], Any] | str | Path | None = None,
    item_embeddings: Any = None,
    load: Callable[[str], Encoder] = load_encoder,
    duplicates: str = "best",
    memory_mib: int = 256,
    batch_tokens: int = 4096,
) -> tuple[np.ndarray, np.ndarray]:
    """Return ranks of generated titles, (n,) int64, and whether each is empty, (n,) bool; then its rank is n_items."""
    if catalog is None or encoder is None:
        missing = "catalog" if catalog is None else "encoder"
        raise ValueError(f"config 'titles' needs {missing}=: a list of titles and an encoder's name or folder")
    titles = read_titles(catalog) if isinstance(catalog, str | Path) else list(catalog)
    wrong = next((row for row, title in enumerate(titles) if not isinstance(title, str)), None)
    if wrong is not None:
        raise ValueError(f"catalog row {wrong} is {titles[wrong]!r}, not a text: give every row a title")
    titles = [clean_title(title) for title in titles]
    if not titles:
        raise ValueError("catalog is empty: give at least one title")
    check_ks(ks, len(titles))
    rows_by_title: dict[str, list[int]] = {}
    for row, title in enumerate(titles):
        rows_by_title.setdefault(title, []).append(row)
    targets = [clean_title(title) for title in references]
    unknown = [title for title, target in zip(references, targets, strict=True) if target not in rows_by_title]
    if unknown:
        raise ValueError(
            f"reference {unknown[0]!r} is not a title of the catalog ({len(unknown)} of {len(references)} are not): "
            "give the catalog that contains every target"
        )
    texts = [clean_title(text) for text in predictions]
    full = np.flatnonzero([bool(text) for text in texts])
    rank = np.full(len(texts), len(titles), np.int64)
    if len(full):
        encoder = load(str(encoder)) if isinstance(encoder, str | Path) else encoder
        wanted = [texts[i] for i in full]
        if item_embeddings is None:
            # one call for both, so that a generated catalog title gets the vector of that title
            vectors = encode_texts(encoder, titles + wanted, batch_tokens)
            items, queries = vectors[: len(titles)], vectors[len(titles) :]
        else:
            items = check_vectors("item_embeddings", item_embeddings)
            if len(items) != len(titles):
                raise ValueError(
                    f"item_embeddings has {len(items)} vectors for {len(titles)} titles: give one per title"
                )
            queries = encode_with_known(encoder, wanted, rows_by_title, items, batch_tokens)
        ranking = rank_catalog(
            queries,
            items,
            [rows_by_title[targets[i]] for i in full],
            top_k=0,
            memory_mib=memory_mib,
            duplicates=duplicates,
        )
        rank[full] = ranking.rank
    return rank, np.array([not text for text in texts])


def ranks_of_embeddings(
    predictions: Sequence[Sequence[float]],
    references: Sequence[int],
    ks: Sequence[int],
    *,
    item_embeddings: np.ndarray | None = None,
    duplicates: str = "best",
    memory_mib: int = 256,
) -> tuple[np.ndarray, np.ndarray]:
    """Return ranks of target rows for prediction vectors, (n,) int64, and (n,) bool, all false: no vector is empty."""
    if item_embeddings is None:
        raise ValueError("config 'embeddings' needs item_embeddings=: an array (n_items, d), in catalog order")
    if len(item_embeddings) == 0:
        raise ValueError("item_embeddings is empty: give one vector per row of the catalog")
    widths = {len(vector) for vector in predictions}
    if len(widths) > 1:
        raise ValueError(f"predictions have vectors of {sorted(widths)} dimensions: give all the same number")
    items = check_vectors("item_embeddings", item_embeddings)
    check_ks(ks, len(items))
    flat_rows("references", references, len(references), len(items))
    targets = same_vectors(items, references) if duplicates == "best" else references
    queries = check_vectors("predictions", np.asarray(predictions, np.float32))
    ranking = rank_catalog(queries, items, targets, top_k=0, memory_mib=memory_mib)
    return ranking.rank, np.zeros(len(references), bool)


def same_vectors(items: np.ndarray, rows: Sequence[int]) -> list[list[int]]:
    """Return, for each of `rows`, all rows of `items` (m, d) with the same vector, ascending."""
    wanted: dict[bytes, list[int]] = {(items[row] + 0.0).tobytes(): [] for row in set(rows)}  # + 0.0: no negative zeros
    for row, vector in enumerate(items):
        found = wanted.get((vector + 0.0).tobytes())
        if found is not None:
            found.append(row)
    return [wanted[(items[row] + 0.0).tobytes()] for row in rows]


def ranks_of_lists(
    predictions: Sequence[list[int] | list[str] | None],
    references: Sequence[int] | Sequence[str],
    ks: Sequence[int],
    *,
    duplicates: str = "best",
) -> tuple[np.ndarray, np.ndarray]:
    """Return ranks of targets in id lists, (n,) int64, max(ks) if absent, and whether each list is empty, (n,) bool."""
    lengths = np.array([len(ids) if ids is not None else 0 for ids in predictions], np.int64)
    empty = lengths == 0
    rank = [place_of(target, ids, ks[-1]) for ids, target in zip(predictions, references, strict=True)]
    return np.array(rank, np.int64), empty


def place_of(target: Any, ids: list[Any] | None, absent: int) -> int:
    """Return the first position of `target` in a list, or `absent`; one pass, no copy."""
    try:
        return absent if ids is None else ids.index(target)
    except ValueError:  # not in the list
        return absent
