"""Settings of reinforcement learning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bigrec_hf.settings.field import setting


@dataclass(frozen=True)
class GrpoSettings:
    """Reinforcement learning from an adapter; experimental."""

    start_adapter: str | None = setting(
        None, "adapter to start from: folder or Hub id, `@revision` allowed (default: <run_dir>/adapter)", hub="model"
    )
    grpo_method: str = setting(
        "grpo",
        "grpo = policy gradient with the rewards of a group of titles; expected = the expected reward of a title, "
        "differentiated exactly, with none outside the group; sdpo = the target preferred to the model's own likeliest "
        "other titles (S-DPO)",
        choices=("grpo", "expected", "sdpo"),
    )
    grpo_rollout: str = setting(
        "titles",
        "titles = groups of catalog titles under the exact probabilities of an adapter of the objective dense; text = "
        "TRL's GRPOTrainer samples texts from an adapter of the objective pairs, which are grounded to the catalog; "
        "with vLLM by grpo_trainer_args: {use_vllm: true, vllm_mode: colocate} (grpo_method: grpo)",
        choices=("titles", "text"),
    )
    group_size: int = setting(16, "titles per example", least=2)
    group_titles: str = setting(
        "beams",
        "beams = the likeliest titles, each with the same weight (ReRe); sample = drawn without replacement, weighted "
        "by their probabilities",
        choices=("beams", "sample"),
    )
    group_width: int = setting(
        64, "most likely prefixes to follow per token and example, as exact_width; 0 = all", least=0
    )
    rewards: dict[str, Any] = setting(
        {"hit": 1.0, "ranked": 1.0},
        "weight of each reward: hit, ranked, ndcg, percentile, similarity, relevance_diversity_novelty, or a function "
        "of your own as package.module.function (grpo_method: grpo, expected)",
    )
    percentile_by: str = setting(
        "ease",
        "model of the reward percentile: ease, fitted to the training split, or the folder of a SASRec model "
        "(<run_dir>/sasrec/model)",
    )
    reward_encoder: str = setting(
        "base",
        "encoder whose title embeddings the rewards similarity and relevance_diversity_novelty compare: base = the "
        "base model (last token), or a causal LM or sentence-transformers name; with grpo_rollout text it "
        "also grounds the texts",
        hub="model",
        words=("base",),
    )
    scale_advantages: bool = setting(True, "divide advantages by their standard deviation (grpo_method: grpo)")
    target_in_group: bool = setting(
        False,
        "add the target to groups that lack it, with its probability as its weight (grpo_method: grpo, expected)",
    )
    curriculum_top: int = setting(
        0, "learn only from examples whose target is among this many likeliest titles; 0 = from all", least=0
    )
    kl_beta: float = setting(
        1e-3, "weight of the divergence from the starting adapter, in nats (grpo_method: grpo, expected)", least=0
    )
    dpo_beta: float = setting(1.0, "scale of log-probability ratios (grpo_method: sdpo)", above=0)
    grpo_sample: int = setting(0, "training examples sampled from the data set; 0 = all", least=0)
    grpo_validation_sample: int = setting(256, "maximum number of validation examples for the loss; 0 = all", least=0)
    grpo_epochs: float = setting(2.0, "passes over the training examples", above=0)
    grpo_max_minutes: float = setting(
        0.0,
        "end the training after this many minutes, the learning rate falling to zero by then; 0 = no limit",
        least=0,
    )
    grpo_learning_rate: float = setting(1e-5, "peak learning rate (AdamW, cosine decay)", least=0)
    grpo_warmup_steps: float = setting(
        0.03, "warm-up: a number of optimizer steps or, below 1, a fraction of all steps", least=0
    )
    grpo_batch_size: int = setting(
        16, "examples per optimizer step, over all processes and accumulation steps", least=1
    )
    grpo_micro_batch_size: int = setting(4, "examples per forward pass on each process", least=1)
    grpo_evals_per_epoch: int = setting(1, "evaluations and checkpoints per epoch; 0 = only at the end", least=0)
    grpo_eval_k: int = setting(
        0,
        "also log NDCG@K and HR@K of the validation examples at each evaluation, by the probabilities of all titles; "
        "0 = the loss alone",
        least=0,
    )
    grpo_trainer_args: dict[str, Any] = setting(
        {}, "any other field of transformers.TrainingArguments, e.g. {logging_steps: 10}"
    )
    grpo_adapter_dir: str | None = setting(None, "folder of the new adapter (default: <run_dir>/grpo_adapter)")
