"""Rerank: distances to the text, combined with popularity or a collaborative model (BIGRec's Eq. 3 and weighted sums).

Chooses the strength on `<run_dir>/validation/<method>/generations.parquet`, per metric and K, and applies it to
`<run_dir>/<method>/generations.parquet`. Every combination of `formulas` and `weights` is a separate method, in
`<run_dir>/<method>_<weights>` (reweight), `<method>_mix_<weights>` or `<method>_rrf_<weights>`; there `scores` is
replaced by the name of the collaborative model. Files: rankings.parquet (at the value chosen for NDCG@10),
ranks_by_metric.parquet (at each metric's own), choice.json, curve.parquet, and the score stage's.

With `texts: history` no language model is needed: an item costs its distance to the closest title of the history. The
methods are `history` (that distance alone) and `history_...` as above, for the examples that `sasrec` scores.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json
from bigrec_hf.data.catalog import Catalog, catalog_source, load_catalog
from bigrec_hf.data.earlier import with_seen
from bigrec_hf.data.examples import catalog_train_counts, own_items
from bigrec_hf.data.generations import Answers, evaluated_examples, read_generations
from bigrec_hf.data.item_scores import find_scores, read_facts, read_scores
from bigrec_hf.data.rankings import write_rankings
from bigrec_hf.data.run_folder import split_folders
from bigrec_hf.ground.index import open_index
from bigrec_hf.rank.model_selection import GRIDS, check_disjoint, check_validation, checked_generations
from bigrec_hf.rank.rerank.apply import (
    WEIGHTINGS,
    history_split,
    rank_costs,
    rerank_method,
    text_split,
    weight_rows,
)
from bigrec_hf.rank.rerank.formulas import PARAMETERS, check_grid
from bigrec_hf.score.stage import RESULTS_FILE, results_table, score_folder

if TYPE_CHECKING:
    from bigrec_hf.settings import (
        DataSettings,
        GroundSettings,
        ModelSettings,
        RankOptions,
        RerankSettings,
        RunSettings,
        ScoreSettings,
    )


HISTORY = "history"  # value of the setting `texts`, and name of the method's folder


def method_name(method: str, formula: str, weights: str, scores: str | None) -> str:
    """Return the folder of a reranked method: `finetuned_popularity`, `finetuned_mix_sasrec`, ..."""
    name = Path(scores or "scores").name if weights == "scores" else weights
    return "_".join([method, *([] if formula == "reweight" else [formula]), name])


def grid_of(formula: str, weights: str, rerank: RerankSettings) -> list[float]:
    """Return the grid of a formula: the values given, else the reference's for gamma and 0, 0.01 .. 1 for a weight."""
    if formula != "reweight":
        return list(rerank.share_values or GRIDS["unit"])
    auto = "popularity" if weights == "popularity" else "movie"
    return list(rerank.gamma_values or GRIDS[auto if rerank.gamma_grid == "auto" else rerank.gamma_grid])


def history_examples(place: Path, split: str, data: DataSettings, catalog: Catalog) -> Answers:
    """Return the examples that `sasrec` scores in `place`, without texts."""
    if not data.dataset:
        raise BigrecError("no data set given: histories come from a prepared data set, name one with --dataset")
    own_items(data.dataset[0], catalog)
    split = data.split if split == "test" else split
    examples = evaluated_examples(place, catalog, data.dataset[0], split, data.eval_sample)
    texts = [""] * len(examples.example_ids)
    return Answers(list(examples.example_ids), texts, list(examples.targets), list(map(list, examples.histories)))


def check_rerank(rerank: RerankSettings) -> None:
    """Raise BigrecError for an unknown formula or weights, or for weights without a model, before any work."""
    for name, values, known in (("formulas", rerank.formulas, PARAMETERS), ("weights", rerank.weights, WEIGHTINGS)):
        unknown = [value for value in values if value not in known]
        if unknown or not values:
            what = repr(unknown[0]) if unknown else "empty"
            raise BigrecError(f"{name}: {what}: choose among {', '.join(known)}")
    if set(rerank.weights) - {"popularity"} and not (
        rerank.scores or (rerank.validation_scores and rerank.test_scores)
    ):
        raise BigrecError("these weights need a collaborative model: name it with --scores, e.g. --scores sasrec")
    for formula in rerank.formulas:
        for weights in rerank.weights:
            check_grid(formula, grid_of(formula, weights, rerank))


