"""Cards of adapters and indexes, filled from the records of a run. Fields that were not recorded are omitted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.metrics.ndcg_hr.names import split_revision
from bigrec_hf.report.differences import compare_rows, legend
from bigrec_hf.report.published import published_table
from bigrec_hf.report.rows import METHODS, METRICS, Row, cutoffs
from bigrec_hf.report.stage import cell_notes, score_tables

CARD_TEMPLATES = Path(__file__).parent / "templates"
TAGS = ["recommendation", "sequential-recommendation", "bigrec", "lora"]
PUBLISHED = {"movies": "movie", "video games": "game"}  # noun of the data -> published rows
HYPER_PARAMETERS = (  # settings in training.json that a card shows; names of folders and data sets are not among them
    *("epochs", "learning_rate", "warmup_steps", "global_batch_size", "micro_batch_size", "patience"),
    *("completion_only", "lora_r", "lora_alpha", "lora_dropout", "lora_target_modules", "packing", "length_grouping"),
    *("activation_checkpointing", "evals_per_epoch", "sample", "validation_sample", "train_prompt", "max_history"),
    *("max_length", "quantization", "attn_implementation", "seed", "init_adapter"),
)
COUNTS = (
    *("n_train", "n_validation", "n_train_tokens", "trainable_parameters", "total_parameters", "optimizer_steps"),
    *("epochs_done", "train_loss", "best_eval_loss", "dtype", "n_processes", "seconds", "process_peak_memory_mib"),
    "gpu_peak_memory_mib",
)

LABELS = {
    "seconds": "training time, s",
    "process_peak_memory_mib": "peak memory, MiB",
    "gpu_peak_memory_mib": "GPU peak memory, MiB",
    "warmup_steps": "warm-up (steps; below 1: share of all steps)",
    "init_adapter": "trained on top of the adapter",
    "sample": "training examples asked for (0: all)",
    "validation_sample": "validation examples asked for (0: all)",
    "n_train": "training examples",
    "n_validation": "validation examples",
    "n_train_tokens": "training tokens",
    "n_processes": "processes",
    "width": "prefixes followed per token (0: all)",
    "exclude_history": "history excluded in the results",
}
INFERENCE = ("template", "short_titles", "max_history", "max_length", "dtype", "quantization")
GROUNDING = ("encoder", "encoder_dtype")


def cell(value: Any) -> str:
    """Return a value as a Markdown table cell."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value).replace("|", "\\|").replace("\n", " ")


def card_rows(record: dict[str, Any], names: Iterable[str]) -> list[tuple[str, str]]:
    """Return (label, value) of each recorded entry, in the order of `names`."""
    return [
        (LABELS.get(name, name).replace("_", " "), cell(record[name]))
        for name in names
        if record.get(name) not in (None, [], {})
    ]


