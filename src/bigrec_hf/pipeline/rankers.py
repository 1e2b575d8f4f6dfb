"""Rankers: further rankings that `run` makes with the same adapter, for the same examples.

Each is a stage that also runs alone; this module runs them in order and knows what each depends on. Rankers that choose
a parameter need generations for validation examples, which `run` writes to `<run_dir>/validation/finetuned`.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.generations import GENERATE_FILE, GENERATIONS_FILE
from bigrec_hf.data.item_scores import SCORES_FILE
from bigrec_hf.data.rankings import HYBRID, RANKINGS_FILE, SCORE_FILES
from bigrec_hf.data.run_folder import VALIDATION_DIR
from bigrec_hf.ground import stage as ground_stage
from bigrec_hf.pipeline.steps import Steps
from bigrec_hf.score import stage as score_stage
from bigrec_hf.settings import GenerateSettings, GroundSettings, RunSections
from bigrec_hf.settings.train import RANKERS

CHOOSING = ("fuse", "rerank", "pool")  # on the first beams of the validation examples


def check_rankers(sections: RunSections) -> None:
    """Raise BigrecError, before any work, for an unknown ranker, or one that needs scores which no ranker makes."""
    wanted, rerank, pooled = sections.pipeline.rankers, sections.rerank, sections.pool.pool_models
    unknown = [name for name in wanted if name not in RANKERS]
    if unknown:
        raise BigrecError(f"unknown ranker {unknown[0]!r}: choose among {', '.join(RANKERS)}")
    if "debias" in wanted and "sasrec" not in wanted:
        raise BigrecError("the ranker debias needs a collaborative model's scores: add sasrec to `rankers`")
    for model, ranker in {"sasrec": "sasrec", "ease": "linear", "itemknn": "linear"}.items():
        if "rerank" in wanted and rerank.scores == model and ranker not in wanted:
            raise BigrecError(f"rerank is to use the scores of {model}: add {ranker} to `rankers`")
        if "pool" in wanted and model in pooled and ranker not in wanted:
            raise BigrecError(f"pool is to use the scores of {model}: add {ranker} to `rankers`")
    if "pool" in wanted and sections.generate.decoding != "exact":
        raise BigrecError("the ranker pool needs the probabilities of all titles: set `decoding: exact`")
    if "rerank" in wanted and set(rerank.weights) - {"popularity"} and rerank.scores is None:
        raise BigrecError("these weights need a collaborative model: set `scores` in section `rerank`, e.g. sasrec")


def ranking_options(ground: GroundSettings) -> dict[str, Any]:
    """The settings that every ranking depends on."""
    return {key: getattr(ground, key) for key in ("top_k", "exclude", "duplicates")}


def generated_files(folder: Path, generate: GenerateSettings) -> list[Path]:
    """What `generate` writes into `folder` for the stages after it."""
    scores = [SCORES_FILE] if generate.decoding == "exact" else []
    return [folder / name for name in (GENERATIONS_FILE, GENERATE_FILE, *scores)]


def run_rankers(steps: Steps, sections: RunSections, marks: list[str | None]) -> None:
    """Run the wanted rankers that are not done. `marks`: those of the fine-tuned model's scores and of the index."""
    wanted = sections.pipeline.rankers
    if not wanted:
        return
    sections = replace(sections, run=replace(sections.run, method="finetuned"))
    texts = [*marks, asdict(sections.model), asdict(sections.prompt), asdict(sections.data), sections.run.seed]
    common = [texts, ranking_options(sections.ground), asdict(sections.score)]
    validation = generate_validation(steps, sections, texts) if set(wanted) & set(CHOOSING) else None
    linear = run_linear(steps, sections, [common, validation]) if "linear" in wanted else None
    sasrec = run_sasrec(steps, sections, [common, validation]) if "sasrec" in wanted else None
    if "fuse" in wanted:
        run_fuse(steps, sections, [common, validation])
    if "rerank" in wanted:
        run_rerank(steps, sections, [common, validation, linear, sasrec])
    if "pool" in wanted:
        run_pool(steps, sections, [common, validation, linear, sasrec])
    if "constrained" in wanted:
        run_constrained(steps, sections, texts, common)
    if "debias" in wanted:
        run_debias(steps, sections, [common, sasrec])


def _folders(steps: Steps, *methods: str, validation: bool = False) -> list[Path]:
    """The folders of methods, which belong to their ranker; `validation`: also those of the validation examples."""
    places = [steps.folder, steps.folder / VALIDATION_DIR] if validation else [steps.folder]
    return [place / name for place in places for name in methods]