def read_answers(
    run: RunSettings,
    data: DataSettings,
    rerank: RerankSettings,
    options: RankOptions,
    places: dict[str, Path],
    catalog: Catalog,
) -> dict[str, Answers]:
    """Return the generations of both splits; with `texts: history`, examples without texts.

    Raises BigrecError if the validation examples must not be used to choose on.
    """
    if rerank.texts == HISTORY:
        answers = {split: history_examples(place, split, data, catalog) for split, place in places.items()}
        check_validation(answers["validation"].example_ids, data)
        check_disjoint(answers["validation"].example_ids, answers["test"].example_ids)
    else:
        answers = {split: read_generations(file, catalog) for split, file in checked_generations(run, data).items()}
    return {split: with_seen(found, options, data) for split, found in answers.items()}


def read_scores_of(
    rerank: RerankSettings, places: dict[str, Path], answers: dict[str, Answers], catalog: Catalog
) -> tuple[dict[str, np.ndarray | None], dict[str, Any]]:
    """Return the collaborative model's scores of both splits, (n, n_items) float32 each, and their files' metadata.

    The scores are None if no weights need them.
    """
    scores: dict[str, np.ndarray | None] = dict.fromkeys(places)
    facts: dict[str, Any] = {}
    if set(rerank.weights) - {"popularity"}:
        given = {"validation": rerank.validation_scores, "test": rerank.test_scores}
        for split, place in places.items():
            file = find_scores(place / (rerank.scores or ""), given[split])
            scores[split] = read_scores(file, answers[split].example_ids, catalog)
            facts[f"{split}_scores"] = read_facts(file)
    return scores, facts


def main(
    run: RunSettings,
    data: DataSettings,
    model: ModelSettings,
    ground: GroundSettings,
    score: ScoreSettings,
    rerank: RerankSettings,
) -> None:
    """The `rerank` command: choose, apply and score every combination of formulas and weights; print the table."""
    places = split_folders(run)
    check_rerank(rerank)
    by_history = rerank.texts == HISTORY
    if by_history and ground.exclude == "none":
        raise BigrecError(
            "texts is 'history': nothing is closer than the history itself; add --exclude history or seen"
        )
    folder, method = places["test"], HISTORY if by_history else run.method
    catalog = load_catalog(catalog_source(data.catalog, data.dataset))
    answers = read_answers(run, data, rerank, ground.options, places, catalog)
    scores, facts = read_scores_of(rerank, places, answers, catalog)
    counts = catalog_train_counts(data, catalog) if set(rerank.weights) - {"scores"} else None
    index, encode = open_index(catalog, model, ground, folder / "index")
    facts = {"base_method": method, **facts}
    facts |= {name: index.fingerprint[name] for name in ("encoder", "revision", "kind", "dtype", "template")}
    splits = {split: text_split(found, index, encode) for split, found in answers.items() if not by_history}
    if by_history:  # of the other methods `ground` and `score` have written it
        facts["history_items"] = rerank.history_items
        splits = {split: history_split(found, index, rerank.history_items) for split, found in answers.items()}
        write_rankings(rank_costs(splits["test"], catalog, ground.options, **facts), folder / HISTORY)
        score_folder(folder / HISTORY, **vars(score), seed=run.seed)
    plain = read_json(folder / method / RESULTS_FILE)
    results = {method: plain} if plain and {f"hr@{k}" for k in score.ks} <= set(plain) else {}
    for formula, weights in itertools.product(rerank.formulas, rerank.weights):
        name = method_name(method, formula, weights, rerank.scores)
        weighted = {
            s: (splits[s], weight_rows(weights, len(answers[s].example_ids), counts, scores[s])) for s in splits
        }
        choice = rerank_method(
            folder / name,
            formula,
            weighted["validation"],
            weighted["test"],
            catalog,
            grid_of(formula, weights, rerank),
            score.ks,
            ground.options,
            choose_by=rerank.choose_by,
            weighted_by=weights,
            **facts,
        )
        shown = ", ".join(f"{key} {value:g}" for key, value in choice.chosen.items())
        print(f"rerank ({name}): {PARAMETERS[formula]} chosen on validation: {shown}")
        results[name] = score_folder(folder / name, **vars(score), seed=run.seed)
    print(results_table(results, sorted(set(score.ks))))
