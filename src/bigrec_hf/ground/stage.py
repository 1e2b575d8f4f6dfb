"""Ground: rank the whole catalog by the distance between its titles and the generated text (step 2 of BIGRec).

Reads `<run_dir>/<method>/generations.parquet`, builds or reuses the catalog index, and writes
`<run_dir>/<method>/rankings.parquet`: one row per example, with the settings in the metadata of the file.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.files import read_table
from bigrec_hf.common.fingerprints import file_fingerprint, fingerprint
from bigrec_hf.common.shards import share_rows
from bigrec_hf.data.catalog import Catalog, catalog_source, load_catalog
from bigrec_hf.data.earlier import with_seen
from bigrec_hf.data.generations import GENERATIONS_FILE, Answers, Examples, read_generations
from bigrec_hf.data.item_scores import SCORES_FILE, read_scores
from bigrec_hf.data.rankings import GENERATIONS_KEY, METADATA_KEY, RANKINGS_SCHEMA, table_settings, write_rankings
from bigrec_hf.data.run_folder import run_folder
from bigrec_hf.ground.distance import PART_EXAMPLES, ground_answers
from bigrec_hf.ground.from_scores import baseline_rankings
from bigrec_hf.ground.index import open_index
from bigrec_hf.settings.ray import NO_ACTORS, RaySettings

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings, GroundSettings, ModelSettings, RankOptions, RunSettings


def rank_item_scores(folder: Path, answers: Answers, catalog: Catalog, options: RankOptions) -> None:
    """Write `folder`/rankings.parquet from its scores.safetensors (`generate --decoding exact`), without an encoder."""
    scores = read_scores(folder / SCORES_FILE, answers.example_ids, catalog)
    examples = Examples(answers.example_ids, answers.targets, answers.histories, answers.seen)
    table = baseline_rankings(
        "item scores",
        lambda start, stop: scores[start:stop],
        catalog,
        examples,
        options,
        **{GENERATIONS_KEY: file_fingerprint(folder / GENERATIONS_FILE)},
    )
    flags = read_table(folder / GENERATIONS_FILE, columns=[C.EMPTY, C.IN_CATALOG, C.IN_HISTORY])
    for name in flags.column_names:
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), flags[name])
    write_rankings(table, folder)
    median = int(np.median(table[C.RANK].to_numpy()))
    print(f"ground ({folder.name}): {table.num_rows} examples, {len(catalog)} items by score, median rank {median}")


def main(
    run: RunSettings,
    data: DataSettings,
    model: ModelSettings,
    ground: GroundSettings,
    ray: RaySettings = NO_ACTORS,
) -> None:
    """Write `<run_dir>/<method>/rankings.parquet`, or that of `<method>_hybrid`; several processes share the work.

    Actors on a Ray cluster (`ray`) encode the catalog.
    """
    from bigrec_hf.common.processes import process_state

    folder, state = run_folder(run) / run.method, process_state()
    catalog = load_catalog(catalog_source(data.catalog, data.dataset))
    answers = with_seen(read_generations(folder / GENERATIONS_FILE, catalog), ground.options, data)
    if ground.ranking == "scores":
        if state.is_main_process:
            rank_item_scores(folder, answers, catalog, ground.options)
        return state.wait_for_everyone()
    index, encode = open_index(catalog, model, ground, run_folder(run) / "index", state, ray)
    options = ground.options
    file = file_fingerprint(folder / GENERATIONS_FILE)
    key = fingerprint(file, index.fingerprint, asdict(options), ground.ranking)
    if ground.ranking == "hybrid":
        from bigrec_hf.data.generations import read_texts
        from bigrec_hf.data.rankings import HYBRID
        from bigrec_hf.ground.hybrid import hybrid_rankings

        texts = read_texts(folder / GENERATIONS_FILE)
        folder = folder.with_name(folder.name + HYBRID)

        def rank_part(part: slice) -> pa.Table:
            return hybrid_rankings(texts[part], answers.part(part), index, encode, options)
    else:

        def rank_part(part: slice) -> pa.Table:
            return ground_answers(answers.part(part), index, encode, options)

    table = share_rows(len(answers.texts), PART_EXAMPLES, rank_part, folder / ".shares", key, state)
    if table is not None:
        settings = table_settings(table) | {GENERATIONS_KEY: file}
        metadata = {METADATA_KEY: json.dumps(settings, ensure_ascii=False).encode()}
        # Parquet renames the elements of lists: without the cast the file would depend on the number of processes
        write_rankings(table.cast(RANKINGS_SCHEMA.with_metadata(metadata)), folder)
        median = int(np.median(table[C.RANK].to_numpy()))
        print(f"ground ({folder.name}): {table.num_rows} examples, {len(index)} items, median rank {median}")
    state.wait_for_everyone()
