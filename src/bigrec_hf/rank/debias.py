"""Debias: debiased decoding, the language model's share in it chosen on validation.

Decodes the first `debias_examples` of the validation sample once for each share (`constrained.py`: score = a * log p_LM
+ (1 - a) * log p_CF; arXiv 2406.14900), ranks the beams' titles first and the rest by distance (`hybrid`), takes the
share with the best validation metric, the first best where several are, and only then decodes the evaluated examples
with it. Writes `<run_dir>/validation/<method>_debiased_<share in percent>/`, `<run_dir>/<method>_debiased/` (texts) and
`<run_dir>/<method>_debiased_hybrid/`: rankings, scores, choice.json, curve.parquet. Shares that are done are kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, write_json
from bigrec_hf.common.processes import process_state
from bigrec_hf.data.generations import GENERATIONS_FILE, read_ids
from bigrec_hf.data.item_scores import find_scores
from bigrec_hf.data.rankings import HYBRID, RANKINGS_FILE, read_ranks
from bigrec_hf.data.run_folder import VALIDATION_DIR
from bigrec_hf.generate import stage as generate_stage
from bigrec_hf.ground import stage as ground_stage
from bigrec_hf.rank.model_selection import (
    Choice,
    check_disjoint,
    check_same_adapter,
    check_validation,
    metric_curve,
    save_curves,
    split_key,
)
from bigrec_hf.rank.rerank.apply import CHOICE_FILE
from bigrec_hf.score.stage import results_table, score_folder

if TYPE_CHECKING:
    from bigrec_hf.settings import (
        DataSettings,
        DebiasSettings,
        GenerateSettings,
        GroundSettings,
        ModelSettings,
        PromptSettings,
        RunSettings,
        ScoreSettings,
    )


SUFFIX = "_debiased"
PARAMETER = "lm_weight"


def check_shares(shares: Sequence[float]) -> list[float]:
    """The shares, ascending, each once. Raises BigrecError for none, or one outside 0 to 1."""
    wrong = [share for share in shares if not 0 <= share <= 1]
    if wrong or not shares:
        raise BigrecError(f"debias_lm_weights: {wrong[0] if wrong else 'empty'}: give shares of the LM, 0 to 1")
    names = [share_name(share) for share in shares]
    if len(set(names)) < len(set(shares)):
        raise BigrecError("debias_lm_weights: two shares differ by less than 0.0001: leave one out")
    return sorted(set(shares))


def share_name(share: float) -> str:
    """0.5 -> "50", 0.125 -> "12_5": the share in percent, as a folder's name can hold it."""
    return f"{100 * share:.2f}".rstrip("0").rstrip(".").replace(".", "_")


def choose_share(ranks: dict[float, np.ndarray], metric: str) -> Choice:
    """The share with the best mean metric over its *validation* ranks, (n,) int64 each; ties: the first given."""
    grid = list(ranks)
    curve = metric_curve(np.stack([ranks[share] for share in grid], axis=1), metric)
    return Choice(grid, {metric: curve}, {metric: grid[int(np.argmax(curve))]})


def main(
    run: RunSettings,
    data: DataSettings,
    model: ModelSettings,
    prompt: PromptSettings,
    generate: GenerateSettings,
    ground: GroundSettings,
    score: ScoreSettings,
    debias: DebiasSettings,
) -> None:
    """The `debias` command."""
    if run.run_dir is None:
        raise BigrecError("no run folder given: name it with --output_dir or --config RECIPE")
    shares = check_shares(debias.debias_lm_weights)
    split_key(debias.debias_metric)
    if debias.debias_examples < 1:
        raise BigrecError(f"debias_examples is {debias.debias_examples}: choose on at least one validation example")
    folder, method = Path(run.run_dir), run.method + SUFFIX
    places = {"validation": folder / VALIDATION_DIR, "test": folder}
    scores = {split: find_scores(place / debias.debias_scores, None) for split, place in places.items()}
    for file in scores.values():
        if not file.is_file():
            raise BigrecError(f"{file} does not exist: run `bigrec-hf sasrec` first, or name another --debias_scores")
    state = process_state()
    adapter = generate.adapter or str(folder / "adapter")

    def answer(split: str, name: str, share: float, n: int) -> Path:
        """Decode, rank and score a split with one share; returns the folder of its rankings."""
        place = places[split]
        settings = replace(
            generate,
            adapter=adapter,
            decoding="debiased",
            num_beams=debias.debias_beams,
            num_return_sequences=0,
            assistant_scores=str(scores[split]),
            lm_weight=share,
        )
        own_run = replace(run, run_dir=str(place), method=name)
        own_data = replace(data, split="validation", eval_sample=n) if split == "validation" else data
        generate_stage.main(own_run, own_data, model, prompt, settings)
        ranked = place / (name + HYBRID)
        index = ground.index_dir or str(folder / "index")
        ground_stage.main(own_run, own_data, model, replace(ground, ranking="hybrid", index_dir=index))
        if state.is_main_process:
            score_folder(ranked, **vars(score), seed=run.seed)
        state.wait_for_everyone()
        return ranked

    # the same draw, so that they are among the examples that the collaborative model has scored
    n_examples = min(debias.debias_examples, data.eval_sample or debias.debias_examples)
    ranks: dict[float, np.ndarray] = {}
    for share in shares:
        name = f"{method}_{share_name(share)}"
        ranked = answer("validation", name, share, n_examples)
        ids = read_ids(places["validation"] / name / GENERATIONS_FILE)
        check_validation(ids, data)
        ranks[share] = read_ranks(ranked / RANKINGS_FILE)
    choice = choose_share(ranks, debias.debias_metric)
    chosen = choice.chosen[debias.debias_metric]
    state.print(f"debias: {PARAMETER} {chosen:g} chosen on {len(ids)} validation examples by {debias.debias_metric}")

    ranked = answer("test", method, chosen, data.eval_sample)
    test = folder / method / GENERATIONS_FILE
    check_disjoint(ids, read_ids(test))
    check_same_adapter(places["validation"] / name / GENERATIONS_FILE, test)
    facts: dict[str, Any] = {
        "base_method": run.method,
        "parameter": PARAMETER,
        "parameters": choice.chosen,
        "grid": choice.grid,
        "validation_examples": len(ids),
        "num_beams": debias.debias_beams,
    }
    if not state.is_main_process:
        return
    write_json(ranked / CHOICE_FILE, facts)
    save_curves(choice, ranked, PARAMETER)
    print(results_table({ranked.name: read_json(ranked / "results.json")}, sorted(set(score.ks))))
