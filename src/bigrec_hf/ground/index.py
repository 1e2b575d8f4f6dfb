"""The catalog index: one embedding per catalog row, with a fingerprint of everything that determines them.

The folder holds `embeddings.safetensors` (`embeddings`, (n_items, d) float32), `catalog.parquet` (row, item_id, title)
and `fingerprint.json`, which is written last: a folder without it is not an index. The fingerprint covers the encoder
(a local folder by the sha256 of its configuration, tokenizer and weights, wherever it is; a Hub model by name and
commit), its kind, dtype and template, and the sha256 of the catalog. Library versions and batch size are not covered:
they change the vectors only by float32 rounding. It also holds the sha256 of the embeddings, and whoever opens an index
compares its content with both.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, read_table, readable
from bigrec_hf.common.fingerprints import file_fingerprint, fingerprint
from bigrec_hf.common.hub_names import fetch_folder, is_hub_id
from bigrec_hf.common.ray_actors import map_on_ray
from bigrec_hf.common.shards import ShardFolder, processes
from bigrec_hf.data.catalog import Catalog, catalog_sha256
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.models.encoder import Encode, encoder_fingerprint, encoder_name, lazy_encode

if TYPE_CHECKING:
    from accelerate import PartialState

    from bigrec_hf.settings import GroundSettings, ModelSettings
    from bigrec_hf.settings.ray import RaySettings

EMBEDDINGS_FILE = "embeddings.safetensors"
CATALOG_FILE = "catalog.parquet"
FINGERPRINT_FILE = "fingerprint.json"
INDEX_FILES = (EMBEDDINGS_FILE, CATALOG_FILE, FINGERPRINT_FILE)
TEMPLATE = "bare title"  # without surrounding white space and quotes (clean_title), and without a prompt
CONTENT = "embeddings_sha256"
REBUILD = "delete that folder to rebuild it, or download it again"
PARTS_FOLDER = ".parts"
PART_TITLES = 2048  # titles per part: the most that a killed process loses, and the smallest unit of work of a process


@dataclass(frozen=True)
class CatalogIndex:
    """A catalog and its embeddings, row by row."""

    catalog: Catalog
    embeddings: np.ndarray  # (n_items, d) float32
    fingerprint: dict[str, Any]

    def __len__(self) -> int:
        """The number of items."""
        return len(self.catalog)


def index_fingerprint(catalog: Catalog, encoder: dict[str, str]) -> dict[str, Any]:
    """Return the fingerprint of an index of this catalog by this encoder (`encoder_fingerprint`)."""
    return {**encoder, "template": TEMPLATE, "catalog_sha256": catalog_sha256(catalog), "n_items": len(catalog)}


def differences(found: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """Return the names of the fields that differ from `expected`; the path of a local encoder is ignored."""
    names = [name for name in expected if found.get(name) != expected[name]]
    if "encoder" in names and "revision" not in names and str(expected.get("revision")).startswith("sha256:"):
        names.remove("encoder")
    return names


def read_fingerprint(index_dir: str | Path) -> dict[str, Any] | None:
    """Return the fingerprint of the index in a folder; None if there is no complete index, BigrecError if damaged."""
    file = Path(index_dir) / FINGERPRINT_FILE
    return read_json(file) if file.is_file() else None


def index_mark(index_dir: str) -> str:
    """Return a fingerprint of an index's files, if it is a folder; of a Hub id, the name."""
    files = [Path(index_dir) / name for name in INDEX_FILES]
    return file_fingerprint(*filter(Path.is_file, files)) if Path(index_dir).is_dir() else index_dir


def load_index(index_dir: str | Path, expected: dict[str, Any] | None = None) -> CatalogIndex:
    """Read an index. Raises BigrecError if it is incomplete, its content is not what its fingerprint says, or the
    fingerprint differs from `expected` (any fields of `index_fingerprint`)."""
    folder = Path(index_dir)
    found = read_fingerprint(folder)
    if found is None:
        raise BigrecError(f"{folder} holds no complete index ({FINGERPRINT_FILE}): build it with `bigrec-hf ground`")
    expected = expected or {}
    wrong = differences(found, expected)
    if wrong:
        name = wrong[0]
        raise BigrecError(
            f"the index in {folder} has {name} {found.get(name)!r}, but this run needs {expected[name]!r}: "
            "name another --index_dir, or delete that folder to rebuild it"
        )
    catalog, embeddings = read_content(folder)
    problem = _damage(catalog, embeddings, found)
    if problem is not None:
        raise BigrecError(f"the index in {folder} is damaged: {problem}; {REBUILD}")
    return CatalogIndex(catalog, embeddings, found)


