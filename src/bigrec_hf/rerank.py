"""Rerank: what the text is close to, weighted by popularity or by a collaborative model (BIGRec's Eq. 3 and mixes).

Chooses the strength on `<run_dir>/validation/<method>/generations.parquet`, per metric and K, and applies it to
`<run_dir>/<method>/generations.parquet`. Every combination of `formulas` and `weights` is a method of its own, in
`<run_dir>/<method>_<weights>` (reweight), `<method>_mix_<weights>` or `<method>_rrf_<weights>`; `scores` goes by the
collaborative model's name there. Files: rankings.parquet (at the value chosen for NDCG@10), ranks_by_metric.parquet (at
each metric's own), choice.json, curve.parquet, curve.png, and the score stage's.

An example whose text is empty is a miss under every formula, as in plain grounding: no distance, no rank.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from bigrec_hf.baselines import rank_scores
from bigrec_hf.catalog import Catalog, load_catalog
from bigrec_hf.choice import CURVE_FILE, GRIDS, PLOT_FILE, PRIMARY, Choice, choose, plot_curves, save_curves
from bigrec_hf.columns import Columns as C
from bigrec_hf.costs import distance_costs
from bigrec_hf.data import load_config
from bigrec_hf.errors import BigrecError
from bigrec_hf.generations import answer_flags
from bigrec_hf.ground import (
    GENERATIONS_FILE,
    METADATA_KEY,
    RANKINGS_FILE,
    Answers,
    catalog_source,
    embed_texts,
    encoder_name,
    open_index,
    rankings_table,
    read_generations,
    target_rows,
    write_table,
)
from bigrec_hf.index import CatalogIndex, Encode, catalog_sha256
from bigrec_hf.item_scores import SCORES_FILE, read_facts, read_scores
from bigrec_hf.metrics.ndcg_hr.scores import check_ks
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.reweight import PARAMETERS, Rows, check_grid, combine, min_max, parts, ranks_on_grid
from bigrec_hf.runs import fingerprint, read_json, write_json
from bigrec_hf.score import RANKS_BY_METRIC_FILE, RESULTS_FILE, results_table, score_folder

if TYPE_CHECKING:
    from bigrec_hf.settings import (
        DataSettings,
        GroundSettings,
        ModelSettings,
        RerankSettings,
        RunSettings,
        ScoreSettings,
    )

VALIDATION_DIR = "validation"
CHOICE_FILE = "choice.json"
WEIGHTS = ("popularity", "scores", "both")


@dataclass(frozen=True)
class Split:
    """The examples of one split and what every item costs for them: `costs(start, stop)` -> (stop - start, n_items).

    The costs of an example whose text is empty have no say, but must be finite like all others.
    """

    answers: Answers
    costs: Rows

    @property
    def empty(self) -> np.ndarray:
        """(n,) bool: the text is empty, the example a miss."""
        return np.array([not clean_title(text) for text in self.answers.texts], bool)


def text_split(answers: Answers, index: CatalogIndex, encode: Encode) -> Split:
    """Costs = the distances of each text to all titles (float64, Euclidean)."""
    full = [i for i, text in enumerate(answers.texts) if clean_title(text)]
    vectors = np.zeros((len(answers.texts), index.embeddings.shape[1]), np.float32)
    vectors[full] = embed_texts([answers.texts[i] for i in full], index, encode)
    return Split(answers, distance_costs(vectors, index.embeddings))


def weight_rows(weights: str, n: int, counts: Sequence[int] | None = None, scores: np.ndarray | None = None) -> Rows:
    """`rows(start, stop)` -> (stop - start, n_items) float64: W of n examples, in [0, 1].

    Args:
        weights: popularity = min-max of `counts`, the same row for all; scores = row-wise min-max of `scores`; both =
            the mean of the two.
        counts: (n_items,) how often an item is a training target.
        scores: (n, n_items) finite, one row an example, in the examples' order.
    """
    popularity = np.zeros((1, 0))
    if weights in ("popularity", "both"):
        if counts is None:
            raise BigrecError("popularity weights need train counts: give a prepared set with --dataset")
        popularity = min_max(np.asarray(counts, np.float64)[None], "train counts")
    if weights in ("scores", "both") and (scores is None or len(scores) != n):
        found = "none" if scores is None else len(scores)
        raise BigrecError(f"weights {weights!r} need a row of scores for each of {n} examples, there are {found}")

    def rows(start: int, stop: int) -> np.ndarray:
        if weights == "popularity":
            return np.broadcast_to(popularity, (stop - start, popularity.shape[1]))
        own = min_max(scores[start:stop], "scores")
        return own if weights == "scores" else (own + popularity) / 2.0

    return rows


def search(
    formula: str,
    validation: Split,
    weights: Rows,
    catalog: Catalog,
    grid: Sequence[float],
    ks: Sequence[int],
    *,
    choose_by: str = "each",
    exclude_history: bool = False,
    duplicates: str = "best",
    memory_mib: int = 256,
) -> Choice:
    """Choose the parameter on validation examples, the only ones this function is given (see `choice.choose`)."""
    ranks = _ranks(formula, validation, weights, catalog, grid, exclude_history, duplicates, memory_mib)
    return choose(ranks, grid, ks, choose_by)


def _ranks(formula, split: Split, weights: Rows, catalog: Catalog, grid, exclude_history, duplicates, memory_mib):
    """(n, g) int64 ranks of a split's targets at every grid value; empty texts are misses."""
    ranks = ranks_on_grid(
        formula,
        split.costs,
        weights,
        target_rows(split.answers.targets, catalog, duplicates),
        len(catalog),
        grid,
        exclude=split.answers.histories if exclude_history else None,
        memory_mib=memory_mib,
    )
    ranks[split.empty] = len(catalog)
    return ranks


