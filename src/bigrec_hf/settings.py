"""Every setting a recipe or a command line can hold: one dataclass a section, with help, unit and default.

Nothing heavy is imported here, so that `--help` answers at once. Field names are unique across sections: a recipe
groups them by section, the command line names them directly (`--num_beams 4`). Stages unpack these objects in `main`;
functions take plain values.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


def setting(default: Any, help: str, **more: Any) -> Any:
    """A dataclass field with its help text; mutable defaults are copied.

    `more`: `choices`, `positional`, `flag`; `hub`: the field may name a Hub repository of this type (`words`: values
    that do not; `creates`: where there is no such repository, a folder to make).
    """
    metadata = {"help": help, **more}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class RunSettings:
    """Where a run lives."""

    run_dir: str | None = setting(None, "folder of the run (default: runs/<recipe path, joined by dashes>)")
    seed: int = setting(0, "seed of sampling, initialization, shuffling and generation")
    method: str = setting(
        "finetuned",
        "generate, ground and score work in this subfolder of the run; zero_shot = the base model without the adapter",
        choices=("finetuned", "zero_shot"),
    )


@dataclass(frozen=True)
class PipelineSettings:
    """What `run` does beside the fine-tuned model."""

    baselines: list[str] = setting(
        ["random", "popularity", "zero_shot"],
        "scored on the same examples, any of: random, popularity, zero_shot",
    )
    from_stage: str | None = setting(
        None,
        "redo this stage and all after it, done or not",
        flag="--from",
        choices=("prepare", "sft", "index", "generate", "ground", "score", "report"),
    )
    seeds: list[int] = setting(
        [], "run once with each of these seeds, in <run_dir>/seed-N, and report their spread (default: the seed alone)"
    )


@dataclass(frozen=True)
class PrepareSettings:
    """From raw files to a prepared data set."""

    source: str | None = setting(
        None,
        "kind of raw files",
        choices=("movielens", "amazon", "tabular", "sequences", "reference-json"),
    )
    raw_dir: str | None = setting(None, "folder of the raw files; names are found by the source's own conventions")
    preset: str = setting(
        "bigrec-movie",
        "protocol of examples and splits",
        choices=("bigrec-movie", "bigrec-game", "leave-one-out", "d3"),
    )
    prepared_dir: str | None = setting(None, "folder to write the prepared data set to")
    encoding: str | None = setting(None, "text encoding of the raw files (default: the format's own)")
    ratings_file: str | None = setting(None, "interactions file (default: found in raw_dir by its usual name)")
    items_file: str | None = setting(None, "items file (default: found in raw_dir by its usual name)")
    download: str | None = setting(
        None,
        "MovieLens archive to fetch from GroupLens into raw_dir first",
        choices=("ml-latest-small", "1m", "10m", "32m"),
    )
    export_reference_json: str | None = setting(
        None, "also write train, valid, test, valid_5000, test_5000.json in the reference's format to this folder"
    )
    dataset_name: str | None = setting(None, "name of the data set on its card (default: name of raw_dir)")
    noun: str | None = setting(None, "what is recommended, plural, e.g. movies (default: by source and preset)")
    noun_singular: str | None = setting(None, "singular of the noun (default: without its s)")
    verb: str | None = setting(None, "what users did with it, e.g. watched (default: by source and preset)")
    window: int = setting(0, "history items of an example, at most; 0 = 10, as all presets")
    min_history: int = setting(
        0, "history items an example needs, at least; 0 = the preset's (the window for bigrec-*, else 1)"
    )
    min_rating: float = setting(0.0, "keep interactions rated at least this; 0 = keep all")
    date_from: str | None = setting(
        None, "keep interactions from this UTC date or time on, e.g. 2017-10-01 (d3: 2017-10-01)"
    )
    date_to: str | None = setting(None, "keep interactions up to this UTC instant, inclusive (d3: 2018-11-01)")
    k_core: int = setting(0, "drop users and items with fewer interactions, repeatedly; 0 = the preset's, 1 = no")
    min_items: int = setting(
        10_000, "d3: start the date window a year earlier while fewer items remain (not before 1996); 0 = never"
    )
    train_fraction: float = setting(0.8, "share of the examples, by time, for training (not for leave-one-out)")
    validation_fraction: float = setting(0.1, "share for validation, after training; the rest is the test split")
    drop_untitled: bool = setting(
        False, "drop interactions whose item has no title, counted (amazon always does); false = an error"
    )
    text_sample: int = setting(1024, "training examples written out in the text config (shuffle seed 0); 0 = all")
    user_column: str = setting("user_id", "tabular: column of the user")
    item_column: str = setting("item_id", "tabular: column of the item id, in both files")
    title_column: str = setting("title", "tabular: column of the item title, in either file")
    rating_column: str | None = setting(None, "tabular: column of the rating (default: `rating` where it exists)")
    timestamp_column: str | None = setting(None, "tabular: column of the time (default: `timestamp` where it exists)")
    timestamp_unit: str = setting("s", "tabular: unit of a numeric time since 1970 UTC", choices=("s", "ms"))
    separator: str | None = setting(None, "tabular: column separator (default: comma for .csv, tab for other text)")


@dataclass(frozen=True)
class DataSettings:
    """Which prepared data set, or which of the reference's JSON files, a stage reads."""

    dataset: list[str] = setting(
        [],
        "prepared data set(s): folder or Hub id, `@revision` allowed; several are concatenated for training",
        hub="dataset",
    )
    train_json: list[str] = setting([], "the reference's JSON file(s) for training, instead of --dataset")
    validation_json: list[str] = setting([], "the reference's JSON file(s) for validation")
    test_json: list[str] = setting([], "the reference's JSON file(s) for generation and scoring")
    catalog: str | None = setting(
        None,
        "catalog: prepared set (folder or Hub id), movies.dat, id2name.txt or CSV (default: the data set's own items)",
        hub="dataset",
    )
    split: str = setting("test", "split that generation and scoring use", choices=("train", "validation", "test"))
    eval_sample: int = setting(5000, "examples drawn from the split as the reference does (seed 42); 0 = all")


