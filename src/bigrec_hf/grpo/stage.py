"""Reinforcement learning of an adapter of the objective dense, with rewards of catalog rows (experimental).

Starts from an adapter that `sft` trained and writes one of the same format, which `generate --adapter` reads.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers.integrations import is_deepspeed_zero3_enabled
from trl import SFTConfig

from bigrec_hf.common.environment import measured
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.processes import process_state
from bigrec_hf.data.catalog import Catalog, load_catalog
from bigrec_hf.data.examples import load_config
from bigrec_hf.data.prompts import TITLE_LIST, prompt_facts
from bigrec_hf.data.sequences import training_sequences
from bigrec_hf.ground.index import CatalogIndex, open_index
from bigrec_hf.grpo.data import GrpoData, load_grpo
from bigrec_hf.grpo.grounded import Grounding, grounded_ndcg
from bigrec_hf.grpo.percentile import item_scores, model_mark
from bigrec_hf.grpo.rewards import PERCENTILE, WeightedRewards, load_rewards, needs_vectors
from bigrec_hf.grpo.text import given_args, load_texts, train_texts
from bigrec_hf.grpo.trainer import EXPECTED, SDPO, GrpoTrainer, Objective
from bigrec_hf.metrics.ndcg_hr.encoders import resolve_dtype
from bigrec_hf.models.encoder import Encode, encoder_fingerprint, encoder_name
from bigrec_hf.models.identity import adapter_fingerprint, check_same_base
from bigrec_hf.models.loading import find_model, launched_with_fsdp, load_tokenizer, load_trainable, load_training_base
from bigrec_hf.settings import DataSettings, GroundSettings, ModelSettings, PromptSettings, RunSettings, SftSettings
from bigrec_hf.settings.grpo import GrpoSettings
from bigrec_hf.sft.adapter_folder import Trained, input_settings, train_once
from bigrec_hf.sft.config import batch_sizes, check_launcher, checked_trainer_args, trainer_config
from bigrec_hf.sft.trainer import train_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, Trainer

TEXT = "text"
OF_TITLES = (  # settings that groups of catalog titles have and sampled texts do not
    *("grpo_method", "group_titles", "group_width", "target_in_group", "curriculum_top"),
    *("dpo_beta", "grpo_validation_sample", "grpo_eval_k"),
)
INDEX_FOLDER = "reward_index"  # beside the new adapter's folder


def main(
    run: RunSettings, data: DataSettings, model: ModelSettings, prompt: PromptSettings, grpo: GrpoSettings
) -> dict[str, Any]:
    """The `grpo` stage: write the adapter, the tokenizer and training.json to `grpo_adapter_dir`; return the record.

    A finished adapter of the same settings is kept; an interrupted training resumes from its last checkpoint. Raises
    BigrecError if another command is training there.
    """
    grpo = with_start(run, grpo)
    check_settings(data, prompt, grpo)
    find_model(model.base_model)
    state = process_state()
    check_launcher(state)
    adapter_fingerprint(grpo.start_adapter)  # there is one
    check_same_base(str(grpo.start_adapter), str(model.base_model))

    def learn(checkpoints: Path) -> Trained:
        tokenizer = load_tokenizer(model.base_model)
        if grpo.grpo_rollout == TEXT:
            return learn_texts(data.dataset[0], tokenizer, model, prompt, grpo, seed=run.seed, checkpoints=checkpoints)
        loaded = load_grpo(data.dataset[0], tokenizer, prompt, grpo, seed=run.seed)
        n_validation = 0 if loaded.validation is None else len(loaded.validation)
        state.print(f"learning from {len(loaded.train):,} examples, validating on {n_validation:,}")
        rewards = None if grpo.grpo_method == SDPO else find_rewards(data.dataset[0], loaded, model, grpo)
        trainer, result = train(loaded, rewards, tokenizer, model, prompt, grpo, seed=run.seed, checkpoints=checkpoints)
        counts = {"n_train": len(loaded.train), "n_validation": n_validation}
        return Trained(trainer, tokenizer, counts | prompt_facts(prompt.train_prompt, tokenizer) | result)

    return train_once(Path(str(grpo.grpo_adapter_dir)), training_settings(run, data, model, prompt, grpo), learn)


def learn_texts(
    dataset: str,
    tokenizer: PreTrainedTokenizerBase,
    model: ModelSettings,
    prompt: PromptSettings,
    grpo: GrpoSettings,
    *,
    seed: int,
    checkpoints: Path,
) -> Trained:
    """Train on sampled texts, which are grounded to the catalog by embeddings of `reward_encoder`."""
    catalog = load_catalog(dataset)
    examples = load_texts(dataset, tokenizer, prompt, grpo.grpo_sample, seed=seed, titles=catalog.titles)
    process_state().print(f"learning from {len(examples.rows):,} examples")
    index, encode = reward_index(catalog, model, grpo)
    sequences = training_sequences(load_config(dataset, "default", "train").data.table)
    rewards = load_rewards(
        grpo.rewards,
        lambda: item_scores(grpo.percentile_by, dataset, sequences),
        lambda: index.embeddings,
        ndcg=grounded_ndcg,
    )
    reward = Grounding(index, encode, rewards, examples.targets, examples.histories)
    trainer, result = train_texts(
        examples, reward, tokenizer, model, prompt, grpo, seed=seed, checkpoints=str(checkpoints)
    )
    n_read = round(len(examples.rows) * grpo.grpo_epochs)  # in all epochs, which the log counts as one
    facts = {
        "n_train": len(examples.rows),
        "n_train_targets": n_read,
        **prompt_facts(prompt.train_prompt, tokenizer),
        **result,
    }
    return Trained(trainer, tokenizer, facts)


def reward_index(catalog: Catalog, model: ModelSettings, grpo: GrpoSettings) -> tuple[CatalogIndex, Encode]:
    """The embeddings of the catalog's titles by `reward_encoder`, beside the new adapter, and the encoder."""
    folder = Path(str(grpo.grpo_adapter_dir)).parent / INDEX_FOLDER
    return open_index(catalog, model, GroundSettings(encoder=grpo.reward_encoder), folder, process_state())


