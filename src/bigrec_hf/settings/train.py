"""Settings of the run, its model, training and generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bigrec_hf.settings.field import setting

BASELINES = ("random", "popularity", "cooccurrence", "zero_shot")  # of `run`
RANKERS = (
    "linear",
    "sasrec",
    "fuse",
    "rerank",
    "pool",
    "constrained",
    "debias",
)  # of `run`, in the order in which they run
RUN_STAGES = ("prepare", "sft", "grpo", "index", "generate", "ground", "score", *RANKERS, "report")


@dataclass(frozen=True)
class RunSettings:
    """Where a run lives."""

    run_dir: str | None = setting(
        None,
        "folder of the run (default: runs/<recipe path, joined by dashes>; `run` appends --base_model and --sample if "
        "they differ from the recipe)",
    )
    seed: int = setting(0, "seed of sampling, initialization, shuffling and generation", least=0, most=2**32 - 1)
    method: str = setting(
        "finetuned",
        "subfolder of the run to work in; another name keeps the results of other settings (decoding, beams) with the "
        "same adapter apart; zero_shot = the base model without the adapter",
    )


@dataclass(frozen=True)
class PipelineSettings:
    """What `run` does besides the fine-tuned model."""

    baselines: list[str] = setting(
        list(BASELINES),
        f"scored on the same examples, any of: {', '.join(BASELINES)}",
    )
    rankers: list[str] = setting(
        [],
        f"more rankings with the same adapter, shown in the same report, any of: {', '.join(RANKERS)}; "
        "their parameters are chosen on validation examples",
    )
    with_grpo: bool = setting(
        False, "train the adapter further with rewards (section grpo) and rank with both, as the method grpo"
    )
    constrained_beams: int = setting(10, "beams of the ranker `constrained`", least=1)
    from_stage: str | None = setting(
        None,
        "redo this stage and all stages after it, even if they are done",
        flag="--from",
        choices=RUN_STAGES,
    )
    overwrite: bool = setting(
        False,
        "redo the stages of a run whose settings have changed; without it, `run` refuses to replace a run with other "
        "data, model, prompt, training or decoding settings",
    )
    seeds: list[int] = setting(
        [],
        "run once with each of these seeds, in <run_dir>/seed-N, and report the spread (default: one run with --seed)",
        least=0,
        most=2**32 - 1,
    )


@dataclass(frozen=True)
class ModelSettings:
    """The base language model."""

    base_model: str | None = setting(None, "causal LM: folder or Hub id, `@revision` allowed", hub="model")
    dtype: str = setting(
        "auto",
        "type of weights and arithmetic; auto = bfloat16 if the hardware multiplies it fast, else float32",
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
    """The prompt templates."""

    train_prompt: str = setting(
        "alpaca-basic",
        "template for training; titles = the history as a bare list, one title per line (objective: dense)",
        choices=("alpaca-basic", "alpaca-enhanced", "chat-basic", "chat-enhanced", "titles"),
    )
    inference_prompt: str | None = setting(
        None,
        "template for generation (default: the training template)",
        choices=("alpaca-basic", "alpaca-enhanced", "chat-basic", "chat-enhanced", "titles"),
    )
    short_titles: bool = setting(
        False,
        "cut each title after the first tokens that distinguish it from all others (train_prompt: titles)",
    )
    max_history: int = setting(10, "maximum number of history titles in a prompt (the newest are kept)", least=0)
    max_length: int = setting(
        1024, "maximum number of tokens in prompt and completion; the oldest history titles are dropped to fit", least=1
    )


@dataclass(frozen=True)
class SftSettings:
    """LoRA fine-tuning with TRL's SFTTrainer; the defaults are the reference's."""

    objective: str = setting(
        "pairs",
        "pairs = one history and its next title per row (BIGRec); dense = whole training histories, with every title a "
        "target (train_prompt: titles; a row is a segment of up to max_length tokens, and sample counts users)",
        choices=("pairs", "dense"),
    )
    loss: str = setting(
        "full",
        "full = softmax over the vocabulary; trie = over tokens that can continue a catalog title (objective: dense)",
        choices=("full", "trie"),
    )
    trie_temperature: str = setting(
        "1",
        "divides the logits in training (loss: trie): 1 = nothing, another number, or adaptive = between 1.5 and 5, as "
        "MSL adapts it. Validation and decoding have none",
    )
    dense_context: int = setting(
        1, "titles at the start of a user's history that are only context (objective: dense)", least=0
    )
    sample: int = setting(1024, "training examples sampled from each data set; 0 = all", least=0)
    validation_sample: int = setting(5000, "maximum number of validation examples for the loss; 0 = all", least=0)
    epochs: float = setting(5.0, "passes over the training sample", above=0)
    max_minutes: float = setting(
        0.0,
        "end the training after this many minutes, or with the epochs if they end before, the learning rate falling to "
        "zero by then; 0 = no limit. What is learned then depends on the machine's speed",
        least=0,
    )
    learning_rate: float = setting(1e-4, "peak learning rate (AdamW, linear decay)", above=0)
    warmup_steps: float = setting(
        20.0, "warm-up: a number of optimizer steps or, below 1, a fraction of all steps", least=0
    )
    global_batch_size: int = setting(
        128, "examples per optimizer step, over all processes and accumulation steps", least=1
    )
    micro_batch_size: int = setting(8, "examples per forward pass on each process", least=1)
    patience: int = setting(
        5, "early stopping: evaluations (evals_per_epoch) without a better validation loss; 0 = never", least=0
    )
    completion_only: bool = setting(
        True, "compute the training loss on the title only; false = on prompt and title (BIGRec)"
    )
    lora_r: int = setting(8, "LoRA rank", least=1)
    lora_alpha: int = setting(16, "LoRA scale (alpha / r multiplies the update)", least=1)
    lora_dropout: float = setting(0.05, "LoRA dropout probability", least=0, below=1)
    lora_target_modules: list[str] = setting(
        ["q_proj", "v_proj"],
        "names of the layers that get an adapter; `all-linear` = every linear layer except the head",
    )
    packing: bool = setting(
        False,
        "several examples in one sequence, kept apart by position ids; batch sizes still count examples, rounded to "
        "whole sequences",
    )
    length_grouping: bool = setting(False, "batch examples of similar length (objective: dense always does)")
    activation_checkpointing: bool = setting(False, "use less memory for about a third more time")
    evals_per_epoch: int = setting(1, "evaluations and checkpoints per epoch; 0 = only at the end", least=0)
    trainer_args: dict[str, Any] = setting({}, "any other trl.SFTConfig field, e.g. {max_grad_norm: 0.3}")
    adapter_dir: str | None = setting(None, "folder of the adapter (default: <run_dir>/adapter)")
    init_adapter: str | None = setting(
        None,
        "adapter to train on top of: folder or Hub id, `@revision` allowed. It is merged into the base in memory, and "
        "the adapter that is written is the sum of both, of rank lora_r + its own (quantization: none)",
        hub="model",
    )


@dataclass(frozen=True)
class GenerateSettings:
    """Step 1: the language model writes the next title."""

    adapter: str | None = setting(
        None, "adapter: folder or Hub id, `@revision` allowed (default: that of the run, if it has one)", hub="model"
    )
    engine: str = setting(
        "hf",
        "decoding engine: hf = transformers; vllm = vLLM on NVIDIA GPUs (extra: vllm; beam, greedy, sample)",
        choices=("hf", "vllm"),
        former={"ray": "the engines hf and vllm work in actors on a Ray cluster too: give --num_actors"},
    )
    vllm_args: dict[str, Any] = setting(
        {}, "other arguments of vllm.LLM, e.g. {tensor_parallel_size: 2} (engine: vllm)"
    )
    decoding: str = setting(
        "beam",
        "decoding strategy; constrained = beams that can only be catalog titles; debiased = the same, mixed with the "
        "item scores of a collaborative model (D3); exact = the probability of every catalog title "
        "(train_prompt: titles)",
        choices=("beam", "greedy", "sample", "constrained", "debiased", "exact"),
    )
    exact_width: int = setting(
        0,
        "most likely prefixes to follow per token and example (decoding: exact); 0 = all. Titles behind the others "
        "share their probability by popularity, which hardly changes the top of the list; 16 for tens of thousands of "
        "titles",
        least=0,
    )
    num_beams: int = setting(4, "beams (decoding: beam, constrained, debiased)", least=1)
    length_penalty: float = setting(
        1.0,
        "the score of a beam is divided by its number of tokens to this power; 0 = no length normalization (always so "
        "for debiased)",
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
    num_return_sequences: int = setting(0, "texts kept per example, best first; 0 = all beams, or 1 sample", least=0)
    max_new_tokens: int = setting(
        64,
        "maximum number of tokens per generated text (decoding: constrained, debiased: those of the longest title)",
        least=1,
    )
    temperature: float = setting(0.2, "sampling temperature (decoding: sample)", above=0)
    top_p: float = setting(0.95, "nucleus sampling mass (decoding: sample)", above=0, most=1)
    sample_top_k: int = setting(40, "sample among the k most likely tokens; 0 = all (decoding: sample)", least=0)
    generate_batch_size: int = setting(
        32,
        "maximum number of prompts decoded together on each process; a killed process loses at most one such batch",
        least=1,
    )
    generate_batch_tokens: int = setting(
        65536,
        "maximum number of tokens in prompts and generations decoded together, counting beams and padding",
        least=1,
    )
    generate_memory_gib: float = setting(
        0.0,
        "memory per process for a batch in addition to the weights (key-value cache, logits), in GiB; larger batches "
        "are split; 0 = nine tenths of the free memory of a GPU, 4 on a CPU (engine: hf)",
        least=0,
    )
