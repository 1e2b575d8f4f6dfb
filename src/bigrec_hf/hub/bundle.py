"""Where the parts of a recommender are, and its configuration (`config.py`).

The configuration is read from `bigrec.json`, or assembled from what a run has recorded (`generate.json`, the settings
inside `rankings.parquet`, `recipe.yaml`): recorded, not inferred, so that the recommender does what the run did.

A recommender either generates a title and grounds it by distance, for which it needs an index, or (decoding exact)
ranks the catalog by the probabilities of its titles, for which the catalog alone suffices.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, read_table, readable
from bigrec_hf.common.hub_names import fetch_file, fetch_folder, is_hub_id
from bigrec_hf.data.catalog import catalog_source
from bigrec_hf.data.generations import GENERATE_FILE
from bigrec_hf.data.prompts import TITLE_LIST
from bigrec_hf.data.run_folder import RECIPE_FILE, recorded_place
from bigrec_hf.generate.exact import N_TEXTS
from bigrec_hf.generate.strategy import Decoding
from bigrec_hf.ground.index import INDEX_FILES, CatalogIndex, load_index
from bigrec_hf.hub.config import (
    CONFIG_FILE,
    EXACT,
    FORMAT,
    INDEX_FOLDER,
    RecommenderConfig,
    check_hub_names,
)
from bigrec_hf.metrics.ndcg_hr.names import split_revision
from bigrec_hf.settings import GenerateSettings, GroundSettings
from bigrec_hf.settings.recipes import coerce, read_recipe

METHOD = "finetuned"
T = TypeVar("T")


@dataclass(frozen=True)
class Bundle:
    """Where a recommender's parts are: adapter (folder or Hub id), index (likewise), the run they come from, and the
    prepared set (likewise) whose items the catalog consists of."""

    config: RecommenderConfig
    adapter: str
    index: str | None
    run_dir: Path | None = None
    dataset: str | None = None


def locate(name: str) -> Bundle:
    """The parts of a recommender: a run folder, an adapter folder (in a run, or published) or a Hub id.

    Raises BigrecError if the name is none of these.
    """
    path = Path(split_revision(name)[0])
    if not path.is_dir() and not is_hub_id(name, bare=True):
        raise BigrecError(f"{name!r} does not exist: give a run folder, an adapter folder or a Hub id")
    if not path.is_dir() or (path / CONFIG_FILE).is_file():
        return _published(name)
    if (path / RECIPE_FILE).is_file():
        return from_run(path)
    if (path / "adapter_config.json").is_file():
        return from_run(path.parent, path) if (path.parent / RECIPE_FILE).is_file() else _from_training(path)
    raise BigrecError(f"{name!r} is neither a run folder ({RECIPE_FILE}) nor an adapter ({CONFIG_FILE}): train one")


def _published(name: str) -> Bundle:
    file = fetch_file(name, CONFIG_FILE, "model")
    if file is None:
        raise BigrecError(
            f"{name!r} has no {CONFIG_FILE}: give an adapter from `bigrec-hf publish adapter` or `save_pretrained`"
        )
    values = read_json(file)
    values.pop("gamma", None)  # written by earlier releases, never read
    known = {item.name for item in dataclasses.fields(RecommenderConfig)}
    written = coerce(values.get("format", 0), int, f"format in {file}")
    if written > FORMAT or not set(values) <= known:
        raise BigrecError(f"{name!r} was written by a newer bigrec_hf (format {written}): upgrade yours")
    local = Path(split_revision(name)[0])
    with readable(file):
        config = RecommenderConfig(**values)
    if not local.is_dir():
        check_hub_names(config, name)
    index = config.index
    if index == INDEX_FOLDER:
        index = str(local / INDEX_FOLDER) if local.is_dir() else None  # inside the repository: fetched with it
    return Bundle(config, name, index)


def from_run(run_dir: Path, adapter: Path | None = None) -> Bundle:
    """The recommender of a run's fine-tuned model. Raises BigrecError unless generate and ground are done, and if their
    records are damaged."""
    with readable(run_dir, "finish it with `bigrec-hf run`"):
        return _from_run(run_dir, adapter)


def _from_run(run_dir: Path, adapter: Path | None) -> Bundle:
    from bigrec_hf.data.rankings import RANKINGS_FILE, exclusion, table_settings
    from bigrec_hf.data.run_folder import seed_folders

    if not (run_dir / METHOD).is_dir() and seed_folders(run_dir) != [run_dir]:
        raise BigrecError(f"{run_dir} contains several seeds: give one of them, such as {seed_folders(run_dir)[0]}")
    facts = read_json(run_dir / METHOD / GENERATE_FILE)
    rankings = run_dir / METHOD / RANKINGS_FILE
    if not facts or not rankings.is_file():
        raise BigrecError(
            f"{run_dir} lacks a finished generate or ground of its adapter: finish it with `bigrec-hf run`"
        )
    if not facts["adapter"]:
        raise BigrecError(f"{run_dir}/{METHOD} was generated without an adapter: train one to recommend with")
    grounding = table_settings(read_table(rankings, columns=[]))
    recipe = read_recipe(run_dir / RECIPE_FILE).get("ground", {})
    ground = GroundSettings(**recipe)
    prompt = facts["prompt"]
    instruction, prefix, licence = _task(facts["data"], run_dir)
    base = facts["base_model"]
    by_score = facts["generate"]["decoding"] == EXACT
    encoder = None if by_score or grounding["encoder"] == split_revision(base)[0] else _encoder_name(grounding)
    data = facts["data"]
    datasets = [recorded_place(name, run_dir, "data") for name in data["dataset"][:1]]
    config = RecommenderConfig(
        base_model=base,
        dtype=facts["dtype"],
        quantization=facts["quantization"],
        attn_implementation=facts["attn_implementation"],
        instruction=instruction,
        input_prefix=prefix,
        template=prompt["inference_prompt"] or prompt["train_prompt"],
        max_history=prompt["max_history"],
        max_length=prompt["max_length"],
        **_decoding(facts["generate"], facts["seed"]),
        encoder=encoder,
        encoder_dtype=ground.encoder_dtype if by_score else grounding["dtype"],
        encode_batch_tokens=ground.encode_batch_tokens,
        memory_mib=ground.memory_mib,
        exclude_history=exclusion(grounding) != "none",
        index=None if by_score else INDEX_FOLDER,
        catalog=catalog_source(data["catalog"], datasets) if by_score else None,
        short_titles=prompt["short_titles"] if by_score else None,
        licence=licence,
    )
    index = None if by_score else ground.index_dir or str(run_dir / INDEX_FOLDER)
    own = facts["generate"]["adapter"] or str(run_dir / "adapter")  # as `generate` finds it
    return Bundle(config, str(adapter) if adapter else own, index, run_dir, datasets[0] if datasets else None)


def _encoder_name(grounding: dict[str, Any]) -> str:
    local = str(grounding["revision"]).startswith("sha256:")
    return grounding["encoder"] if local else f"{grounding['encoder']}@{grounding['revision']}"


def config_of_method(bundle: Bundle, folder: Path) -> RecommenderConfig | None:
    """The configuration of another method folder of the bundle's run: other decoding of titles by the same model and
    prompt. None if the folder holds something else."""
    if bundle.run_dir is None:
        return None
    facts, own = (read_json(place / GENERATE_FILE) for place in (folder, bundle.run_dir / METHOD))
    same = ("base_model", "adapter_sha256", "dtype", "quantization", "prompt")
    if not facts or facts["generate"]["decoding"] in (EXACT, "debiased") or any(facts[k] != own[k] for k in same):
        return None
    return dataclasses.replace(bundle.config, **_decoding(facts["generate"], facts["seed"]))


def _decoding(generate: dict[str, Any], seed: int) -> dict[str, Any]:
    if generate["decoding"] == "debiased":
        raise BigrecError(
            "decoding debiased needs a collaborative model's scores of the examples, which a recommender lacks: "
            "generate with beam or constrained"
        )

    batches = {
        "batch_size": generate["generate_batch_size"],
        "batch_tokens": generate["generate_batch_tokens"],
    }
    if generate["decoding"] == EXACT:
        n_texts = generate["num_return_sequences"] or N_TEXTS
        return {"decoding": {"strategy": EXACT, "width": generate["exact_width"], "n_texts": n_texts}, **batches}
    known = {item.name for item in dataclasses.fields(GenerateSettings)}
    settings = GenerateSettings(**{key: value for key, value in generate.items() if key in known})
    return {"decoding": asdict(Decoding.from_settings(settings, seed)), **batches}


def _task(data: dict[str, Any], run_dir: Path) -> tuple[str, str, dict[str, str] | None]:
    """(instruction, text before the history, license of the data), as in the run's examples."""
    from bigrec_hf.common.columns import Columns as C
    from bigrec_hf.data.examples import load_json_examples
    from bigrec_hf.data.prepared import load_facts
    from bigrec_hf.data.prompts import build_input_prefix, build_instruction

    if data["test_json"]:
        first = load_json_examples(data["test_json"][0])[0]
        return first[C.INSTRUCTION], first[C.INPUT_PREFIX], None
    facts = load_facts(recorded_place(data["dataset"][0], run_dir, "data"))
    instruction = build_instruction(facts["noun"], facts["verb"], facts.get("noun_singular"))
    return instruction, build_input_prefix(facts["noun"], facts["verb"]), facts.get("licence")


