"""Settings of recommendations for files of users."""

from __future__ import annotations

from dataclasses import dataclass

from bigrec_hf.settings.field import setting


@dataclass(frozen=True)
class RecommendSettings:
    """The best items for many users, one row per user and rank."""

    recommend_run: str | None = setting(None, "run folder: its language model and its other rankers", flag="--run_dir")
    recommend_adapter: str | None = setting(
        None,
        "published or trained adapter, instead of a run: folder or Hub id, `@revision` allowed",
        flag="--adapter",
        hub="model",
    )
    ranker: str = setting(
        "finetuned",
        "finetuned = the language model; ease, itemknn, popularity, cooccurrence (fitted to the prepared set); sasrec "
        "(if the run has trained it); or a method folder that `rerank` or `pool` wrote, e.g. finetuned_pool_ease, or "
        "that another decoding has, e.g. finetuned_constrained_hybrid",
    )
    histories: str | None = setting(
        None,
        "table of users and items (.csv, .tsv, .jsonl, .parquet): a row per user with a list, or a row per user and "
        "item",
    )
    histories_user: str | None = setting(None, "its column of users (default: found by its name)", flag="--user_column")
    histories_item: str | None = setting(
        None, "its column of items or histories (default: found by its name)", flag="--item_column"
    )
    histories_time: str | None = setting(
        None,
        "its column of times (default: found by its name; without one, in the order of the rows)",
        flag="--time_column",
    )
    items_are: str = setting(
        "auto",
        "what the histories name: titles or ids of the catalog; auto = what more of them are",
        choices=("auto", "titles", "ids"),
    )
    history_separator: str = setting(
        "|", "separator within a cell of a .csv or .tsv; in .jsonl and .parquet a text is one item"
    )
    users: str | None = setting(
        None, "users of the prepared set with all their items: all, or a file with one user per line"
    )
    history: list[str] = setting([], "titles of a single history, oldest first; prints the items")
    recommend_dataset: str | None = setting(
        None,
        "prepared set of --users and of the rankers without a language model (default: the run's)",
        flag="--dataset",
        hub="dataset",
    )
    recommend_top_k: int = setting(10, "items per user", flag="--top_k", least=1)
    recommend_output: str | None = setting(None, "file to write: .parquet, .csv or .jsonl", flag="--output")
    include_seen: bool = setting(False, "recommend items of the history again")
    candidates: str | None = setting(
        None, "file of item ids or titles, one per line or a table: only these are recommended (default: all)"
    )
    category: list[str] = setting(
        [], "of the table of --candidates only the items of these categories, e.g. Comedy Drama (any of them)"
    )
    category_column: str | None = setting(
        None,
        "its column of categories: a text, a list, or texts separated by | (default: category, genres, ... if there)",
    )
    overwrite_output: bool = setting(False, "replace an output that another job has written", flag="--overwrite")
    recommend_engine: str = setting(
        "local",
        "what computes: local = this process, unless --num_actors is given; ray = at least one actor on a Ray cluster",
        flag="--engine",
        choices=("local", "ray"),
    )
    batch_users: int = setting(
        256,
        "users recommended for together: what a kill can lose; in 16 bits, another number can change the order of "
        "nearly tied items",
        least=1,
    )
    recommend_device: str | None = setting(
        None, "device of the language model, e.g. cpu, cuda:1 (default: a GPU if there is one)", flag="--device"
    )