@dataclass(frozen=True)
class ModelSettings:
    """The base language model."""

    base_model: str | None = setting(None, "causal LM: folder or Hub id, `@revision` allowed", hub="model")
    dtype: str = setting(
        "auto",
        "weights and arithmetic; auto = bfloat16 where the hardware multiplies it fast, else float32",
        choices=("auto", "bfloat16", "float16", "float32"),
    )
    quantization: str = setting(
        "none",
        "base weights: none (16/32-bit), 8bit, or 4bit (NF4, double-quantized)",
        choices=("none", "8bit", "4bit"),
    )
    attn_implementation: str | None = setting(None, "attention kernel, e.g. sdpa, flash_attention_2 (default: sdpa)")


@dataclass(frozen=True)
class PromptSettings:
    """The prompt templates (bigrec_hf.prompts)."""

    train_prompt: str = setting(
        "alpaca-basic",
        "template for training",
        choices=("alpaca-basic", "alpaca-enhanced", "chat-basic", "chat-enhanced"),
    )
    inference_prompt: str | None = setting(
        None,
        "template for generation (default: the training template)",
        choices=("alpaca-basic", "alpaca-enhanced", "chat-basic", "chat-enhanced"),
    )
    max_history: int = setting(10, "history titles in a prompt, at most (the newest are kept)")
    max_length: int = setting(1024, "prompt + completion, in tokens; the oldest history titles give way")


