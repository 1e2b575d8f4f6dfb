"""Rankers: what `run` does beyond the first text's distances, with the same adapter on the same examples.

Each is a stage that also runs alone; here they are put in order, with what they depend on. Those that choose a
parameter need the answers to validation examples, which `run` then generates into `<run_dir>/validation/finetuned`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.generations import GENERATIONS_FILE
from bigrec_hf.data.rankings import HYBRID, RANKINGS_FILE
from bigrec_hf.data.run_folder import VALIDATION_DIR
from bigrec_hf.ground import stage as ground_stage
from bigrec_hf.score import stage as score_stage
from bigrec_hf.settings.train import RANKERS

CHOOSING = ("fuse", "rerank")  # on the validation examples' first beams


class Do(Protocol):
    """`steps.Steps.do`."""

    def __call__(self, stage: str, action: Any, *, depends: Any, outputs: list[Path], **options: Any) -> str: ...


def check_rankers(wanted: Sequence[str], rerank_weights: Sequence[str], rerank_scores: str | None) -> None:
    """Raise BigrecError for an unknown ranker, or one whose scores nothing makes, before any work."""
    unknown = [name for name in wanted if name not in RANKERS]
    if unknown:
        raise BigrecError(f"unknown ranker {unknown[0]!r}: choose among {', '.join(RANKERS)}")
    if "debias" in wanted and "sasrec" not in wanted:
        raise BigrecError("the ranker debias needs a collaborative model's scores: add sasrec to `rankers`")
    if "rerank" in wanted and rerank_scores == "sasrec" and "sasrec" not in wanted:
        raise BigrecError("rerank is to use the scores of sasrec: add sasrec to `rankers`")
    if "rerank" in wanted and set(rerank_weights) - {"popularity"} and rerank_scores is None:
        raise BigrecError("these weights need a collaborative model: set `scores` in section `rerank`, e.g. sasrec")


def run_rankers(do: Do, wanted: Sequence[str], sections: Mapping[str, Any], depends: Any) -> None:
    """Run the wanted rankers, each unless it is done.

    `sections`: the recipe's settings by section, `run.method` being the fine-tuned model's; `depends`: the marks of the
    answers, the index and the data, which every ranker depends on.
    """
    from bigrec_hf.generate import stage as generate_stage
    from bigrec_hf.rank import debias as debias_stage
    from bigrec_hf.rank.fuse import stage as fuse_stage
    from bigrec_hf.rank.rerank import stage as rerank_stage
    from bigrec_hf.rank.sasrec import stage as sasrec_stage

    run, data, model, prompt = (sections[name] for name in ("run", "data", "model", "prompt"))
    generate, ground, score = (sections[name] for name in ("generate", "ground", "score"))
    folder, method = Path(run.run_dir), run.method
    adapter = generate.adapter or str(folder / "adapter")
    options = {key: getattr(ground, key) for key in ("top_k", "exclude_history", "duplicates")}
    common = [depends, options, asdict(score)]

    def results(*methods: str) -> list[Path]:
        return [folder / name / score_stage.RESULTS_FILE for name in methods]

    validation = None
    if set(wanted) & set(CHOOSING):
        answers = folder / VALIDATION_DIR
        validation = do(
            "generate",
            lambda: generate_stage.main(
                replace(run, run_dir=str(answers)),
                replace(data, split="validation"),
                model,
                prompt,
                replace(generate, adapter=adapter),
            ),
            label="validation",
            depends=[depends, asdict(generate)],
            outputs=[answers / method / GENERATIONS_FILE],
            distributed=True,
        )
    sasrec = None
    if "sasrec" in wanted:
        sasrec = do(
            "sasrec",
            lambda: sasrec_stage.main(run, data, ground, score, sections["sasrec"]),
            depends=[common, validation, asdict(sections["sasrec"])],
            outputs=results("sasrec"),
        )
    if "fuse" in wanted:
        names = fuse_stage.wanted_fusions(sections["fuse"], folder)
        do(
            "fuse",
            lambda: fuse_stage.main(run, data, model, ground, score, sections["fuse"]),
            depends=[common, validation, asdict(sections["fuse"])],
            outputs=results(*(f"{method}_fused_{name}" for name in names)),
        )
    if "rerank" in wanted:
        rerank = sections["rerank"]
        names = [
            rerank_stage.method_name(method, formula, weights, rerank.scores)
            for formula in rerank.formulas
            for weights in rerank.weights
        ]
        do(
            "rerank",
            lambda: rerank_stage.main(run, data, model, ground, score, rerank),
            depends=[common, validation, sasrec, asdict(rerank)],
            outputs=results(*names),
        )
    if "constrained" in wanted:
        n_beams = sections["pipeline"].constrained_beams
        own_run = replace(run, method=f"{method}_constrained")
        decoding = replace(generate, decoding="constrained", num_beams=n_beams, num_return_sequences=0)
        written = do(
            "constrained",
            lambda: generate_stage.main(own_run, data, model, prompt, decoding),
            label="generate",
            depends=[depends, asdict(decoding)],
            outputs=[folder / own_run.method / GENERATIONS_FILE],
            distributed=True,
        )

        ranked = do(
            "constrained",
            lambda: ground_stage.main(own_run, data, model, replace(ground, ranking="hybrid")),
            label="ground",
            depends=[common, written],
            outputs=[folder / (own_run.method + HYBRID) / RANKINGS_FILE],
            distributed=True,
        )
        do(
            "constrained",
            lambda: score_stage.main(replace(run, method=own_run.method + HYBRID), score),
            label="score",
            depends=[common, ranked],
            outputs=results(own_run.method + HYBRID),
        )
    if "debias" in wanted:
        do(
            "debias",
            lambda: debias_stage.main(run, data, model, prompt, generate, ground, score, sections["debias"]),
            depends=[common, sasrec, asdict(generate), asdict(sections["debias"])],
            outputs=results(method + debias_stage.SUFFIX + HYBRID),
            distributed=True,
        )
