"""Data set cards, filled from recorded facts through the templates in `dataset_cards/`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def card_template(noun: str) -> Path:
    """The template for a domain: `movie.md`, `game.md`, or `generic.md` for any other noun."""
    name = {"movies": "movie.md", "video games": "game.md"}.get(noun, "generic.md")
    package = Path(__file__).parents[1]
    installed = package / "dataset_cards" / name
    return installed if installed.is_file() else package.parents[1] / "dataset_cards" / name


def card_configs(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The `configs:` of the card's YAML: what plain `datasets.load_dataset(path, config)` reads.

    Splits without rows are left out, because `datasets` refuses to read a config with an empty split.
    """
    rows = {
        "default": facts["examples"],
        "items": {"train": facts["items"]},
        "interactions": {"train": facts["interactions"]["kept"]},
        "text": facts["text_rows"],
    }
    return [
        {
            "config_name": config,
            **({"default": True} if config == "default" else {}),
            "data_files": [
                {"split": split, "path": f"data/{config}/{split}.parquet"} for split, n in splits.items() if n
            ],
        }
        for config, splits in rows.items()
        if any(splits.values())
    ]


CITATIONS = {  # by the page that a source's facts link to
    "https://grouplens.org/datasets/movielens/": """@article{harper2015movielens,
  title = {The MovieLens Datasets: History and Context},
  author = {Harper, F. Maxwell and Konstan, Joseph A.},
  journal = {ACM Transactions on Interactive Intelligent Systems},
  volume = {5},
  number = {4},
  year = {2015},
  doi = {10.1145/2827872}
}""",
    "https://nijianmo.github.io/amazon/": """@inproceedings{ni2019justifying,
  title = {Justifying Recommendations using Distantly-Labeled Reviews and Fine-Grained Aspects},
  author = {Ni, Jianmo and Li, Jiacheng and McAuley, Julian},
  booktitle = {EMNLP-IJCNLP},
  year = {2019}
}""",
    "https://amazon-reviews-2023.github.io/": """@article{hou2024bridging,
  title = {Bridging Language and Items for Retrieval and Recommendation},
  author = {Hou, Yupeng and Li, Jiacheng and He, Zhankui and Yan, An and Chen, Xiusi and McAuley, Julian},
  journal = {arXiv preprint arXiv:2403.03952},
  year = {2024}
}""",
}


def describe_protocol(protocol: dict[str, Any]) -> str:
    """`preset bigrec-movie, window 10, ...`: the values that are set, in the order of the record."""
    return ", ".join(
        f"{name.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"
        for name, value in protocol.items()
        if value not in (None, 0, 0.0)
    )


def dataset_info(folder: Path, facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The `dataset_info:` of the card's YAML: features, rows and bytes of every split, read from the parquet files."""
    import pyarrow.parquet as pq
    from datasets import Features

    infos = []
    for config in card_configs(facts):
        files = {entry["split"]: folder / entry["path"] for entry in config["data_files"]}
        schema = pq.read_schema(next(iter(files.values())))
        splits = []
        for split, file in files.items():
            with pq.ParquetFile(file) as parquet:
                n_bytes = sum(parquet.read_row_group(i).nbytes for i in range(parquet.num_row_groups))
                splits.append({"name": split, "num_bytes": n_bytes, "num_examples": parquet.metadata.num_rows})
        infos.append(
            {
                "config_name": config["config_name"],
                "features": Features.from_arrow_schema(schema)._to_yaml_list(),
                "splits": splits,
                "download_size": sum(file.stat().st_size for file in files.values()),
                "dataset_size": sum(split["num_bytes"] for split in splits),
            }
        )
    return infos


def dataset_card(
    facts: dict[str, Any],
    *,
    repo_id: str | None = None,
    info: list[dict[str, Any]] | None = None,
    private: bool = False,
    permission: bool = False,
    models: Sequence[str] = (),
) -> str:
    """The README.md of a prepared set; every number in it comes from `facts` (and `info`, of `dataset_info`).

    `repo_id`: where it will be published; `private`: in a private repository; `permission`: the publisher has one for
    data whose terms forbid redistribution. `models`: Hub ids of adapters trained on the set.
    """
    from huggingface_hub import DatasetCard, DatasetCardData, constants

    n_examples = sum(facts["examples"].values())
    licence = facts.get("licence", {})
    more: dict[str, Any] = {"license_link": licence["url"]} if licence.get("url") else {}
    more |= {"dataset_info": info} if info else {}
    card = DatasetCard.from_template(
        DatasetCardData(
            pretty_name=f"{facts['name']} for BIGRec ({facts['preset']})",
            license="other",
            license_name=f"{facts['source']}-terms",
            task_categories=["text-generation"],
            tags=["recommendation", "sequential-recommendation", "bigrec"],
            size_categories=[next((name for limit, name in SIZES if n_examples < limit), "10M<n<100M")],
            configs=card_configs(facts),
            **more,
        ),
        template_path=str(card_template(facts["noun"])),
        facts=facts,
        place=repo_id or "PATH",
        protocol=describe_protocol(facts["protocol"]) if "protocol" in facts else facts["preset"],
        private=private,
        permission=permission,
        models=list(models),
        endpoint=constants.ENDPOINT,
        citation=CITATIONS.get(str(licence.get("url"))),
    )
    return str(card).rstrip() + "\n"
