"""Names of the columns in every file the suite writes. Rows are 0-based catalog rows; times are UNIX seconds (UTC)."""

from __future__ import annotations

from typing import Final


class Columns:
    """Column names, grouped by the file in which they first appear."""

    # items: one row per catalog row, in catalog order
    ROW: Final = "row"  # int32, 0-based catalog row
    ITEM_ID: Final = "item_id"  # string, the source's own id
    TITLE: Final = "title"  # string, as the source spells it
    TRAIN_COUNT: Final = "train_count"  # int64, how often the item is a training target (popularity, Eq. 3)

    # interactions: one row per kept interaction, in file order
    USER_ID: Final = "user_id"  # string
    RATING: Final = "rating"  # float32 or null
    TIMESTAMP: Final = "timestamp"  # int64 seconds, null if the source only gives an order

    # default (examples): one row per history -> target pair
    # string, "{user_id}:{target's position in the sequence}"; "{file stem}#{record}" for the reference's JSON
    EXAMPLE_ID: Final = "example_id"
    HISTORY: Final = "history"  # list[int32], catalog rows, oldest first
    HISTORY_RATINGS: Final = "history_ratings"  # list[float32] or null
    TARGET: Final = "target"  # int32, catalog row (-1: the title is not in the catalog)

    # text: the reference's JSON fields
    INSTRUCTION: Final = "instruction"
    INPUT: Final = "input"
    OUTPUT: Final = "output"
    PREDICT: Final = "predict"  # list[string] in the reference's prediction files

    # examples as text, made on loading (data.examples)
    INPUT_PREFIX: Final = "input_prefix"  # the text before the first history title
    HISTORY_TITLES: Final = "history_titles"  # list[string], oldest first
    TARGET_TITLE: Final = "target_title"  # string

    # generations.parquet
    TEXTS: Final = "texts"  # list[string], generated titles, best first, up to the line break and unquoted
    SCORES: Final = "scores"  # list[float32], sequence log-probability scores as `generate` returns them
    EMPTY: Final = "empty"  # bool, the best generation is empty
    IN_CATALOG: Final = "in_catalog"  # bool, the best generation is a catalog title (quotes and outer spaces ignored)
    IN_HISTORY: Final = "in_history"  # bool, the best generation is a title of this example's history

    # rankings.parquet and per_example.parquet; the latter also has USER_ID, null where the examples name no user
    RANK: Final = "rank"  # int64, 0-based rank of the target in the whole catalog
    TOP_ROWS: Final = "top_rows"  # list[int32], the top_k catalog rows, nearest first
    TOP_DISTANCES: Final = "top_distances"  # list[float32], Euclidean

    # recommendations: one row per user and RANK, which counts from 1 here; ITEM_ID and TITLE as above
    USER: Final = "user"  # as the input names them
    SCORE: Final = "score"  # float32, larger is better
    TEXT: Final = "text"  # string, the first generated or the likeliest title; null for rankers that write none
    FALLBACK: Final = "fallback"  # bool, no known title in the history: the most popular items

    # keywords.parquet: one row per distinct clean title
    KEYWORDS: Final = "keywords"  # string, comma-separated; the title itself if the generation did not parse
    PARSED: Final = "parsed"  # bool, the generation was JSON with keywords
