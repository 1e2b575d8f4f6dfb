"""D3 decoding (`debias`): the weight of the language model is chosen on validation examples.

Decodes the first `debias_examples` of the validation sample once for each weight (`constrained.py`: score = a * log
p_LM + (1 - a) * log p_CF; arXiv 2406.14900), ranks the titles of the beams first and the rest by distance (`hybrid`),
and takes the weight with the best validation metric (the first of equals). Only then are the evaluated examples decoded
with it. Writes `<run_dir>/validation/<method>_debiased_<weight in percent>/`, `<run_dir>/<method>_debiased/` (texts)
and `<run_dir>/<method>_debiased_hybrid/`: rankings, scores, choice.json, curve.parquet. Finished weights are not
redone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, write_json
from bigrec_hf.common.processes import process_state
from bigrec_hf.data.generations import GENERATIONS_FILE, read_ids
from bigrec_hf.data.item_scores import find_scores
from bigrec_hf.data.rankings import HYBRID, RANKINGS_FILE, read_ranks
from bigrec_hf.data.run_folder import split_folders
from bigrec_hf.generate import stage as generate_stage
from bigrec_hf.ground import stage as ground_stage
from bigrec_hf.rank.model_selection import (
    CHOICE_FILE,
    Choice,
    check_disjoint,
    check_same_adapter,
    check_validation,
    mean_metrics,
    save_curves,
    split_key,
)
from bigrec_hf.score.stage import results_table, score_folder
from bigrec_hf.settings import RunSections

SUFFIX = "_debiased"
PARAMETER = "lm_weight"


def check_shares(shares: Sequence[float]) -> list[float]:
    """Return the weights, ascending, without repetition. Raises BigrecError for none, or one outside 0 to 1."""
    wrong = [share for share in shares if not 0 <= share <= 1]
    if wrong or not shares:
        raise BigrecError(
            f"debias_lm_weights: {wrong[0] if wrong else 'empty'}: give weights of the language model, 0 to 1"
        )
    names = [share_name(share) for share in shares]
    if len(set(names)) < len(set(shares)):
        raise BigrecError("debias_lm_weights: two weights differ by less than 0.0001: remove one")
    return sorted(set(shares))


def share_name(share: float) -> str:
    """Return the weight in percent as part of a folder name: 0.5 -> "50", 0.125 -> "12_5"."""
    return f"{100 * share:.2f}".rstrip("0").rstrip(".").replace(".", "_")


def choose_share(ranks: dict[float, np.ndarray], metric: str) -> Choice:
    """Choose the weight with the best mean metric over its *validation* ranks, (n,) int64; ties: the first given."""
    grid = list(ranks)
    curve = mean_metrics(np.stack([ranks[share] for share in grid], axis=1), metric)
    return Choice(grid, {metric: curve}, {metric: grid[int(np.argmax(curve))]})


def find_assistants(sections: RunSections) -> dict[str, Path]:
    """Return the file of the collaborative model's scores for each split. Raises BigrecError if one is missing."""
    places = split_folders(sections.run)
    scores = {split: find_scores(place / sections.debias.debias_scores, None) for split, place in places.items()}
    for file in scores.values():
        if not file.is_file():
            raise BigrecError(f"{file} does not exist: run `bigrec-hf sasrec` first, or name another --debias_scores")
    return scores


def answer(sections: RunSections, split: str, name: str, share: float, n: int) -> Path:
    """Decode, rank and score `n` examples of a split (0 = all) with one weight, in the folder `name`; return the folder
    of the rankings."""
    folder, place = split_folders(sections.run)["test"], split_folders(sections.run)[split]
    generate = replace(
        sections.generate,
        adapter=sections.generate.adapter or str(folder / "adapter"),
        decoding="debiased",
        num_beams=sections.debias.debias_beams,
        num_return_sequences=0,
        assistant_scores=str(find_assistants(sections)[split]),
        lm_weight=share,
    )
    index = sections.ground.index_dir or str(folder / "index")
    ground = replace(sections.ground, ranking="hybrid", index_dir=index)
    run, data = replace(sections.run, run_dir=str(place), method=name), sections.data
    if split == "validation":
        data = replace(data, split="validation", eval_sample=n)
    generate_stage.main(run, data, sections.model, sections.prompt, generate)
    ground_stage.main(run, data, sections.model, ground)
    ranked = place / (name + HYBRID)
    state = process_state()
    if state.is_main_process:
        score_folder(ranked, **vars(sections.score), seed=run.seed)
    state.wait_for_everyone()
    return ranked


def choose_on_validation(sections: RunSections, shares: Sequence[float]) -> tuple[Choice, Path]:
    """Return the choice among `shares`, and the texts of the validation examples with the last of them."""
    method, place = sections.run.method + SUFFIX, split_folders(sections.run)["validation"]
    # the same sample as in `sasrec`, so that the collaborative model has scored these examples
    most = sections.debias.debias_examples
    n_examples = min(most, sections.data.eval_sample or most)
    ranks: dict[float, np.ndarray] = {}
    for share in shares:
        name = f"{method}_{share_name(share)}"
        ranked = answer(sections, "validation", name, share, n_examples)
        generations = place / name / GENERATIONS_FILE
        check_validation(read_ids(generations), sections.data)
        ranks[share] = read_ranks(ranked / RANKINGS_FILE)
    return choose_share(ranks, sections.debias.debias_metric), generations


def main(**settings: Any) -> None:
    """The `debias` command. `settings`: those of each section that `cli.STAGES` names for it, by name."""
    choose_and_decode(RunSections(**settings))


def choose_and_decode(sections: RunSections) -> None:
    """Choose the weight on validation examples, decode the evaluated ones with it, score them, and print the table."""
    debias, test = sections.debias, split_folders(sections.run)["test"]
    shares = check_shares(debias.debias_lm_weights)
    split_key(debias.debias_metric)
    if debias.debias_examples < 1:
        raise BigrecError(f"debias_examples is {debias.debias_examples}: choose on at least one validation example")
    find_assistants(sections)
    state, method = process_state(), sections.run.method + SUFFIX
    choice, validation = choose_on_validation(sections, shares)
    chosen, ids = choice.chosen[debias.debias_metric], read_ids(validation)
    state.print(f"debias: {PARAMETER} {chosen:g} chosen on {len(ids)} validation examples by {debias.debias_metric}")

    ranked = answer(sections, "test", method, chosen, sections.data.eval_sample)
    check_disjoint(ids, read_ids(test / method / GENERATIONS_FILE))
    check_same_adapter(validation, test / method / GENERATIONS_FILE)
    facts: dict[str, Any] = {
        "base_method": sections.run.method,
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
    print(results_table({ranked.name: read_json(ranked / "results.json")}, sorted(set(sections.score.ks))))
