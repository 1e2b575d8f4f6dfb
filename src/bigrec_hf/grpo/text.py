"""Reinforcement learning of written titles: TRL's GRPOTrainer samples texts after the prompts of the objective pairs.

Each text is grounded as in evaluation: the catalog is ranked by distance to its embedding. Its catalog row is the
nearest item, and rewards are those of rows, with targets looked up by example id. vLLM samples if
`grpo_trainer_args` say so: `{use_vllm: true, vllm_mode: colocate}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from datasets import Dataset
from peft import PeftModel
from trl import GRPOConfig, GRPOTrainer

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.environment import measured
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.processes import own_precision, process_state
from bigrec_hf.data.examples import load_examples
from bigrec_hf.data.prompts import build_output, fit_prompt, parse_answer, prompt_token_ids
from bigrec_hf.ground.distance import embed_texts
from bigrec_hf.ground.index import CatalogIndex
from bigrec_hf.grpo.groups import Groups
from bigrec_hf.grpo.rewards import WeightedRewards
from bigrec_hf.metrics.ndcg_hr.encoders import resolve_dtype
from bigrec_hf.metrics.ndcg_hr.ranking import rank_catalog
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.models.checkpoints import ExactResume
from bigrec_hf.models.encoder import Encode
from bigrec_hf.models.loading import keep_trainable_precise, load_base, load_trainable
from bigrec_hf.settings import SftSettings
from bigrec_hf.sft.config import batch_sizes, checked_trainer_args, shared_arguments
from bigrec_hf.sft.trainer import train_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

    from bigrec_hf.settings import ModelSettings, PromptSettings
    from bigrec_hf.settings.grpo import GrpoSettings

PROMPT = "prompt"  # TRL's name of the column
REFERENCE = "ref"  # TRL's name of its copy of the adapter
END = 2  # tokens after a title: EOS, and one more where the tokenizer merges


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
            0 * one,
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
        """Return the reward of each completion, as TRL asks for it; 0 for one without a title."""
        titles = [parse_answer(text) for text in completions]
        full = [i for i, title in enumerate(titles) if title]
        known = self.index.catalog.rows_by_title
        values, sums = (
            np.zeros(len(titles)),
            dict.fromkeys(["hit_rate", *map("reward_{}".format, self.rewards.parts)], 0.0),
        )
        if full:
            groups = self.groups([example_id[i] for i in full], [titles[i] for i in full])
            total, parts = self.rewards(groups)
            values[full] = total[:, 0]
            sums = {"hit_rate": groups.is_target.sum(), **{f"reward_{name}": own.sum() for name, own in parts.items()}}
        for name, value in {"in_catalog": sum(title in known for title in titles), **sums}.items():
            log_metric(name, float(value) / len(titles))
        return [*values.tolist()]


class TextTrainer(ExactResume, GRPOTrainer):
    """TRL's trainer with our prompts' tokens; the reference of a divergence is the adapter as it was given."""

    model: PeftModel

    def __init__(
        self, *, reward: Grounding, template: str, data_collator: None, peft_config: None, **options: Any
    ) -> None:
        """`template`: of the prompts; the others are what `train_adapter` gives every trainer."""
        super().__init__(reward_funcs=reward_function(reward), **options)
        keep_trainable_precise(self.model)
        self.template = template

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        tokenizer = cast("PreTrainedTokenizerBase", self.processing_class)
        return [prompt_token_ids(self.template, text, tokenizer) for text in prompts], None, {}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter; at the end, that is not for a checkpoint, without the reference."""
        if not _internal_call and REFERENCE in self.model.peft_config:
            self.model.delete_adapter(REFERENCE)
        super().save_model(output_dir, _internal_call)


def reward_function(reward: Grounding) -> Callable[..., list[float | None]]:
    """The rewards as a function with a name, which TRL logs."""

    def grounded(*args: Any, **options: Any) -> list[float | None]:
        return reward(*args, **options)

    return grounded


@dataclass(frozen=True)
class TextExamples:
    """Training examples as TRL reads them, and what rewards look up."""

    rows: Dataset  # columns PROMPT and example_id, one row per example
    targets: dict[str, int]
    histories: dict[str, list[int]]
    completion_tokens: int  # the most that a title takes


def load_texts(
    dataset: str,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptSettings,
    sample: int,
    *,
    seed: int,
    titles: Sequence[str],
) -> TextExamples:
    """Return `sample` (0 = all) examples of the training split with their prompts, but those whose target has no title.

    A prompt and the longest title have at most `max_length` tokens. Raises BigrecError if no example is left, if an
    example id occurs twice, or if a prompt does not fit.
    """
    answers = [build_output(title) for title in titles]
    longest = END + max(map(len, tokenizer(answers, add_special_tokens=False)["input_ids"]))
    examples = load_examples(dataset, "train", sample=sample, seed=seed)
    examples = examples.select([i for i, title in enumerate(examples[C.TARGET_TITLE][:]) if clean_title(title)])
    if not len(examples):
        raise BigrecError("the training split has no example whose target has a title: prepare more data")
    ids = examples[C.EXAMPLE_ID][:]
    if len(set(ids)) < len(ids):
        raise BigrecError("an example id occurs twice in the training split: prepare the data set again")

    def render(example: dict[str, Any]) -> dict[str, str]:
        text, _, _ = fit_prompt(
            prompt.train_prompt,
            example[C.INSTRUCTION],
            example[C.INPUT_PREFIX],
            example[C.HISTORY_TITLES],
            tokenizer,
            max_history=prompt.max_history,
            max_tokens=prompt.max_length - longest,
        )
        return {PROMPT: text}

    dropped = [name for name in examples.column_names if name != C.EXAMPLE_ID]
    return TextExamples(
        examples.map(render, remove_columns=dropped, load_from_cache_file=False, desc="prompts"),
        dict(zip(ids, examples[C.TARGET][:], strict=True)),
        {name: [row for row in rows if row >= 0] for name, rows in zip(ids, examples[C.HISTORY][:], strict=True)},
        longest,
    )


