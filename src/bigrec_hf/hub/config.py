"""The configuration of a recommender: `bigrec.json`, beside the weights of a published adapter."""

from __future__ import annotations

import typing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import write_json
from bigrec_hf.common.hub_names import is_hub_id
from bigrec_hf.generate.strategy import Decoding
from bigrec_hf.settings import GenerateSettings, GroundSettings, ModelSettings, PromptSettings, RunSettings
from bigrec_hf.settings.field import check_value
from bigrec_hf.settings.recipes import coerce

CONFIG_FILE = "bigrec.json"
INDEX_FOLDER = "index"
CATALOG_FILE = "catalog.parquet"  # next to CONFIG_FILE: the items configuration of a prepared set
EXACT = "exact"
CHECKED_AS = {  # fields of a recommender that have the limits of a setting
    "dtype": (ModelSettings, "dtype"),
    "quantization": (ModelSettings, "quantization"),
    "template": (PromptSettings, "train_prompt"),
    "max_history": (PromptSettings, "max_history"),
    "max_length": (PromptSettings, "max_length"),
    "batch_size": (GenerateSettings, "generate_batch_size"),
    "batch_tokens": (GenerateSettings, "generate_batch_tokens"),
    "encoder_dtype": (GroundSettings, "encoder_dtype"),
    "encode_batch_tokens": (GroundSettings, "encode_batch_tokens"),
    "memory_mib": (GroundSettings, "memory_mib"),
}
DECODING_AS = {  # likewise, fields of its decoding that have another name there
    "strategy": (GenerateSettings, "decoding"),
    "top_k": (GenerateSettings, "sample_top_k"),
    "seed": (RunSettings, "seed"),
}
MOST_TEXTS = 1000  # beams or texts of one history: more would only exhaust the memory
FORMAT = 1


@dataclass(frozen=True)
class RecommenderConfig:
    """Base model, prompt, decoding and grounding of one recommender. Names may be folders or Hub ids with revision."""

    base_model: str
    dtype: str
    quantization: str
    instruction: str
    input_prefix: str
    template: str
    max_history: int
    max_length: int
    decoding: dict[str, Any]  # the fields of `Decoding`, seed included; exact: strategy, width, n_texts
    batch_size: int
    batch_tokens: int
    encoder_dtype: str
    encode_batch_tokens: int
    memory_mib: int
    exclude_history: bool  # in the run's own figures; `recommend` has an argument
    encoder: str | None = None  # None: the base model
    index: str | None = (
        None  # `index` = the folder of this name next to the file; a Hub id; None = built from `catalog`
    )
    attn_implementation: str | None = None
    catalog: str | None = None  # if `index` is None: `catalog.parquet` = the file next to this one; or a prepared set
    short_titles: bool | None = None  # decoding exact
    base_weights: str | None = None  # a local base model compared with the repository: same, differ, not compared
    licence: dict[str, str] | None = None  # license of the data that the titles come from
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Raise BigrecError for a value that is not of its type or outside its limits, whoever wrote it."""
        for name, kind in typing.get_type_hints(RecommenderConfig).items():
            object.__setattr__(self, name, coerce(getattr(self, name), kind, f"{name} of a recommender"))
        for name, (section, key) in CHECKED_AS.items():
            check_value(section, key, getattr(self, name), f"{name} of a recommender")
        decoding = dict(self.decoding)
        if decoding.get("strategy") == EXACT:
            wrong = set(decoding) ^ {"strategy", "width", "n_texts"}
            width, n_texts = (
                coerce(decoding.get(key, 1), int, f"{key} of a recommender") for key in ("width", "n_texts")
            )
            if wrong or width < 0 or n_texts < 1:  # width 0 = all prefixes
                raise BigrecError(
                    f"decoding of a recommender is {decoding}: expected strategy, width >= 0 and n_texts >= 1"
                )
            object.__setattr__(self, "decoding", {"strategy": EXACT, "width": width, "n_texts": n_texts})
            return
        known = typing.get_type_hints(Decoding)
        unknown = sorted(map(str, set(decoding) - set(known)))
        if unknown:
            raise BigrecError(f"decoding of a recommender has no {unknown[0]!r}: expected {', '.join(known)}")
        checked = {key: coerce(value, known[key], f"{key} of a recommender") for key, value in decoding.items()}
        for key, value in checked.items():
            section, name = DECODING_AS.get(key, (GenerateSettings, key))
            check_value(section, name, value, f"{key} of a recommender")
        if abs(checked.get("length_penalty", 0.0)) > 100:
            raise BigrecError(f"length_penalty of a recommender is {checked['length_penalty']}: expected -100 to 100")
        asked = max(checked.get("num_beams", 1), checked.get("num_return_sequences", 1))
        if asked > MOST_TEXTS or checked.get("max_new_tokens", 1) >= self.max_length:
            raise BigrecError(
                f"decoding of a recommender is {decoding}: expected at most {MOST_TEXTS} beams and texts, and "
                f"max_new_tokens below max_length ({self.max_length})"
            )
        Decoding(**checked)
        object.__setattr__(self, "decoding", checked)

    @property
    def by_score(self) -> bool:
        """Whether the catalog is ranked by the probabilities of its titles; else by distance to a generated one."""
        return bool(self.decoding["strategy"] == EXACT)


def check_hub_names(config: RecommenderConfig, name: str) -> None:
    """Raise BigrecError if the configuration of a recommender from the Hub names anything on this machine."""
    own = {"index": INDEX_FOLDER, "catalog": CATALOG_FILE}
    for key in ("base_model", "encoder", "index", "catalog"):
        value = getattr(config, key)
        is_model = key in ("base_model", "encoder")
        if value is not None and value != own.get(key) and not is_hub_id(value, bare=is_model):
            raise BigrecError(
                f"{CONFIG_FILE} of {name!r} names {value!r} as its {key}, which is not a repository on the Hub: ask "
                "its owner to publish it again"
            )


def write_config(config: RecommenderConfig, folder: Path) -> None:
    """Write bigrec.json; fields that are None are omitted."""
    write_json(folder / CONFIG_FILE, {key: value for key, value in asdict(config).items() if value is not None})