def eval_results(row: Row, dataset: dict[str, Any]) -> list[Any]:
    """Return one EvalResult per metric and K of a method. `dataset`: type (Hub id, or name of the set), name, split."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            task_name="Next-item recommendation over the full catalog",
            dataset_type=dataset["type"],
            dataset_name=dataset["name"],
            dataset_config=dataset.get("config"),
            dataset_split=dataset.get("split"),
            dataset_revision=dataset.get("revision"),
            metric_type=metric,
            metric_name=f"{title}@{k}",
            metric_value=float(row.results[0][f"{metric}@{k}"]),
            metric_args={"k": k},
        )
        for metric, title in METRICS.items()
        for k in cutoffs([row])
    ]


def remarks(own: Row, rows: Sequence[Row]) -> list[str]:
    """Return sentences, derived from the numbers, about what a reader might overlook in the tables."""
    results, found = own.results[0], []
    for row in rows:
        if row.method == own.method or row.method not in METHODS:
            continue
        ahead = [f"HR@{k}" for k in cutoffs([own]) if row.results[0].get(f"hr@{k}", 0) > results[f"hr@{k}"]]
        if ahead:
            found.append(f"The baseline {row.label} is ahead of it in {', '.join(ahead)}.")
    if results.get("n_distinct") is not None:
        found.append(f"It gave {results['n_distinct']:,} distinct answers to {results['n_examples']:,} examples.")
    return found


def model_card(
    *,
    repo_id: str,
    base: dict[str, Any],
    scored: Sequence[Row],
    training: dict[str, Any],
    data: dict[str, Any],
    split: str | None,
    dataset_repo: str | None,
    metric_repo: str | None,
    index_repo: str | None,
    has_titles: bool,
    config: dict[str, Any],
    history: list[str],
    license: str | None,
) -> str:
    """Return README.md of an adapter.

    `base`: repo_id, revision, weights. `scored`: the run's rows (rows.load_rows). `training`: training.json. `config`:
    bigrec.json. `data`: facts of the prepared set, empty if there is none. `dataset_repo`, `index_repo`: Hub ids,
    `@commit` allowed. `has_titles`: the repository holds the catalog, or names an index. `history`: two titles for the
    code example.
    """
    from huggingface_hub import ModelCard, ModelCardData

    own_row = next((row for row in scored if row.method == "finetuned"), None)
    if own_row is None:
        raise BigrecError(
            "the run has no results of its adapter (finetuned/results.json): make them with `bigrec-hf score`"
        )
    own, compared = own_row.results[0], compare_rows(scored)
    dataset_id, commit = split_revision(dataset_repo) if dataset_repo else (None, None)
    name = data.get("name")
    evaluation = None
    if name or dataset_id:
        kind = dataset_id or re.sub(r"[^\w./-]+", "-", str(name)).strip("-")
        evaluation = {"type": kind, "name": name or dataset_id, "config": "default", "split": split, "revision": commit}
    environment = training.get("environment", {})
    packages = environment.get("packages", {})
    facts = [("base model", f"[`{base['repo_id']}`]({link(base['repo_id'])})")]
    facts += [("base revision", f"`{base['revision']}`")] if base.get("revision") else []
    if dataset_id:
        at = f" at `{commit}`" if commit else ""
        facts.append(("data set", f"[`{dataset_id}`]({link(dataset_id, 'datasets')}){at}"))
    elif name:
        facts.append(("data set", cell(name)))
    facts += card_rows(data, ("preset", "users", "items"))
    if index_repo:
        index_id, index_commit = split_revision(index_repo)
        at = f" at `{index_commit}`" if index_commit else ""
        facts.append(("catalog index", f"[`{index_id}`]({link(index_id, 'datasets')}){at}"))
    if metric_repo:
        facts.append(("metric", f"[`{metric_repo}`]({link(metric_repo, 'spaces')})"))
    fields: dict[str, Any] = {
        "base_model": base["repo_id"],
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": TAGS,
        "license": license,
        "datasets": [dataset_id] if dataset_id else None,
        "metrics": [metric_repo] if metric_repo else None,
    }
    if evaluation:
        fields |= {"model_name": repo_id.split("/")[-1], "eval_results": eval_results(own_row, evaluation)}
    whole = data.get("examples", {}).get(split, 0)
    of = f" of the {whole:,}" if whole > own["n_examples"] else ""
    where = f"{own['n_examples']:,}{of} examples" + (f" of the {split} split" if split else "")
    where += f" of {name}" if name else ""
    domain = PUBLISHED.get(str(data.get("noun")))
    by_score = config["decoding"]["strategy"] == "exact"
    inference = (*INFERENCE, *(() if by_score else GROUNDING), "exclude_history")
    card = ModelCard.from_template(
        ModelCardData(**{key: value for key, value in fields.items() if value is not None}),
        template_path=str(CARD_TEMPLATES / "model_card.md"),
        repo_id=repo_id,
        title=repo_id.split("/")[-1],
        versions=packages,
        facts=facts,
        base=base,
        example=json.dumps(history, ensure_ascii=False),
        own_label=own_row.label,
        has_titles=has_titles,
        by_score=by_score,
        evaluated=f"Evaluated on {where}. Targets are ranked among all {own['n_items']:,} catalog items.",
        tables=[*cell_notes(scored), *legend(scored, compared), *score_tables(scored, compared)],
        remarks=remarks(own_row, scored),
        published=published_table(domain) if domain else None,
        settings=card_rows(training.get("settings", {}), HYPER_PARAMETERS) + card_rows(training, COUNTS),
        environment=card_rows(environment, ("python", "platform", "cpus", "gpus", "git_commit"))
        + [(name, cell(version)) for name, version in packages.items()],
        inference=card_rows({"encoder": "the base model", **config}, inference) + decoding_rows(config["decoding"]),
        licence=data.get("licence"),
    )
    return str(card).rstrip() + "\n"


def decoding_rows(decoding: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the decoding settings that apply to the strategy."""
    from bigrec_hf.generate.strategy import STRATEGIES

    own = STRATEGIES.get(decoding["strategy"], ("width",))  # exact is not a strategy of `Decoding`
    return card_rows(decoding, ("strategy", "max_new_tokens", *own))


def index_card(
    *, repo_id: str, fingerprint: dict[str, Any], weights: str | None, data: dict[str, Any], dataset_repo: str | None
) -> str:
    """Return README.md of an index; `fingerprint` as it is published."""
    from huggingface_hub import DatasetCard, DatasetCardData

    facts = [("encoder", f"[`{fingerprint['encoder']}`]({link(fingerprint['encoder'])})")]
    facts += card_rows(fingerprint, ("revision", "kind", "dtype", "template", "catalog_sha256"))
    if dataset_repo:
        dataset_id, commit = split_revision(dataset_repo)
        at = f" at `{commit}`" if commit else ""
        facts.append(("data set", f"[`{dataset_id}`]({link(dataset_id, 'datasets')}){at}"))
    elif data.get("name"):
        facts.append(("data set", cell(data["name"])))
    licence = data.get("licence") or {}
    terms: dict[str, Any] = (
        {"license": "other", "license_name": f"{data.get('source', 'source')}-terms"} if licence.get("name") else {}
    )
    terms |= {"license_link": licence["url"]} if licence.get("url") else {}
    card = DatasetCard.from_template(
        DatasetCardData(
            **terms,
            tags=["recommendation", "bigrec", "catalog-index"],
            configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "catalog.parquet"}]}],
        ),
        template_path=str(CARD_TEMPLATES / "index_card.md"),
        repo_id=repo_id,
        title=repo_id.split("/")[-1],
        fingerprint=fingerprint,
        facts=facts,
        weights=weights,
        licence=data.get("licence"),
    )
    return str(card).rstrip() + "\n"


def link(repo_id: str, prefix: str = "") -> str:
    """Return the address of a repository's page."""
    from huggingface_hub import constants

    return "/".join(part for part in (constants.ENDPOINT, prefix, repo_id) if part)