def read_content(folder: Path) -> tuple[Catalog, np.ndarray]:
    """Return the catalog and the array of embeddings in an index folder. Raises BigrecError for an unreadable file."""
    from safetensors.numpy import load_file

    for name in (CATALOG_FILE, EMBEDDINGS_FILE):
        if not (folder / name).is_file():
            raise BigrecError(f"the index in {folder} has lost its {name}: {REBUILD}")
    with readable(folder / CATALOG_FILE, REBUILD):
        table = read_table(folder / CATALOG_FILE, [C.ITEM_ID, C.TITLE], remedy=REBUILD)
        columns = [table[name].cast(pa.string()).to_pylist() for name in (C.ITEM_ID, C.TITLE)]
        if any(None in column for column in columns):
            raise ValueError("an id or title is null")
    with readable(folder / EMBEDDINGS_FILE, REBUILD):
        return Catalog(*columns), load_file(folder / EMBEDDINGS_FILE)["embeddings"]


def _damage(catalog: Catalog, embeddings: np.ndarray, found: dict[str, Any]) -> str | None:
    """Say what is wrong with an index's content, by its fingerprint; None if nothing is."""
    shape = (found.get("n_items"), found.get("dim"))
    if embeddings.shape != shape or len(catalog) != shape[0]:
        return f"{embeddings.shape} embeddings and {len(catalog)} titles, but its fingerprint says {shape}"
    if embeddings.dtype != np.float32:
        return f"its embeddings are {embeddings.dtype}, not float32"
    if catalog_sha256(catalog) != found.get("catalog_sha256"):
        return f"{CATALOG_FILE} holds another catalog than its fingerprint says"
    if found.get(CONTENT) not in (None, embeddings_sha256(embeddings)):  # None: written by an earlier release
        return f"{EMBEDDINGS_FILE} was changed after it was written"
    wrong = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    return f"the embedding of {catalog.titles[wrong[0]]!r} is not finite" if len(wrong) else None


def embeddings_sha256(embeddings: np.ndarray) -> str:
    """Return the sha256 of an array's numbers, row by row."""
    return hashlib.sha256(np.ascontiguousarray(embeddings).data).hexdigest()


