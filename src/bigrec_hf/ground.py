"""Ground: rank the whole catalog by the distance of its titles to the generated text (step 2 of BIGRec).

Reads `<run_dir>/<method>/generations.parquet`, builds or reuses the catalog index, writes
`<run_dir>/<method>/rankings.parquet`: one row an example, with the settings used in the file's own metadata.
"""

from __future__ import annotations

import json
import sys
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bigrec_hf.catalog import Catalog, load_catalog
from bigrec_hf.columns import Columns as C
from bigrec_hf.errors import BigrecError
from bigrec_hf.generations import GENERATIONS_FILE, Answers, read_generations
from bigrec_hf.hub import fetch_folder, is_hub_id
from bigrec_hf.index import INDEX_FILES, CatalogIndex, Encode, build_index, encoder_fingerprint, lazy_encode
from bigrec_hf.metrics.ndcg_hr.ranking import Ranking, rank_catalog
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.runs import file_fingerprint, fingerprint, write_atomically
from bigrec_hf.shards import share_rows

if TYPE_CHECKING:
    from accelerate import PartialState

    from bigrec_hf.settings import DataSettings, GroundSettings, ModelSettings, RunSettings

RANKINGS_FILE = "rankings.parquet"
RANKS_BY_METRIC_FILE = "ranks_by_metric.parquet"  # beside it where a parameter was chosen for each metric
SCORE_FILES = ("results.json", "per_example.parquet")  # what `score` makes of them
PART_EXAMPLES = 512  # examples encoded together: the least that a process takes
METADATA_KEY = b"bigrec_hf"
GENERATIONS_KEY = "generations_fingerprint"  # among the settings: the generations.parquet that was ranked
RANKINGS_SCHEMA = pa.schema(
    [
        (C.EXAMPLE_ID, pa.string()),
        (C.TARGET, pa.int32()),
        (C.RANK, pa.int64()),  # number of items where nothing was ranked (an empty text) or the target was excluded
        (C.TOP_ROWS, pa.list_(pa.int32())),  # empty for an empty text
        (C.TOP_DISTANCES, pa.list_(pa.float32())),
        (C.EMPTY, pa.bool_()),
        (C.IN_CATALOG, pa.bool_()),
        (C.IN_HISTORY, pa.bool_()),
    ]
)


def embed_texts(texts: Sequence[str], index: CatalogIndex, encode: Encode) -> np.ndarray:
    """(len(texts), d) float32. A text that is a catalog title gets that title's own vector (distance 0)."""
    known = index.catalog.rows_by_title
    cleaned = [clean_title(text) for text in texts]
    vectors = np.empty((len(texts), index.embeddings.shape[1]), np.float32)
    new = [i for i, text in enumerate(cleaned) if text not in known]
    found = [i for i, text in enumerate(cleaned) if text in known]
    vectors[found] = index.embeddings[[known[cleaned[i]][0] for i in found]]
    if new:
        encoded = encode([cleaned[i] for i in new])
        if encoded.shape != (len(new), vectors.shape[1]):
            raise BigrecError(
                f"the encoder gives {encoded.shape[1]} dimensions, the index has {vectors.shape[1]}: use one encoder"
            )
        vectors[new] = encoded
    return vectors


def embed_answers(answers: Answers, index: CatalogIndex, encode: Encode) -> tuple[list[int], np.ndarray]:
    """Positions of the answers that are not empty, and their vectors, (len(positions), d) float32.

    Encoded PART_EXAMPLES examples at a time, so that a vector does not depend on how many processes share the examples
    (`share_rows`): a batch's composition changes it by float32 rounding.
    """
    full = [i for i, text in enumerate(answers.texts) if clean_title(text)]
    vectors = [np.empty((0, index.embeddings.shape[1]), np.float32)]
    for start in range(0, len(answers.texts), PART_EXAMPLES):
        part = [answers.texts[i] for i in full[bisect_left(full, start) : bisect_left(full, start + PART_EXAMPLES)]]
        vectors.append(embed_texts(part, index, encode))
    return full, np.concatenate(vectors)


