"""The exact folder to push, for each kind: data set, index, adapter, metric. Nothing here needs a network."""

from __future__ import annotations

import mmap
import re
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, readable, write_again, write_json
from bigrec_hf.common.hub_names import SECRET, fetch_folder, is_hub_id, known_tokens
from bigrec_hf.data.generations import GENERATE_FILE
from bigrec_hf.data.prepared import FACTS_FILE, PREPARED_FILES, load_facts
from bigrec_hf.ground.index import FINGERPRINT_FILE, CatalogIndex, write_index
from bigrec_hf.hub.bundle import METHOD, Bundle, load_source_index
from bigrec_hf.hub.cards import COUNTS, HYPER_PARAMETERS, index_card, model_card
from bigrec_hf.hub.config import CATALOG_FILE, CONFIG_FILE, INDEX_FOLDER, write_config
from bigrec_hf.hub.items import bundle_catalog, bundle_train_counts, write_items
from bigrec_hf.metrics.ndcg_hr.names import split_revision
from bigrec_hf.models.identity import ADAPTER_CONTENT, adapter_fingerprint
from bigrec_hf.prepare.card import dataset_card, dataset_info
from bigrec_hf.report.rows import load_rows

METRIC_FILES = (
    *("README.md", "__init__.py", "app.py", "distances.py", "encoders.py", "examples.py", "names.py", "ndcg_hr.py"),
    *("nearest.py", "ranking.py", "requirements.txt", "scores.py", "titles.py"),
)


def new_folder(folder: Path) -> Path:
    """Create an empty folder, replacing one from an earlier dry run (it has a card). BigrecError for any other."""
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / "README.md").is_file():
            raise BigrecError(f"{folder} is not empty and not from a dry run: choose another --output_dir")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def dataset_folder(
    dataset: Path, folder: Path, repo_id: str, *, private: bool, permission: bool, models: Iterable[str] = ()
) -> dict[str, Any]:
    """Write a prepared set with its card for `repo_id`. Returns the set's facts."""
    facts = load_facts(str(dataset))
    copy_files(dataset, (FACTS_FILE, *PREPARED_FILES), folder)
    others = sorted(
        {file.relative_to(dataset).as_posix() for file in (dataset / "data").rglob("*") if not file.is_dir()}
    )
    if others := [name for name in others if name not in PREPARED_FILES]:
        print(f"not published, because they do not belong to a prepared set: {', '.join(others)}")
    with readable(dataset / FACTS_FILE):
        card = dataset_card(
            facts,
            repo_id=repo_id,
            info=dataset_info(folder, facts),
            private=private,
            permission=permission,
            models=list(models),
        )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return facts


def published_index(bundle: Bundle, base: dict[str, Any]) -> CatalogIndex:
    """A run's index, with a fingerprint that contains no local paths: the encoder is named by its Hub id.

    If the local copy equals the repository, the copy's digest is replaced by the commit. Raises BigrecError for an
    encoder that is another local folder.
    """
    index = load_source_index(str(bundle.index))
    encoder = bundle.config.encoder
    name = base["repo_id"] if encoder is None else split_revision(encoder)[0]
    if Path(name).exists() or name.startswith((".", "/", "~")):
        raise BigrecError(f"the encoder {name!r} is a local folder: to publish the index, use an encoder from the Hub")
    changes: dict[str, Any] = {"encoder": name}
    if encoder is None and base["weights"] == "same" and base.get("revision"):
        changes["revision"] = base["revision"]
    return replace(index, fingerprint={**index.fingerprint, **changes})