@dataclass(frozen=True)
class SftSettings:
    """LoRA fine-tuning with TRL's SFTTrainer; the defaults are the reference's."""

    sample: int = setting(1024, "training examples drawn from each data set; 0 = all")
    validation_sample: int = setting(5000, "validation examples for the loss, at most; 0 = all")
    epochs: float = setting(5.0, "passes over the training sample")
    learning_rate: float = setting(1e-4, "peak learning rate (AdamW, linear decay)")
    warmup_steps: float = setting(20, "warm-up: a number of optimizer steps, or below 1 a share of all steps")
    global_batch_size: int = setting(128, "examples an optimizer step, over all processes and accumulation steps")
    micro_batch_size: int = setting(8, "examples a forward pass, on each process")
    patience: int = setting(5, "early stopping: epochs without a better validation loss; 0 = never")
    completion_only: bool = setting(True, "loss on the title only; false = on prompt and title (BIGRec)")
    lora_r: int = setting(8, "LoRA rank")
    lora_alpha: int = setting(16, "LoRA scale (alpha / r multiplies the update)")
    lora_dropout: float = setting(0.05, "LoRA dropout probability")
    lora_target_modules: list[str] = setting(
        ["q_proj", "v_proj"], "layers that get an adapter, by name; `all-linear` = every linear layer but the head"
    )
    packing: bool = setting(False, "several examples in one sequence, kept apart by position ids")
    length_grouping: bool = setting(False, "batches of examples of similar length")
    activation_checkpointing: bool = setting(False, "less memory for about a third more time")
    evals_per_epoch: int = setting(1, "evaluations and checkpoints an epoch; 0 = none until the end")
    trainer_args: dict[str, Any] = setting({}, "any other trl.SFTConfig field, e.g. {max_grad_norm: 0.3}")
    adapter_dir: str | None = setting(None, "folder of the adapter (default: <run_dir>/adapter)")


@dataclass(frozen=True)
class GenerateSettings:
    """Step 1: the LM writes the next title."""

    adapter: str | None = setting(
        None, "adapter: folder or Hub id, `@revision` allowed (default: the run's own, if it has one)", hub="model"
    )
    decoding: str = setting(
        "beam",
        "decoding strategy; constrained = beams that write catalog titles only; debiased = these, mixed with a "
        "collaborative model's item scores",
        choices=("beam", "greedy", "sample", "constrained", "debiased"),
    )
    num_beams: int = setting(4, "beams (decoding: beam, constrained, debiased)")
    length_penalty: float = setting(
        1.0, "a beam's score is divided by its number of tokens ** this; 0 = no length normalization (debiased: always)"
    )
    assistant_scores: str | None = setting(
        None, "item scores of a collaborative model on the same examples, scores.safetensors (decoding: debiased)"
    )
    lm_weight: float = setting(
        0.5, "a in a * log p_LM + (1 - a) * log p_CF, 0 to 1; 1 = the language model alone (decoding: debiased)"
    )
    num_return_sequences: int = setting(0, "texts kept an example, best first; 0 = all beams, or 1 sample")
    max_new_tokens: int = setting(
        64, "tokens an answer may have (decoding: constrained, debiased: as many as the longest title has)"
    )
    temperature: float = setting(0.2, "sampling temperature (decoding: sample)")
    top_p: float = setting(0.95, "nucleus sampling mass (decoding: sample)")
    sample_top_k: int = setting(40, "sample among the k likeliest tokens; 0 = all (decoding: sample)")
    generate_batch_size: int = setting(32, "prompts decoded together, at most, on each process: what a kill can lose")
    generate_batch_tokens: int = setting(
        65536, "prompt and answer tokens decoded together, at most, beams and padding counted (bounds the KV cache)"
    )


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
    encode_batch_tokens: int = setting(4096, "tokens encoded together, padding included")
    index_dir: str | None = setting(
        None,
        "catalog index: folder (made if missing) or Hub id, `@revision` allowed (default: <run_dir>/index)",
        hub="dataset",
        creates=True,
    )
    top_k: int = setting(50, "nearest items kept an example in rankings.parquet")
    memory_mib: int = setting(256, "memory for distances, in MiB; the catalog is scanned in chunks of that size")
    ranking: str = setting(
        "distance",
        "distance = all items by distance to the first text; hybrid = the titles among all texts first, in that order, "
        "then the rest by distance (written to <method>_hybrid)",
        choices=("distance", "hybrid"),
    )
    exclude_history: bool = setting(False, "leave the example's history out of the candidates")
    duplicates: str = setting(
        "best",
        "rank of a target whose title stands in several rows: best over these rows, or exact (its own row)",
        choices=("best", "exact"),
    )


@dataclass(frozen=True)
class ScoreSettings:
    """NDCG@K and HR@K with bootstrap intervals."""

    ks: list[int] = setting([1, 3, 5, 10, 20, 50], "cut-offs K")
    drop_empty: bool = setting(False, "leave empty answers out of the mean, as the reference does (default: a miss)")
    bootstrap: int = setting(1000, "bootstrap resamples for the intervals; 0 = none")
    confidence: float = setting(0.95, "level of the intervals")


