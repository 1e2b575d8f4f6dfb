"""Run: all stages from one recipe in one folder, with a manifest; stages that are done and unchanged are skipped.

`steps` says what makes a stage run again.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from bigrec_hf.common.environment import environment
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json
from bigrec_hf.common.hub_names import is_hub_id
from bigrec_hf.data.catalog import catalog_source, load_catalog
from bigrec_hf.data.generations import GENERATIONS_FILE, generated_examples
from bigrec_hf.data.prepared import FACTS_FILE, PREPARED_FILES, data_mark, describe_data
from bigrec_hf.data.rankings import RANKINGS_FILE, write_rankings
from bigrec_hf.ground import stage as ground_stage
from bigrec_hf.ground.index import INDEX_FILES, index_mark, open_index
from bigrec_hf.models.encoder import encoder_name
from bigrec_hf.models.identity import ADAPTER_CONTENT, TRAINING_FILE, adapter_fingerprint, model_revision
from bigrec_hf.pipeline.protect import PERMITTING, start_run
from bigrec_hf.pipeline.rankers import check_rankers, generated_files, ranking_options, run_rankers
from bigrec_hf.pipeline.seeds import run_seeds
from bigrec_hf.pipeline.steps import Steps
from bigrec_hf.prepare import stage as prepare_stage
from bigrec_hf.prepare.stage import raw_mark
from bigrec_hf.rank.baselines.by_name import baseline_table
from bigrec_hf.rank.model_selection import check_cutoffs
from bigrec_hf.report import stage as report_stage
from bigrec_hf.score import stage as score_stage
from bigrec_hf.settings import GrpoSettings, RunSections
from bigrec_hf.settings.train import BASELINES

GRPO = "grpo"  # method


@dataclass(frozen=True)
class Inputs:
    """Marks of the inputs as they are when the run starts: data, base model and encoder."""

    data: list[str]
    base: str
    encoder: str


def main(**sections: Any) -> None:
    """The `run` command. `sections`: the settings of each section of `RunSections`, by name."""
    run_recipe(RunSections(**sections))


def run_recipe(sections: RunSections) -> None:
    """Run every stage that is not done, for each seed of the recipe.

    Raises BigrecError; if the settings alone show that a stage cannot run, before any work.
    """
    check_sections(sections)
    if sections.pipeline.seeds:
        return run_seeds(run_recipe, sections)
    folder = Path(str(sections.run.run_dir))
    start_run(folder, sections)
    steps = Steps(folder, sections.pipeline.from_stage)
    steps.state.print(f"run folder: {folder}", flush=True)
    steps.manifest |= {"seed": sections.run.seed, "seeds": [], "environment": environment()}
    prepare(steps, sections)
    steps.manifest["data"] = describe_data(sections.data)
    steps.manifest["names"] = hub_names(sections.data, sections.model, sections.sft, sections.generate, sections.ground)
    inputs = read_inputs(sections)
    items = load_catalog(catalog_source(sections.data.catalog, sections.data.dataset))
    check_cutoffs(sections.score.ks, len(items))  # before the training rather than after it
    adapter = train(steps, sections)
    by_scores = sections.ground.ranking == "scores"  # no text is embedded
    index = None if by_scores else index_step(steps, sections, inputs)
    adapters: dict[str, str | None] = {"finetuned": adapter}
    if sections.pipeline.with_grpo:
        adapters[GRPO] = train_by_rewards(steps, sections, adapter)
    if "zero_shot" in sections.pipeline.baselines:
        adapters["zero_shot"] = None
    methods = list(adapters)
    texts = {method: generate(steps, sections, method, inputs, mark) for method, mark in adapters.items()}
    ranked = {method: ground(steps, sections, method, [texts[method], index]) for method in methods}
    for name in sections.pipeline.baselines:
        if name not in methods:
            ranked[name] = rank_baseline(steps, sections, name, [ranked["finetuned"], inputs.data])
    scored = {name: score(steps, sections, name, mark) for name, mark in ranked.items()}
    run_rankers(steps, sections, [scored["finetuned"], index])
    steps.save()
    if steps.state.is_main_process:
        print(f"\n{report_stage.write_report(folder)}")


def check_sections(sections: RunSections) -> None:
    """Raise BigrecError for settings with which some stage could not run."""
    from bigrec_hf.models.loading import find_model

    if sections.run.run_dir is None:
        raise BigrecError("no run folder: give --config RECIPE or --run_dir")
    unknown = set(sections.pipeline.baselines) - set(BASELINES)
    if unknown:
        raise BigrecError(f"unknown baseline {sorted(unknown)[0]!r}: choose among {', '.join(BASELINES)}")
    if not sections.data.dataset and not sections.data.train_json:
        raise BigrecError(
            "no data: the recipe needs a section `prepare` (source, raw_dir), or `data` with dataset or *_json"
        )
    find_model(sections.model.base_model)
    if (sections.generate.decoding == "exact") != (sections.ground.ranking == "scores"):
        raise BigrecError(
            f"decoding {sections.generate.decoding} (section generate) and ranking {sections.ground.ranking} (section "
            "ground) do not go together: exact writes the scores that the ranking scores reads; set both or neither"
        )
    if sections.pipeline.with_grpo:
        from bigrec_hf.grpo import stage as grpo_stage

        if sections.grpo.grpo_rollout != grpo_stage.TEXT and sections.generate.decoding != "exact":
            raise BigrecError(
                "with_grpo trains the probabilities of all titles: set `decoding: exact` (section generate), or "
                "`grpo_rollout: text` (section grpo)"
            )
        settings = grpo_stage.with_start(sections.run, rewards_from(sections))
        grpo_stage.check_settings(sections.data, sections.prompt, settings)
    check_rankers(sections)


def rewards_from(sections: RunSections) -> GrpoSettings:
    """The settings of the stage grpo: it starts from the run's adapter unless another is named."""
    start = sections.grpo.start_adapter or sections.generate.adapter or str(sections.sft.adapter_dir)
    return replace(sections.grpo, start_adapter=start)


