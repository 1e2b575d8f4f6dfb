"""Stage `prepare`: raw files -> prepared data set (parquet configs, facts.json, card), moved into place in one step."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import readable
from bigrec_hf.common.fingerprints import cached_sha256
from bigrec_hf.common.version import __version__
from bigrec_hf.data.catalog import Catalog
from bigrec_hf.data.prepared import CONTENT, FACTS_FILE, check_unchanged
from bigrec_hf.data.samples import evaluation_sample, training_sample
from bigrec_hf.metrics.ndcg_hr.names import split_revision
from bigrec_hf.prepare import tables as parquet
from bigrec_hf.prepare.card import dataset_card
from bigrec_hf.prepare.facts import describe_splits, sha256_of, summary_table
from bigrec_hf.prepare.protocols import (
    Protocol,
    check_enough_items,
    filter_interactions,
    first_appearance,
    resolve_protocol,
    shuffled,
)
from bigrec_hf.prepare.read import TABLES, downloaded, read_ready, read_source, source_files
from bigrec_hf.prepare.reference_json import export_reference_json
from bigrec_hf.prepare.replace import check_replaceable, check_same_set, put_in_place, remove_stale, temporary_sibling
from bigrec_hf.prepare.sources.base import RawData
from bigrec_hf.prepare.sources.tabular import USUAL_STEMS
from bigrec_hf.prepare.splits import ExampleRanges, Sequences, build_sequences, split_examples, users_with_example
from bigrec_hf.settings import PrepareSettings
from bigrec_hf.settings.field import check_limits


def raw_mark(prepare: PrepareSettings) -> dict[str, str] | None:
    """sha256 of each raw file; None if they do not exist yet (`download` fetches them)."""
    try:
        return raw_sha256(prepare)
    except (BigrecError, OSError):
        return None


# files written at a time, while the next tables are computed: the training examples take longest
WRITERS = 2
FORMAT = 1  # incremented whenever the same input would give another prepared set
# preset of a source unless one is given; bigrec-movie for all others
DEFAULT_PRESETS = dict.fromkeys(("tabular", "hub", "sequences", "windows"), "leave-one-out")
PUBLISHED = ("movielens", "amazon")  # sources whose files others publish
# settings for locations and side effects, which do not change the prepared set
PLACES = (
    *("raw_dir", "prepared_dir", "ratings_file", "items_file", "download", "export_reference_json"),
    "overwrite_prepared",
)


def prepare_dataset(source: str, raw_dir: str | Path | None, prepared_dir: str | Path, **options: Any) -> Path:
    """Write the prepared set of `raw_dir` to `prepared_dir` and return that folder.

    `options` are the other fields of `PrepareSettings`. An existing set made from the same bytes with the same settings
    is kept; one of other bytes or settings is replaced if `overwrite_prepared` is true. Raises BigrecError for it
    otherwise, for bad settings, bad files, or a `prepared_dir` that is not a prepared set.
    """
    settings = PrepareSettings(
        source=source, raw_dir=str(raw_dir) if raw_dir else None, prepared_dir=str(prepared_dir), **options
    )
    settings = replace(settings, preset=settings.preset or DEFAULT_PRESETS.get(source, "bigrec-movie"))
    for item in fields(settings):  # no recipe or command line has checked a caller's options
        check_limits(item.metadata, getattr(settings, item.name), item.name)
    target = Path(prepared_dir)
    check_replaceable(target)
    protocol = _protocol(settings)
    with downloaded(settings) as local:
        return _prepare(local, protocol, target)


def _prepare(settings: PrepareSettings, protocol: Protocol, target: Path) -> Path:
    """Write the set unless it is there already."""
    files = source_files(settings)
    fingerprint = _fingerprint(settings, sha256_of(files.values()))
    remove_stale(target)
    facts = _finished_facts(target, fingerprint)
    if facts is not None:
        _say(f"{target} is up to date (same raw files, same settings): kept")
    else:
        if not settings.overwrite_prepared:
            check_same_set(target, fingerprint)
        started = time.perf_counter()
        facts = _write_atomically(target, files, protocol, settings, fingerprint)
        _say(f"wrote {target} in {time.perf_counter() - started:.1f} s")
    if settings.export_reference_json:
        export_reference_json(target, Path(settings.export_reference_json))
        _say(f"wrote the reference's JSON files to {settings.export_reference_json}")
    print(summary_table(facts), flush=True)
    return target


def raw_sha256(settings: PrepareSettings) -> dict[str, str]:
    """File name -> sha256 of the raw files that these settings read. Raises BigrecError where one is missing."""
    return sha256_of(source_files(settings).values())


def _say(text: str) -> None:
    print(f"prepare: {text}", flush=True)


def _protocol(settings: PrepareSettings) -> Protocol:
    names = (
        *("window", "min_history", "k_core", "min_items", "min_rating", "date_from", "date_to"),
        *("train_fraction", "validation_fraction", "validation_count", "test_count", "validation_from", "test_from"),
    )
    return resolve_protocol(str(settings.preset), **{name: getattr(settings, name) for name in names})


# --- the prepared set -----------------------------------------------------------------------------------------------


def select_interactions(raw: RawData, protocol: Protocol) -> tuple[RawData, dict[str, Any]]:
    """Filter, recode users by first kept appearance, and reduce the catalog if the source or preset asks for it.

    Returns the kept data, with its own catalog, and the source's facts with what was dropped.
    """
    keep, dropped, date_from = filter_interactions(
        protocol, raw.users, raw.rows, raw.ratings, raw.times, raw.time_divisor
    )
    if not keep.any():
        raise BigrecError(
            f"no interaction of {raw.files[0].name} is left after dropping {raw.dropped | dropped}: relax the filters"
        )
    kept_rows = slice(None) if keep.all() else keep  # if nothing was dropped, nothing is copied
    users, rows = raw.users[kept_rows], raw.rows[kept_rows]
    catalog, user_ids = raw.catalog, raw.user_ids
    codes = first_appearance(users)
    recode = np.zeros(len(user_ids), dtype=np.uint32)
    recode[codes] = np.arange(len(codes), dtype=np.uint32)
    if protocol.shuffles_rows or not raw.whole_catalog:
        old_rows = first_appearance(rows)
        old_rows = shuffled(old_rows) if protocol.shuffles_rows else old_rows
        new_row = np.full(len(catalog), -1, dtype=np.int32)
        new_row[old_rows] = np.arange(len(old_rows), dtype=np.int32)
        rows = new_row[rows]
        catalog = Catalog([catalog.item_ids[row] for row in old_rows], [catalog.titles[row] for row in old_rows])
    kept = RawData(
        catalog=catalog,
        user_ids=user_ids.gather(codes),
        users=recode[users],
        rows=rows,
        ratings=None if raw.ratings is None else raw.ratings[kept_rows],
        times=None if raw.times is None else raw.times[kept_rows],
        raw_rows=raw.raw_rows,
        files=raw.files,
        time_divisor=raw.time_divisor,
    )
    reasons = {reason: n for reason, n in (raw.dropped | dropped).items() if n}
    facts: dict[str, Any] = dict(raw.facts)
    facts["interactions"] = {"raw": raw.raw_rows, "dropped": reasons, "kept": len(rows)}
    if date_from != protocol.date_from:
        facts["notes"] = {**facts.get("notes", {}), "date_from moved back to": date_from}
    return kept, facts


def write_set(folder: Path, files: dict[str, Path], protocol: Protocol, settings: PrepareSettings) -> dict[str, Any]:
    """Read the raw files, write the parquet files of every config into `folder`, and return the facts."""
    _say(f"reading {', '.join(file.name for file in files.values())}")
    raw, remedy = ", ".join(map(str, files.values())), "correct the file"
    if settings.source in PUBLISHED:
        remedy += ", or download it again"
    with readable(raw, remedy):
        ready = read_ready(settings, files)
    if ready is not None:
        kept = ready.interactions(list(files.values()))
        facts, sequences, splits = ready.facts, ready.sequences, ready.splits
    else:
        with readable(raw, remedy):
            kept, facts = select_interactions(read_source(settings, files), protocol)  # frees the raw data here
        if "columns" in facts:
            _say("columns: " + ", ".join(f"{role} = {name}" for role, name in facts["columns"].items()))
        _say(f"building sequences of {len(kept.user_ids):,} users from {len(kept.rows):,} interactions")
        sequences = build_sequences(kept.users, kept.rows, kept.ratings, kept.times)
        splits = split_examples(protocol, sequences, kept.time_divisor)
        n_with = users_with_example(sequences, splits.values())
        is_table = settings.source in TABLES and not settings.short_users
        check_enough_items(protocol, n_with, len(kept.user_ids), str(files["ratings"]), most=is_table)
    noun, noun_singular, verb = domain_words(settings, facts)
    words = {"noun": noun, "noun_singular": noun_singular, "verb": verb}
    with ThreadPoolExecutor(1) as executor:
        describing = executor.submit(describe_splits, sequences, splits, kept.catalog, kept.time_divisor)
        text_rows = write_configs(folder / "data", kept, sequences, splits, settings.text_sample, words)
        described = describing.result()
    given = {"preset": "given", **ready.described()} if ready is not None else {"protocol": asdict(protocol)}
    return facts | words | described | given | {"text_rows": text_rows}


def write_configs(
    folder: Path,
    kept: RawData,
    sequences: Sequences,
    splits: dict[str, ExampleRanges],
    text_sample: int,
    words: dict[str, str],
) -> dict[str, int]:
    """Write `default`, `text`, `items` and `interactions`; returns the number of `text` rows by split."""
    user_ids = kept.user_ids.to_arrow().cast("string")
    catalog, divisor = kept.catalog, kept.time_divisor
    text_rows = {}
    files: list[tuple[str, pa.Schema, Iterator[pa.Table]]] = []
    for split, examples in splits.items():
        n = len(examples)
        tables = parquet.example_tables(user_ids, sequences, examples, divisor)
        files.append((f"default/{split}", parquet.EXAMPLE_SCHEMA, tables))
        drawn = examples.take(training_sample(n, text_sample) if split == "train" else evaluation_sample(n))
        tables = parquet.text_tables(user_ids, sequences, drawn, catalog, **words)
        files.append((f"text/{split}", parquet.TEXT_SCHEMA, tables))
        text_rows[split] = len(drawn)
    train_count = np.bincount(sequences.rows[splits["train"].targets], minlength=len(catalog))
    files.append(("items/train", parquet.ITEM_SCHEMA, iter([parquet.item_table(catalog, train_count)])))
    tables = parquet.interaction_tables(user_ids, kept.users, kept.rows, kept.ratings, kept.times, divisor)
    files.append(("interactions/train", parquet.INTERACTION_SCHEMA, tables))
    _say(f"writing {', '.join(f'{len(examples):,} {split}' for split, examples in splits.items())} examples")

    def write(file: tuple[str, pa.Schema, Iterator[pa.Table]]) -> None:
        name, schema, tables = file
        parquet.write_tables(folder / f"{name}.parquet", schema, tables)

    with ThreadPoolExecutor(WRITERS) as executor:  # compressing a single file leaves the other cores idle
        list(executor.map(write, files))  # an error or interrupt cancels those that have not started
    return text_rows


def domain_words(settings: PrepareSettings, facts: dict[str, Any]) -> tuple[str, str, str]:
    """(noun, singular, verb): from the settings, else the source, else the preset, else `items` that were `chosen`."""
    if "noun" in facts:
        known = facts
    elif settings.preset == "bigrec-game":
        known = {"noun": "video games", "noun_singular": "video game", "verb": "played"}
    elif settings.preset == "bigrec-movie":
        known = {"noun": "movies", "noun_singular": "movie", "verb": "watched"}
    else:
        known = {"noun": "items", "noun_singular": "item", "verb": "chosen"}
    noun = settings.noun or known["noun"]
    singular = settings.noun_singular or (noun.removesuffix("s") if settings.noun else known["noun_singular"])
    return noun, singular, settings.verb or known["verb"]


# --- one step into place --------------------------------------------------------------------------------------------


def _write_atomically(
    target: Path, files: dict[str, Path], protocol: Protocol, settings: PrepareSettings, fingerprint: dict[str, Any]
) -> dict[str, Any]:
    """Write to a temporary sibling, then move it into place; only then is an older prepared set replaced."""
    temporary = temporary_sibling(target)
    try:
        facts: dict[str, Any] = {
            "name": settings.dataset_name or _default_name(settings),
            "source": settings.source,
            "preset": settings.preset,
            "max_history": protocol.window,
            "bigrec_hf_version": __version__,
        }
        facts |= write_set(temporary, files, protocol, settings)
        facts |= fingerprint
        tables = {file.relative_to(temporary).as_posix(): file for file in sorted(temporary.rglob("*.parquet"))}
        facts["bytes"] = {name: file.stat().st_size for name, file in tables.items()}
        facts[CONTENT] = {name: cached_sha256(file) for name, file in tables.items()}
        (temporary / "README.md").write_text(dataset_card(facts), encoding="utf-8")
        text = json.dumps(facts, ensure_ascii=False, indent=2)
        (temporary / FACTS_FILE).write_text(text + "\n", encoding="utf-8")
        put_in_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return facts


def _default_name(settings: PrepareSettings) -> str:
    if settings.hub_dataset:
        return split_revision(settings.hub_dataset)[0].rstrip("/").rsplit("/")[-1]
    if settings.raw_dir:
        return Path(settings.raw_dir).resolve().name
    file = Path(str(settings.ratings_file)).resolve()
    stem = file.name.split(".")[0]
    return file.parent.name if stem in USUAL_STEMS or not stem else stem  # books.csv tells more than its folder


def _fingerprint(settings: PrepareSettings, sha256: dict[str, str]) -> dict[str, Any]:
    """What an existing prepared set is compared by: format, settings and raw files."""
    own = {name: value for name, value in asdict(settings).items() if name not in PLACES}
    own["dataset_name"] = settings.dataset_name or _default_name(settings)
    return {"format": FORMAT, "settings": own, "sha256": sha256}


def _finished_facts(target: Path, fingerprint: dict[str, Any]) -> dict[str, Any] | None:
    """Facts of the prepared set at `target` if it has this fingerprint and all its files, else None."""
    try:
        facts = json.loads((target / FACTS_FILE).read_text(encoding="utf-8"))
        sizes = {name: (target / name).stat().st_size for name in facts["bytes"]}
        for name, sha256 in facts.get(CONTENT, {}).items():
            check_unchanged(target / name, sha256)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    same = all(facts.get(name) == value for name, value in fingerprint.items()) and sizes == facts["bytes"]
    return facts if same and (target / "README.md").is_file() else None


def main(prepare: PrepareSettings) -> None:
    """Run the stage with settings from the command line or a recipe. BigrecError if source or target is not set."""
    options = asdict(prepare)
    source, raw_dir, target = (options.pop(name) for name in ("source", "raw_dir", "prepared_dir"))
    source = source or ("movielens" if prepare.download else None)
    if source is None or target is None:
        missing, flag = ("source", "--source") if source is None else ("the folder to write to", "--output_dir")
        raise BigrecError(f"{missing} is not set: give it with {flag}")
    prepare_dataset(source, raw_dir, target, **options)
