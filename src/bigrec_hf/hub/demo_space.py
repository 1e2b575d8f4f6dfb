"""The demo of a published adapter as a Space: card, requirements, and an app that calls the demo of this package."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json
from bigrec_hf.common.hub_names import fetch_file, is_hub_id
from bigrec_hf.common.version import __version__
from bigrec_hf.hub.cards import CARD_TEMPLATES, TAGS
from bigrec_hf.hub.config import CONFIG_FILE
from bigrec_hf.metrics.ndcg_hr.names import split_revision

GRADIO = "6.31.0"  # of the Space, where none is installed here
APP = '''"""Demo of {name}, made by `bigrec-hf publish demo`."""

from bigrec_hf.demo.app import build
from bigrec_hf.demo.table import CSS
from bigrec_hf.recommend.rankers import Rankers

if __name__ == "__main__":
    build({{{name!r}: Rankers({pinned!r})}}).launch(css=CSS, footer_links=["api"])
'''


def published_config(adapter: str | None) -> dict[str, Any]:
    """Return bigrec.json of an adapter on the Hub. Raises BigrecError if none is named, or it is not there."""
    if not adapter or not is_hub_id(adapter, bare=True):
        raise BigrecError(
            f"the demo loads its adapter from the Hub, but --adapter is {adapter!r}: publish the adapter first "
            "(`bigrec-hf publish adapter`), then name its repository"
        )
    file = fetch_file(adapter, CONFIG_FILE, "model")
    if file is None:
        raise BigrecError(f"{adapter} has no {CONFIG_FILE}: publish it with `bigrec-hf publish adapter`")
    return read_json(file)


def demo_folder(folder: Path, repo_id: str, adapter: str, config: dict[str, Any]) -> None:
    """Write the Space of an adapter (`user/name@commit`) to `folder`; `config`: its bigrec.json."""
    from huggingface_hub import SpaceCard, SpaceCardData
    from huggingface_hub.repocard import metadata_load

    name, commit = split_revision(adapter)
    card_file = fetch_file(adapter, "README.md", "model", optional=True)
    metadata = (metadata_load(card_file) if card_file else None) or {}
    parts = [config.get("index"), config.get("catalog")]
    data_sets = [*metadata.get("datasets", []), *(part for part in parts if part and is_hub_id(part))]
    models = [name, *(split_revision(part)[0] for part in (config.get("base_model"), config.get("encoder")) if part)]
    try:
        gradio = version("gradio")
    except PackageNotFoundError:
        gradio = GRADIO
    fields: dict[str, Any] = {
        "title": f"Recommendations by {name.split('/')[-1]}",
        "emoji": "🎬",
        "colorFrom": "blue",
        "colorTo": "green",
        "sdk": "gradio",
        "sdk_version": gradio,
        "python_version": "3.11",
        "app_file": "app.py",
        "pinned": False,
        "tags": [tag for tag in TAGS if tag != "lora"],
        "models": list(dict.fromkeys(models)),
        "datasets": list(dict.fromkeys(split_revision(part)[0] for part in data_sets)) or None,
    }
    card = SpaceCard.from_template(
        SpaceCardData(**{key: value for key, value in fields.items() if value is not None}),
        template_path=str(CARD_TEMPLATES / "demo_card.md"),
        title=fields["title"],
        repo_id=repo_id,
        adapter=name,
        commit=commit,
        version=__version__,
        licence=config.get("licence"),
    )
    (folder / "README.md").write_text(str(card).rstrip() + "\n", encoding="utf-8")
    (folder / "app.py").write_text(APP.format(name=name, pinned=adapter), encoding="utf-8")
    (folder / "requirements.txt").write_text(f"bigrec_hf[demo]=={__version__}\n", encoding="utf-8")