@dataclass(frozen=True)
class RerankSettings:
    """Distances and weights in one ranking, the weight's strength chosen on validation."""

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
    gamma_values: list[float] = setting([], "reweight: a grid of your own, -300 to 300")
    share_values: list[float] = setting([], "mix, rrf: a grid of your own, 0 to 1 (default: 0, 0.01 .. 1)")
    choose_by: str = setting("each", "each = a choice for every metric and K; ndcg@10, hr@5 ... = this one's for all")


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
    keywords_tokens: int = setting(64, "tokens a keyword answer may have")
    keywords_batch_size: int = setting(32, "titles asked together, at most, on each process: what a kill can lose")
    keywords_batch_tokens: int = setting(65536, "prompt and answer tokens decoded together, at most, padding counted")


@dataclass(frozen=True)
class FuseSettings:
    """All texts of an example, or titles and keywords, in one ranking; parameters chosen on validation."""

    fusion: str = setting(
        "all",
        "min = nearest text; weighted = nearest text, worse scores pay; rrf = reciprocal ranks; keywords = mix of the "
        "title's and the keywords' ranks; all = the first three, and keywords where they were written",
        choices=("min", "weighted", "rrf", "keywords", "all"),
    )
    fusion_metric: str = setting("ndcg@10", "metric that chooses the parameters on validation: ndcg@K or hr@K")
    fusion_beams: int = setting(0, "texts an example to use, at most (1 to this many are tried); 0 = all")
    fusion_penalties: list[float] = setting(
        [0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0],
        "weighted: penalties to try, in catalog radii (root mean square) for a nat a token of score",
    )
    fusion_k0: list[int] = setting([0, 1, 2, 5, 10, 20, 60, 100], "rrf: constants k0 to try in 1 / (k0 + rank)")
    keywords_file: str | None = setting(None, "keywords (default: <run_dir>/keywords/keywords.parquet)")


@dataclass(frozen=True)
class EvaluateSettings:
    """`evaluate` = ground + score of any prediction file."""

    generations: list[str] = setting(
        [], "generations.parquet, a run folder, the reference's prediction JSON (with `predict`), or folders of them"
    )
    output_dir: str | None = setting(None, "folder for results.json, per_example.parquet and rankings.parquet")
    catalog_encoding: str | None = setting(None, "text encoding of the catalog file (default: the format's own)")


@dataclass(frozen=True)
class SasrecSettings:
    """SASRec, the sequential baseline, trained on the same examples."""

    sasrec_dim: int = setting(64, "size of item embeddings and hidden states")
    sasrec_layers: int = setting(2, "transformer blocks")
    sasrec_heads: int = setting(2, "attention heads")
    sasrec_dropout: float = setting(0.3, "dropout probability")
    sasrec_max_length: int = setting(10, "history items it looks at, at most (as the prompts)")
    sasrec_stride: int = setting(
        2, "items between the ends of training windows: max_length = each item is a target once an epoch, 1 = often"
    )
    sasrec_epochs: int = setting(100, "passes over the training windows, at most")
    sasrec_patience: int = setting(5, "early stopping: epochs without a better validation NDCG@10; 0 = never")
    sasrec_lr: float = setting(1e-3, "learning rate (AdamW, constant)")
    sasrec_weight_decay: float = setting(0.0, "weight decay of AdamW")
    sasrec_batch_size: int = setting(256, "windows an optimizer step")
    sasrec_negatives: int = setting(
        2048,
        "items sampled a step for the softmax, with logQ correction; catalogs no larger, or 0: the full softmax",
    )


