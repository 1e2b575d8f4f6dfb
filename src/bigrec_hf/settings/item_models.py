"""Settings of the rankings without a language model, and of their mixture with one."""

from __future__ import annotations

from dataclasses import dataclass

from bigrec_hf.settings.field import setting


@dataclass(frozen=True)
class BaselinesSettings:
    """All rankings that need no language model."""

    sasrec: bool = setting(False, "train SASRec too, which takes by far the longest")


@dataclass(frozen=True)
class LinearSettings:
    """EASE and ItemKNN, linear item-to-item models; every combination of values is tried on validation examples."""

    linear_models: list[str] = setting(["ease", "itemknn"], "models to fit, any of: ease, itemknn")
    linear_decays: list[float] = setting(
        [1.0, 0.9, 0.8, 0.7],
        "factors to try by which a history item weighs less per step into the past",
        above=0,
        most=1,
    )
    ease_lambdas: list[float] = setting([100.0, 200.0, 500.0, 1000.0, 2000.0], "ridges to try (EASE)", above=0)
    ease_max_items: int = setting(
        20_000, "largest catalog for which a dense matrix is inverted (EASE; 20,000 items: 1.5 GiB)", least=1
    )
    itemknn_neighbors: list[int] = setting(
        [20, 50, 100, 200, 500], "numbers of neighbors per item to try (ItemKNN)", least=1
    )
    itemknn_shrinkages: list[float] = setting(
        [0.0, 10.0, 50.0, 200.0], "terms to try that lower the similarities of rare items (ItemKNN)", least=0
    )


@dataclass(frozen=True)
class PoolSettings:
    """Title probabilities and other models' scores in one distribution, weights fitted on validation."""

    pool_models: list[str] = setting(
        ["ease"],
        "methods to pool with the language model: any whose folder in the run holds scores.safetensors, such as ease, "
        "itemknn, sasrec; and popularity",
    )


@dataclass(frozen=True)
class SasrecSettings:
    """SASRec, a sequential baseline trained on the same examples."""

    sasrec_dim: int = setting(64, "size of item embeddings and hidden states", least=1)
    sasrec_layers: int = setting(2, "transformer blocks", least=1)
    sasrec_heads: int = setting(2, "attention heads", least=1)
    sasrec_dropout: float = setting(0.3, "dropout probability", least=0, below=1)
    sasrec_max_length: int = setting(
        10, "maximum number of history items the model reads (by default as many as the prompts)", least=1
    )
    sasrec_stride: int = setting(
        2,
        "items between the ends of training windows: max_length = each item is a target once per epoch, 1 = most often",
        least=1,
    )
    sasrec_epochs: int = setting(100, "maximum number of passes over the training windows", least=1)
    sasrec_patience: int = setting(
        5, "stop after this many epochs without a better validation NDCG@10; 0 = never", least=0
    )
    sasrec_lr: float = setting(1e-3, "learning rate (AdamW, constant)", above=0)
    sasrec_weight_decay: float = setting(0.0, "weight decay of AdamW", least=0)
    sasrec_batch_size: int = setting(256, "windows per optimizer step", least=1)
    sasrec_negatives: int = setting(
        2048,
        "items sampled per step for the softmax, with logQ correction; 0 = all, as in catalogs of no more items",
        least=0,
    )
