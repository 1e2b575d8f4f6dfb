"""Names of the columns in every file the suite writes. Rows are 0-based catalog rows; times are UNIX seconds (UTC)."""

from __future__ import annotations

from typing import Final


class Columns:
    """Column-name constants, grouped by the artifact that first holds them."""

    # items: one row per catalog row, in catalog order
    ROW: Final = "row"  # int32, 0-based catalog row
    ITEM_ID: Final = "item_id"  # string, the source's own id
    TITLE: Final = "title"  # string, as the source spells it
    TRAIN_COUNT: Final = "train_count"  # int64, how often the item is a training target (popularity, Eq. 3)

    # interactions: one row per kept interaction, in file order
    USER_ID: Final = "user_id"  # string
    RATING: Final = "rating"  # float32 or null
    TIMESTAMP: Final = "timestamp"  # int64 seconds, or null where the source has only an order

    # default (examples): one row per history -> target pair
    EXAMPLE_ID: Final = "example_id"  # string, "{user_id}:{position of the target in the user's sequence}"
    HISTORY: Final = "history"  # list[int32], catalog rows, oldest first
    HISTORY_RATINGS: Final = "history_ratings"  # list[float32] or null
    TARGET: Final = "target"  # int32, catalog row (-1: the title is in no catalog row)

    # text: the reference's JSON fields
    INSTRUCTION: Final = "instruction"
    INPUT: Final = "input"
    OUTPUT: Final = "output"
    PREDICT: Final = "predict"  # list[string] in the reference's prediction files

    # examples as text, made on loading (data.examples)
    INPUT_PREFIX: Final = "input_prefix"  # what stands before the first history title
    HISTORY_TITLES: Final = "history_titles"  # list[string], oldest first
    TARGET_TITLE: Final = "target_title"  # string

    # generations.parquet
    TEXTS: Final = "texts"  # list[string], best first, cut and unquoted
    SCORES: Final = "scores"  # list[float32], sequence log-probability scores as `generate` gives them
    EMPTY: Final = "empty"  # bool, the first text is empty
    IN_CATALOG: Final = "in_catalog"  # bool, the first text is a catalog title (quotes and outer spaces ignored)
    IN_HISTORY: Final = "in_history"  # bool, the first text is a title of this example's history

    # rankings.parquet and per_example.parquet
    RANK: Final = "rank"  # int64, 0-based rank of the target in the whole catalog
    TOP_ROWS: Final = "top_rows"  # list[int32], the top_k catalog rows, nearest first
    TOP_DISTANCES: Final = "top_distances"  # list[float32], Euclidean

    # keywords.parquet: one row per distinct clean title
    KEYWORDS: Final = "keywords"  # string, comma-separated; the title itself where the answer did not parse
    PARSED: Final = "parsed"  # bool, the answer was JSON with keywords