def _from_training(folder: Path) -> Bundle:
    """An adapter from `bigrec-hf sft` alone: prompt and base model as recorded, decoding and grounding by default."""
    with readable(folder / "training.json"):
        return _of_training(folder)


def _of_training(folder: Path) -> Bundle:
    training = read_json(folder / "training.json").get("settings")
    if not training or not training["dataset"]:
        raise BigrecError(
            f"{folder} has neither {CONFIG_FILE} nor a training.json that names its data: give a run folder"
        )
    dataset = recorded_place(training["dataset"][0], folder.parent, "data")
    instruction, prefix, licence = _task({"test_json": [], "dataset": [dataset]}, folder.parent)
    ground = GroundSettings()
    by_score = training["train_prompt"] == TITLE_LIST
    decoding = GenerateSettings(decoding=EXACT) if by_score else GenerateSettings()
    config = RecommenderConfig(
        base_model=training["base_model"],
        dtype=training["dtype"],
        quantization=training["quantization"],
        attn_implementation=training["attn_implementation"],
        instruction=instruction,
        input_prefix=prefix,
        template=training["train_prompt"],
        max_history=training["max_history"],
        max_length=training["max_length"],
        **_decoding(dataclasses.asdict(decoding), training["seed"]),
        encoder=None,
        encoder_dtype=ground.encoder_dtype,
        encode_batch_tokens=ground.encode_batch_tokens,
        memory_mib=ground.memory_mib,
        exclude_history=ground.exclude != "none",
        index=None,
        catalog=dataset,
        short_titles=training.get("short_titles", False) if by_score else None,
        licence=licence,
    )
    return Bundle(config, str(folder), None, dataset=dataset)


def named_damage(load: Callable[..., T]) -> Callable[..., T]:
    """Decorate a class method that loads what its first argument names: whatever it raises about damaged or hostile
    files becomes a BigrecError."""

    @functools.wraps(load)
    def loader(cls: Any, name: str | Path, **options: Any) -> T:
        with readable(name, "download or train it again"):
            return load(cls, name, **options)

    return loader


def load_source_index(name: str) -> CatalogIndex:
    """Load an index from its folder or Hub id."""
    return load_index(fetch_folder(name, "dataset", INDEX_FILES) if is_hub_id(name) else name)
