"""Recommend: the best items for many users, one row per user and rank, by the language model or another ranker.

Reads a run folder or an adapter, and users' histories; writes one file (parquet, CSV or JSON lines) and beside it
`<output>.json`, the record of the job. Finished shards of a killed job are used by the next one with the same settings.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow.parquet as pq
from tqdm import tqdm

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import write_json
from bigrec_hf.common.fingerprints import fingerprint
from bigrec_hf.common.locks import locked_folder
from bigrec_hf.common.shards import ShardFolder
from bigrec_hf.common.version import __version__
from bigrec_hf.data.catalog import catalog_sha256
from bigrec_hf.data.run_folder import existing_run
from bigrec_hf.data.user_tables import read_user_table
from bigrec_hf.hub.bundle import METHOD
from bigrec_hf.hub.histories import candidate_rows
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.recommend.columns import ColumnNames, histories_of
from bigrec_hf.recommend.output import check_output, describe_without_items, is_done, record_file, shown, write_rows
from bigrec_hf.recommend.rankers import Rankers
from bigrec_hf.recommend.serve import recommend_part, recommend_shards
from bigrec_hf.recommend.users import (
    Users,
    dataset_users,
    describe_unknown,
    match_items,
    read_category,
    read_names,
    why_unknown,
)
from bigrec_hf.settings.ray import NO_ACTORS, RaySettings

if TYPE_CHECKING:
    import numpy as np

    from bigrec_hf.data.catalog import Catalog
    from bigrec_hf.settings import RecommendSettings


def main(recommend: RecommendSettings, ray: RaySettings = NO_ACTORS) -> None:
    """The `recommend` command. Raises BigrecError, before a model is loaded, for inputs that do not fit."""
    s = recommend
    check_inputs(s)
    output = check_output(s.recommend_output) if s.recommend_output else None
    options = {"device": s.recommend_device} if s.recommend_device else {}
    source = s.recommend_adapter or (existing_run(s.recommend_run) if s.recommend_run else None)
    rankers = Rankers(source, s.recommend_dataset, **options)
    facts = rankers.facts(s.ranker)
    users, kind = read_users(s, rankers)
    if not len(users.ids):
        raise BigrecError("there is no user to recommend for: the histories are empty")
    n_fallback = int(users.without_known.sum())
    print(f"recommend: {counted(len(users.ids))} by {s.ranker}, items read as {kind}")
    for line in describe_unknown(users, rankers.catalog, kind):
        print(f"recommend: {line}")
    if n_fallback == len(users.ids):
        print(f"warning: {why_unknown(users, rankers.catalog, kind)}", file=sys.stderr, flush=True)
    if n_fallback:
        print(f"recommend: {counted(n_fallback)} without a known title: the most popular items (column fallback)")
        if rankers.train_counts is None:
            rankers.popularity(0, None)  # type: ignore[arg-type]  # raises
    candidates = read_candidates(s, rankers.catalog)
    if output is None:
        rank, seen = rankers.rank(s.ranker), not s.include_seen
        rows = recommend_part(rankers, rank, users, s.recommend_top_k, exclude_seen=seen, candidates=candidates)
        return print(shown(rows) or describe_without_items(1))
    if s.recommend_engine == "ray" and not ray.num_actors:
        ray = replace(ray, num_actors=1)
    write_file(output, s, ray, rankers, users, candidates, facts | {"items_are": kind})


def counted(n: int) -> str:
    """`1 user`, `2 users`."""
    return f"{n:,} user{'' if n == 1 else 's'}"


def read_candidates(s: RecommendSettings, catalog: Catalog) -> np.ndarray | None:
    """The catalog rows to choose from, (m,) int64; None for all. Of a table of categories, items that the catalog lacks
    are counted and left out. Raises BigrecError if none is left."""
    if not s.candidates:
        return None
    if not s.category:
        return candidate_rows(read_names(Path(s.candidates), "item"), catalog)
    names = read_category(Path(s.candidates), s.category_column, s.category)
    ids = set(catalog.item_ids)
    known = [name for name in names if name in ids or clean_title(name) in catalog.rows_by_title]
    wanted = ", ".join(s.category)
    if not known:
        raise BigrecError(
            f"{s.candidates}: none of the {len(names)} items of {wanted} is in the catalog: check its ids"
        )
    left_out = f", {len(names) - len(known):,} are not in the catalog" if len(known) < len(names) else ""
    print(f"recommend: {len(known):,} items of {wanted}{left_out}")
    return candidate_rows(known, catalog)


def check_inputs(s: RecommendSettings) -> None:
    """Raise BigrecError unless one recommender and one kind of input are given."""
    if not (s.recommend_run or s.recommend_adapter or (s.recommend_dataset and s.ranker != METHOD)):
        raise BigrecError(
            "nothing to recommend with: give --run_dir (a run) or --adapter (a folder or Hub id), or --dataset with a "
            "ranker that needs no language model (--ranker ease)"
        )
    given = [
        flag for flag, value in (("--histories", s.histories), ("--history", s.history), ("--users", s.users)) if value
    ]
    if len(given) != 1:
        what = "no users given" if not given else f"{' and '.join(given)} are both given"
        raise BigrecError(f"{what}: give one of --histories FILE, --users all (or a file), --history TITLE ...")
    if (s.category or s.category_column) and not (s.candidates and s.category):
        missing = "--candidates FILE, a table of items with their categories" if s.category else "--category"
        raise BigrecError(f"--category and --category_column choose among the items of a table: give {missing}")
    if not s.history and not s.recommend_output:
        raise BigrecError("no place to write to: give --output recs.parquet (or .csv, .jsonl)")


def read_users(s: RecommendSettings, rankers: Rankers) -> tuple[Users, str]:
    """The users of the settings, and whether their items were read as titles or ids."""
    if s.history:
        return match_items(pl.Series("user", ["you"]), [s.history], rankers.catalog, s.items_are)
    if s.users:
        if rankers.dataset is None:
            raise BigrecError("--users takes histories from a prepared set: name it with --dataset")
        models = rankers.models  # checks that the set's items are the catalog
        return dataset_users(models.dataset, s.users, models.catalog), "ids"
    path = Path(str(s.histories))
    names = ColumnNames(s.histories_user, s.histories_item, s.histories_time)
    separator = s.history_separator if path.suffix in (".csv", ".tsv") else None  # the others have lists
    ids, items, titled = histories_of(read_user_table(path, "histories"), names, str(path), separator)
    return match_items(ids, items, rankers.catalog, "titles" if titled and s.items_are == "auto" else s.items_are)


def write_file(
    output: Path,
    s: RecommendSettings,
    ray: RaySettings,
    rankers: Rankers,
    users: Users,
    candidates: np.ndarray | None,
    facts: dict[str, Any],
) -> None:
    """Write the file, unless this very job has done so; finished shards are kept until then."""
    facts = {
        **facts,
        "users_sha": fingerprint(users.ids.cast(pl.String).to_list(), users.histories.titles, users.histories.rows),
        "catalog_sha256": catalog_sha256(rankers.catalog),
        "candidates": None if candidates is None else fingerprint(candidates.tolist()),
        **{key: getattr(s, key) for key in ("recommend_top_k", "include_seen", "batch_users")},
    }
    key = fingerprint(facts)
    if is_done(output, key, overwrite=s.overwrite_output):
        return print(f"recommend: {output} is done and its settings are unchanged: kept")
    root = output.with_name(f".{output.name}.shards")
    with locked_folder(root / "job"):
        shards = ShardFolder(root, key, -(-len(users.ids) // s.batch_users))
        missing = shards.missing()
        n_users = [min(s.batch_users, len(users.ids) - number * s.batch_users) for number in missing]
        if len(missing) < shards.n_batches:
            print(f"recommend: resuming, {len(users.ids) - sum(n_users):,} of {len(users.ids):,} users are done")
        start = time.perf_counter()
        with tqdm(total=sum(n_users), desc="recommend", unit=" users", smoothing=0) as bar:
            recommend_shards(
                rankers,
                s.ranker,
                users,
                missing,
                shards.write_table,
                top_k=s.recommend_top_k,
                exclude_seen=not s.include_seen,
                candidates=candidates,
                batch_users=s.batch_users,
                progress=bar.update,
                ray=ray,
            )
        seconds = time.perf_counter() - start
        record_file(output).unlink(missing_ok=True)  # never beside rows that it does not describe
        files = (shards.path / name for name in sorted(file.name for file in shards.path.glob("batch-*.parquet")))
        n_rows, n_with = write_rows(output, (pq.read_table(file) for file in files))
        record = {
            "fingerprint": key,
            "users": len(users.ids),
            "rows": n_rows,
            "bytes": output.stat().st_size,
            "fallback_users": int(users.without_known.sum()),
            "users_without_items": len(users.ids) - n_with,
            "unknown_entries": users.unknown.total(),
            "unknown_items": len(users.unknown),
            "seconds": seconds,
            "users_per_second": sum(n_users) / seconds if missing else None,
            "bigrec_hf": __version__,
            **facts,
        }
        write_json(record_file(output), record)
        shards.remove()
    if n_with < len(users.ids):
        print(f"recommend: {describe_without_items(len(users.ids) - n_with)}")
    print(f"recommend: {n_rows:,} rows for {len(users.ids):,} users in {output}, {sum(n_users) / seconds:,.1f} users/s")
