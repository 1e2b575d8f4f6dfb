"""Settings: from texts to rankings and scores, the sequential baseline included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.settings.field import setting

EXCLUDE = ("none", "history", "seen")


class WithHistories(Protocol):
    """Examples of any kind: target rows, histories (oldest first), all earlier items where they were looked up."""

    @property
    def targets(self) -> Sequence[int]:
        """A catalog row per example."""

    @property
    def histories(self) -> Sequence[Sequence[int]]:
        """The window of each example, catalog rows."""

    @property
    def seen(self) -> Sequence[Sequence[int]] | None:
        """All earlier items of each example's user (`data.earlier`), None where nothing asked for them."""


@dataclass(frozen=True)
class RankOptions:
    """How the catalog is ranked for an example, whatever the order goes by.

    `top_k`: items kept per example; `exclude`: what is not among the candidates, one of EXCLUDE; `duplicates`: "best" =
    a target counts as found at any row with its title, "exact" = at its own row only; `memory_mib`: working memory for
    one chunk of examples or items, in MiB.
    """

    top_k: int = 50
    exclude: str = "none"
    duplicates: str = "best"
    memory_mib: int = 256

    def excluded(self, examples: WithHistories) -> list[list[int]] | None:
        """The catalog rows of each example that are no candidates; None where none is left out.

        The history, or all earlier items of the user, without the target: a target that the user has had before stays a
        candidate. Only rows are left out: another row with the same title as one of them stays. Raises BigrecError for
        `seen` where the earlier items were not looked up (`data.earlier.with_seen`).
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
        "text encoder: base = the run's base model (last token); or a causal LM or sentence-transformers name",
        hub="model",
        words=("base",),
    )
    encoder_dtype: str = setting(
        "float32", "arithmetic of the encoder", choices=("auto", "bfloat16", "float16", "float32")
    )
    encode_batch_tokens: int = setting(4096, "tokens encoded together, padding included", least=1)
    index_dir: str | None = setting(
        None,
        "catalog index: folder (made if missing) or Hub id, `@revision` allowed (default: <run_dir>/index)",
        hub="dataset",
        creates=True,
    )
    top_k: int = setting(RankOptions.top_k, "nearest items kept an example in rankings.parquet", least=1)
    memory_mib: int = setting(
        RankOptions.memory_mib, "memory for distances, in MiB; the catalog is scanned in chunks of that size", least=1
    )
    ranking: str = setting(
        "distance",
        "distance = all items by distance to the first text; hybrid = the titles among all texts first, in that order, "
        "then the rest by distance (written to <method>_hybrid); scores = by the titles' probabilities (decoding "
        "exact), no encoder needed",
        choices=("distance", "hybrid", "scores"),
    )
    exclude: str = setting(
        RankOptions.exclude,
        "items that are not candidates: none (the reference's protocol); history = those of the example's history; "
        "seen = all that its user had before the target (from the prepared set's `interactions`), as a service would. "
        "Never the target itself; other rows with the title of an excluded one stay",
        choices=EXCLUDE,
    )
    duplicates: str = setting(
        RankOptions.duplicates,
        "rank of a target whose title stands in several rows: best over these rows, or exact (its own row)",
        choices=("best", "exact"),
    )

    @property
    def options(self) -> RankOptions:
        """What every ranking takes of this section."""
        return RankOptions(self.top_k, self.exclude, self.duplicates, self.memory_mib)


@dataclass(frozen=True)
class ScoreSettings:
    """NDCG@K and HR@K with bootstrap intervals."""

    ks: list[int] = setting([1, 3, 5, 10, 20, 50], "cut-offs K", least=1)
    drop_empty: bool = setting(False, "leave empty answers out of the mean, as the reference does (default: a miss)")
    bootstrap: int = setting(1000, "bootstrap resamples for the intervals; 0 = none", least=0)
    confidence: float = setting(0.95, "level of the intervals", above=0, below=1)


@dataclass(frozen=True)
class RerankSettings:
    """Distances and weights in one ranking, the weight's strength chosen on validation."""

    texts: str = setting(
        "answers",
        "what items are to be close to: answers = the text that the LM wrote; history = the titles of the example's "
        "latest items, no LM needed (methods history, history_...; needs --exclude history or seen); scores = none, "
        "items cost their negative log-probability (decoding exact)",
        choices=("answers", "history", "scores"),
    )
    history_items: int = setting(10, "texts: history: latest items whose titles are taken", least=1)
    formulas: list[str] = setting(
        ["reweight"], "any of: reweight = BIGRec's Eq. 3; mix = additive; rrf = additive in reciprocal ranks"
    )
    weights: list[str] = setting(
        ["popularity"], "any of: popularity = training targets; scores = a collaborative model's; both = their mean"
    )
    scores: str | None = setting(
        None, "the collaborative model: the run's subfolder that holds scores.safetensors (.npy, .parquet), or its name"
    )
    validation_scores: str | None = setting(
        None, "its scores of the validation examples (default: <run_dir>/validation/<scores>/scores.*)"
    )
    test_scores: str | None = setting(
        None, "its scores of the evaluated examples (default: <run_dir>/<scores>/scores.*)"
    )
    gamma_grid: str = setting(
        "auto",
        "reweight: the reference's grid of gamma; auto = popularity for popularity alone, else movie",
        choices=("auto", "movie", "game", "popularity"),
    )
    gamma_values: list[float] = setting([], "reweight: a grid of your own", least=-300, most=300)
    share_values: list[float] = setting([], "mix, rrf: a grid of your own (default: 0, 0.01 .. 1)", least=0, most=1)
    choose_by: str = setting("each", "each = a choice for every metric and K; ndcg@10, hr@5 ... = this one's for all")