def train_texts(
    examples: TextExamples,
    reward: Grounding,
    tokenizer: PreTrainedTokenizerBase,
    model: ModelSettings,
    prompt: PromptSettings,
    grpo: GrpoSettings,
    *,
    seed: int,
    checkpoints: str,
) -> tuple[Trainer, dict[str, Any]]:
    """Train from the starting adapter, or from the last of `checkpoints`; return the trainer and what to record."""
    dtype = resolve_dtype(model.dtype, process_state().device)
    config = grpo_config(
        checkpoints,
        grpo,
        dtype=dtype,
        quantized=model.quantization != "none",
        seed=seed,
        tokens=examples.completion_tokens,
        n_examples=len(examples.rows),
    )
    base = load_base(
        model.base_model,
        dtype=model.dtype,
        quantization=model.quantization,
        attn_implementation=model.attn_implementation,
        for_training=True,
    )
    timing: dict[str, Any] = {}
    with measured(timing):
        trainer, result = train_adapter(
            load_trainable(base, str(grpo.start_adapter)),
            tokenizer,
            in_order(examples.rows, grpo, seed=seed),
            None,
            config,
            lora=None,
            patience=0,
            n_targets=round(len(examples.rows) * grpo.grpo_epochs),
            max_minutes=grpo.grpo_max_minutes,
            trainer_class=lambda **options: TextTrainer(reward=reward, template=prompt.train_prompt, **options),
        )
    return trainer, {"dtype": str(dtype).removeprefix("torch."), **timing, **result}


def in_order(rows: Dataset, grpo: GrpoSettings, *, seed: int) -> Dataset:
    """Return the rows of all epochs in random order; TRL's own order begins anew when a training resumes.

    Raises BigrecError if there are fewer than one step needs, which TRL leaves out.
    """
    rng, n = np.random.default_rng(seed), len(rows)
    order = np.concatenate([rng.permutation(n) for _ in range(math.ceil(grpo.grpo_epochs))])
    order = order[: round(n * grpo.grpo_epochs)]
    if len(order) < grpo.grpo_batch_size:
        raise BigrecError(
            f"grpo_batch_size is {grpo.grpo_batch_size}, more than the {len(order)} examples of the training: lower it"
        )
    return rows.select(order)


def grpo_config(
    checkpoints: str,
    grpo: GrpoSettings,
    *,
    dtype: torch.dtype,
    quantized: bool,
    seed: int,
    tokens: int,
    n_examples: int,
) -> GRPOConfig:
    """Return TRL's settings. Batch sizes count examples, as in the other objectives; TRL counts their texts.

    `tokens`: the most of a text; `n_examples`: in an epoch.
    Raises BigrecError for settings that GRPOConfig refuses.
    """
    state = process_state()
    sizes = SftSettings(global_batch_size=grpo.grpo_batch_size, micro_batch_size=grpo.grpo_micro_batch_size)
    rows, accumulation = batch_sizes(sizes, 1.0, state.num_processes)
    given = checked_trainer_args(grpo.grpo_trainer_args, GRPOConfig)
    options: dict[str, Any] = {
        **shared_arguments(checkpoints, dtype=dtype, quantized=quantized, seed=seed),
        "num_train_epochs": 1,  # `in_order` has the rows of all
        "shuffle_dataset": False,
        "learning_rate": grpo.grpo_learning_rate,
        "warmup_steps": int(grpo.grpo_warmup_steps) if grpo.grpo_warmup_steps >= 1 else grpo.grpo_warmup_steps,
        "lr_scheduler_type": "cosine",
        "max_grad_norm": 0.3,
        "per_device_train_batch_size": rows * grpo.group_size,
        "gradient_accumulation_steps": accumulation,
        "num_generations": grpo.group_size,
        "max_completion_length": tokens,
        "beta": grpo.kl_beta,
        "scale_rewards": "group" if grpo.scale_advantages else "none",
        "remove_unused_columns": False,
        "gradient_checkpointing": state.device.type != "cpu",
        "save_strategy": "steps" if grpo.grpo_evals_per_epoch else "no",
        "save_steps": max(1, n_examples // (grpo.grpo_batch_size * max(1, grpo.grpo_evals_per_epoch))),
    }
    try:
        with own_precision():
            return GRPOConfig(**(options | given))
    except (TypeError, ValueError) as error:
        raise BigrecError(
            f"trl.GRPOConfig refuses these settings ({' '.join(str(error).split())}): correct grpo_trainer_args "
            f"{sorted(given)}"
        ) from error
