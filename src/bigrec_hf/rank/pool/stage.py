"""The `pool` stage: the language model's title probabilities and other models' scores as one distribution.

Reads `scores.safetensors` of `<run_dir>/<method>/` (`generate --decoding exact`) and of each of `pool_models`, and the
same of `<run_dir>/validation/`; weights are fitted to the validation examples (`fit.py`). Writes the method
`<method>_pool_<models>`: rankings, scores.safetensors, choice.json, and what `score` writes. With several models also
`<models>_pool`, the same without the language model: only the difference is what the language model adds. (One model
pooled with nothing ranks as it does alone.) Both rank by weights tuned to NDCG@10 on validation examples (`tune.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import write_json
from bigrec_hf.data.catalog import Catalog, catalog_source, load_catalog
from bigrec_hf.data.earlier import with_seen
from bigrec_hf.data.examples import catalog_train_counts
from bigrec_hf.data.generations import GENERATIONS_FILE, Answers, Examples, read_generations
from bigrec_hf.data.item_scores import SCORES_FILE, find_scores, read_scores, write_scores
from bigrec_hf.data.rankings import target_rows, write_rankings
from bigrec_hf.data.run_folder import VALIDATION_DIR
from bigrec_hf.ground.from_scores import baseline_rankings
from bigrec_hf.rank.model_selection import check_cutoffs, check_disjoint, check_same_adapter, check_validation
from bigrec_hf.rank.pool.fit import cross_fitted_nats, fit_weights, nats_per_example, pool_scores, rows_of
from bigrec_hf.rank.pool.tune import K, ranking_weights
from bigrec_hf.score.stage import results_table, score_folder
from bigrec_hf.score.users import bootstrap_users, user_codes, user_ids

if TYPE_CHECKING:
    from bigrec_hf.settings import (
        DataSettings,
        GroundSettings,
        PoolSettings,
        RankOptions,
        RunSettings,
        ScoreSettings,
    )

CHOICE_FILE = "choice.json"
METRIC = f"validation_ndcg@{K}"
POPULARITY = "popularity"  # among the models: the log of 1 + train count


def method_names(method: str, models: list[str]) -> list[str]:
    """The folders written: with the language model, `finetuned_pool_ease_sasrec`; and without, `ease_sasrec_pool`."""
    return ["_".join([method, "pool", *models])] + (["_".join([*models, "pool"])] if len(models) > 1 else [])


def read_models(
    place: Path, method: str, models: list[str], answers: Answers, catalog: Catalog, data: DataSettings
) -> dict[str, np.ndarray]:
    """The scores of the language model and the others for one split's examples: (n, n_items) float32 each, but
    popularity's (n_items,).

    A title that the language model cannot write (it has no text) is as likely as its least likely one.
    """
    read = {}
    for name in models:
        if name == POPULARITY:
            counts = catalog_train_counts(data, catalog)
            if counts is None:
                raise BigrecError("popularity is counted in a prepared set: name it with --dataset")
            read[name] = np.log1p(np.asarray(counts, np.float32))
        else:
            file = find_scores(place / name, None)
            if not file.is_file():
                there = sorted({found.parent.name for found in place.glob("*/scores.*")} - {method})
                raise BigrecError(
                    f"pool_models: {file} does not exist: make it with `bigrec-hf linear` or `bigrec-hf sasrec`, or "
                    f"choose among {', '.join([*there, POPULARITY])}"
                )
            read[name] = read_scores(file, answers.example_ids, catalog)
    own = read_scores(place / method / SCORES_FILE, answers.example_ids, catalog)
    level_unwritten(own, catalog)
    return {method: own, **read}


def level_unwritten(scores: np.ndarray, catalog: Catalog) -> None:
    """Give the titles without a text the lowest score of each row of `scores`, (n, n_items), in place."""
    written = np.array([bool(title.strip()) for title in catalog.titles])
    if not written.all():
        scores[:, ~written] = scores[:, written].min(axis=1, keepdims=True)


@dataclass(frozen=True)
class Sample:
    """The examples of one split: scores of each model, target rows, users' codes, rows that are not candidates."""

    models: dict[str, np.ndarray]
    targets: np.ndarray
    users: np.ndarray
    hidden: list[list[int]] | None

    def without(self, model: str | None) -> Sample:
        """The same examples, with one model fewer."""
        return replace(self, models={name: values for name, values in self.models.items() if name != model})

    @property
    def arguments(self) -> tuple[list[np.ndarray], np.ndarray, list[list[int]] | None]:
        """What `fit_weights` takes."""
        return list(self.models.values()), self.targets, self.hidden


def sample(models: dict[str, np.ndarray], answers: Answers, options: RankOptions) -> Sample:
    """Return the examples of `answers` with the models' scores for them."""
    users = user_codes(user_ids(answers.example_ids), len(answers.targets))
    return Sample(models, np.asarray(answers.targets), users, options.excluded(answers))


