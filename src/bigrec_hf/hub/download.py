"""Download what a recipe names on the Hub ahead of time, so that everything then runs with HF_HUB_OFFLINE=1.

An interrupted download resumes where it stopped (the Hub client keeps partial files).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json
from bigrec_hf.common.hub_names import hub_errors, is_hub_id
from bigrec_hf.hub.config import CATALOG_FILE, CONFIG_FILE, INDEX_FOLDER
from bigrec_hf.metrics.ndcg_hr.names import split_revision
from bigrec_hf.models.identity import ADAPTER_CONTENT
from bigrec_hf.settings import (
    DataSettings,
    DownloadSettings,
    GenerateSettings,
    GroundSettings,
    ModelSettings,
    SftSettings,
)

CONFIGURATION = ("*.json", "*.model", "*.txt", "*.jinja", "tokenizer*", "*.py")
LEFT_OUT = ("onnx/*", "openvino/*", "original/*", "consolidated*", "*.gguf", "*.h5", "*.msgpack", "*.ot")


def named(
    data: DataSettings,
    model: ModelSettings,
    sft: SftSettings,
    generate: GenerateSettings,
    ground: GroundSettings,
) -> Iterator[tuple[str, str, str]]:
    """(setting, name, repository type) of every Hub name in the settings."""
    places = [
        *(("dataset", name, "dataset") for name in data.dataset),
        ("catalog", data.catalog, "dataset"),
        ("base_model", model.base_model, "model"),
        ("init_adapter", sft.init_adapter, "model"),
        ("adapter", generate.adapter, "model"),
        ("encoder", None if ground.encoder == "base" else ground.encoder, "model"),
        ("index_dir", ground.index_dir, "dataset"),
    ]
    seen = set()
    for setting, name, repo_type in places:
        if name and is_hub_id(name, bare=repo_type == "model") and (name, repo_type) not in seen:
            seen.add((name, repo_type))
            yield setting, name, repo_type


def download_repository(
    name: str,
    repo_type: str,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    local_dir: str | None = None,
    adapter: bool = False,
) -> Path:
    """Download one repository, resuming an interrupted download, and return its folder.

    By default a model means its configuration, tokenizer and weights (safetensors if there are any, else `.bin`).
    `local_dir`: download to a folder with the repository's name inside it, instead of to the cache.
    """
    from huggingface_hub import HfApi, snapshot_download

    repo_id, revision = split_revision(name)
    patterns: list[str] | None = list(include) or None
    with hub_errors(name):
        if patterns is None and repo_type == "model":
            files = HfApi().list_repo_files(repo_id, revision=revision)
            weights = "*.safetensors" if any(file.endswith(".safetensors") for file in files) else "*.bin"
            patterns = [*CONFIGURATION, weights, *(ADAPTER_CONTENT if adapter else ())]
            patterns += ["index/*", CATALOG_FILE, "README.md"] if adapter else []
        target = None if local_dir is None else str(Path(local_dir) / repo_id.split("/")[-1])
        return Path(
            snapshot_download(
                repo_id,
                repo_type=repo_type,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=[*exclude, *(LEFT_OUT if repo_type == "model" and not include else ())] or None,
                local_dir=target,
            )
        )


def parts_of(adapter: Path) -> list[tuple[str, str, str]]:
    """(setting, name, type) of what else a published adapter needs: base model, encoder, index, catalog."""
    config = read_json(adapter / CONFIG_FILE)
    names = (("base_model", "model"), ("encoder", "model"), ("index", "dataset"), ("catalog", "dataset"))
    return [
        (key, name, repo_type)
        for key, repo_type in names
        if (name := config.get(key)) and name != INDEX_FOLDER and is_hub_id(name, bare=repo_type == "model")
    ]


def fetch_metric(name: str) -> None:
    """Put the code of a metric where `evaluate.load` finds it offline, without running it."""
    from evaluate.loading import evaluation_module_factory

    with hub_errors(name):
        try:
            evaluation_module_factory(name)
        except FileNotFoundError as error:
            raise BigrecError(f"{name!r} is not a metric on the Hub: expected a Space such as user/ndcg_hr") from error


def main(
    download: DownloadSettings,
    data: DataSettings,
    model: ModelSettings,
    sft: SftSettings,
    generate: GenerateSettings,
    ground: GroundSettings,
) -> None:
    """Download everything the settings name on the Hub, and print where it is.

    Raises BigrecError if they name nothing there.
    """
    found = list(named(data, model, sft, generate, ground))
    if not found and not download.metric:
        raise BigrecError(
            "nothing to download: no setting names a Hub repository (give --config RECIPE or --base_model)"
        )
    for setting, name, repo_type in found:  # grows on the way: an adapter names more repositories
        folder = download_repository(
            name,
            repo_type,
            include=download.include_files if repo_type == "model" else (),
            exclude=download.exclude_files if repo_type == "model" else (),
            local_dir=download.local_dir,
            adapter=setting == "adapter",
        )
        how = f"; use --{setting} {folder}" if download.local_dir else ""
        print(f"{setting} {name}: {folder}{how}")
        if setting == "adapter":
            found += [part for part in parts_of(folder) if part[1:] not in [other[1:] for other in found]]
    if download.metric:
        fetch_metric(download.metric)
        print(f"metric {download.metric}: in the cache of evaluate")
