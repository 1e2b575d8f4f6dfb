"""Ground: rank the whole catalog by the distance of its titles to the generated text (step 2 of BIGRec).

Reads `<run_dir>/<method>/generations.parquet`, builds or reuses the catalog index, writes
`<run_dir>/<method>/rankings.parquet`: one row an example, with the settings used in the file's own metadata.
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
import pyarrow.parquet as pq

from bigrec_hf.catalog import Catalog, load_catalog
from bigrec_hf.columns import Columns as C
from bigrec_hf.errors import BigrecError
from bigrec_hf.hub import fetch_folder, is_hub_id
from bigrec_hf.index import INDEX_FILES, CatalogIndex, Encode, build_index, encoder_fingerprint, lazy_encode
from bigrec_hf.metrics.ndcg_hr.ranking import Ranking, rank_catalog
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.runs import write_atomically

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings, GroundSettings, ModelSettings, RunSettings

GENERATIONS_FILE = "generations.parquet"
RANKINGS_FILE = "rankings.parquet"
METADATA_KEY = b"bigrec_hf"
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


@dataclass(frozen=True)
class Answers:
    """What is to be ranked, one entry an example; rows are catalog rows."""

    example_ids: list[str]
    texts: list[str]  # the text that is grounded: the first one of every example
    targets: list[int]
    histories: list[list[int]]  # [] where unknown


def read_generations(path: str | Path, catalog: Catalog) -> Answers:
    """Answers of a generations.parquet. Raises BigrecError for missing columns, no rows, or an unknown target."""
    path = Path(path)
    if not path.is_file():
        raise BigrecError(f"{path} does not exist: run `bigrec-hf generate` first, or name the file with --generations")
    wanted = [C.EXAMPLE_ID, C.TARGET, C.TARGET_TITLE, C.HISTORY, C.TEXTS]
    missing = [name for name in wanted if name not in pq.read_schema(path).names]
    if missing:
        raise BigrecError(f"{path} lacks the column {missing[0]!r}: it is no file of `bigrec-hf generate`")
    table = pq.read_table(path, columns=wanted)
    if table.num_rows == 0:
        raise BigrecError(f"{path} holds no example: generate at least one")
    texts = [(texts or [""])[0] or "" for texts in table[C.TEXTS].to_pylist()]
    targets = resolve_targets(table[C.TARGET_TITLE].to_pylist(), table[C.TARGET].to_pylist(), catalog, str(path))
    histories = [history or [] for history in table[C.HISTORY].to_pylist()]
    return Answers(table[C.EXAMPLE_ID].to_pylist(), texts, targets, histories)


def resolve_targets(
    titles: Sequence[str], rows: Sequence[int | None] | None, catalog: Catalog, place: str
) -> list[int]:
    """Each target's catalog row: as given where `rows` has one (its title must agree), else the title's first row.

    Raises BigrecError naming the first title that stands in no row (or in another), how many there are, and the remedy.
    """
    known = catalog.rows_by_title
    rows = [None] * len(titles) if rows is None else rows
    resolved, unknown = [], []
    for title, row in zip(titles, rows, strict=True):
        candidates = known.get(clean_title(title), [])
        if not candidates or (row is not None and row >= 0 and row not in candidates):
            unknown.append(title)
        else:
            resolved.append(row if row is not None and row >= 0 else candidates[0])
    if unknown:
        raise BigrecError(
            f"{place}: the target {unknown[0]!r} stands in no row of the catalog, or in another than the file says "
            f"({len(unknown)} of {len(titles)} targets): give the catalog these examples were made with (--catalog)"
        )
    return resolved


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


def ground_answers(
    answers: Answers,
    index: CatalogIndex,
    encode: Encode,
    *,
    top_k: int = 50,
    memory_mib: int = 256,
    exclude_history: bool = False,
    duplicates: str = "best",
) -> pa.Table:
    """Rank the catalog for every answer (RANKINGS_SCHEMA). An empty text is never grounded: rank n_items, no top rows.

    `duplicates`: "best" = the target counts as found at any row with its title, "exact" = at its own row only.
    """
    catalog = index.catalog
    full = [i for i, text in enumerate(answers.texts) if clean_title(text)]
    rows = target_rows(answers.targets, catalog, duplicates)
    try:
        ranking = rank_catalog(
            embed_texts([answers.texts[i] for i in full], index, encode),
            index.embeddings,
            [rows[i] for i in full],
            top_k,
            memory_mib,
            exclude=[answers.histories[i] for i in full] if exclude_history else None,
        )
    except BigrecError:
        raise
    except ValueError as error:
        raise BigrecError(f"grounding: {error}") from error
    options = {"duplicates": duplicates, "exclude_history": exclude_history}
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


def open_index(
    catalog: Catalog, model: ModelSettings, ground: GroundSettings, own_dir: str | Path
) -> tuple[CatalogIndex, Encode]:
    """Index and encoder of a catalog, as set. `index_dir`, a folder the user named, is never overwritten with something
    else; `own_dir` (used without it) is the run's own."""
    encoder, dtype, index_dir = encoder_name(ground.encoder, model.base_model), ground.encoder_dtype, ground.index_dir
    encode = lazy_encode(encoder, dtype, ground.encode_batch_tokens)
    facts = encoder_fingerprint(encoder, dtype)
    if index_dir is not None and "@" in index_dir and is_hub_id(index_dir):  # pinned names only: see hub.pin
        index_dir = str(fetch_folder(index_dir, "dataset", INDEX_FILES))
    return build_index(index_dir or own_dir, catalog, encode, facts, owned=index_dir is None), encode


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
    """Write `<run_dir>/<method>/rankings.parquet`, or that of `<method>_hybrid`."""
    if run.run_dir is None:
        raise BigrecError("no run folder given: name it with --output_dir or --config RECIPE")
    folder = Path(run.run_dir) / run.method
    catalog = load_catalog(catalog_source(data.catalog, data.dataset))
    answers = read_generations(folder / GENERATIONS_FILE, catalog)
    index, encode = open_index(catalog, model, ground, Path(run.run_dir) / "index")
    options: dict[str, Any] = {
        "top_k": ground.top_k,
        "memory_mib": ground.memory_mib,
        "exclude_history": ground.exclude_history,
        "duplicates": ground.duplicates,
    }
    if ground.ranking == "hybrid":
        from bigrec_hf.hybrid import HYBRID, hybrid_rankings, read_texts

        table = hybrid_rankings(read_texts(folder / GENERATIONS_FILE), answers, index, encode, **options)
        folder = folder.with_name(folder.name + HYBRID)
    else:
        table = ground_answers(answers, index, encode, **options)
    write_table(table, folder / RANKINGS_FILE)
    median = int(np.median(table[C.RANK].to_numpy()))
    print(f"ground ({folder.name}): {table.num_rows} examples, {len(index)} items, median rank {median}")


if __name__ == "__main__":
    from bigrec_hf.cli import main as cli_main

    sys.exit(cli_main(["ground", *sys.argv[1:]]))
