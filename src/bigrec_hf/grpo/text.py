"""Reinforcement learning of written titles: TRL's GRPOTrainer samples texts after the prompts of the objective pairs.

Their rewards: `grounded.py`. vLLM samples if `grpo_trainer_args` say so: `{use_vllm: true, vllm_mode: colocate}`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
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
from bigrec_hf.data.prompts import build_output, fit_prompt, prompt_token_ids
from bigrec_hf.grpo.grounded import Grounding
from bigrec_hf.metrics.ndcg_hr.encoders import resolve_dtype
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.models.checkpoints import ExactResume
from bigrec_hf.models.loading import keep_trainable_precise, load_trainable, load_training_base, mend_names
from bigrec_hf.settings import SftSettings
from bigrec_hf.sft.config import batch_sizes, checked_trainer_args, shared_arguments
from bigrec_hf.sft.trainer import ROUNDED_TOLERANCE, train_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

    from bigrec_hf.settings import ModelSettings, PromptSettings
    from bigrec_hf.settings.grpo import GrpoSettings

PROMPT = "prompt"  # TRL's name of the column
REFERENCE = "ref"  # TRL's name of its copy of the adapter
OWN = {  # fields of GRPOConfig that other settings determine, or that would round the adapter
    *("num_generations", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs"),
    *("steps_per_generation", "generation_batch_size", "shuffle_dataset", "use_transformers_continuous_batching"),
}
END = 2  # tokens after a title: EOS, and one more where the tokenizer merges


class TextTrainer(ExactResume, GRPOTrainer):
    """TRL's trainer with our prompts' tokens; the reference of a divergence is the adapter as it was given."""

    model: PeftModel

    def __init__(
        self, *, reward: Grounding, template: str, data_collator: None, peft_config: None, **options: Any
    ) -> None:
        """`template`: of the prompts; the others are what `train_adapter` gives every trainer."""
        start = {name: p.detach().clone() for name, p in options["model"].named_parameters() if p.requires_grad}
        super().__init__(reward_funcs=reward_function(reward), **options)
        keep_trainable_precise(self.model)
        for name, parameter in self.model.named_parameters():
            if name in start:  # TRL rounds those of a quantized base
                parameter.data.copy_(start[name])
        self.template = template
        self.check_log_probs()
        if self.use_vllm:
            engine: Any = self.vllm_generation
            engine.sync_weights = partial(keep_base, self.model, engine.sync_weights)

    def check_log_probs(self) -> None:
        """Raise BigrecError if TRL's log-probabilities are not those of the model's logits: its fused head ignores what
        some models do between their last layer and the logits."""
        with torch.no_grad():
            ids = torch.tensor(
                [self._tokenize_prompts([cast(Dataset, self.train_dataset)[0][PROMPT]])[0][0]], device=self.args.device
            )
            found, *_ = self._get_per_token_logps_and_entropies(
                self.model, ids, torch.ones_like(ids), logits_to_keep=ids.shape[1] - 1
            )
            logits = self.model(input_ids=ids, use_cache=False).logits[:, :-1].float() / self.temperature
            wanted = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).mean().item()
        if abs(found.mean().item() - wanted) > ROUNDED_TOLERANCE * abs(wanted):
            raise BigrecError(
                f"TRL's mean log-probability of a prompt's tokens is {found.mean().item():.6g}, that of the model's "
                f"logits {wanted:.6g}: take another base model, or grpo_rollout titles"
            )

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        tokenizer = cast("PreTrainedTokenizerBase", self.processing_class)
        return [prompt_token_ids(self.template, text, tokenizer) for text in prompts], None, {}

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the adapter; at the end, that is not for a checkpoint, without the reference."""
        if not _internal_call and REFERENCE in self.model.peft_config:
            self.model.delete_adapter(REFERENCE)
        super().save_model(output_dir, _internal_call)


def keep_base(model: torch.nn.Module, sync: Callable[[], None]) -> None:
    """Call `sync`, which merges the adapter into the base and takes it out again, and restore the base's weights:
    the two roundings would change them a little at every step."""
    frozen = [p for p in model.parameters() if not p.requires_grad and p.is_floating_point()]
    kept = [p.detach().clone() for p in frozen]
    sync()
    for parameter, value in zip(frozen, kept, strict=True):
        parameter.data.copy_(value)


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
    base = load_training_base(model)
    mend_names(base)
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
    result["epochs_done"] *= grpo.grpo_epochs  # all epochs are rows of one
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


def given_args(grpo: GrpoSettings) -> dict[str, Any]:
    """Return `grpo_trainer_args` with numbers as numbers. Raises BigrecError for a field that GRPOConfig does not have,
    and for one that other settings determine."""
    given = checked_trainer_args(grpo.grpo_trainer_args, GRPOConfig, "grpo_trainer_args")
    for name in OWN.intersection(given):
        raise BigrecError(f"grpo_trainer_args {name}: it follows from the settings of the section grpo: remove it")
    return given


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
    given = given_args(grpo)
    if given.get("use_vllm") and quantized:
        raise BigrecError("use_vllm merges the adapter into the weights, which rounds quantized ones: use 16 bits")
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
