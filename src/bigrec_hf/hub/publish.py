"""Publish a data set, an adapter, an index, the metric, a whole run or a demo, one commit per repository; or a dry run.

A dry run (on request, or without a token) writes the exact folder that would be pushed, and says what would happen.
"""

from __future__ import annotations

import errno
import shutil
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, temporary_folder, whole_records
from bigrec_hf.common.hub_names import check_repo_id, is_hub_id, pin_name
from bigrec_hf.data.generations import GENERATE_FILE
from bigrec_hf.data.prepared import load_facts
from bigrec_hf.hub import contents as folders
from bigrec_hf.hub.base_model import find_base
from bigrec_hf.hub.bundle import Bundle, from_run
from bigrec_hf.hub.demo_space import demo_folder, published_config
from bigrec_hf.hub.publisher import Publisher, check_terms, forbidden
from bigrec_hf.metrics.ndcg_hr.names import split_revision
from bigrec_hf.settings import PublishSettings

METRIC_NAME = "ndcg_hr"


def push_dataset(publisher: Publisher, dataset: str, repo_id: str, models: list[str]) -> str | None:
    """Publish a prepared set (a local folder) with its card, which links `models`. Returns as `Publisher.send`.

    Raises BigrecError if `dataset` is not a folder or its terms forbid publishing it.
    """
    settings = publisher.settings
    publisher.paths.append(dataset)
    if not Path(dataset).is_dir():
        raise BigrecError(
            f"{dataset!r} is not a folder: give the prepared set with --dataset, or its run with --run_dir"
        )
    facts = load_facts(dataset)
    check_terms(facts.get("licence"), settings, f"the data set {facts['name']}")
    folder = publisher.build(repo_id, "dataset")
    permission = settings.i_have_permission and forbidden(facts.get("licence")) is not None and not settings.private
    folders.dataset_folder(
        Path(dataset), folder, repo_id, private=settings.private, permission=permission, models=models
    )
    return publisher.send(folder, repo_id, "dataset", facts.get("licence"), "data set")


def push_metric(publisher: Publisher, repo_id: str) -> str | None:
    """Publish the metric as a Space. Returns as `Publisher.send`."""
    folder = publisher.build(repo_id, "space")
    folders.metric_folder(folder, repo_id)
    return publisher.send(folder, repo_id, "space", None, "metric")


def push_demo(publisher: Publisher, repo_id: str) -> str | None:
    """Publish the demo of an adapter on the Hub as a Space. Returns as `Publisher.send`.

    Raises BigrecError if there is no such adapter, or the terms of the titles it shows forbid publishing them.
    """
    adapter = publisher.settings.published_adapter
    config = published_config(adapter)
    check_terms(config.get("licence"), publisher.settings, "the demo (it shows the catalog)")
    folder = publisher.build(repo_id, "space")
    demo_folder(folder, repo_id, str(adapter), config)
    return publisher.send(folder, repo_id, "space", config.get("licence"), "demo")


def run_data(bundle: Bundle, settings: PublishSettings) -> tuple[str | None, dict[str, Any]]:
    """The run's prepared set (folder or Hub id) and its facts; (None, {}) for a run from JSON files."""
    run_dir = Path(str(bundle.run_dir))
    names = read_json(run_dir / "finetuned" / GENERATE_FILE)["data"]["dataset"]
    name = settings.published_dataset or (names[0] if names else None)
    if name is None:
        return None, {}
    if not Path(split_revision(name)[0]).exists() and not is_hub_id(name) and (run_dir / "data").is_dir():
        name = str(run_dir / "data")
    return name, load_facts(name)


def push_index(
    publisher: Publisher, bundle: Bundle, base: dict[str, Any], repo_id: str, data: dict[str, Any], dataset: str | None
) -> str | None:
    """Publish a run's catalog index with its card. `base` as of `find_base`; `dataset`: a Hub id for the card.

    Returns as `Publisher.send`. Raises BigrecError if the data's terms forbid publishing the titles.
    """
    check_terms(bundle.config.licence, publisher.settings, "the index (it holds the catalog)")
    folder = publisher.build(repo_id, "dataset")
    index = folders.published_index(bundle, base)
    weights = base["weights"] if base["local"] and bundle.config.encoder is None else None
    folders.index_folder(index, folder, repo_id, weights=weights, data=data, dataset_repo=dataset)
    return publisher.send(folder, repo_id, "dataset", bundle.config.licence, "index")