def save_index(index: CatalogIndex, folder: Path) -> None:
    """Write catalog, embeddings and fingerprint to `folder`, which is created if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    write_index(folder, index.catalog, index.embeddings, index.fingerprint)


def index_folder(
    index: CatalogIndex,
    folder: Path,
    repo_id: str,
    *,
    weights: str | None,
    data: dict[str, Any],
    dataset_repo: str | None,
) -> None:
    """Write catalog, embeddings and fingerprint, with a card."""
    save_index(index, folder)
    card = index_card(
        repo_id=repo_id,
        fingerprint=read_json(folder / FINGERPRINT_FILE),
        weights=weights,
        data=data,
        dataset_repo=dataset_repo,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def adapter_folder(
    bundle: Bundle,
    folder: Path,
    repo_id: str,
    base: dict[str, Any],
    *,
    data: dict[str, Any],
    dataset_repo: str | None,
    metric_repo: str | None,
    index: CatalogIndex | None,
    index_repo: str | None,
    with_catalog: bool,
    license: str | None,
) -> None:
    """Write adapter, tokenizer, settings, records and card of a run; with `index` the index too, and the catalog with
    its train counts where wanted.

    Raises BigrecError if the run's results are those of another adapter.
    """
    run_dir = Path(str(bundle.run_dir))
    generate = read_json(run_dir / METHOD / GENERATE_FILE)
    if adapter_fingerprint(bundle.adapter) != generate["adapter_sha256"]:
        raise BigrecError(
            f"the adapter of {run_dir} is newer than its results: run `bigrec-hf run` again, then publish"
        )
    copy_adapter(bundle.adapter, folder, base)
    training = published_training(run_dir, bundle, base, dataset_repo)
    scored = load_rows([run_dir])
    results = {row.method: dict(row.results[0]) for row in scored}
    for values in results.values():  # an encoder in a local folder is recorded by its path
        if "encoder" in values and bundle.config.encoder is None:
            values["encoder"] = base["repo_id"]
    if training:
        write_json(folder / "training.json", training)
    write_json(folder / "results.json", results)
    by_score = bundle.config.by_score
    catalog = bundle_catalog(bundle) if by_score else load_source_index(str(bundle.index)).catalog
    if with_catalog:
        write_items(folder, catalog, bundle_train_counts(bundle, catalog))
    has_index = index is not None or index_repo is not None
    own_catalog = CATALOG_FILE if by_score and with_catalog else dataset_repo
    config = replace(
        bundle.config,
        base_model=hub_name(base),
        index=INDEX_FOLDER if index is not None else index_repo,
        catalog=None if has_index else own_catalog,
        base_weights=base["weights"] if base["local"] else None,
    )
    write_config(config, folder)
    if index is not None:
        save_index(index, folder / INDEX_FOLDER)
    card = model_card(
        repo_id=repo_id,
        base=base,
        scored=scored,
        training=training,
        data=data,
        split=generate["data"]["split"] if generate["data"]["dataset"] else None,
        dataset_repo=dataset_repo,
        metric_repo=metric_repo,
        index_repo=index_repo,
        has_titles=has_index or with_catalog,
        config=read_json(folder / CONFIG_FILE),
        history=catalog.titles[:2],
        license=license,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def hub_name(base: dict[str, Any]) -> str:
    """`user/name@commit`, or `user/name` if no commit is known."""
    return f"{base['repo_id']}@{base['revision']}" if base.get("revision") else base["repo_id"]


def copy_adapter(adapter: str, folder: Path, base: dict[str, Any]) -> None:
    """Copy PEFT's and the tokenizer's files, and name the base model by its Hub id and commit."""
    origin = fetch_folder(adapter, "model", ADAPTER_CONTENT)
    names = [name for name in ADAPTER_CONTENT if (origin / name).is_file()]
    copy_files(origin, names, folder, links=is_hub_id(adapter, bare=True))
    name_base(folder, base)


def copy_files(origin: Path, names: Iterable[str], folder: Path, *, links: bool = False) -> None:
    """Copy these files and no others. `links`: follow links, as the cache of the Hub client consists of them.

    Raises BigrecError for a missing file, and else for a link, which may lead to anything.
    """
    for name in names:
        file = origin / name
        link = next((place for place in (file, *file.parents) if place != origin and place.is_symlink()), None)
        if link is not None and link.is_relative_to(origin) and not links:
            raise BigrecError(f"{link} is a link: replace it by the file to publish")
        if not file.is_file():
            raise BigrecError(f"{file} does not exist: it is needed to publish {origin}; {write_again(file)}")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, folder / name)


def name_base(folder: Path, base: dict[str, Any]) -> None:
    """Name the base model by its Hub id and commit in PEFT's configuration."""
    config = read_json(folder / "adapter_config.json")
    config |= {"base_model_name_or_path": base["repo_id"], "revision": base.get("revision")}
    write_json(folder / "adapter_config.json", config)


def published_training(run_dir: Path, bundle: Bundle, base: dict[str, Any], dataset_repo: str | None) -> dict[str, Any]:
    """training.json without local paths: base model and data are named as on the Hub, if they are there."""
    record = read_json(Path(split_revision(bundle.adapter)[0]) / "training.json")
    if not record:
        return {}
    settings = {name: record["settings"][name] for name in HYPER_PARAMETERS if name in record["settings"]}
    start = settings.get("init_adapter")
    if start and not is_hub_id(start, bare=True):
        settings["init_adapter"] = f"sha256:{record['settings']['init_adapter_content']['weights']}"
    others = record["settings"].get("trainer_args") or {}
    others = {key: value for key, value in others.items() if not re.search("token|dir|path|hub|name|resume", key)}
    settings |= {"trainer_args": others} if others else {}
    kept = {name: record[name] for name in (*COUNTS, "started", "environment", "history") if name in record}
    if "history" in kept:  # without the sample predictions, which show a user's history
        kept["history"] = [entry for entry in kept["history"] if "sample" not in entry]
    names = {"base_model": hub_name(base)} | ({"dataset": dataset_repo} if dataset_repo else {})
    return {"settings": {**settings, **names}, **kept}


def metric_folder(folder: Path, repo_id: str) -> None:
    """Write the metric as a Space; the examples in its card load it by its id."""
    from bigrec_hf.metrics import ndcg_hr

    origin = Path(str(ndcg_hr.__file__)).parent
    copy_files(origin, METRIC_FILES, folder)
    name = repo_id.split("/")[1]
    if name != "ndcg_hr":  # `evaluate` looks for a module named after the repository
        (folder / "ndcg_hr.py").rename(folder / f"{name}.py")
    for file in (folder / "README.md", folder / f"{name}.py", folder / "app.py"):
        text = file.read_text(encoding="utf-8")
        text = text.replace('evaluate.load("metrics/ndcg_hr"', f'evaluate.load("{repo_id}"')
        file.write_text(text, encoding="utf-8")


def check_nothing_private(folder: Path, paths: Iterable[str]) -> None:
    """Search every file for tokens and local paths. Raises BigrecError naming the file, but never the token."""
    needles = {str(Path.home()) + "/", str(Path.cwd()) + "/"}
    for path in paths:
        if path and "/" in path and Path(path).exists():
            needles |= {str(Path(path)), str(Path(path).resolve())}
    secret, tokens = re.compile(SECRET.pattern.encode()), known_tokens()
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or not file.stat().st_size:
            continue
        name = file.relative_to(folder)
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if secret.search(content) or any(content.find(token.encode()) >= 0 for token in tokens):
                raise BigrecError(f"{name} contains an access token: remove it from the run's records, and revoke it")
            paths = (needle for needle in sorted(needles) if needle.strip("/") and content.find(needle.encode()) >= 0)
            if found := next(paths, None):
                raise BigrecError(
                    f"{name} contains the local path {found!r}: nothing was published; remove it from the records"
                )
