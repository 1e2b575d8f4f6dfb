"""Run: all stages from one recipe in one folder, with a manifest; stages that are done and unchanged are skipped.

What makes a stage run again: `steps`.
"""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from bigrec_hf.common.environment import environment
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json
from bigrec_hf.common.hub_names import is_hub_id
from bigrec_hf.common.processes import process_state
from bigrec_hf.data.catalog import catalog_source, load_catalog
from bigrec_hf.data.examples import data_mark, load_facts
from bigrec_hf.data.generations import GENERATIONS_FILE
from bigrec_hf.data.rankings import RANKINGS_FILE, write_rankings
from bigrec_hf.ground import stage as ground_stage
from bigrec_hf.ground.index import open_index
from bigrec_hf.metrics.ndcg_hr.scores import check_ks
from bigrec_hf.models.encoder import encoder_name
from bigrec_hf.models.identity import adapter_fingerprint, model_revision
from bigrec_hf.pipeline.rankers import check_rankers, run_rankers
from bigrec_hf.pipeline.seeds import run_seeds
from bigrec_hf.pipeline.steps import Steps
from bigrec_hf.prepare import stage as prepare_stage
from bigrec_hf.prepare.stage import raw_mark
from bigrec_hf.rank.baselines.by_name import baseline_table
from bigrec_hf.report import stage as report_stage
from bigrec_hf.score import stage as score_stage
from bigrec_hf.settings import (
    DataSettings,
    DebiasSettings,
    FuseSettings,
    GenerateSettings,
    GroundSettings,
    ModelSettings,
    PipelineSettings,
    PrepareSettings,
    PromptSettings,
    RerankSettings,
    RunSettings,
    SasrecSettings,
    ScoreSettings,
    SftSettings,
)
from bigrec_hf.settings.recipes import to_yaml

BASELINES = ("random", "popularity", "cooccurrence", "zero_shot")


def describe_data(data: DataSettings) -> dict[str, Any]:
    """The facts of the first prepared set that a report shows."""
    if not data.dataset:
        return {}
    facts = load_facts(data.dataset[0])
    kept = ("name", "source", "preset", "users", "items", "examples", "repeated_targets", "duplicate_titles", "sha256")
    return {key: facts[key] for key in kept if key in facts}


def hub_names(*sections: Any) -> dict[str, Any]:
    """What the settings name on the Hub, each at the commit it stood for when the run began."""
    found: dict[str, Any] = {}
    for section in sections:
        for item in fields(section):
            value = getattr(section, item.name)
            names = value if isinstance(value, list) else [value]
            if item.metadata.get("hub") and value and all(is_hub_id(name) for name in names):
                found[item.name] = value
    return found


