"""Settings from generated texts to rankings and metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.settings.field import setting

EXCLUDE = ("none", "history", "seen")


class WithHistories(Protocol):
    """Examples of any kind: target rows, histories (oldest first), and all earlier items if they were looked up."""

    @property
    def targets(self) -> Sequence[int]:
        """One catalog row per example."""

    @property
    def histories(self) -> Sequence[Sequence[int]]:
        """The catalog rows of each example's history window."""

    @property
    def seen(self) -> Sequence[Sequence[int]] | None:
        """All earlier items of each example's user (`data.earlier`); None if they were not looked up."""


@dataclass(frozen=True)
class RankOptions:
    """How the catalog is ranked for an example, by whatever cost.

    `top_k`: items kept per example; `exclude`: what is not among the candidates, one of EXCLUDE; `duplicates`: "best" =
    a target counts as found at any row with its title, "exact" = at its own row only; `memory_mib`: working memory for
    one chunk of examples or items, in MiB.
    """

    top_k: int = 50
    exclude: str = "none"
    duplicates: str = "best"
    memory_mib: int = 256

    def excluded(self, examples: WithHistories) -> list[list[int]] | None:
        """Return the catalog rows of each example that are not candidates; None if all rows are.

        These are the history, or all earlier items of the user, without the target: a target that the user has had
        before remains a candidate. Other rows with the title of an excluded one remain as well. Raises BigrecError for
        `seen` if the earlier items were not looked up (`data.earlier.with_seen`).
        """
        if self.exclude == "none":
            return None
        rows = examples.histories if self.exclude == "history" else examples.seen
        if rows is None:
            raise BigrecError("exclude is 'seen', but these examples have no earlier items: use --exclude history")
        return [
            [int(row) for row in own if row != target and row >= 0]
            for own, target in zip(rows, examples.targets, strict=True)
        ]


@dataclass(frozen=True)
class GroundSettings:
    """Step 2: the text's embedding, its distance to every catalog title, exact ranks."""

    encoder: str = setting(
        "base",
        "text encoder: base = the base model of the run (last token), or a causal LM or sentence-transformers name",
        hub="model",
        words=("base",),
    )
    encoder_dtype: str = setting(
        "float32", "arithmetic of the encoder", choices=("auto", "bfloat16", "float16", "float32")
    )
    encode_batch_tokens: int = setting(4096, "tokens encoded together, padding included", least=1)
    index_dir: str | None = setting(
        None,
        "catalog index: folder (created if missing) or Hub id, `@revision` allowed (default: <run_dir>/index)",
        hub="dataset",
        creates=True,
    )
    top_k: int = setting(RankOptions.top_k, "nearest items kept per example in rankings.parquet", least=1)
    memory_mib: int = setting(
        RankOptions.memory_mib, "memory for distances, in MiB; the catalog is scanned in chunks of this size", least=1
    )
    ranking: str = setting(
        "distance",
        "distance = all items by distance to the first text; hybrid = first the titles among all texts, in that order, "
        "then the rest by distance (written to <method>_hybrid); scores = by the probabilities of the titles, which "
        "needs no encoder (decoding: exact)",
        choices=("distance", "hybrid", "scores"),
    )
    exclude: str = setting(
        RankOptions.exclude,
        "items that are not candidates: none (the reference's protocol); history = those of the example's history; "
        "seen = all items that the user had before the target (from `interactions` in the prepared data set), as a "
        "deployed recommender would. The target is never excluded, nor are other rows with the same title",
        choices=EXCLUDE,
    )
    duplicates: str = setting(
        RankOptions.duplicates,
        "rank of a target whose title occurs in several rows: best = the best of these rows, exact = its own row",
        choices=("best", "exact"),
    )

    @property
    def options(self) -> RankOptions:
        """The options of every ranking in this section."""
        return RankOptions(self.top_k, self.exclude, self.duplicates, self.memory_mib)


@dataclass(frozen=True)
class ScoreSettings:
    """NDCG@K and HR@K with bootstrap intervals."""

    ks: list[int] = setting([1, 3, 5, 10, 20, 50], "cut-offs K", least=1)
    drop_empty: bool = setting(
        False, "exclude empty generations from the mean, as the reference does (default: they are misses)"
    )
    bootstrap: int = setting(1000, "bootstrap resamples for the intervals; 0 = none", least=0)
    confidence: float = setting(0.95, "level of the intervals", above=0, below=1)


