"""Fuse: rank the catalog by all texts of every example; parameters are chosen on the validation examples of the run.

Reads `<run_dir>/validation/<method>/generations.parquet` to choose and `<run_dir>/<method>/generations.parquet` to
apply; writes `<run_dir>/<method>_fused_<fusion>/`: `fusion.json` (the chosen parameters and the whole table of the
search), `rankings.parquet` and the scores. `<run_dir>/<method>`, the ranking by the first text, stays unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, write_json
from bigrec_hf.common.fingerprints import file_fingerprint
from bigrec_hf.data.catalog import catalog_source, load_catalog
from bigrec_hf.data.earlier import with_seen
from bigrec_hf.data.generations import GENERATIONS_FILE, Answers, read_generations, read_ids
from bigrec_hf.data.rankings import RANKINGS_FILE, target_rows, write_rankings
from bigrec_hf.data.run_folder import VALIDATION_DIR
from bigrec_hf.generate.keywords import (
    KEYWORDS_FILE,
    KEYWORDS_FOLDER,
    KEYWORDS_INDEX,
    keyword_catalog,
    look_up,
    read_keywords,
)
from bigrec_hf.ground.distance import answers_table, embed_texts
from bigrec_hf.ground.index import CatalogIndex, open_index
from bigrec_hf.models.encoder import Encode
from bigrec_hf.rank.fuse.formulas import (
    FUSIONS,
    Evidence,
    Parameters,
    choose_parameters,
    fuse,
    gather_beams,
    parameter_grid,
    rank_fused,
    text_distances,
)
from bigrec_hf.rank.model_selection import check_disjoint, check_same_adapter, check_validation
from bigrec_hf.score.stage import results_table, score_folder, score_rankings

if TYPE_CHECKING:
    from bigrec_hf.settings import (
        DataSettings,
        FuseSettings,
        GroundSettings,
        ModelSettings,
        RankOptions,
        RunSettings,
        ScoreSettings,
    )


FUSION_FILE = "fusion.json"


def load_evidence(
    path: Path,
    index: CatalogIndex,
    encode: Encode,
    *,
    keywords: dict[str, str] | None = None,
    keyword_index: CatalogIndex | None = None,
    memory_mib: int = 256,
    quiet: bool = False,
) -> tuple[Answers, Evidence]:
    """Return the examples of a generations.parquet and the distances of all their texts.

    Each distinct text is encoded and compared with the catalog once. Arrays larger than `memory_mib` go to a temporary
    file beside the generations.
    """
    answers = read_generations(path, index.catalog)
    beams = gather_beams([row or [] for row in pq.read_table(path, columns=[C.TEXTS])[C.TEXTS].to_pylist()])
    options: dict[str, Any] = {"memory_mib": memory_mib, "spill_dir": path.parent}
    vectors = embed_texts(beams.texts, index, encode)
    distances = text_distances(vectors, index.embeddings, **options, quiet=quiet)
    extra: dict[str, Any] = {}
    if keywords is not None and keyword_index is not None:
        written = look_up(answers.texts, keywords, str(path))
        first = gather_beams([[text] for text in written])
        vectors = embed_texts(first.texts, keyword_index, encode)
        extra = {
            "keyword_places": first.places[:, 0],
            "keyword_distances": text_distances(vectors, keyword_index.embeddings, **options, quiet=quiet),
        }
    return answers, Evidence(beams, distances, **extra, **options)


def fuse_method(
    run_dir: str | Path,
    method: str,
    index: CatalogIndex,
    encode: Encode,
    fusions: Sequence[str],
    options: RankOptions,
    data: DataSettings,
    *,
    metric: str = "ndcg@10",
    max_beams: int = 0,
    k0s: Sequence[int] = (60,),
    keywords: dict[str, str] | None = None,
    keyword_index: CatalogIndex | None = None,
    quiet: bool = False,
) -> dict[str, Parameters]:
    """Choose the parameters of each fusion on the validation examples, then rank the test examples with them.

    Writes `<run_dir>/<method>_fused_<fusion>/fusion.json` and `rankings.parquet`; returns the parameters by fusion.
    `data`: where `exclude: seen` finds the earlier items. `max_beams`: 0 = all texts. The test examples are
    read only after everything is chosen and written. Raises BigrecError if validation generations are missing, overlap
    with the test ones, or have one text per example.
    """
    run_dir = Path(run_dir)
    validation, test = (folder / method / GENERATIONS_FILE for folder in (run_dir / VALIDATION_DIR, run_dir))
    for path in (validation, test):
        if not path.is_file():
            raise BigrecError(
                f"{path} does not exist: parameters are chosen on validation examples, so generate those as well"
            )
    check_disjoint(*map(read_ids, (validation, test)))
    check_same_adapter(validation, test)
    loading: dict[str, Any] = {"memory_mib": options.memory_mib, "quiet": quiet}
    if "keywords" in fusions:
        if keywords is None or keyword_index is None:
            raise BigrecError("the keyword fusion needs keywords: write them with `bigrec-hf keywords`")
        loading |= {"keywords": keywords, "keyword_index": keyword_index}

    answers, evidence = load_evidence(validation, index, encode, **loading)
    answers = with_seen(answers, options, data)
    n_beams = evidence.beams.places.shape[1]
    if n_beams == 1 and set(fusions) - {"keywords"}:
        raise BigrecError(
            f"{validation} holds one text per example, so there is nothing to fuse: generate with --num_beams 4, or "
            "several samples (--num_return_sequences)"
        )
    n_beams = min(n_beams, max_beams or n_beams)
    chosen: dict[str, Parameters] = {}
    for name in fusions:
        result = choose_parameters(
            name,
            parameter_grid(name, n_beams, k0s),
            evidence,
            target_rows(answers.targets, index.catalog, options.duplicates),
            metric,
            options.excluded(answers),
            quiet=quiet,
        )
        chosen[name] = result["parameters"]
        facts = {
            "fusion": name,
            "method": method,
            "metric": metric,
            **result,
            "n_validation": len(answers.example_ids),
            "validation_generations": file_fingerprint(validation),
            "exclude": options.exclude,
            "duplicates": options.duplicates,
        }
        write_json(run_dir / f"{method}_fused_{name}" / FUSION_FILE, facts)
    del answers, evidence  # nothing is chosen from here on

    answers, evidence = load_evidence(test, index, encode, **loading)
    answers = with_seen(answers, options, data)
    for name, parameters in chosen.items():
        table = fused_table(name, parameters, answers, evidence, index, options, {"chosen_on_validation_by": metric})
        write_rankings(table, run_dir / f"{method}_fused_{name}")
    return chosen


def fused_table(
    name: str,
    parameters: Parameters,
    answers: Answers,
    evidence: Evidence,
    index: CatalogIndex,
    options: RankOptions,
    facts: dict[str, Any],
) -> pa.Table:
    """Return a rankings table (RANKINGS_SCHEMA) of fused texts, with the costs as `top_distances`.

    The flags are those of the first text that is used.
    """
    hidden = options.excluded(answers)
    fused = fuse(name, parameters, evidence, hidden)
    ranking = rank_fused(fused, target_rows(answers.targets, index.catalog, options.duplicates), options.top_k, hidden)
    used = evidence.beams.places[:, : int(parameters.get("beams", 1))]
    texts = [next((evidence.beams.texts[place] for place in row if place >= 0), "") for row in used]
    settings = {
        "duplicates": options.duplicates,
        "exclude": options.exclude,
        "fusion": name,
        **{f"fusion_{key}": value for key, value in parameters.items()},
        **facts,
    }
    return answers_table(replace(answers, texts=texts), index, ranking, settings)


def keywords_path(fuse: FuseSettings, run_dir: Path) -> Path:
    """Return the keywords file of the settings, by default the one in the run folder."""
    return Path(fuse.keywords_file or run_dir / KEYWORDS_FOLDER / KEYWORDS_FILE)


def wanted_fusions(fuse: FuseSettings, run_dir: Path) -> list[str]:
    """Return the fusions to compute; `all` includes keywords only if keywords have been written."""
    if fuse.fusion != "all":
        return [fuse.fusion]
    return [name for name in FUSIONS if name != "keywords" or keywords_path(fuse, run_dir).is_file()]


def main(
    run: RunSettings,
    data: DataSettings,
    model: ModelSettings,
    ground: GroundSettings,
    score: ScoreSettings,
    fuse: FuseSettings,
) -> None:
    """Write and score `<run_dir>/<method>_fused_<fusion>`; print the table with the first text alone on top."""
    if run.run_dir is None:
        raise BigrecError("no run folder given: name one with --output_dir or --config RECIPE")
    run_dir = Path(run.run_dir)
    catalog = load_catalog(catalog_source(data.catalog, data.dataset))
    validation = run_dir / VALIDATION_DIR / run.method / GENERATIONS_FILE
    if validation.is_file():  # fuse_method reports its absence
        check_validation(read_ids(validation), data)
    index, encode = open_index(catalog, model, ground, run_dir / "index")
    fusions = wanted_fusions(fuse, run_dir)
    extra: dict[str, Any] = {}
    if "keywords" in fusions:
        keywords = read_keywords(keywords_path(fuse, run_dir))
        keyword_index, _ = open_index(
            keyword_catalog(catalog, keywords), model, replace(ground, index_dir=None), run_dir / KEYWORDS_INDEX
        )
        extra = {"keywords": keywords, "keyword_index": keyword_index}
    chosen = fuse_method(
        run_dir,
        run.method,
        index,
        encode,
        fusions,
        ground.options,
        data,
        metric=fuse.fusion_metric,
        max_beams=fuse.fusion_beams,
        k0s=fuse.fusion_k0,
        **extra,
    )
    plain = run_dir / run.method / RANKINGS_FILE
    rows = {}
    if plain.is_file():
        rows[run.method], _ = score_rankings(pq.read_table(plain), **vars(score), seed=run.seed)
    for name, parameters in chosen.items():
        folder = run_dir / f"{run.method}_fused_{name}"
        value = read_json(folder / FUSION_FILE)["value"]
        note = "" if value else " (0 for every setting: use more validation examples)"
        print(f"fuse: {name} {json.dumps(parameters)}, {fuse.fusion_metric} {value:.4f} on validation{note}")
        rows[folder.name] = score_folder(folder, **vars(score), seed=run.seed)
    print(results_table(rows, sorted(set(score.ks))))