def push_adapter(
    publisher: Publisher,
    bundle: Bundle,
    base: dict[str, Any],
    repo_id: str,
    data: dict[str, Any],
    *,
    dataset: str | None,
    metric: str | None,
    index_repo: str | None,
    with_catalog: bool = False,
) -> str | None:
    """Publish a run's adapter, with index and catalog inside unless the index is in `index_repo`, or the settings leave
    both out. `with_catalog`: the catalog beside an index in `index_repo`, whose terms were checked.

    `base` as of `find_base`, `data` the prepared set's facts; the other names are Hub ids for the card. Returns as
    `Publisher.send`. Raises BigrecError if the data's terms forbid publishing the titles.
    """
    settings = publisher.settings
    by_score = bundle.config.by_score
    if by_score and index_repo is not None:
        raise BigrecError(f"{bundle.run_dir} ranks by probabilities and has no index: omit --index_repo_id")
    with_titles = index_repo is None and settings.with_index
    if with_titles:
        check_terms(bundle.config.licence, settings, "the adapter's catalog" if by_score else "the adapter's index")
    folder = publisher.build(repo_id, "model")
    folders.adapter_folder(
        bundle,
        folder,
        repo_id,
        base,
        data=data,
        dataset_repo=dataset,
        metric_repo=metric,
        index=folders.published_index(bundle, base) if with_titles and not by_score else None,
        index_repo=index_repo,
        with_catalog=with_titles or with_catalog,
        license=settings.model_license,
    )
    licence = bundle.config.licence if with_titles or with_catalog else None
    return publisher.send(folder, repo_id, "model", licence, "adapter")


def carry_out(settings: PublishSettings) -> str | None:
    """Publish according to the settings; returns `repo_id@commit` of the (main) repository, None after a dry run."""
    with temporary_folder() as temporary:
        place = settings.published_run or settings.published_dataset or "this installation"
        try:
            with whole_records(place, "run the stages that write them again"):
                return publish_kind(settings, temporary)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            full = error.filename2 or error.filename or temporary
            raise BigrecError(
                f"no space left on the disk to build the folder to push ({full}): free some, or move TMPDIR elsewhere"
            ) from error


def publish_kind(settings: PublishSettings, temporary: Path) -> str | None:
    """`carry_out`, with an empty folder `temporary` to build in."""
    kind, repo_id = settings.publish_kind, check_repo_id(settings.repo_id, "--repo_id")
    for flag, name in names_of_run(settings).items() if kind == "run" else ():
        check_repo_id(name, flag)
    publisher = Publisher(settings, temporary)
    if kind == "metric":
        return push_metric(publisher, repo_id)
    if kind == "demo":
        return push_demo(publisher, repo_id)
    if kind == "dataset" and settings.published_dataset:
        return push_dataset(publisher, settings.published_dataset, repo_id, [])
    if not settings.published_run:
        raise BigrecError(f"nothing to publish: give --run_dir{' or --dataset' if kind == 'dataset' else ''}")
    bundle = from_run(Path(settings.published_run))
    publisher.paths += [bundle.config.base_model, bundle.adapter, bundle.index]
    dataset, data = run_data(bundle, settings)
    if kind == "dataset":
        if dataset is None:
            raise BigrecError(f"{settings.published_run} was made from JSON files: it has no prepared set to publish")
        return push_dataset(publisher, dataset, repo_id, [])
    base = find_base(bundle, settings.published_base, publisher.dry)
    named = settings.dataset_repo_id or (dataset if dataset and is_hub_id(dataset) else None)
    if kind == "index":
        if bundle.config.by_score:
            raise BigrecError(
                f"{settings.published_run} ranks by probabilities and has no index: publish its adapter, which holds "
                "the catalog"
            )
        return push_index(publisher, bundle, base, repo_id, data, named)
    if kind == "adapter":
        own = bundle.index if bundle.index and is_hub_id(bundle.index) else None  # the run used an index from the Hub
        pinned = [pin_name(name, "dataset") if name else None for name in (named, settings.index_repo_id or own)]
        metric = settings.metric_repo_id
        return push_adapter(
            publisher, bundle, base, repo_id, data, dataset=pinned[0], metric=metric, index_repo=pinned[1]
        )
    return push_run(publisher, bundle, base, repo_id, data, dataset)