def apply_choice(
    formula: str,
    chosen: dict[str, float],
    test: Split,
    weights: Rows,
    catalog: Catalog,
    *,
    top_k: int = 50,
    exclude_history: bool = False,
    duplicates: str = "best",
    memory_mib: int = 256,
    **facts: Any,
) -> tuple[pa.Table, pa.Table]:
    """Rank the catalog with chosen parameters (`metric@K` -> value).

    Returns the rankings (ground.RANKINGS_SCHEMA) at the value chosen for NDCG@10, `top_distances` holding combined
    costs, and the ranks by metric: example_id and an int64 column a key. `facts` join the settings in both.
    """
    answers = test.answers
    options = {"exclude_history": exclude_history, "duplicates": duplicates}
    values = sorted(set(chosen.values()))
    ranks = _ranks(formula, test, weights, catalog, values, **options, memory_mib=memory_mib)

    def scores(start: int, stop: int) -> np.ndarray:
        return -combine(formula, *parts(formula, test.costs(start, stop), weights(start, stop)), chosen[PRIMARY])

    ranking = rank_scores(
        scores,
        target_rows(answers.targets, catalog, duplicates),
        len(catalog),
        top_k,
        exclude=answers.histories if exclude_history else None,
    )
    ranking.rank[test.empty], ranking.top_rows[test.empty] = len(catalog), -1
    history_titles = [[catalog.titles[row] for row in rows if row >= 0] for rows in answers.histories]
    flags = answer_flags([[text] for text in answers.texts], history_titles, catalog.titles)
    settings = {
        "n_items": len(catalog),
        **options,
        "catalog_sha256": catalog_sha256(catalog),
        **facts,
        "formula": formula,
        "parameter": PARAMETERS[formula],
        "parameters": chosen,
    }
    table = rankings_table(
        answers.example_ids,
        answers.targets,
        ranking,
        settings,
        empty=flags[C.EMPTY],
        in_catalog=flags[C.IN_CATALOG],
        in_history=flags[C.IN_HISTORY],
    )
    columns = {key: pa.array(ranks[:, values.index(value)], pa.int64()) for key, value in chosen.items()}
    by_metric = pa.table({C.EXAMPLE_ID: pa.array(answers.example_ids, pa.string()), **columns})
    return table, by_metric.replace_schema_metadata({METADATA_KEY: table.schema.metadata[METADATA_KEY]})


