"""Data set cards, filled from recorded facts through the templates in `dataset_cards/`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))


def card_template(noun: str) -> Path:
    """The template for a domain: `movie.md`, `game.md`, or `generic.md` for any other noun."""
    name = {"movies": "movie.md", "video games": "game.md"}.get(noun, "generic.md")
    installed = Path(__file__).parent / "dataset_cards" / name
    return installed if installed.is_file() else Path(__file__).parents[2] / "dataset_cards" / name


def card_configs(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The `configs:` of the card's YAML: what plain `datasets.load_dataset(path, config)` reads.

    Splits without rows are left out, for `datasets` refuses to read such a split, and with it the whole config.
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


def dataset_card(facts: dict[str, Any]) -> str:
    """The README.md of a prepared set; every number in it comes from `facts`."""
    from huggingface_hub import DatasetCard, DatasetCardData

    n_examples = sum(facts["examples"].values())
    card = DatasetCard.from_template(
        DatasetCardData(
            pretty_name=f"{facts['name']} for BIGRec ({facts['preset']})",
            license="other",
            license_name=f"{facts['source']}-terms",
            task_categories=["text-generation"],
            tags=["recommendation", "sequential-recommendation", "bigrec"],
            size_categories=[next((name for limit, name in SIZES if n_examples < limit), "10M<n<100M")],
            configs=card_configs(facts),
        ),
        template_path=str(card_template(facts["noun"])),
        facts=facts,
    )
    return str(card).rstrip() + "\n"
