"""Sequences: one line per user, item ids oldest first (`user_id<TAB>id id id ...`), and an items file. No times."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.catalog import find_items_file, read_catalog_file
from bigrec_hf.prepare.sources.base import RawData, encode_items, encode_users, find_file, require_folder, untitled_mask
from bigrec_hf.prepare.sources.delimited import STRING, read_delimited, read_header

USER, ITEMS = "user_id", "item_ids"


def find_sequence_files(raw_dir: Path | None, ratings: Path | None, items: Path | None) -> dict[str, Path]:
    """`sequences.tsv` (or `.txt`) and the items file next to it, unless given explicitly."""
    if ratings is None:
        names = ("sequences.tsv", "sequences.txt")
        ratings = find_file(require_folder(raw_dir), names, "sequences file", "--ratings_file")
    return {"ratings": ratings, "items": items or find_items_file(require_folder(raw_dir or ratings.parent))}


def load_sequences(ratings: Path, items: Path, encoding: str | None = None, drop_untitled: bool = False) -> RawData:
    """Read sequences. The header line `user_id<TAB>item_ids` is optional; further lines of a user are appended.

    Raises BigrecError for a line without two fields, or an id that is not in the items file (unless `drop_untitled`).
    """
    catalog = read_catalog_file(items, encoding)
    header = read_header(ratings, "\t", encoding or "utf-8")[0].partition(":")[0] == USER
    columns = {USER: STRING, ITEMS: STRING}
    lines = read_delimited(ratings, "\t", columns, [USER, ITEMS], header=header, encoding=encoding or "utf-8")
    first_line = 1 + int(header)
    ids = lines[ITEMS].str.extract_all(r"\S+")
    n_ids = ids.list.len().to_numpy()
    if not n_ids.all():
        raise BigrecError(f"{ratings}:{int(np.argmin(n_ids)) + first_line}: no item ids: fix or remove the line")
    flat = ids.explode()
    line_of = np.repeat(np.arange(lines.height) + first_line, n_ids)
    rows = encode_items(flat, catalog)
    missing = untitled_mask(rows, flat, ratings, line_of, drop_untitled)
    users = lines[USER].gather(line_of[~missing] - first_line)
    user_ids, codes = encode_users(users)
    return RawData(
        catalog=catalog,
        user_ids=user_ids,
        users=codes,
        rows=rows[~missing],
        ratings=None,
        times=None,
        raw_rows=len(flat),
        files=[ratings, items],
        dropped={"item without a title": int(missing.sum())},
        facts={
            "encoding": encoding or "utf-8",
            "licence": {"name": "Terms of the source: not recorded in its files", "redistribution": "unknown"},
        },
    )