def hub_names(*sections: Any) -> dict[str, Any]:
    """Return the names on the Hub in these settings, each with the commit it resolved to when the run began."""
    found: dict[str, Any] = {}
    for section in sections:
        for item in fields(section):
            value = getattr(section, item.name)
            names = value if isinstance(value, list) else [value]
            if item.metadata.get("hub") and value and all(is_hub_id(name) for name in names):
                found[item.name] = value
    return found


def read_inputs(sections: RunSections) -> Inputs:
    """Return the marks of the data and models named. Raises BigrecError if one does not exist."""
    base = str(sections.model.base_model)
    encoder = encoder_name(sections.ground.encoder, sections.model.base_model)
    return Inputs(data_mark(sections.data), model_revision(base), model_revision(encoder))


# --- one function per kind of step; each returns its mark, on which later steps depend -------------------------------


def prepare(steps: Steps, sections: RunSections) -> None:
    """Prepare the data set, if the recipe names raw files.

    A set in the run's own folder is made again if its files have changed; one elsewhere, which others may use, only
    with `overwrite` or `from_stage`.
    """
    settings, run_dir = sections.prepare, Path(str(sections.run.run_dir)).absolute()
    if settings.source:
        place = Path(str(settings.prepared_dir)).absolute()
        own = place.parent in (run_dir, run_dir.parent if run_dir.name.startswith("seed-") else run_dir)
        wanted = sections.pipeline.overwrite or sections.pipeline.from_stage is not None
        allowed = replace(settings, overwrite_prepared=settings.overwrite_prepared or own or wanted)
        steps.do(
            "prepare",
            lambda: prepare_stage.main(allowed),
            depends=[
                {key: value for key, value in asdict(settings).items() if key not in PERMITTING},
                raw_mark(settings),
            ],
            outputs=[Path(str(settings.prepared_dir)) / name for name in (FACTS_FILE, *PREPARED_FILES)],
        )


def train(steps: Steps, sections: RunSections) -> str | None:
    """Train the adapter, unless `generate.adapter` names one."""
    from bigrec_hf.sft import stage as sft_stage
    from bigrec_hf.sft.adapter_folder import CHECKPOINTS

    if sections.generate.adapter is not None:
        return adapter_fingerprint(sections.generate.adapter)
    settings = (sections.run, sections.data, sections.model, sections.prompt, sections.sft)
    folder = Path(str(sections.sft.adapter_dir))
    mark = steps.do(
        "sft",
        lambda: sft_stage.main(*settings),
        depends=sft_stage.training_settings(*settings),
        outputs=[folder / name for name in (TRAINING_FILE, *ADAPTER_CONTENT)],
        distributed=True,
        resumes_from=folder / CHECKPOINTS,
    )
    training = read_json(folder / TRAINING_FILE)
    steps.manifest["training"] = {key: value for key, value in training.items() if key != "history"}
    return mark


