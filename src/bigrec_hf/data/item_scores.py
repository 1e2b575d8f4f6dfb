"""Item scores: a collaborative model's score of every catalog item, one row per example, tied to ids and catalog.

The native format is safetensors: `scores`, (n_examples, n_items) float32, larger is better, with the example ids and
the catalog's sha256 in the metadata. Scores computed elsewhere may be given as

- `NAME.npy` beside `NAME.ids.json`: a JSON list of example ids, or an object with `example_ids` and, if known,
  `catalog_sha256`;
- parquet with the columns `example_id` and `scores` (a list of n_items numbers); the schema's metadata may contain
  `catalog_sha256`.

Rows are matched by id, never by position, so they may come in any order.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import readable, write_atomically
from bigrec_hf.data.catalog import Catalog, catalog_sha256

SCORES_FILE = "scores.safetensors"
CHUNK = 1024  # rows checked at a time


class _Stored(NamedTuple):
    """The content of a file: (n, m) scores, one id per row, the digest of their catalog (None: not recorded)."""

    scores: np.ndarray
    example_ids: list[str]
    catalog_sha256: str | None


def write_scores(
    path: str | Path, scores: np.ndarray, example_ids: Sequence[str], catalog: Catalog, **facts: Any
) -> None:
    """Write scores as safetensors, completely or not at all.

    Args:
        path: file to write, `.safetensors`.
        scores: (len(example_ids), len(catalog)), finite, larger is better; stored as float32.
        example_ids: one per row, distinct.
        catalog: its rows are the columns of `scores`.
        facts: how the scores were made (e.g. model="sasrec"), JSON-serializable; `read_facts` returns them.

    Raises BigrecError for another suffix, shapes that do not match, repeated ids, NaN or infinity.
    """
    from safetensors.numpy import save_file

    path = Path(path)
    if path.suffix != ".safetensors":
        raise BigrecError(f"{path}: scores are written as safetensors: the name must end in .safetensors")
    scores = _as_float32(scores)
    ids = [str(example_id) for example_id in example_ids]
    _check(str(path), _Stored(scores, ids, None), catalog)
    _check_finite(str(path), scores, ids)
    metadata = {
        "example_ids": json.dumps(ids, ensure_ascii=False),
        "catalog_sha256": catalog_sha256(catalog),
        "facts": json.dumps(facts, ensure_ascii=False),
    }
    write_atomically(path, lambda temporary: save_file({"scores": scores}, temporary, metadata=metadata))


def read_scores(path: str | Path, example_ids: Sequence[str], catalog: Catalog) -> np.ndarray:
    """(len(example_ids), len(catalog)) float32: the rows of these examples, in this order, however the file is ordered.

    The file may contain more examples. Raises BigrecError for a missing file or id, a repeated id, another catalog, a
    shape that does not match, NaN or infinity.
    """
    path = Path(path)
    stored = _read(path)
    _check(str(path), stored, catalog)
    row_of = {example_id: row for row, example_id in enumerate(stored.example_ids)}
    missing = [example_id for example_id in example_ids if example_id not in row_of]
    if missing:
        raise BigrecError(
            f"{path} has no scores for the example {missing[0]!r} ({len(missing)} of {len(example_ids)} are missing): "
            "score exactly these examples"
        )
    rows = [row_of[example_id] for example_id in example_ids]
    same = rows == list(range(len(stored.example_ids)))
    scores = _as_float32(stored.scores if same else stored.scores[rows])
    _check_finite(str(path), scores, example_ids)
    return scores


def read_facts(path: str | Path) -> dict[str, Any]:
    """The facts that `write_scores` stored in a safetensors file; {} for other file formats."""
    if Path(path).suffix != ".safetensors":
        return {}
    with readable(path):
        return dict(json.loads(_open(Path(path))[0].get("facts", "{}")))


def _as_float32(scores: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # overflow gives infinity, which is rejected as such
        return np.ascontiguousarray(scores, np.float32)


def _check(place: str, stored: _Stored, catalog: Catalog) -> None:
    """Check shape, ids and catalog. Raises BigrecError naming what does not match."""
    shape, n_ids = stored.scores.shape, len(stored.example_ids)
    if len(shape) != 2 or shape[0] != n_ids:
        raise BigrecError(f"{place}: scores of shape {shape} for {n_ids} example ids: give one row per example")
    if shape[1] != len(catalog):
        raise BigrecError(
            f"{place}: {shape[1]} scores per example, but the catalog has {len(catalog)} items: give one for each"
        )
    if len(set(stored.example_ids)) < n_ids:
        twice = next(example_id for example_id, n in Counter(stored.example_ids).items() if n > 1)
        raise BigrecError(f"{place}: the example {twice!r} has two rows of scores: keep one")
    if stored.catalog_sha256 is not None and stored.catalog_sha256 != catalog_sha256(catalog):
        raise BigrecError(
            f"{place} was made with another catalog (sha256 {stored.catalog_sha256[:12]}, not "
            f"{catalog_sha256(catalog)[:12]}): score the examples again with this one"
        )


def _check_finite(place: str, scores: np.ndarray, example_ids: Sequence[str]) -> None:
    for start in range(0, len(scores), CHUNK):
        finite = np.isfinite(scores[start : start + CHUNK])
        if not finite.all():
            row, column = np.argwhere(~finite)[0]
            raise BigrecError(
                f"{place}: the score of item row {column} for the example {example_ids[start + row]!r} is "
                f"{scores[start + row, column]}: scores must be finite float32 numbers"
            )


def _read(path: Path) -> _Stored:
    readers = {".safetensors": _read_safetensors, ".npy": _read_npy, ".parquet": _read_parquet}
    if path.suffix not in readers:
        raise BigrecError(f"{path} is not a file of item scores: give .safetensors, .npy (with .ids.json) or .parquet")
    if not path.is_file():
        raise BigrecError(f"{path} does not exist: score these examples with the model first")
    with readable(path):
        return readers[path.suffix](path)


def _open(path: Path) -> tuple[dict[str, str], np.ndarray | None]:
    """Metadata and the tensor `scores` of a safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return file.metadata() or {}, file.get_tensor("scores") if "scores" in file.keys() else None  # noqa: SIM118
    except SafetensorError as error:
        raise BigrecError(f"{path} is not a safetensors file ({error}): write it again") from error


