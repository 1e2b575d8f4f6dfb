"""Step 1, training: LoRA fine-tuning of a causal LM on (history -> next title) with TRL's SFTTrainer.

Examples are tokenized here, not by TRL, so that prompts have the same tokens in training and inference, histories that
are too long lose their oldest titles (TRL would cut the completion), and the loss mask can be tested.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bigrec_hf.common.environment import measured
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.processes import process_state
from bigrec_hf.data.prompts import TITLE_LIST, prompt_facts
from bigrec_hf.metrics.ndcg_hr.encoders import resolve_dtype
from bigrec_hf.models.loading import find_model, load_tokenizer, load_training_base, lora_config
from bigrec_hf.models.stacked import Factors, check_start, merge_start, start_fingerprint
from bigrec_hf.settings import DataSettings, ModelSettings, PromptSettings, RunSettings, SftSettings
from bigrec_hf.sft.adapter_folder import Trained, input_settings, train_once
from bigrec_hf.sft.config import check_launcher, count_rows, trainer_config
from bigrec_hf.sft.dense_data import load_dense
from bigrec_hf.sft.pairs import load_pairs
from bigrec_hf.sft.temperature import read_temperature
from bigrec_hf.sft.trainer import train_adapter

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer


def main(
    run: RunSettings, data: DataSettings, model: ModelSettings, prompt: PromptSettings, sft: SftSettings
) -> dict[str, Any]:
    """The `sft` stage: write the adapter, the tokenizer and training.json to `adapter_dir`, and return the record.

    A finished adapter of the same settings is kept; an interrupted training resumes from its last checkpoint, in
    `adapter_dir`/checkpoints. Raises BigrecError if another command is training there.
    """
    check_settings(data, prompt, sft)
    find_model(model.base_model)
    if sft.init_adapter is not None:
        check_start(sft.init_adapter, str(model.base_model), model.quantization, Path(str(sft.adapter_dir)))
    state = process_state()
    check_launcher(state)

    def train(checkpoints: Path) -> Trained:
        tokenizer = load_tokenizer(model.base_model)
        rows = training_rows(data, tokenizer, prompt, sft, seed=run.seed, folder=checkpoints)
        shown = ", ".join(f"{n:,} {name.removeprefix('n_').replace('_', ' ')}" for name, n in rows.counts.items())
        state.print(f"training on {len(rows.train):,} rows ({shown}), validating on {rows.n_validation:,}")
        trainer, result, start = train_rows(rows, tokenizer, model, prompt, seed=run.seed, checkpoints=checkpoints)
        counts = {"n_train": len(rows.train), "n_validation": rows.n_validation, **rows.counts}
        facts = counts | prompt_facts(prompt.train_prompt, tokenizer) | result
        return Trained(trainer, tokenizer, facts, start)

    return train_once(Path(str(sft.adapter_dir)), training_settings(run, data, model, prompt, sft), train)


@dataclass(frozen=True)
class TrainingRows:
    """What a trainer reads: the rows of one objective, and the settings and options to train on them with."""

    train: Dataset
    validation: Dataset | None
    counts: dict[str, int]
    sft: SftSettings  # as the trainer sees them: rows of all dense epochs are one epoch
    options: dict[str, Any]  # of `train_adapter`

    @property
    def n_validation(self) -> int:
        """Number of validation rows."""
        return 0 if self.validation is None else len(self.validation)


def training_rows(
    data: DataSettings,
    tokenizer: PreTrainedTokenizerBase,
    prompt: PromptSettings,
    sft: SftSettings,
    *,
    seed: int,
    folder: Path,
) -> TrainingRows:
    """Return the rows of the objective; those of pairs are files in `folder`."""
    if sft.objective == "dense":
        dense = load_dense(data.dataset[0], tokenizer, prompt, sft, seed=seed)
        return TrainingRows(dense.train, dense.validation, dense.counts, dense.all_epochs(sft), dense.trainer_options())
    train, validation, counts, sample = load_pairs(data, tokenizer, prompt, sft, seed=seed, folder=folder)
    return TrainingRows(train, validation, counts, sft, {"sample": sample})


def load_start(model: ModelSettings, sft: SftSettings) -> tuple[PreTrainedModel, Factors | None]:
    """Return the base to train on, with the adapter to start from merged in, and that adapter's factors."""
    base = load_training_base(model)
    return (base, None) if sft.init_adapter is None else merge_start(base, sft.init_adapter, sft.lora_target_modules)


