"""Fuse: rank the catalog by all texts of every example; parameters are chosen on the validation examples of the run.

Reads `<run_dir>/validation/<method>/generations.parquet` to choose and `<run_dir>/<method>/generations.parquet` to
apply; writes `<run_dir>/<method>_fused_<fusion>/`: `fusion.json` (the chosen parameters and the whole table of the
search), `rankings.parquet` and the scores. `<run_dir>/<method>`, the ranking by the first text, stays unchanged.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, read_table, write_json
from bigrec_hf.common.fingerprints import file_fingerprint
from bigrec_hf.data.catalog import catalog_source, load_catalog
from bigrec_hf.data.earlier import with_seen
from bigrec_hf.data.generations import Answers, read_generations, read_texts
from bigrec_hf.data.rankings import RANKINGS_FILE, target_rows, write_rankings
from bigrec_hf.data.run_folder import run_folder
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
from bigrec_hf.rank.model_selection import checked_generations
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


@dataclass(frozen=True)
class KeywordIndex:
    """Keywords by clean title, and the index over the keywords of the catalog, row by row."""

    keywords: dict[str, str]
    index: CatalogIndex


def load_evidence(
    path: Path,
    index: CatalogIndex,
    encode: Encode,
    options: RankOptions,
    keywords: KeywordIndex | None = None,
    *,
    quiet: bool = False,
) -> tuple[Answers, Evidence]:
    """Return the examples of a generations.parquet and the distances of all their texts.

    Each distinct text is encoded and compared with the catalog once. Arrays larger than the memory of `options` go to a
    temporary file beside the generations.
    """
    answers = read_generations(path, index.catalog)
    beams = gather_beams(read_texts(path))
    store: dict[str, Any] = {"memory_mib": options.memory_mib, "spill_dir": path.parent}
    vectors = embed_texts(beams.texts, index, encode)
    distances = text_distances(vectors, index.embeddings, **store, quiet=quiet)
    extra: dict[str, Any] = {}
    if keywords is not None:
        written = look_up(answers.texts, keywords.keywords, str(path))
        first = gather_beams([[text] for text in written])
        vectors = embed_texts(first.texts, keywords.index, encode)
        extra = {
            "keyword_places": first.places[:, 0],
            "keyword_distances": text_distances(vectors, keywords.index.embeddings, **store, quiet=quiet),
        }
    return answers, Evidence(beams, distances, **extra, **store)


def fuse_method(
    run: RunSettings,
    data: DataSettings,
    fuse: FuseSettings,
    options: RankOptions,
    index: CatalogIndex,
    encode: Encode,
    keywords: KeywordIndex | None = None,
    *,
    quiet: bool = False,
) -> dict[str, Parameters]:
    """Choose the parameters of each fusion on the validation examples, then rank the test examples with them.

    Writes `<run_dir>/<method>_fused_<fusion>/fusion.json` and `rankings.parquet`; returns the parameters by fusion. The
    test examples are read only after everything is chosen and written. Raises BigrecError for generations that are not
    fit for it (`checked_generations`) or have one text per example, and for a fusion of keywords without `keywords`.
    """
    run_dir, fusions = run_folder(run), wanted_fusions(fuse, run_folder(run))
    files = checked_generations(run, data)
    if "keywords" in fusions and keywords is None:
        raise BigrecError("the keyword fusion needs keywords: write them with `bigrec-hf keywords`")

    answers, evidence = load_evidence(files["validation"], index, encode, options, keywords, quiet=quiet)
    answers = with_seen(answers, options, data)
    n_beams = evidence.beams.places.shape[1]
    if n_beams == 1 and set(fusions) - {"keywords"}:
        raise BigrecError(
            f"{files['validation']} holds one text per example, so there is nothing to fuse: generate with "
            "--num_beams 4, or several samples (--num_return_sequences)"
        )
    n_beams = min(n_beams, fuse.fusion_beams or n_beams)
    chosen: dict[str, Parameters] = {}
    for name in fusions:
        result = choose_parameters(
            name,
            parameter_grid(name, n_beams, fuse.fusion_k0),
            evidence,
            target_rows(answers.targets, index.catalog, options.duplicates),
            fuse.fusion_metric,
            options.excluded(answers),
            quiet=quiet,
        )
        chosen[name] = result["parameters"]
        facts = {
            "fusion": name,
            "method": run.method,
            "metric": fuse.fusion_metric,
            **result,
            "n_validation": len(answers.example_ids),
            "validation_generations": file_fingerprint(files["validation"]),
            "exclude": options.exclude,
            "duplicates": options.duplicates,
        }
        write_json(run_dir / f"{run.method}_fused_{name}" / FUSION_FILE, facts)
    del answers, evidence  # nothing is chosen from here on

    answers, evidence = load_evidence(files["test"], index, encode, options, keywords, quiet=quiet)
    answers = with_seen(answers, options, data)
    facts = {"chosen_on_validation_by": fuse.fusion_metric}
    for name, parameters in chosen.items():
        table = fused_table(name, parameters, answers, evidence, index, options, facts)
        write_rankings(table, run_dir / f"{run.method}_fused_{name}")
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
    run_dir = run_folder(run)
    catalog = load_catalog(catalog_source(data.catalog, data.dataset))
    checked_generations(run, data)
    index, encode = open_index(catalog, model, ground, run_dir / "index")
    keywords = None
    if "keywords" in wanted_fusions(fuse, run_dir):
        written = read_keywords(keywords_path(fuse, run_dir))
        own = replace(ground, index_dir=None)
        keyword_index, _ = open_index(keyword_catalog(catalog, written), model, own, run_dir / KEYWORDS_INDEX)
        keywords = KeywordIndex(written, keyword_index)
    chosen = fuse_method(run, data, fuse, ground.options, index, encode, keywords)
    plain = run_dir / run.method / RANKINGS_FILE
    rows = {}
    if plain.is_file():
        rows[run.method], _ = score_rankings(read_table(plain), **vars(score), seed=run.seed)
    for name, parameters in chosen.items():
        folder = run_dir / f"{run.method}_fused_{name}"
        value = read_json(folder / FUSION_FILE)["value"]
        note = "" if value else " (0 for every setting: use more validation examples)"
        print(f"fuse: {name} {json.dumps(parameters)}, {fuse.fusion_metric} {value:.4f} on validation{note}")
        rows[folder.name] = score_folder(folder, **vars(score), seed=run.seed)
    print(results_table(rows, sorted(set(score.ks))))