def ground_answers(
    answers: Answers,
    index: CatalogIndex,
    encode: Encode,
    *,
    top_k: int = 50,
    memory_mib: int = 256,
    exclude_history: bool = False,
    duplicates: str = "best",
    search: str = "exact",
    n_probe: int = 32,
) -> pa.Table:
    """Rank the catalog for every answer (RANKINGS_SCHEMA). An empty text is never grounded: rank n_items, no top rows.

    `duplicates`: "best" = the target counts as found at any row with its title, "exact" = at its own row only.
    `search`: "exact", or "faiss" (`approximate`): a target that is not among the top_k gets rank n_items.
    """
    options: dict[str, Any] = {"duplicates": duplicates, "exclude_history": exclude_history}
    if search == "faiss":
        if exclude_history:
            raise BigrecError("approximate search leaves nothing out: use --search exact with --exclude_history true")
        options |= {"search": search, "n_probe": n_probe, "ranks_known_to": top_k}
    full, queries = embed_answers(answers, index, encode)
    rows = target_rows(answers.targets, index.catalog, duplicates)
    targets = [rows[i] for i in full]
    excluded = [answers.histories[i] for i in full] if exclude_history else None
    try:
        if search == "faiss":
            from bigrec_hf.approximate import rank_approximately

            ranking = rank_approximately(queries, index.embeddings, targets, top_k, n_probe=n_probe)
        else:
            ranking = rank_catalog(queries, index.embeddings, targets, top_k, memory_mib, exclude=excluded)
    except BigrecError:
        raise
    except ValueError as error:
        raise BigrecError(f"grounding: {error}") from error
    return answers_table(answers, index, spread(ranking, full, len(answers.texts), len(index)), options)


def answers_table(answers: Answers, index: CatalogIndex, ranking: Ranking, options: dict[str, Any]) -> pa.Table:
    """A rankings table of answers, one row of `ranking` each, with the flags of the texts and the index's settings."""
    catalog = index.catalog
    texts = [clean_title(text) for text in answers.texts]
    history_titles = [{clean_title(catalog.titles[row]) for row in h if row >= 0} for h in answers.histories]
    settings = {
        "n_items": len(index),
        **options,
        **{name: index.fingerprint[name] for name in ("encoder", "revision", "kind", "dtype", "template")},
        "catalog_sha256": index.fingerprint["catalog_sha256"],
    }
    return rankings_table(
        answers.example_ids,
        answers.targets,
        ranking,
        settings,
        empty=[not text for text in texts],
        in_catalog=[text in catalog.rows_by_title for text in texts],
        in_history=[text in titles for text, titles in zip(texts, history_titles, strict=True)],
    )


def target_rows(targets: Sequence[int], catalog: Catalog, duplicates: str) -> list[list[int]]:
    """The rows at which each target counts as found (method: duplicates "best" or "exact")."""
    wrong = [row for row in targets if not 0 <= row < len(catalog)]
    if wrong:
        raise BigrecError(
            f"target row {wrong[0]} lies outside the catalog's rows 0 to {len(catalog) - 1} ({len(wrong)} such): "
            "give the catalog these examples were made with"
        )
    if duplicates == "exact":
        return [[row] for row in targets]
    return [catalog.rows_by_title[clean_title(catalog.titles[row])] for row in targets]


def spread(ranking: Ranking, places: Sequence[int], n: int, n_items: int) -> Ranking:
    """A ranking of some examples put at their `places` among `n`; the others are misses (rank n_items, rows -1)."""
    k = ranking.top_rows.shape[1]
    full = Ranking(np.full(n, n_items, np.int64), np.full((n, k), -1, np.int32), np.full((n, k), np.inf, np.float32))
    full.rank[places], full.top_rows[places] = ranking.rank, ranking.top_rows
    full.top_distances[places] = ranking.top_distances
    return full


def rankings_table(
    example_ids: Sequence[str],
    targets: Sequence[int],
    ranking: Ranking,
    settings: dict[str, Any],
    *,
    empty: Sequence[bool],
    in_catalog: Sequence[bool | None],
    in_history: Sequence[bool | None],
) -> pa.Table:
    """RANKINGS_SCHEMA, with `settings` (JSON, `n_items` at least) in its metadata; padding rows (-1) are left out."""
    kept = ranking.top_rows >= 0
    offsets = np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32)
    columns = [
        pa.array(example_ids, pa.string()),
        pa.array(targets, pa.int32()),
        pa.array(ranking.rank, pa.int64()),
        pa.ListArray.from_arrays(offsets, pa.array(ranking.top_rows[kept], pa.int32())),
        pa.ListArray.from_arrays(offsets, pa.array(ranking.top_distances[kept], pa.float32())),
        *(pa.array(list(values), pa.bool_()) for values in (empty, in_catalog, in_history)),
    ]
    schema = RANKINGS_SCHEMA.with_metadata({METADATA_KEY: json.dumps(settings, ensure_ascii=False).encode()})
    return pa.Table.from_arrays(columns, schema=schema)


def table_settings(table: pa.Table) -> dict[str, Any]:
    """The settings a rankings table was made with. Raises BigrecError where it carries none."""
    metadata = table.schema.metadata or {}
    if METADATA_KEY not in metadata:
        raise BigrecError("the rankings carry no settings: make them with `bigrec-hf ground`")
    return json.loads(metadata[METADATA_KEY])


def read_ranks(path: str | Path) -> np.ndarray:
    """(n,) int64: the target's 0-based rank of every example of a rankings.parquet, in the file's order."""
    return pq.read_table(path, columns=[C.RANK])[C.RANK].to_numpy()