def fit(validation: Sample, test: Sample, *, confidence: float, seed: int) -> dict[str, Any]:
    """Fit the weights to validation examples; say what each model adds there and on test examples, in nats per target.

    A validation example is judged by weights fitted to other users' examples, a test example by those fitted to all
    validation examples. What a model adds is the difference to the pool of the others, with an interval over users.
    """
    weights = fit_weights(*validation.arguments)
    found: dict[str, Any] = {"weights": dict(zip(validation.models, weights.tolist(), strict=True))}
    left_out = list(validation.models) if len(validation.models) > 1 else []
    for split, own in (("validation", validation), ("test", test)):
        nats = {}
        for name in (None, *left_out):
            rest = own.without(name)
            if split == "validation":
                nats[name] = cross_fitted_nats(*rest.arguments[:2], own.users, own.hidden, seed)
            else:
                fitted = weights if name is None else fit_weights(*validation.without(name).arguments)
                nats[name] = nats_per_example(rest.arguments[0], fitted, own.targets, own.hidden)
        pool = nats.pop(None)
        found[split] = {"examples": len(pool), "nats": float(pool.mean()), "added_by": {}}
        for name, rest_nats in nats.items():
            gain = rest_nats - pool
            low, high = bootstrap_users(gain[:, None], own.users, confidence=confidence, seed=seed)
            found[split]["added_by"][name] = [float(gain.mean()), float(low[0]), float(high[0])]
    return found


def main(
    run: RunSettings, data: DataSettings, ground: GroundSettings, score: ScoreSettings, pool: PoolSettings
) -> None:
    """The `pool` command: fit on validation, rank and score the test examples, print what each model adds.

    Raises BigrecError without a run folder, prepared set or models, and for scores that do not fit the examples.
    """
    if run.run_dir is None:
        raise BigrecError("no run folder given: name it with --output_dir or --config RECIPE")
    models = list(dict.fromkeys(pool.pool_models))
    if not models or run.method in models:
        raise BigrecError(f"pool_models is {pool.pool_models}: name the methods to pool with {run.method}, e.g. ease")
    folder = Path(run.run_dir)
    places = {"validation": folder / VALIDATION_DIR, "test": folder}
    catalog = load_catalog(catalog_source(data.catalog, data.dataset))
    check_cutoffs(score.ks, len(catalog))
    files = {split: place / run.method / GENERATIONS_FILE for split, place in places.items()}
    if not files["validation"].is_file():
        raise BigrecError(
            f"{files['validation']} does not exist: `bigrec-hf generate --split validation --output_dir "
            f"{places['validation']}` writes it, as `run` does for the ranker pool"
        )
    answers = {split: read_generations(file, catalog) for split, file in files.items()}
    check_same_adapter(*files.values())
    check_validation(answers["validation"].example_ids, data)
    check_disjoint(answers["validation"].example_ids, answers["test"].example_ids)
    answers = {split: with_seen(found, ground.options, data) for split, found in answers.items()}
    scores = {s: read_models(place, run.method, models, answers[s], catalog, data) for s, place in places.items()}
    samples = {s: sample(scores[s], answers[s], ground.options) for s in places}
    hits = target_rows(answers["validation"].targets, catalog, ground.duplicates)
    results: dict[str, dict[str, Any]] = {}
    for name, left_out in zip(method_names(run.method, models), (None, run.method), strict=False):
        used = {split: own.without(left_out) for split, own in samples.items()}
        choice = fit(used["validation"], used["test"], confidence=score.confidence, seed=run.seed)
        choice["likeliest"] = choice["weights"]
        choice["weights"], choice[METRIC] = ranking_weights(
            used["validation"].models, *used["validation"].arguments[1:], choice["likeliest"], run.method, hits
        )
        print(summary(name, choice))
        weights = np.array(list(choice["weights"].values()))
        test = answers["test"]
        total = pool_scores(list(used["test"].models.values()), weights, len(test.example_ids))
        examples = Examples(test.example_ids, test.targets, test.histories, test.seen)
        shown = {f"weight_{model}": weight for model, weight in choice["weights"].items()}
        table = baseline_rankings(name, rows_of(total), catalog, examples, ground.options, **shown)
        write_scores(folder / name / SCORES_FILE, total, test.example_ids, catalog, model=name)
        write_json(folder / name / CHOICE_FILE, choice)
        write_rankings(table, folder / name)
        results[name] = score_folder(folder / name, **vars(score), seed=run.seed)
    print(results_table(results, sorted(set(score.ks))))


def summary(name: str, choice: dict[str, Any]) -> str:
    """Some lines about a fitted pool: its likeliest weights, the nats per target that each model adds to the others,
    and the weights that it ranks by."""
    splits = [(split, choice[split]) for split in ("validation", "test")]
    of = ", ".join(f"{own['nats']:.3f} on {own['examples']:,} {split} examples" for split, own in splits)
    lines = [f"pool ({name}): nats per target {of}"]
    for model, weight in choice["likeliest"].items():
        added = [
            f"{own['added_by'][model][0]:+.3f} [{own['added_by'][model][1]:+.3f}, {own['added_by'][model][2]:+.3f}]"
            for _, own in splits
            if model in own["added_by"]
        ]
        lines.append(f"  {model}: weight {weight:.3g}" + (f", adds {' and '.join(added)}" if added else ""))
    ranking = ", ".join(f"{model} {weight:.3g}" for model, weight in choice["weights"].items())
    figures = ", ".join(f"{which} {value:.4f}" for which, value in choice[METRIC].items())
    return "\n".join([*lines, f"  weights of the ranking: {ranking} (validation NDCG@{K}: {figures})"])