def find_rewards(dataset: str, loaded: GrpoData, model: ModelSettings, grpo: GrpoSettings) -> WeightedRewards:
    """Return the rewards of a training, made of the catalog and the training split of `dataset`."""
    return load_rewards(
        grpo.rewards,
        lambda: item_scores(grpo.percentile_by, dataset, loaded.sequences),
        lambda: reward_index(load_catalog(dataset), model, grpo)[0].embeddings,
    )


def train(
    loaded: GrpoData,
    rewards: WeightedRewards | None,
    tokenizer: PreTrainedTokenizerBase,
    model: ModelSettings,
    prompt: PromptSettings,
    grpo: GrpoSettings,
    *,
    seed: int,
    checkpoints: Path,
) -> tuple[Trainer, dict[str, Any]]:
    """Train from the starting adapter, or from the last of `checkpoints`; return the trainer and what to record.

    `rewards`: None for the method sdpo.
    """
    dtype = resolve_dtype(model.dtype, process_state().device)
    config = trainer_config(
        str(checkpoints),
        as_sft(grpo),
        n_train=len(loaded.train),
        has_validation=loaded.validation is not None,
        dtype=dtype,
        quantized=model.quantization != "none",
        max_length=prompt.max_length,
        seed=seed,
    )
    base = load_training_base(model)
    timing: dict[str, Any] = {}
    with measured(timing):
        trainer, result = train_adapter(
            load_trainable(base, str(grpo.start_adapter)),
            tokenizer,
            loaded.train,
            loaded.validation,
            config,
            lora=None,
            patience=0,
            n_targets=round(len(loaded.train) * grpo.grpo_epochs),
            max_minutes=grpo.grpo_max_minutes,
            trainer_class=partial(
                GrpoTrainer,
                objective=objective_of(grpo),
                rewards=rewards,
                examples=loaded.examples,
                catalog=loaded.catalog,
                eval_k=grpo.grpo_eval_k,
            ),
            collator=loaded.collator,
        )
    return trainer, {"dtype": str(dtype).removeprefix("torch."), **timing, **result}


def objective_of(grpo: GrpoSettings) -> Objective:
    """Return the objective that the settings describe."""
    return Objective(
        method=grpo.grpo_method,
        group_size=grpo.group_size,
        sample=grpo.group_titles == "sample",
        width=grpo.group_width,
        target_in_group=grpo.target_in_group,
        curriculum_top=grpo.curriculum_top,
        scale=grpo.scale_advantages,
        kl_beta=grpo.kl_beta,
        dpo_beta=grpo.dpo_beta,
    )


def as_sft(grpo: GrpoSettings) -> SftSettings:
    """Return the settings of the section `sft` from which the trainer's arguments are made.

    The last checkpoint counts, not that of the best validation loss: rewards raise the loss.
    """
    return SftSettings(
        objective="dense",
        loss="trie",
        epochs=grpo.grpo_epochs,
        learning_rate=grpo.grpo_learning_rate,
        warmup_steps=grpo.grpo_warmup_steps,
        global_batch_size=grpo.grpo_batch_size,
        micro_batch_size=grpo.grpo_micro_batch_size,
        evals_per_epoch=grpo.grpo_evals_per_epoch,
        trainer_args={
            "lr_scheduler_type": "cosine",
            "max_grad_norm": 0.3,
            "load_best_model_at_end": False,
            "remove_unused_columns": False,
            "dataset_kwargs": {"skip_prepare_dataset": True},
            **grpo.grpo_trainer_args,
        },
    )