def main(
    run: RunSettings,
    pipeline: PipelineSettings,
    prepare: PrepareSettings,
    data: DataSettings,
    model: ModelSettings,
    prompt: PromptSettings,
    sft: SftSettings,
    generate: GenerateSettings,
    ground: GroundSettings,
    score: ScoreSettings,
    sasrec: SasrecSettings,
    fuse: FuseSettings,
    rerank: RerankSettings,
    debias: DebiasSettings,
) -> None:
    """The `run` command."""
    from bigrec_hf.generate import stage as generate_stage
    from bigrec_hf.models.loading import find_model
    from bigrec_hf.sft import stage as sft_stage

    if run.run_dir is None:
        raise BigrecError("no run folder: give --config RECIPE or --run_dir")
    unknown = set(pipeline.baselines) - set(BASELINES)
    if unknown:
        raise BigrecError(f"unknown baseline {sorted(unknown)[0]!r}: choose among {', '.join(BASELINES)}")
    if not data.dataset and not data.train_json:
        raise BigrecError(
            "no data: the recipe needs a section `prepare` (source, raw_dir), or `data` with dataset or *_json"
        )
    find_model(model.base_model)
    check_rankers(pipeline.rankers, rerank.weights, rerank.scores)
    sections: dict[str, Any] = {
        "run": run,
        "pipeline": pipeline,
        "prepare": prepare,
        "data": data,
        "model": model,
        "prompt": prompt,
        "sft": sft,
        "generate": generate,
        "ground": ground,
        "score": score,
        "sasrec": sasrec,
        "fuse": fuse,
        "rerank": rerank,
        "debias": debias,
    }
    if pipeline.seeds:
        return run_seeds(main, sections)
    folder = Path(run.run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    steps = Steps(folder, pipeline.from_stage)
    if steps.state.is_main_process:
        (folder / "recipe.yaml").write_text(to_yaml(sections, tuple(sections)), encoding="utf-8")
    steps.manifest |= {"seed": run.seed, "seeds": [], "environment": environment()}

    if prepare.source:
        prepared = Path(str(prepare.prepared_dir))
        steps.do(
            "prepare",
            lambda: prepare_stage.main(prepare),
            depends=[asdict(prepare), raw_mark(prepare)],
            outputs=[prepared / prepare_stage.FACTS_FILE],
        )
    steps.manifest["data"] = describe_data(data)
    steps.manifest["names"] = hub_names(data, model, generate, ground)
    data_now, base_now = data_mark(data), model_revision(str(model.base_model))
    encoder_now = model_revision(encoder_name(ground.encoder, model.base_model))
    try:  # now, not after the training
        check_ks(score.ks, len(load_catalog(catalog_source(data.catalog, data.dataset))))
    except ValueError as error:
        raise BigrecError(f"--ks: {error}") from error

    adapter_dir = Path(str(sft.adapter_dir))
    trains = generate.adapter is None
    if not trains:
        sft_mark = adapter_fingerprint(generate.adapter)
    else:
        sft_mark = steps.do(
            "sft",
            lambda: sft_stage.main(run, data, model, prompt, sft),
            depends=sft_stage.training_settings(run, data, model, prompt, sft),
            outputs=[adapter_dir / sft_stage.TRAINING_FILE],
            distributed=True,
            resumes_from=adapter_dir.parent / sft_stage.CHECKPOINTS,
        )
        training = read_json(adapter_dir / sft_stage.TRAINING_FILE)
        steps.manifest["training"] = {key: value for key, value in training.items() if key != "history"}

    methods = ["finetuned", *(["zero_shot"] if "zero_shot" in pipeline.baselines else [])]
    index_mark = steps.do(
        "index",
        lambda: build_run_index(folder, data, model, ground),
        depends=[data_now, ground.encoder_dtype, encoder_now],
        outputs=[] if is_hub_id(ground.index_dir or "") else [Path(ground.index_dir or folder / "index")],
        distributed=True,
    )
    marks = {}
    for method in methods:
        method_run = replace(run, method=method)
        marks[method] = steps.do(
            "generate",
            lambda method_run=method_run: generate_stage.main(method_run, data, model, prompt, generate),
            label=method,
            depends=[
                data_now,
                [data.split, data.eval_sample, run.seed],
                asdict(model),
                base_now,
                asdict(prompt),
                asdict(generate),
                sft_mark if method == "finetuned" else None,
            ],
            outputs=[folder / method / GENERATIONS_FILE],
            distributed=True,
        )
    ground_options = {key: getattr(ground, key) for key in ("top_k", "exclude_history", "duplicates")}
    approximate = [ground.search, ground.n_probe] if ground.search != "exact" else []
    for method in methods:
        method_run = replace(run, method=method)
        marks[method] = steps.do(
            "ground",
            lambda method_run=method_run: ground_stage.main(method_run, data, model, ground),
            label=method,
            depends=[marks[method], index_mark, ground_options, *approximate],
            outputs=[folder / method / RANKINGS_FILE],
            distributed=True,
        )
    for name in pipeline.baselines:
        if name in methods:
            continue
        marks[name] = steps.do(
            "ground",
            lambda name=name: write_rankings(
                baseline_table(name, folder / methods[0], data, seed=run.seed, **ground_options), folder / name
            ),
            label=name,
            depends=[marks[methods[0]], data_now, ground_options, run.seed],
            outputs=[folder / name / RANKINGS_FILE],
        )
    for name, mark in marks.items():
        marks[name] = steps.do(
            "score",
            lambda name=name: score_stage.score_folder(folder / name, **vars(score), seed=run.seed),
            label=name,
            depends=[mark, asdict(score), run.seed],
            outputs=[folder / name / score_stage.RESULTS_FILE, folder / name / score_stage.PER_EXAMPLE_FILE],
        )
    if pipeline.rankers:
        depends = [marks["finetuned"], index_mark, asdict(model), asdict(prompt), asdict(data), run.seed]
        run_rankers(steps.do, pipeline.rankers, sections | {"run": replace(run, method="finetuned")}, depends)
    steps.save()
    if steps.state.is_main_process:
        text = report_stage.build_report([str(folder)])
        (folder / "report.md").write_text(text + "\n", encoding="utf-8")
        print(f"\n{text}\nreport: {folder / 'report.md'}")


def build_run_index(folder: Path, data: DataSettings, model: ModelSettings, ground: GroundSettings) -> None:
    """Build (or find unchanged) the run's catalog index."""
    catalog = load_catalog(catalog_source(data.catalog, data.dataset))
    open_index(catalog, model, ground, folder / "index", process_state())