def generate_validation(steps: Steps, sections: RunSections, texts: list[Any]) -> str:
    """Generate for the validation examples with the fine-tuned model."""
    from bigrec_hf.generate import stage as generate_stage

    folder = steps.folder / VALIDATION_DIR
    run, data = replace(sections.run, run_dir=str(folder)), replace(sections.data, split="validation")
    settings = replace(sections.generate, adapter=sections.generate.adapter or str(steps.folder / "adapter"))
    return steps.do(
        "generate",
        lambda: generate_stage.main(run, data, sections.model, sections.prompt, settings),
        label="validation",
        depends=[texts, asdict(sections.generate)],
        outputs=generated_files(folder / run.method, settings),
        distributed=True,
    )


def run_linear(steps: Steps, sections: RunSections, depends: list[Any]) -> str:
    """EASE and ItemKNN."""
    from bigrec_hf.rank.baselines import stage

    s = sections
    return steps.do(
        "linear",
        lambda: stage.main(s.run, s.data, s.ground, s.score, s.linear),
        depends=[*depends, asdict(s.linear)],
        outputs=_folders(steps, *s.linear.linear_models, validation=True),
    )


def run_sasrec(steps: Steps, sections: RunSections, depends: list[Any]) -> str:
    """Train SASRec, rank and score."""
    from bigrec_hf.rank.sasrec import stage

    s = sections
    return steps.do(
        "sasrec",
        lambda: stage.main(s.run, s.data, s.ground, s.score, s.sasrec),
        depends=[*depends, asdict(s.sasrec)],
        outputs=_folders(steps, stage.NAME, validation=True),
    )


def run_fuse(steps: Steps, sections: RunSections, depends: list[Any]) -> None:
    """Rank by all texts of an example."""
    from bigrec_hf.rank.fuse import stage

    s = sections
    names = stage.wanted_fusions(s.fuse, steps.folder)
    steps.do(
        "fuse",
        lambda: stage.main(s.run, s.data, s.model, s.ground, s.score, s.fuse),
        depends=[*depends, asdict(s.fuse)],
        outputs=_folders(steps, *(f"{s.run.method}_fused_{name}" for name in names)),
    )


def run_rerank(steps: Steps, sections: RunSections, depends: list[Any]) -> None:
    """Rank by distances combined with popularity or a collaborative model."""
    from bigrec_hf.rank.rerank import stage

    s = sections
    names = [
        stage.method_name(s.run.method, formula, weights, s.rerank.scores)
        for formula in s.rerank.formulas
        for weights in s.rerank.weights
    ]
    steps.do(
        "rerank",
        lambda: stage.main(s.run, s.data, s.model, s.ground, s.score, s.rerank),
        depends=[*depends, asdict(s.rerank)],
        outputs=_folders(steps, *names),
    )


def run_pool(steps: Steps, sections: RunSections, depends: list[Any]) -> None:
    """Pool the title probabilities with other models' scores."""
    from bigrec_hf.rank.pool import stage

    s = sections
    steps.do(
        "pool",
        lambda: stage.main(s.run, s.data, s.ground, s.score, s.pool),
        depends=[*depends, asdict(s.pool)],
        outputs=_folders(steps, *stage.method_names(s.run.method, s.pool.pool_models)),
    )


def run_constrained(steps: Steps, sections: RunSections, texts: list[Any], common: list[Any]) -> None:
    """Decode beams that are catalog titles; rank these first, the rest by distance."""
    from bigrec_hf.generate import stage as generate_stage

    s = sections
    run = replace(s.run, method=f"{s.run.method}_constrained")
    ranked_run = replace(run, method=run.method + HYBRID)
    beams = s.pipeline.constrained_beams
    decoding = replace(s.generate, decoding="constrained", num_beams=beams, num_return_sequences=0)
    written = steps.do(
        "constrained",
        lambda: generate_stage.main(run, s.data, s.model, s.prompt, decoding),
        label="generate",
        depends=[texts, asdict(decoding)],
        outputs=generated_files(steps.folder / run.method, decoding),
        distributed=True,
    )
    ranked = steps.do(
        "constrained",
        lambda: ground_stage.main(run, s.data, s.model, replace(s.ground, ranking="hybrid")),
        label="ground",
        depends=[common, written],
        outputs=[steps.folder / ranked_run.method / RANKINGS_FILE],
        distributed=True,
    )
    steps.do(
        "constrained",
        lambda: score_stage.main(ranked_run, s.score),
        label="score",
        depends=[common, ranked],
        outputs=[steps.folder / ranked_run.method / name for name in SCORE_FILES],
    )


def run_debias(steps: Steps, sections: RunSections, depends: list[Any]) -> None:
    """Decode beams mixed with a collaborative model's scores (D3 decoding)."""
    from bigrec_hf.rank import debias as stage

    s = sections
    steps.do(
        "debias",
        lambda: stage.choose_and_decode(s),
        depends=[*depends, asdict(s.generate), asdict(s.debias)],
        outputs=_folders(steps, s.run.method + stage.SUFFIX, s.run.method + stage.SUFFIX + HYBRID),
        distributed=True,
    )
