"""Settings: from raw files to generated texts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bigrec_hf.settings.field import setting

RANKERS = ("sasrec", "fuse", "rerank", "constrained", "debias")  # of `run`, in the order in which they run
RUN_STAGES = ("prepare", "sft", "index", "generate", "ground", "score", *RANKERS, "report")


@dataclass(frozen=True)
class RunSettings:
    """Where a run lives."""

    run_dir: str | None = setting(None, "folder of the run (default: runs/<recipe path, joined by dashes>)")
    seed: int = setting(0, "seed of sampling, initialization, shuffling and generation", least=0, most=2**32 - 1)
    method: str = setting(
        "finetuned",
        "subfolder of the run to work in, a name of your own for other settings (decoding, beams) of the same adapter; "
        "zero_shot = the base model without the adapter",
    )


@dataclass(frozen=True)
class PipelineSettings:
    """What `run` does beside the fine-tuned model."""

    baselines: list[str] = setting(
        ["random", "popularity", "cooccurrence", "zero_shot"],
        "scored on the same examples, any of: random, popularity, cooccurrence, zero_shot",
    )
    rankers: list[str] = setting(
        [],
        "more rankings with the same adapter, beside it in the report, any of: sasrec, fuse, rerank, constrained, "
        "debias (with sections of their own; what is to be chosen is chosen on validation examples)",
    )
    constrained_beams: int = setting(10, "beams of the ranker `constrained`", least=1)
    from_stage: str | None = setting(
        None,
        "redo this stage and all after it, done or not",
        flag="--from",
        choices=RUN_STAGES,
    )
    seeds: list[int] = setting(
        [],
        "run once with each of these seeds, in <run_dir>/seed-N, and report their spread (default: the seed alone)",
        least=0,
        most=2**32 - 1,
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
    window: int = setting(0, "history items of an example, at most; 0 = 10, as all presets", least=0)
    min_history: int = setting(
        0, "history items an example needs, at least; 0 = the preset's (the window for bigrec-*, else 1)", least=0
    )
    min_rating: float = setting(0.0, "keep interactions rated at least this; 0 = keep all", least=0)
    date_from: str | None = setting(
        None, "keep interactions from this UTC date or time on, e.g. 2017-10-01 (d3: 2017-10-01)"
    )
    date_to: str | None = setting(None, "keep interactions up to this UTC instant, inclusive (d3: 2018-11-01)")
    k_core: int = setting(
        0, "drop users and items with fewer interactions, repeatedly; 0 = the preset's, 1 = no", least=0
    )
    min_items: int = setting(
        10_000,
        "d3: start the date window a year earlier while fewer items remain (not before 1996); 0 = never",
        least=0,
    )
    train_fraction: float = setting(
        0.8, "share of the examples, by time, for training (not for leave-one-out)", above=0, most=1
    )
    validation_fraction: float = setting(
        0.1, "share for validation, after training; the rest is the test split", least=0, below=1
    )
    drop_untitled: bool = setting(
        False, "drop interactions whose item has no title, counted (amazon always does); false = an error"
    )
    text_sample: int = setting(
        1024, "training examples written out in the text config (shuffle seed 0); 0 = all", least=0
    )
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
    eval_sample: int = setting(5000, "examples drawn from the split as the reference does (seed 42); 0 = all", least=0)


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
    max_history: int = setting(10, "history titles in a prompt, at most (the newest are kept)", least=0)
    max_length: int = setting(1024, "prompt + completion, in tokens; the oldest history titles give way", least=1)


@dataclass(frozen=True)
class SftSettings:
    """LoRA fine-tuning with TRL's SFTTrainer; the defaults are the reference's."""

    sample: int = setting(1024, "training examples drawn from each data set; 0 = all", least=0)
    streaming: bool = setting(
        False,
        "read the training split as it is needed, for splits larger than memory (prepared sets; not with packing or "
        "length_grouping): all of it with sample 0, else the rows drawn without streaming; each process reads its part",
    )
    shuffle_buffer: int = setting(
        10_000, "streaming: examples held to draw the next one from; 1 = the file's own order", least=1
    )
    validation_sample: int = setting(5000, "validation examples for the loss, at most; 0 = all", least=0)
    epochs: float = setting(5.0, "passes over the training sample", above=0)
    learning_rate: float = setting(1e-4, "peak learning rate (AdamW, linear decay)", above=0)
    warmup_steps: float = setting(20, "warm-up: a number of optimizer steps, or below 1 a share of all steps", least=0)
    global_batch_size: int = setting(
        128, "examples an optimizer step, over all processes and accumulation steps", least=1
    )
    micro_batch_size: int = setting(8, "examples a forward pass, on each process", least=1)
    patience: int = setting(5, "early stopping: epochs without a better validation loss; 0 = never", least=0)
    completion_only: bool = setting(True, "loss on the title only; false = on prompt and title (BIGRec)")
    lora_r: int = setting(8, "LoRA rank", least=1)
    lora_alpha: int = setting(16, "LoRA scale (alpha / r multiplies the update)", least=1)
    lora_dropout: float = setting(0.05, "LoRA dropout probability", least=0, below=1)
    lora_target_modules: list[str] = setting(
        ["q_proj", "v_proj"], "layers that get an adapter, by name; `all-linear` = every linear layer but the head"
    )
    packing: bool = setting(False, "several examples in one sequence, kept apart by position ids")
    length_grouping: bool = setting(False, "batches of examples of similar length")
    activation_checkpointing: bool = setting(False, "less memory for about a third more time")
    evals_per_epoch: int = setting(1, "evaluations and checkpoints an epoch; 0 = none until the end", least=0)
    trainer_args: dict[str, Any] = setting({}, "any other trl.SFTConfig field, e.g. {max_grad_norm: 0.3}")
    adapter_dir: str | None = setting(None, "folder of the adapter (default: <run_dir>/adapter)")


@dataclass(frozen=True)
class GenerateSettings:
    """Step 1: the LM writes the next title."""

    adapter: str | None = setting(
        None, "adapter: folder or Hub id, `@revision` allowed (default: the run's own, if it has one)", hub="model"
    )
    engine: str = setting(
        "hf",
        "what decodes: hf = transformers; vllm = vLLM on NVIDIA GPUs (extra: vllm), without constrained strategies",
        choices=("hf", "vllm"),
    )
    vllm_args: dict[str, Any] = setting(
        {}, "other arguments of vllm.LLM, e.g. {tensor_parallel_size: 2} (engine: vllm)"
    )
    decoding: str = setting(
        "beam",
        "decoding strategy; constrained = beams that write catalog titles only; debiased = these, mixed with a "
        "collaborative model's item scores",
        choices=("beam", "greedy", "sample", "constrained", "debiased"),
    )
    num_beams: int = setting(4, "beams (decoding: beam, constrained, debiased)", least=1)
    length_penalty: float = setting(
        1.0, "a beam's score is divided by its number of tokens ** this; 0 = no length normalization (debiased: always)"
    )
    assistant_scores: str | None = setting(
        None, "item scores of a collaborative model on the same examples, scores.safetensors (decoding: debiased)"
    )
    lm_weight: float = setting(
        0.5,
        "a in a * log p_LM + (1 - a) * log p_CF; 1 = the language model alone (decoding: debiased)",
        least=0,
        most=1,
    )
    num_return_sequences: int = setting(0, "texts kept an example, best first; 0 = all beams, or 1 sample", least=0)
    max_new_tokens: int = setting(
        64, "tokens an answer may have (decoding: constrained, debiased: as many as the longest title has)", least=1
    )
    temperature: float = setting(0.2, "sampling temperature (decoding: sample)", above=0)
    top_p: float = setting(0.95, "nucleus sampling mass (decoding: sample)", above=0, most=1)
    sample_top_k: int = setting(40, "sample among the k likeliest tokens; 0 = all (decoding: sample)", least=0)
    generate_batch_size: int = setting(
        32, "prompts decoded together, at most, on each process: what a kill can lose", least=1
    )
    generate_batch_tokens: int = setting(
        65536,
        "prompt and answer tokens decoded together, at most, beams and padding counted (bounds the KV cache)",
        least=1,
    )