def rerank_method(
    folder: str | Path,
    formula: str,
    validation: tuple[Split, Rows],
    test: tuple[Split, Rows],
    catalog: Catalog,
    grid: Sequence[float],
    ks: Sequence[int],
    *,
    choose_by: str = "each",
    top_k: int = 50,
    exclude_history: bool = False,
    duplicates: str = "best",
    memory_mib: int = 256,
    **facts: Any,
) -> Choice:
    """Choose on validation, apply to test, write everything but the scores into `folder`; returns the choice.

    `validation`, `test`: a split and its weights (`weight_rows`); a split's costs may be any, such as fused ones.
    `facts` (JSON-able) say what the costs and weights are. Raises BigrecError where the two share an example.
    """
    check_disjoint(validation[0].answers.example_ids, test[0].answers.example_ids)
    folder = Path(folder)
    check_ks(ks, len(catalog))
    options = {"exclude_history": exclude_history, "duplicates": duplicates, "memory_mib": memory_mib}
    choice = search(formula, *validation, catalog, grid, ks, choose_by=choose_by, **options)
    facts |= {
        "choose_by": choose_by,
        "grid": fingerprint(choice.grid),
        "validation_examples": len(validation[0].answers.example_ids),
        "validation_ids": fingerprint(validation[0].answers.example_ids),
    }
    table, by_metric = apply_choice(formula, choice.chosen, *test, catalog, top_k=top_k, **options, **facts)
    (folder / RANKS_BY_METRIC_FILE).unlink(missing_ok=True)  # never beside rankings that it does not belong to
    write_table(table, folder / RANKINGS_FILE)
    write_table(by_metric, folder / RANKS_BY_METRIC_FILE)
    write_json(folder / CHOICE_FILE, {**json.loads(table.schema.metadata[METADATA_KEY]), "grid": choice.grid})
    save_curves(choice, folder, PARAMETERS[formula])
    plot = folder / PLOT_FILE
    if not plot_curves(choice, plot, parameter=PARAMETERS[formula], title=folder.name):
        plot.unlink(missing_ok=True)
        print(f"rerank ({folder.name}): no plot without matplotlib (pip install 'bigrec_hf[bench]'); see {CURVE_FILE}")
    return choice


def check_disjoint(validation_ids: Sequence[str], test_ids: Sequence[str]) -> None:
    """Raise BigrecError where an example to choose on is one to be evaluated."""
    shared = sorted(set(validation_ids) & set(test_ids))
    if shared:
        raise BigrecError(
            f"{len(shared)} of {len(validation_ids)} validation examples are evaluated, too (such as {shared[0]!r}): "
            "parameters are never chosen on what they are evaluated on; generate for the validation split"
        )


def check_validation(validation_ids: Sequence[str], data: DataSettings) -> None:
    """Raise BigrecError where the examples to choose on are not of the validation split, as far as the data tell."""
    if data.split == "validation":
        raise BigrecError(
            "split is 'validation': a parameter chosen there cannot be evaluated there; evaluate on --split test"
        )
    if data.dataset and not (data.test_json or data.validation_json):
        known = set(load_config(data.dataset[0], "default", "validation")[C.EXAMPLE_ID])
        other = [example_id for example_id in validation_ids if example_id not in known]
        if other:
            raise BigrecError(
                f"{len(other)} of {len(validation_ids)} examples to choose on (such as {other[0]!r}) are not in the "
                f"validation split of {data.dataset[0]!r}: generate {VALIDATION_DIR}/ with --split validation"
            )


def method_name(method: str, formula: str, weights: str, scores: str | None) -> str:
    """`finetuned_popularity`, `finetuned_mix_sasrec`, ...: the folder of a reranked method."""
    name = Path(scores or "scores").name if weights == "scores" else weights
    return "_".join([method, *([] if formula == "reweight" else [formula]), name])


def grid_of(formula: str, weights: str, rerank: RerankSettings) -> list[float]:
    """The grid of a formula: the values given, else the reference's for gamma and 0, 0.01 .. 1 for a share."""
    if formula != "reweight":
        return list(rerank.share_values or GRIDS["unit"])
    auto = "popularity" if weights == "popularity" else "movie"
    return list(rerank.gamma_values or GRIDS[auto if rerank.gamma_grid == "auto" else rerank.gamma_grid])


def find_scores(folder: Path, given: str | None) -> Path:
    """The scores file named, or the one in `folder` (.safetensors, .npy or .parquet)."""
    if given is not None:
        return Path(given)
    names = [Path(SCORES_FILE).with_suffix(suffix) for suffix in (".safetensors", ".npy", ".parquet")]
    return next((folder / name for name in names if (folder / name).is_file()), folder / SCORES_FILE)