@dataclass(frozen=True)
class ReportSettings:
    """One table over runs, baselines and published rows."""

    runs: list[str] = setting([], "run folders", positional=True)
    report_path: str | None = setting(None, "Markdown file to write (default: print only)")
    published: str | None = setting(None, "published rows to show beside: movie or game", choices=("movie", "game"))
    compare_to: str | None = setting(
        None,
        "row that the others are tested against: METHOD or RUN/METHOD, or none (default: finetuned, of the first run)",
    )
    significance_level: float = setting(0.05, "mark a difference where its corrected p is below this")
    permutations: int = setting(10_000, "random sign flips of the permutation test, at least")
    differences: bool = setting(False, "also show every difference with its interval and corrected p")
    breakdown: bool = setting(
        False, "also by history length and target popularity, with coverage and diversity (written to breakdown.json)"
    )
    plots: bool = setting(
        False, "draw metrics.png, and curves.png where a parameter was chosen, into each run (extra: bench)"
    )
    update_readme: str | None = setting(
        None, "Markdown file whose text between <!-- results:RUN --> and <!-- /results --> becomes the run's table"
    )
    readme_columns: list[str] = setting(["hr@1", "hr@10", "hr@50", "ndcg@10", "ndcg@50"], "metrics of the README table")


@dataclass(frozen=True)
class PublishSettings:
    """What goes to the Hub, where to, and how. Needs a token (`hf auth login` or HF_TOKEN); without one: a dry run."""

    publish_kind: str | None = setting(
        None,
        "dataset, adapter (with its index), index, metric (a Space), or run: all of them, cross-linked",
        positional=True,
        choices=("dataset", "adapter", "index", "metric", "run"),
    )
    repo_id: str | None = setting(None, "repository, user/name; created where it does not exist")
    published_run: str | None = setting(None, "run folder: adapter, index, run", flag="--run_dir")
    published_dataset: str | None = setting(None, "prepared set to publish (default: the run's own)", flag="--dataset")
    published_base: str | None = setting(
        None, "Hub id of the base model, for a run whose base is a local folder", flag="--base_model"
    )
    dataset_repo_id: str | None = setting(
        None, "run: publish the data set too, there; adapter, index: the data set's repository, to be named"
    )
    index_repo_id: str | None = setting(
        None, "run: the index's repository (default: <repo_id>-index); adapter: an index that is there already"
    )
    metric_repo_id: str | None = setting(
        None, "run: the metric's Space (default: <user>/ndcg_hr); adapter: the Space, to be named"
    )
    with_index: bool = setting(True, "adapter: put the catalog index into the adapter's repository")
    dry_run: bool = setting(False, "push nothing: write the folder that would be pushed, say what would happen")
    private: bool = setting(False, "create the repositories as private ones")
    branch: str | None = setting(None, "branch to commit to, created where missing (default: main)", flag="--revision")
    create_pr: bool = setting(False, "open a pull request instead of committing to the branch")
    message: str | None = setting(None, "commit message (default: what is published, by which version)")
    model_license: str | None = setting(
        None, "license of the adapter, e.g. apache-2.0 (default: none is stated)", flag="--license"
    )
    i_have_permission: bool = setting(
        False, "publish openly although the data's terms forbid redistribution: you have the permission to"
    )
    publish_dir: str | None = setting(None, "folder for what a dry run writes (default: published)")


@dataclass(frozen=True)
class DownloadSettings:
    """Fetch ahead of time what a recipe names on the Hub; afterwards HF_HUB_OFFLINE=1 works."""

    include: list[str] = setting([], "files of models to fetch, patterns like *.json (default: what loading reads)")
    exclude: list[str] = setting([], "files of models to leave out, patterns")
    local_dir: str | None = setting(None, "put repositories into folders there (default: the Hub client's cache)")
    metric: str | None = setting(None, "also a metric (a Space), for evaluate.load with HF_EVALUATE_OFFLINE=1")


SECTIONS = {
    "run": RunSettings,
    "pipeline": PipelineSettings,
    "prepare": PrepareSettings,
    "data": DataSettings,
    "model": ModelSettings,
    "prompt": PromptSettings,
    "sft": SftSettings,
    "generate": GenerateSettings,
    "ground": GroundSettings,
    "score": ScoreSettings,
    "rerank": RerankSettings,
    "keywords": KeywordsSettings,
    "fuse": FuseSettings,
    "evaluate": EvaluateSettings,
    "sasrec": SasrecSettings,
    "report": ReportSettings,
    "publish": PublishSettings,
    "download": DownloadSettings,
}