@dataclass(frozen=True)
class DebiasSettings:
    """Debiased decoding, the language model's share in it chosen on validation."""

    debias_scores: str = setting("sasrec", "the collaborative model: the run's subfolder that holds scores.safetensors")
    debias_lm_weights: list[float] = setting(
        [0.1, 0.3, 0.5, 0.7, 0.9], "shares a of the LM to try in a * log p_LM + (1 - a) * log p_CF", least=0, most=1
    )
    debias_beams: int = setting(10, "beams an example; their titles stand first in the ranking", least=1)
    debias_examples: int = setting(200, "validation examples to decode with each share, at most", least=1)
    debias_metric: str = setting("ndcg@10", "metric that chooses the share: ndcg@K or hr@K")


@dataclass(frozen=True)
class KeywordsSettings:
    """Keywords of catalog titles and predicted titles, by an instruct LM (for `fuse --fusion keywords`)."""

    keywords_model: str | None = setting(
        None,
        "instruct LM that writes keywords: folder or Hub id, `@revision` allowed (default: the base model)",
        hub="model",
    )
    keywords_noun: str | None = setting(
        None, "what a title names, singular, e.g. movie (default: the prepared set's noun, else item)"
    )
    keywords_tokens: int = setting(64, "tokens a keyword answer may have", least=1)
    keywords_batch_size: int = setting(
        32, "titles asked together, at most, on each process: what a kill can lose", least=1
    )
    keywords_batch_tokens: int = setting(
        65536, "prompt and answer tokens decoded together, at most, padding counted", least=1
    )


@dataclass(frozen=True)
class FuseSettings:
    """All texts of an example, or titles and keywords, in one ranking; parameters chosen on validation."""

    fusion: str = setting(
        "all",
        "min = nearest text; rrf = reciprocal ranks; keywords = mix of the title's and the keywords' ranks; all = the "
        "first two, and keywords where they were written",
        choices=("min", "rrf", "keywords", "all"),
    )
    fusion_metric: str = setting("ndcg@10", "metric that chooses the parameters on validation: ndcg@K or hr@K")
    fusion_beams: int = setting(0, "texts an example to use, at most (1 to this many are tried); 0 = all", least=0)
    fusion_k0: list[int] = setting(
        [0, 1, 2, 5, 10, 20, 60, 100], "rrf: constants k0 to try in 1 / (k0 + rank)", least=0
    )
    keywords_file: str | None = setting(None, "keywords (default: <run_dir>/keywords/keywords.parquet)")


@dataclass(frozen=True)
class EvaluateSettings:
    """`evaluate` = ground + score of any prediction file."""

    generations: list[str] = setting(
        [], "generations.parquet, a run folder, the reference's prediction JSON (with `predict`), or folders of them"
    )
    output_dir: str | None = setting(None, "folder for results.json, per_example.parquet and rankings.parquet")
    catalog_encoding: str | None = setting(
        None, "text encoding of the catalog file (default: the format's own)", flag="--encoding"
    )


@dataclass(frozen=True)
class LinearSettings:
    """EASE and ItemKNN, linear item-to-item models; every combination of the values is tried on validation."""

    linear_models: list[str] = setting(["ease", "itemknn"], "models to fit, any of: ease, itemknn")
    linear_decays: list[float] = setting(
        [1.0, 0.9, 0.8, 0.7], "weight of a history item per step into the past, to try", above=0, most=1
    )
    ease_lambdas: list[float] = setting([100.0, 200.0, 500.0, 1000.0, 2000.0], "EASE: ridges to try", above=0)
    ease_max_items: int = setting(
        20_000, "EASE: largest catalog to invert a dense matrix for (20,000 items: 1.5 GiB)", least=1
    )
    itemknn_neighbors: list[int] = setting([20, 50, 100, 200, 500], "ItemKNN: neighbors per item to try", least=1)
    itemknn_shrinkages: list[float] = setting(
        [0.0, 10.0, 50.0, 200.0], "ItemKNN: terms to try that lower the similarities of rare items", least=0
    )


@dataclass(frozen=True)
class SasrecSettings:
    """SASRec, the sequential baseline, trained on the same examples."""

    sasrec_dim: int = setting(64, "size of item embeddings and hidden states", least=1)
    sasrec_layers: int = setting(2, "transformer blocks", least=1)
    sasrec_heads: int = setting(2, "attention heads", least=1)
    sasrec_dropout: float = setting(0.3, "dropout probability", least=0, below=1)
    sasrec_max_length: int = setting(10, "history items it looks at, at most (as the prompts)", least=1)
    sasrec_stride: int = setting(
        2,
        "items between the ends of training windows: max_length = each item is a target once an epoch, 1 = often",
        least=1,
    )
    sasrec_epochs: int = setting(100, "passes over the training windows, at most", least=1)
    sasrec_patience: int = setting(5, "early stopping: epochs without a better validation NDCG@10; 0 = never", least=0)
    sasrec_lr: float = setting(1e-3, "learning rate (AdamW, constant)", above=0)
    sasrec_weight_decay: float = setting(0.0, "weight decay of AdamW", least=0)
    sasrec_batch_size: int = setting(256, "windows an optimizer step", least=1)
    sasrec_negatives: int = setting(
        2048,
        "items sampled a step for the softmax, with logQ correction; catalogs no larger, or 0: the full softmax",
        least=0,
    )