def train_by_rewards(steps: Steps, sections: RunSections, adapter: str | None) -> str:
    """Train the run's adapter further with rewards; `adapter`: its mark."""
    from bigrec_hf.grpo import stage as grpo_stage
    from bigrec_hf.sft.adapter_folder import CHECKPOINTS

    grpo = rewards_from(sections)
    settings = (sections.run, sections.data, sections.model, sections.prompt, grpo)
    folder = Path(str(grpo.grpo_adapter_dir))
    return steps.do(
        "grpo",
        lambda: grpo_stage.main(*settings),
        depends=[grpo_stage.training_settings(*settings), adapter],
        outputs=[folder / name for name in (TRAINING_FILE, *ADAPTER_CONTENT)],
        distributed=True,
        resumes_from=folder / CHECKPOINTS,
    )


def index_step(steps: Steps, sections: RunSections, inputs: Inputs) -> str:
    """Build the catalog index of the run, or open the one that `ground.index_dir` names."""
    settings, own = sections.ground, steps.folder / "index"
    named = [index_mark(settings.index_dir)] if settings.index_dir else []

    def build() -> None:
        catalog = load_catalog(catalog_source(sections.data.catalog, sections.data.dataset))
        open_index(catalog, sections.model, settings, own, steps.state)

    return steps.do(
        "index",
        build,
        depends=[inputs.data, settings.encoder_dtype, inputs.encoder, *named],
        outputs=[] if named else [own / name for name in INDEX_FILES],
        distributed=True,
    )


def generate(steps: Steps, sections: RunSections, method: str, inputs: Inputs, adapter: str | None) -> str:
    """Generate the texts of a method; `adapter`: the mark of its adapter, None without one."""
    from bigrec_hf.generate import stage as generate_stage

    run, data, model, prompt, settings = (
        replace(sections.run, method=method),
        sections.data,
        sections.model,
        sections.prompt,
        sections.generate,
    )
    if method == GRPO:
        settings = replace(settings, adapter=sections.grpo.grpo_adapter_dir)
    return steps.do(
        "generate",
        lambda: generate_stage.main(run, data, model, prompt, settings),
        label=method,
        depends=[
            inputs.data,
            [data.split, data.eval_sample, run.seed],
            asdict(model),
            inputs.base,
            asdict(prompt),
            asdict(settings),
            adapter,
        ],
        outputs=generated_files(steps.folder / method, settings),
        distributed=True,
    )


def ground(steps: Steps, sections: RunSections, method: str, marks: list[str | None]) -> str:
    """Ground the texts of a method; `marks`: those of the texts and the index."""
    run, settings = replace(sections.run, method=method), sections.ground
    return steps.do(
        "ground",
        lambda: ground_stage.main(run, sections.data, sections.model, settings),
        label=method,
        depends=[*marks, ranking_options(settings)],
        outputs=[steps.folder / method / RANKINGS_FILE],
        distributed=True,
    )


def rank_baseline(steps: Steps, sections: RunSections, name: str, marks: list[Any]) -> str:
    """Rank the fine-tuned model's examples by a baseline; `marks`: those of that model's rankings and the data."""
    data, options, seed = sections.data, sections.ground.options, sections.run.seed

    def rank() -> None:
        catalog = load_catalog(catalog_source(data.catalog, data.dataset))
        examples = generated_examples(steps.folder / "finetuned" / GENERATIONS_FILE, catalog)
        table = baseline_table(name, examples, data, options, seed=seed)
        write_rankings(table, steps.folder / name)

    return steps.do(
        "ground",
        rank,
        label=name,
        depends=[*marks, ranking_options(sections.ground), seed],
        outputs=[steps.folder / name / RANKINGS_FILE],
    )


def score(steps: Steps, sections: RunSections, name: str, mark: str) -> str:
    """Score a method or baseline; `mark`: that of its rankings."""
    folder, settings, seed = steps.folder / name, sections.score, sections.run.seed
    return steps.do(
        "score",
        lambda: score_stage.score_folder(folder, **vars(settings), seed=seed),
        label=name,
        depends=[mark, asdict(settings), seed],
        outputs=[folder / score_stage.RESULTS_FILE, folder / score_stage.PER_EXAMPLE_FILE],
    )
