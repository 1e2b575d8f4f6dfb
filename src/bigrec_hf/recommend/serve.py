"""Recommendations for users: a part at a time, in shards, and as a frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.ray_actors import map_on_ray
from bigrec_hf.data.user_tables import as_polars
from bigrec_hf.hub.histories import Found, ItemChoice, candidate_rows, check_top_k, choose_items
from bigrec_hf.hub.recommender import Recommender
from bigrec_hf.recommend.columns import ColumnNames, histories_of
from bigrec_hf.recommend.mixes import Histories, Rank
from bigrec_hf.recommend.output import describe_without_items, rows_table
from bigrec_hf.recommend.rankers import Rankers
from bigrec_hf.recommend.users import Users, describe_unknown, match_items
from bigrec_hf.settings import RecommendSettings
from bigrec_hf.settings.field import check_value
from bigrec_hf.settings.ray import NO_ACTORS, RaySettings

BATCH_USERS = 256


def recommend_part(
    rankers: Rankers, rank: Rank, users: Users, top_k: int, *, exclude_seen: bool, candidates: np.ndarray | None
) -> pl.DataFrame:
    """The rows (`output.rows_table`) of some users; those without a known title get the most popular items."""
    fallback = users.without_known
    found: list[Found] = [Found([], [], [])] * len(fallback)
    for positions, answer in (
        (np.flatnonzero(~fallback).tolist(), rank),
        (np.flatnonzero(fallback).tolist(), lambda own, choice: rankers.popularity(len(own.titles), choice)),
    ):
        if not positions:
            continue
        own = Histories([users.histories.titles[i] for i in positions], [users.histories.rows[i] for i in positions])
        choice: ItemChoice = choose_items(
            own.titles, rankers.catalog, top_k, exclude_seen=exclude_seen, candidates=candidates
        )
        for position, one in zip(positions, answer(own, choice), strict=True):
            found[position] = one
    return rows_table(users.ids, found, fallback.tolist())


def recommend_shards(
    rankers: Rankers,
    ranker: str,
    users: Users,
    numbers: Iterable[int],
    write: Callable[[int, pa.Table], None],
    *,
    top_k: int,
    exclude_seen: bool,
    candidates: np.ndarray | None,
    batch_users: int,
    progress: Callable[[int], Any],
    ray: RaySettings = NO_ACTORS,
) -> None:
    """Write the rows of the shards of these numbers, of `batch_users` users each; call `progress` with each one's
    number of users. `ray`: the actors that compute them, in any order, each with its own models."""
    n_users = {number: min(batch_users, len(users.ids) - number * batch_users) for number in numbers}

    def keep(number: int, rows: pa.Table) -> None:
        write(number, rows)
        progress(n_users[number])

    choice = partial(recommend_part, top_k=top_k, exclude_seen=exclude_seen, candidates=candidates)
    parts = ((n, users.part(n * batch_users, (n + 1) * batch_users)) for n in n_users)
    if ray.num_actors:
        rankers.facts(ranker)  # raises for an unknown one
        load = partial(_load, rankers.name, rankers.dataset, rankers.options, ranker, choice)
        return map_on_ray(load, ((n, part.to_arrow()) for n, part in parts), keep, ray)
    rank = rankers.rank(ranker)
    for number, part in parts:
        keep(number, choice(rankers, rank, part).to_arrow(compat_level=pl.CompatLevel.oldest()))


def _load(
    name: str, dataset: str | None, options: dict[str, Any], ranker: str, choice: Callable[..., pl.DataFrame]
) -> Callable[[int, pa.Table], pa.Table]:
    """The function that recommends for the users of a shard in an actor; `options`: of `Rankers`."""
    rankers = Rankers(name, dataset, **options)
    rank = rankers.rank(ranker)

    def compute(_: int, users: pa.Table) -> pa.Table:
        return choice(rankers, rank, Users.from_arrow(users)).to_arrow(compat_level=pl.CompatLevel.oldest())

    return compute


def recommend_frame(
    frame: Any,
    recommender: Recommender | str | Path,
    *,
    top_k: int = 10,
    ranker: str = "finetuned",
    exclude_seen: bool = True,
    candidates: Iterable[str] | None = None,
    dataset: str | None = None,
    user_column: str | None = None,
    item_column: str | None = None,
    time_column: str | None = None,
    items_are: str = "auto",
    batch_users: int = BATCH_USERS,
) -> Any:
    """Recommendations for a table of histories: a frame of the same kind (pandas or polars), a row per user and rank.

    Args:
        frame: a row per user with a list of items, or a row per user and item; columns are found by their names
            (`columns.histories_of`) unless they are given. Items are titles or ids of the catalog (`items_are`).
        recommender: a Recommender, or what `Recommender.from_pretrained` takes.
        ranker: the language model (finetuned), or another ranker of its run: ease, itemknn, popularity, cooccurrence,
            sasrec, a method that `rerank` or `pool` wrote, or another decoding (finetuned_constrained_hybrid).
        candidates: ids or titles to choose from; None = the whole catalog.
        dataset: prepared set that the other rankers are fitted to (default: the run's).

    Returns user, rank (from 1), item_id, title, score, text, fallback (`output.rows_table`), the users in the order in
    which they first occur. Prints how many items are unknown, and for how many users there is no item to recommend.
    Raises BigrecError as `Rankers` and `histories_of`, and for other values of `items_are` or `batch_users`.
    """
    for key, value in (("items_are", items_are), ("batch_users", batch_users)):
        check_value(RecommendSettings, key, value, key)
    rankers = Rankers(recommender, dataset)
    names = ColumnNames(user_column, item_column, time_column)
    ids, items, titled = histories_of(as_polars(frame), names, "the frame")
    users, kind = match_items(ids, items, rankers.catalog, "titles" if titled and items_are == "auto" else items_are)
    print("\n".join(describe_unknown(users, rankers.catalog, kind)), end="\n" if users.unknown else "")
    rows = None if candidates is None else candidate_rows(candidates, rankers.catalog)
    tables: list[pa.Table] = []
    recommend_shards(
        rankers,
        ranker,
        users,
        range(-(-len(ids) // batch_users)),
        lambda _, table: tables.append(table),
        top_k=check_top_k(top_k),
        exclude_seen=exclude_seen,
        candidates=rows,
        batch_users=batch_users,
        progress=lambda n: None,
    )
    empty = rows_table(ids[:0], [], [])
    found = pl.concat([empty, *(pl.DataFrame(table) for table in tables)])
    without = describe_without_items(len(ids) - found.filter(pl.col(C.RANK) == 1).height)
    print(without, end="\n" if without else "")
    return found.to_pandas() if type(frame).__module__.startswith("pandas") else found