def train_counts(data: DataSettings, catalog: Catalog) -> list[int] | None:
    """How often each catalog row is a training target; None without a prepared set. The rows must be that set's."""
    if not data.dataset:
        return None
    items = load_config(data.dataset[0], "items", "train")
    if list(items[C.TITLE]) != catalog.titles:
        raise BigrecError(
            f"the catalog's rows are not the items of {data.dataset[0]!r}, whose train counts are the popularity: "
            "leave out --catalog, or choose weights 'scores'"
        )
    return items[C.TRAIN_COUNT]


def check_settings(rerank: RerankSettings) -> None:
    """Raise BigrecError for an unknown formula or weights, or weights without a model, before any work."""
    for name, values, known in (("formulas", rerank.formulas, PARAMETERS), ("weights", rerank.weights, WEIGHTS)):
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


def main(
    run: RunSettings,
    data: DataSettings,
    model: ModelSettings,
    ground: GroundSettings,
    score: ScoreSettings,
    rerank: RerankSettings,
) -> None:
    """The `rerank` command: every combination of formulas and weights chosen, applied, scored; prints the table."""
    if run.run_dir is None:
        raise BigrecError("no run folder given: name it with --output_dir or --config RECIPE")
    check_settings(rerank)
    folder = Path(run.run_dir)
    catalog = load_catalog(catalog_source(data.catalog, data.dataset))
    places = {"validation": folder / VALIDATION_DIR, "test": folder}
    answers = {
        split: read_generations(place / run.method / GENERATIONS_FILE, catalog) for split, place in places.items()
    }
    check_validation(answers["validation"].example_ids, data)
    check_disjoint(answers["validation"].example_ids, answers["test"].example_ids)

    scores: dict[str, np.ndarray | None] = dict.fromkeys(places)
    facts: dict[str, Any] = {"base_method": run.method}
    if set(rerank.weights) - {"popularity"}:
        given = {"validation": rerank.validation_scores, "test": rerank.test_scores}
        for split, place in places.items():
            file = find_scores(place / (rerank.scores or ""), given[split])
            scores[split] = read_scores(file, answers[split].example_ids, catalog)
            facts[f"{split}_scores"] = read_facts(file)
    counts = train_counts(data, catalog) if set(rerank.weights) - {"scores"} else None
    index, encode = open_index(
        catalog,
        ground.index_dir,
        folder / "index",
        encoder_name(ground.encoder, model.base_model),
        ground.encoder_dtype,
        ground.encode_batch_tokens,
    )
    facts |= {name: index.fingerprint[name] for name in ("encoder", "revision", "kind", "dtype", "template")}
    splits = {split: text_split(found, index, encode) for split, found in answers.items()}
    results = {}
    plain = read_json(folder / run.method / RESULTS_FILE)
    if plain and {f"hr@{k}" for k in score.ks} <= set(plain):
        results[run.method] = plain
    for formula in rerank.formulas:
        for weights in rerank.weights:
            name = method_name(run.method, formula, weights, rerank.scores)
            rows = {s: weight_rows(weights, len(answers[s].example_ids), counts, scores[s]) for s in places}
            choice = rerank_method(
                folder / name,
                formula,
                (splits["validation"], rows["validation"]),
                (splits["test"], rows["test"]),
                catalog,
                grid_of(formula, weights, rerank),
                score.ks,
                choose_by=rerank.choose_by,
                top_k=ground.top_k,
                exclude_history=ground.exclude_history,
                duplicates=ground.duplicates,
                memory_mib=ground.memory_mib,
                weights=weights,
                **facts,
            )
            shown = ", ".join(f"{key} {value:g}" for key, value in choice.chosen.items())
            print(f"rerank ({name}): {PARAMETERS[formula]} chosen on validation: {shown}")
            results[name] = score_folder(folder / name, **vars(score), seed=run.seed)
    print(results_table(results, sorted(set(score.ks))))


if __name__ == "__main__":
    from bigrec_hf.cli import main as cli_main

    sys.exit(cli_main(["rerank", *sys.argv[1:]]))