def write_table(table: pa.Table, path: str | Path) -> None:
    """Write parquet beside `path` and move it into place."""
    write_atomically(path, lambda temporary: pq.write_table(table, temporary))


def write_rankings(table: pa.Table, folder: str | Path) -> None:
    """Write a method's rankings. What belongs to those before them goes first, so that a kill leaves no results beside
    rankings that they were not made of."""
    for name in (RANKS_BY_METRIC_FILE, *SCORE_FILES):
        (Path(folder) / name).unlink(missing_ok=True)
    write_table(table, Path(folder) / RANKINGS_FILE)


def open_index(
    catalog: Catalog,
    model: ModelSettings,
    ground: GroundSettings,
    own_dir: str | Path,
    state: PartialState | None = None,
) -> tuple[CatalogIndex, Encode]:
    """Index and encoder of a catalog, as set. `index_dir`, a folder the user named, is never overwritten with something
    else; `own_dir` (used without it) is the run's own. `state`: the processes that call this together."""
    encoder, dtype, index_dir = encoder_name(ground.encoder, model.base_model), ground.encoder_dtype, ground.index_dir
    encode = lazy_encode(encoder, dtype, ground.encode_batch_tokens)
    facts = encoder_fingerprint(encoder, dtype)
    if index_dir is not None and "@" in index_dir and is_hub_id(index_dir):  # pinned names only: see hub.pin
        index_dir = str(fetch_folder(index_dir, "dataset", INDEX_FILES))
    index = build_index(index_dir or own_dir, catalog, encode, facts, owned=index_dir is None, state=state)
    return index, encode


def encoder_name(encoder: str, base_model: str | None) -> str:
    """The encoder's name or folder; `base` stands for the base model. Raises BigrecError where that is not given."""
    if encoder != "base":
        return encoder
    if not base_model:
        raise BigrecError("encoder is 'base' but no base model is given: name one with --encoder or --base_model")
    return base_model


def catalog_source(catalog: str | None, dataset: Sequence[str]) -> str:
    """Where the catalog is read: the setting, else the (first) data set's own items."""
    source = catalog or (dataset[0] if dataset else None)
    if source is None:
        raise BigrecError("no catalog given: name one with --catalog (prepared set, movies.dat, id2name.txt or CSV)")
    return source


def main(run: RunSettings, data: DataSettings, model: ModelSettings, ground: GroundSettings) -> None:
    """Write `<run_dir>/<method>/rankings.parquet`, or that of `<method>_hybrid`; several processes share the work."""
    from bigrec_hf.processes import process_state

    if run.run_dir is None:
        raise BigrecError("no run folder given: name it with --output_dir or --config RECIPE")
    if ground.search != "exact" and ground.ranking != "distance":
        raise BigrecError(f"ranking {ground.ranking} needs exact distances: use --search exact")
    state = process_state()
    folder = Path(run.run_dir) / run.method
    catalog = load_catalog(catalog_source(data.catalog, data.dataset))
    answers = read_generations(folder / GENERATIONS_FILE, catalog)
    index, encode = open_index(catalog, model, ground, Path(run.run_dir) / "index", state)
    options: dict[str, Any] = {
        "top_k": ground.top_k,
        "memory_mib": ground.memory_mib,
        "exclude_history": ground.exclude_history,
        "duplicates": ground.duplicates,
    }
    file = file_fingerprint(folder / GENERATIONS_FILE)
    key = fingerprint(file, index.fingerprint, options, ground.ranking, ground.search, ground.n_probe)
    if ground.ranking == "hybrid":
        from bigrec_hf.hybrid import HYBRID, hybrid_rankings, read_texts

        texts = read_texts(folder / GENERATIONS_FILE)
        folder = folder.with_name(folder.name + HYBRID)

        def rank_part(part: slice) -> pa.Table:
            return hybrid_rankings(texts[part], answers.part(part), index, encode, **options)
    else:
        options |= {"search": ground.search, "n_probe": ground.n_probe}

        def rank_part(part: slice) -> pa.Table:
            return ground_answers(answers.part(part), index, encode, **options)

    table = share_rows(len(answers.texts), PART_EXAMPLES, rank_part, folder / ".shares", key, state)
    if table is not None:
        settings = table_settings(table) | {GENERATIONS_KEY: file}
        metadata = {METADATA_KEY: json.dumps(settings, ensure_ascii=False).encode()}
        # parquet has its own name for what is in a list: without the cast the file would tell how it was made
        write_rankings(table.cast(RANKINGS_SCHEMA.with_metadata(metadata)), folder)
        median = int(np.median(table[C.RANK].to_numpy()))
        print(f"ground ({folder.name}): {table.num_rows} examples, {len(index)} items, median rank {median}")
    state.wait_for_everyone()


if __name__ == "__main__":
    from bigrec_hf.cli import main as cli_main

    sys.exit(cli_main(["ground", *sys.argv[1:]]))