def names_of_run(settings: PublishSettings) -> dict[str, str]:
    """The further repositories of `publish run`, by the flag that names each."""
    names = {
        "--metric_repo_id": settings.metric_repo_id or f"{str(settings.repo_id).split('/')[0]}/{METRIC_NAME}",
        "--index_repo_id": settings.index_repo_id or f"{settings.repo_id}-index",
    }
    return names | ({"--dataset_repo_id": settings.dataset_repo_id} if settings.dataset_repo_id else {})


def push_run(
    publisher: Publisher, bundle: Bundle, base: dict[str, Any], repo_id: str, data: dict[str, Any], dataset: str | None
) -> str | None:
    """Publish everything in a run; the adapter comes last, because its card names the commits of the others."""
    settings = publisher.settings
    named = settings.dataset_repo_id
    if named and dataset and not is_hub_id(dataset):
        named = push_dataset(publisher, dataset, named, [repo_id]) or named
    elif dataset and is_hub_id(dataset):
        named = dataset
    names = names_of_run(settings)
    metric, name = names["--metric_repo_id"], names["--index_repo_id"]
    push_metric(publisher, metric)
    index = None if bundle.config.by_score else push_index(publisher, bundle, base, name, data, named) or name
    links = {"dataset": named, "metric": metric, "index_repo": index}
    return push_adapter(publisher, bundle, base, repo_id, data, **links, with_catalog=index is not None)


def options_to_settings(options: dict[str, Any]) -> PublishSettings:
    """The settings for keyword arguments named after the flags. Raises BigrecError for any other name."""
    names = {
        item.metadata.get("flag", f"--{item.name}").removeprefix("--"): item.name for item in fields(PublishSettings)
    }
    unknown = set(options) - set(names)
    if unknown:
        raise BigrecError(
            f"{sorted(unknown)[0]!r} is not an option of publishing: choose from {', '.join(sorted(names))}"
        )
    return PublishSettings(**{names[key]: value for key, value in options.items() if value is not None})


def publish_adapter(run_dir: str, repo_id: str, **options: Any) -> str:
    """`bigrec-hf publish adapter` as a function; returns the commit. Raises BigrecError without a token."""
    settings = replace(
        options_to_settings(options), publish_kind="adapter", published_run=run_dir, repo_id=repo_id, dry_run=False
    )
    return _commit(carry_out(settings))


def publish_saved(folder: Path, repo_id: str, *, base_model: str | None = None, **options: Any) -> str:
    """Push a folder of `Recommender.save_pretrained`; returns the commit. Raises BigrecError without token or card."""
    from bigrec_hf.hub.bundle import locate
    from bigrec_hf.hub.config import write_config

    settings = replace(options_to_settings(options), repo_id=repo_id, publish_kind="adapter")
    bundle = locate(str(folder))
    if not (folder / "README.md").is_file():
        raise BigrecError("this recommender has no card: load it from its run folder, whose results the card shows")
    with temporary_folder() as temporary:
        publisher = Publisher(settings, temporary)
        publisher.paths.append(bundle.config.base_model)
        base = find_base(bundle, base_model, publisher.dry)
        check_terms(bundle.config.licence, settings, "the adapter's index")
        built = publisher.build(repo_id, "model")
        shutil.copytree(folder, built, dirs_exist_ok=True)
        folders.name_base(built, base)
        write_config(replace(bundle.config, base_model=folders.hub_name(base)), built)
        return _commit(publisher.send(built, repo_id, "model", bundle.config.licence, "adapter"))


def _commit(pushed: str | None) -> str:
    if pushed is None:
        raise BigrecError("nothing was pushed, because there is no token: run `hf auth login`, or set HF_TOKEN")
    return str(split_revision(pushed)[1])


def main(publish: PublishSettings) -> None:
    """The `publish` command."""
    carry_out(publish)