@dataclass(frozen=True)
class RerankSettings:
    """Distances and weights in one ranking; the strength of the weights is chosen on validation examples."""

    texts: str = setting(
        "answers",
        "what items should be close to: answers = the generated text; history = the titles of the example's latest "
        "items, which needs no language model (methods history, history_...; needs --exclude history or seen)",
        choices=("answers", "history"),
        former={"scores": "the stage `pool` combines title probabilities with other models, see `pool_models`"},
    )
    history_items: int = setting(10, "number of latest items whose titles are used (texts: history)", least=1)
    formulas: list[str] = setting(
        ["reweight"], "any of: reweight = BIGRec's Eq. 3; mix = weighted sum; rrf = weighted sum of reciprocal ranks"
    )
    weights: list[str] = setting(
        ["popularity"],
        "any of: popularity = how often an item is a training target; scores = those of a collaborative model; both = "
        "the mean of the two",
    )
    scores: str | None = setting(
        None,
        "the collaborative model: its name, or the subfolder of the run with its scores.safetensors (.npy, .parquet)",
    )
    validation_scores: str | None = setting(
        None, "its scores for the validation examples (default: <run_dir>/validation/<scores>/scores.*)"
    )
    test_scores: str | None = setting(
        None, "its scores for the evaluated examples (default: <run_dir>/<scores>/scores.*)"
    )
    gamma_grid: str = setting(
        "auto",
        "the reference's grid of gamma (formulas: reweight); auto = popularity for popularity alone, else movie",
        choices=("auto", "movie", "game", "popularity"),
    )
    gamma_values: list[float] = setting([], "your own grid of gamma (formulas: reweight)", least=-300, most=300)
    share_values: list[float] = setting(
        [], "your own grid of weights (formulas: mix, rrf; default: 0, 0.01 .. 1)", least=0, most=1
    )
    choose_by: str = setting(
        "each", "each = choose separately for every metric and K; ndcg@10, hr@5 ... = choose once, by this metric"
    )


@dataclass(frozen=True)
class DebiasSettings:
    """D3 decoding; the weight of the language model is chosen on validation examples."""

    debias_scores: str = setting("sasrec", "the collaborative model: subfolder of the run with scores.safetensors")
    debias_lm_weights: list[float] = setting(
        [0.1, 0.3, 0.5, 0.7, 0.9],
        "weights a of the language model to try in a * log p_LM + (1 - a) * log p_CF",
        least=0,
        most=1,
    )
    debias_beams: int = setting(10, "beams per example; their titles come first in the ranking", least=1)
    debias_examples: int = setting(200, "maximum number of validation examples to decode with each weight", least=1)
    debias_metric: str = setting("ndcg@10", "metric that chooses the weight: ndcg@K or hr@K")


@dataclass(frozen=True)
class KeywordsSettings:
    """Keywords of catalog titles and generated titles, by an instruct model (for `fuse --fusion keywords`)."""

    keywords_model: str | None = setting(
        None,
        "instruct model that writes keywords: folder or Hub id, `@revision` allowed (default: the base model)",
        hub="model",
    )
    keywords_noun: str | None = setting(
        None, "what a title names, singular, e.g. movie (default: the noun of the prepared data set, else item)"
    )
    keywords_tokens: int = setting(64, "maximum number of tokens for the keywords of a title", least=1)
    keywords_batch_size: int = setting(
        32,
        "maximum number of titles processed together on each process; a killed process loses at most one such batch",
        least=1,
    )
    keywords_batch_tokens: int = setting(
        65536, "maximum number of tokens in prompts and generations decoded together, counting padding", least=1
    )


@dataclass(frozen=True)
class FuseSettings:
    """All texts of an example, or titles and keywords, in one ranking; parameters are chosen on validation examples."""

    fusion: str = setting(
        "all",
        "min = nearest text; rrf = reciprocal ranks; keywords = weighted sum of the ranks by title and keywords; all = "
        "the first two, and keywords if they have been written",
        choices=("min", "rrf", "keywords", "all"),
    )
    fusion_metric: str = setting("ndcg@10", "metric that chooses the parameters on validation examples: ndcg@K or hr@K")
    fusion_beams: int = setting(0, "maximum number of texts per example (1 to this many are tried); 0 = all", least=0)
    fusion_k0: list[int] = setting(
        [0, 1, 2, 5, 10, 20, 60, 100], "constants k0 to try in 1 / (k0 + rank) (fusion: rrf)", least=0
    )
    keywords_file: str | None = setting(None, "keywords (default: <run_dir>/keywords/keywords.parquet)")


@dataclass(frozen=True)
class EvaluateSettings:
    """Ground and score any prediction file."""

    generations: list[str] = setting(
        [],
        "generations.parquet, a run folder, the reference's prediction JSON (with `predict`), or folders of them; a "
        "TREC run (.run), a table (CSV, TSV, JSON lines, parquet) of texts or ranked items, {query: {item: score}}",
    )
    lists: bool = setting(
        False,
        "score the lists of the file as they are, without an encoder: the target's rank is its place in the list, as "
        "D3, ReRe and MiniOneRec count (runs and tables of items always are)",
    )
    targets_file: str | None = setting(
        None,
        "what came next, where the file does not say it: qrels (`query 0 item 1`) or a table of users and targets "
        "(default: the split of --dataset, by example or user)",
        flag="--targets",
    )
    predictions_user: str | None = setting(
        None, "column of the user or example id in a table (default: found by its name)", flag="--user_column"
    )
    predictions_item: str | None = setting(
        None, "column of ranked ids or titles in a table (default: found by its name)", flag="--item_column"
    )
    predictions_text: str | None = setting(
        None, "column of generated texts, best first, in a table (default: found by its name)", flag="--text_column"
    )
    predictions_score: str | None = setting(
        None, "column of scores, greater is better, in a table with one item a row", flag="--score_column"
    )
    predictions_rank: str | None = setting(
        None, "column of ranks, the least is the best, in a table with one item a row", flag="--rank_column"
    )
    predictions_target: str | None = setting(
        None, "column of the title or id that came next (default: found by its name)", flag="--target_column"
    )
    output_dir: str | None = setting(None, "folder for results.json, per_example.parquet and rankings.parquet")
    catalog_encoding: str | None = setting(
        None, "text encoding of the catalog file (default: the format's own)", flag="--encoding"
    )