def with_start(run: RunSettings, grpo: GrpoSettings) -> GrpoSettings:
    """Return the settings with the folders that follow from the run. Raises BigrecError if they do not."""
    if run.run_dir is None and None in (grpo.start_adapter, grpo.grpo_adapter_dir):
        raise BigrecError("no folder given: name the run with --run_dir, or --start_adapter and --grpo_adapter_dir")
    folder = Path(str(run.run_dir))
    return replace(
        grpo,
        start_adapter=grpo.start_adapter or str(folder / "adapter"),
        grpo_adapter_dir=grpo.grpo_adapter_dir or str(folder / "grpo_adapter"),
    )


def check_settings(data: DataSettings, prompt: PromptSettings, grpo: GrpoSettings) -> None:
    """Raise BigrecError for settings that do not go together, or a launcher that this stage cannot work with."""
    if len(data.dataset) != 1 or data.train_json:
        raise BigrecError("grpo needs one prepared data set (dataset): prepare JSON files and tables first")
    if grpo.grpo_rollout == TEXT:
        check_text_settings(prompt, grpo)
    elif prompt.train_prompt != TITLE_LIST:
        raise BigrecError(
            f"grpo trains an adapter of the objective dense, whose prompt is titles, not {prompt.train_prompt!r}: set "
            "train_prompt titles (section prompt), or grpo_rollout text for one of the objective pairs"
        )
    if grpo.grpo_rollout == TEXT:
        given_args(grpo)
    else:
        checked_trainer_args(grpo.grpo_trainer_args, SFTConfig, "grpo_trainer_args")
    batch_sizes(as_sft(grpo), 1.0, process_state().num_processes, ("grpo_batch_size", "grpo_micro_batch_size"))
    if grpo.grpo_method == EXPECTED and grpo.group_titles != "beams":
        raise BigrecError("grpo_method expected sums over the likeliest titles, none is drawn: set group_titles beams")
    if launched_with_fsdp() or is_deepspeed_zero3_enabled():
        raise BigrecError("grpo needs the whole model on every process: use accelerate_configs/ddp.yaml")
    same = Path(str(grpo.start_adapter)).resolve() == Path(str(grpo.grpo_adapter_dir)).resolve()
    if same:
        raise BigrecError(
            f"start_adapter and grpo_adapter_dir are both {grpo.grpo_adapter_dir!r}: give the new one another folder"
        )


def check_text_settings(prompt: PromptSettings, grpo: GrpoSettings) -> None:
    """Raise BigrecError for settings that groups of catalog titles have and sampled texts do not."""
    if prompt.train_prompt == TITLE_LIST:
        raise BigrecError(
            "grpo_rollout text samples after the prompts of the objective pairs, not titles: set another train_prompt "
            "(section prompt), or grpo_rollout titles"
        )
    plain = GrpoSettings()
    for name in OF_TITLES:
        if getattr(grpo, name) != getattr(plain, name):
            raise BigrecError(
                f"{name} is {getattr(grpo, name)!r}, which needs groups of catalog titles: leave it at "
                f"{getattr(plain, name)!r}, or set grpo_rollout titles"
            )
    if "ranked" in grpo.rewards:
        raise BigrecError("the reward ranked needs groups of different titles: use hit or ndcg, or grpo_rollout titles")


def training_settings(
    run: RunSettings, data: DataSettings, model: ModelSettings, prompt: PromptSettings, grpo: GrpoSettings
) -> dict[str, Any]:
    """Return the settings that the adapter depends on; their fingerprint decides whether to train again.

    Settings that change nothing are left out. Raises BigrecError if a model that a reward needs does not exist.
    """
    start = with_start(run, grpo).start_adapter
    left_out = {"grpo_adapter_dir", "start_adapter", "percentile_by", "reward_encoder"}
    if not grpo.grpo_eval_k:
        left_out.add("grpo_eval_k")
    texts = grpo.grpo_rollout == TEXT
    left_out |= set(OF_TITLES) if texts else {"grpo_rollout"}
    used: dict[str, Any] = {}
    if grpo.grpo_method != SDPO and PERCENTILE in grpo.rewards:
        used |= model_mark(grpo.percentile_by)
    if texts or (grpo.grpo_method != SDPO and needs_vectors(grpo.rewards)):
        used["reward_encoder"] = encoder_fingerprint(encoder_name(grpo.reward_encoder, model.base_model))
    return {
        **input_settings(run.seed, data, model, prompt),
        "start_adapter_sha256": adapter_fingerprint(start),
        **{key: value for key, value in vars(grpo).items() if key not in left_out},
        **used,
    }