def train_rows(
    rows: TrainingRows,
    tokenizer: PreTrainedTokenizerBase,
    model: ModelSettings,
    prompt: PromptSettings,
    *,
    seed: int,
    checkpoints: Path,
) -> tuple[Trainer, dict[str, Any], Factors | None]:
    """Train an adapter, from the last of `checkpoints` if there is one.

    Returns the trainer, what to record, and the factors of the adapter to start from, if there is one.
    """
    dtype, sft = resolve_dtype(model.dtype, process_state().device), rows.sft
    config = trainer_config(
        str(checkpoints),
        sft,
        n_train=len(rows.train),
        n_rows=count_rows(rows.train, sft, prompt.max_length),
        has_validation=rows.validation is not None,
        dtype=dtype,
        quantized=model.quantization != "none",
        max_length=prompt.max_length,
        seed=seed,
    )
    lora = lora_config(
        r=sft.lora_r, alpha=sft.lora_alpha, dropout=sft.lora_dropout, target_modules=sft.lora_target_modules
    )
    base, start = load_start(model, sft)
    timing: dict[str, Any] = {}
    with measured(timing):
        trainer, result = train_adapter(
            base,
            tokenizer,
            rows.train,
            rows.validation,
            config,
            lora=lora,
            patience=sft.patience,
            n_targets=rows.counts.get("n_train_targets", round(len(rows.train) * sft.epochs)),
            n_tokens=round(rows.counts["n_train_tokens"] * sft.epochs),
            max_minutes=sft.max_minutes,
            **rows.options,
        )
    return trainer, {"dtype": str(dtype).removeprefix("torch."), **timing, **result}, start


def check_settings(data: DataSettings, prompt: PromptSettings, sft: SftSettings) -> None:
    """Raise BigrecError if no data or no adapter folder is named, or if settings do not fit the objective."""
    if not data.dataset and not data.train_json:
        raise BigrecError(
            "no training data: give --dataset (a prepared data set) or --train_json (the reference's file)"
        )
    if sft.adapter_dir is None:
        raise BigrecError("no folder given for the adapter: name one with --run_dir or --adapter_dir")
    if read_temperature(sft.trie_temperature) != 1 and sft.loss != "trie":
        raise BigrecError(f"trie_temperature {sft.trie_temperature} needs the loss trie (section sft): set loss trie")
    listed = prompt.train_prompt == TITLE_LIST
    if sft.objective == "pairs":
        if listed:
            raise BigrecError(
                "the prompt template titles is for the objective dense: set objective dense (section sft)"
            )
        if sft.loss == "trie":
            raise BigrecError("loss trie needs the objective dense: set objective dense (section sft), or loss full")
        return
    if not listed:
        raise BigrecError(
            f"the objective dense trains on bare lists of titles, not on the prompt {prompt.train_prompt!r}: set "
            "train_prompt titles (section prompt)"
        )
    if data.train_json or len(data.dataset) != 1:
        raise BigrecError(
            "the objective dense needs one prepared data set (dataset): prepare JSON files and tables first"
        )
    for name in ("packing", "length_grouping"):
        if getattr(sft, name):
            raise BigrecError(
                f"{name} cannot be combined with the objective dense, whose segments are full: set it to false"
            )


def training_settings(
    run: RunSettings, data: DataSettings, model: ModelSettings, prompt: PromptSettings, sft: SftSettings
) -> dict[str, Any]:
    """Return the settings that the adapter depends on; their fingerprint decides whether to train again."""
    start = {}  # without init_adapter nothing is added, so that adapters of earlier releases are kept
    if sft.init_adapter is not None:
        start = {"init_adapter": sft.init_adapter, "init_adapter_content": start_fingerprint(sft.init_adapter)}
    left_out = {"adapter_dir", "init_adapter"}
    if read_temperature(sft.trie_temperature) == 1:  # changes nothing: adapters older than the setting are kept
        left_out.add("trie_temperature")
    return {
        **input_settings(run.seed, data, model, prompt),
        "train_json": data.train_json,
        "validation_json": data.validation_json,
        **{key: value for key, value in vars(sft).items() if key not in left_out},
        **start,
    }