def build_index(
    index_dir: str | Path,
    catalog: Catalog,
    encode: Encode,
    encoder: dict[str, str],
    *,
    owned: bool = True,
    progress: bool = True,
    state: PartialState | None = None,
    ray: RaySettings | None = None,
) -> CatalogIndex:
    """Return the index of `catalog` by `encode`, whose fingerprint is `encoder`; it is reused if nothing has changed.

    `owned`: the folder belongs to this run, and an index of something else in it, or a damaged one, is replaced;
    otherwise it is refused.
    Encoding proceeds in parts; those that a killed run has finished are used by the next. The files are moved into
    place when they are complete. `state`: the processes that call this together (None = this one alone). Each encodes
    some of the parts, the first writes the files, and all return the same index; the parts do not depend on the number
    of processes. `ray`: the actors that encode the parts, if there are any. Raises BigrecError for an empty catalog,
    NaN embeddings, a refused index, or a folder that holds something else.
    """
    folder = Path(index_dir)
    expected = index_fingerprint(catalog, encoder)
    try:
        found = read_fingerprint(folder)
        if found is not None and (not owned or not differences(found, expected)):
            return load_index(folder, expected)
    except BigrecError as error:
        if not owned:
            raise
        if state is None or state.is_main_process:
            print(f"{error}: it is built again", flush=True)
    check_index_folder(folder)
    if len(catalog) == 0:
        raise BigrecError("the catalog is empty: an index needs at least one title")
    titles = list(dict.fromkeys(clean_title(title) for title in catalog.titles))
    parts = ShardFolder(
        folder / PARTS_FOLDER, fingerprint(expected), -(-len(titles) // PART_TITLES), **processes(state)
    )
    numbers = parts.own()
    if state is not None:
        state.wait_for_everyone()  # all processes see the same parts before the first new one appears
    first = state is None or state.is_main_process
    with parts.shared_failure():
        tasks = (
            (number, pa.table({C.TITLE: titles[number * PART_TITLES : (number + 1) * PART_TITLES]}))
            for number in numbers
        )
        compute = partial(_encode_part, encode, encoder["encoder"])
        with tqdm(total=len(numbers), desc="index", unit="part", disable=not (progress and first)) as bar:

            def write(number: int, table: pa.Table) -> None:
                parts.write_table(number, table)
                bar.update()

            if ray is not None and ray.num_actors:
                map_on_ray(lambda: compute, tasks, write, ray)
            else:
                for number, part in tasks:
                    write(number, compute(number, part))
        if first:
            parts.wait_complete()
            distinct = np.concatenate([table_vectors(table) for table in parts.read_tables()])
            position = {title: i for i, title in enumerate(titles)}
            embeddings = distinct[[position[clean_title(title)] for title in catalog.titles]]  # (n_items, d) float32
            write_index(folder, catalog, embeddings, {**expected, "dim": embeddings.shape[1], "versions": _versions()})
            parts.remove()
        else:
            parts.wait_joined()
    return load_index(folder, expected)


def _encode_part(encode: Encode, name: str, _: int, part: pa.Table) -> pa.Table:
    """The vectors of a part of the titles. Raises BigrecError if one is not finite."""
    titles = part[C.TITLE].to_pylist()
    vectors = np.asarray(encode(titles), np.float32)
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise BigrecError(
            f"the encoder {name!r} gives NaN or infinity for {titles[row]!r}: try --encoder_dtype float32"
        )
    return vectors_table(vectors)


def vectors_table(vectors: np.ndarray) -> pa.Table:
    """Return vectors, (n, d) float32, as a table of one column."""
    return pa.table({"vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])})


def table_vectors(table: pa.Table) -> np.ndarray:
    """Return the vectors, (n, d) float32, of a `vectors_table`."""
    column = table["vector"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def check_index_folder(folder: Path) -> None:
    """Raise BigrecError for a file, and for a folder that holds other files and no index, complete or partial."""
    if folder.exists() and not folder.is_dir():
        raise BigrecError(f"{folder} is a file: name a folder for the index with --index_dir")
    if not folder.is_dir() or (folder / FINGERPRINT_FILE).is_file():
        return
    own = {*INDEX_FILES, *(f".{name}.tmp" for name in INDEX_FILES)}
    foreign = [f.name for f in sorted(folder.iterdir()) if f.name not in own and not f.name.startswith(PARTS_FOLDER)]
    if foreign:
        raise BigrecError(
            f"{folder} is not empty and not an index (it holds {foreign[0]!r} but no {FINGERPRINT_FILE}): "
            "name another folder with --index_dir"
        )


def write_index(folder: Path, catalog: Catalog, embeddings: np.ndarray, fingerprint: dict[str, Any]) -> None:
    """Write all three files beside the old ones, then move them into place, the fingerprint last."""
    from safetensors.numpy import save_file

    table = pa.table(
        {
            C.ROW: pa.array(range(len(catalog)), pa.int32()),
            C.ITEM_ID: pa.array(catalog.item_ids, pa.string()),
            C.TITLE: pa.array(catalog.titles, pa.string()),
        }
    )
    names = INDEX_FILES
    temporary = [folder / f".{name}.tmp" for name in names]
    facts = {**fingerprint, CONTENT: embeddings_sha256(embeddings)}
    try:
        save_file({"embeddings": np.ascontiguousarray(embeddings)}, temporary[0])
        pq.write_table(table, temporary[1])
        temporary[2].write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        (folder / FINGERPRINT_FILE).unlink(missing_ok=True)  # from here to the last move the folder is not an index
        for name, file in zip(names, temporary, strict=True):
            file.replace(folder / name)
    finally:
        for file in temporary:
            file.unlink(missing_ok=True)


def _versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "sentence-transformers", "tokenizers")}


def open_index(
    catalog: Catalog,
    model: ModelSettings,
    ground: GroundSettings,
    own_dir: str | Path,
    state: PartialState | None = None,
    ray: RaySettings | None = None,
) -> tuple[CatalogIndex, Encode]:
    """Return the index of a catalog and its encoder, by the settings.

    `index_dir`, a folder that the user named, is never overwritten with another index; without it the index is in
    `own_dir`, which belongs to the run. `state`, `ray`: as of `build_index`. Raises BigrecError for a dtype that would
    depend on the machine of an actor.
    """
    if ray is not None and ray.num_actors and ground.encoder_dtype == "auto":
        raise BigrecError("encoder_dtype is auto, which actors may read differently: name one, e.g. float32")
    encoder, dtype, index_dir = encoder_name(ground.encoder, model.base_model), ground.encoder_dtype, ground.index_dir
    encode = lazy_encode(encoder, dtype, ground.encode_batch_tokens)
    facts = encoder_fingerprint(encoder, dtype)
    if index_dir is not None and "@" in index_dir and is_hub_id(index_dir):  # pinned names only: see hub.pin
        index_dir = str(fetch_folder(index_dir, "dataset", INDEX_FILES))
    index = build_index(index_dir or own_dir, catalog, encode, facts, owned=index_dir is None, state=state, ray=ray)
    return index, encode