def _read_safetensors(path: Path) -> _Stored:
    metadata, scores = _open(path)
    lacking = [name for name in ("example_ids", "catalog_sha256") if name not in metadata]
    if scores is None or lacking:
        raise BigrecError(
            f"{path} lacks {'the tensor scores' if scores is None else lacking[0]}: write item scores with "
            "bigrec_hf.data.item_scores.write_scores"
        )
    return _Stored(scores, json.loads(metadata["example_ids"]), metadata["catalog_sha256"])


def _read_npy(path: Path) -> _Stored:
    sidecar = path.with_suffix(".ids.json")
    if not sidecar.is_file():
        raise BigrecError(
            f"{path} does not say which example a row belongs to: write the ids, a JSON list in row order, to {sidecar}"
        )
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
        scores = np.load(path, allow_pickle=False)
    except ValueError as error:  # includes JSONDecodeError
        raise BigrecError(f"{path} or {sidecar.name} cannot be read: {error}") from error
    facts = content if isinstance(content, dict) else {"example_ids": content}
    ids = facts.get("example_ids")
    if not isinstance(ids, list) or scores.dtype.kind not in "fiu":
        raise BigrecError(f"{path}: expected numbers, and a JSON list of example ids in {sidecar.name}")
    return _Stored(scores, [str(example_id) for example_id in ids], facts.get("catalog_sha256"))


def _read_parquet(path: Path) -> _Stored:
    schema = pq.read_schema(path)
    missing = [name for name in (C.EXAMPLE_ID, C.SCORES) if name not in schema.names]
    if missing:
        raise BigrecError(f"{path} lacks the column {missing[0]!r}: expected example_id and scores (one list per row)")
    table = pq.read_table(path, columns=[C.EXAMPLE_ID, C.SCORES])
    column = table[C.SCORES].combine_chunks()
    kind = column.type
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not lists or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise BigrecError(f"{path}: the column scores holds {kind}: expected a list of numbers in each row")
    lengths = set(column.value_lengths().to_pylist()) if not pa.types.is_fixed_size_list(kind) else {kind.list_size}
    flat = column.flatten()
    if column.null_count or flat.null_count or len(lengths) > 1:
        raise BigrecError(f"{path}: the column scores must hold a list of the same length in every row, without nulls")
    scores = flat.to_numpy(zero_copy_only=False).reshape(len(table), -1) if len(table) else np.empty((0, 0))
    sha = (schema.metadata or {}).get(b"catalog_sha256")
    return _Stored(scores, [str(i) for i in table[C.EXAMPLE_ID].to_pylist()], sha.decode() if sha else None)


def find_scores(folder: Path, given: str | None) -> Path:
    """The scores file `given`, else the one in `folder` (.safetensors, .npy or .parquet)."""
    if given is not None:
        return Path(given)
    names = [Path(SCORES_FILE).with_suffix(suffix) for suffix in (".safetensors", ".npy", ".parquet")]
    return next((folder / name for name in names if (folder / name).is_file()), folder / SCORES_FILE)
