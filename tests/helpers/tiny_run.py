"""One run of all stages on the tiny set and a tiny model."""

from __future__ import annotations

from pathlib import Path

import yaml

from bigrec_hf import cli


def make_run(folder: Path, raw_movies: Path, model: str, **changes: dict) -> Path:
    """One run on the tiny set; returns its folder."""
    content = {
        "run": {"run_dir": str(folder / "run")},
        "pipeline": {"baselines": ["random", "popularity"]},
        "prepare": {"source": "movielens", "raw_dir": str(raw_movies)},
        "data": {"eval_sample": 10},
        "model": {"base_model": model, "dtype": "float32"},
        "prompt": {"train_prompt": "chat-basic"},
        "sft": {"sample": 16, "validation_sample": 8, "epochs": 1, "global_batch_size": 8, "micro_batch_size": 4},
        "generate": {"decoding": "beam", "num_beams": 2, "max_new_tokens": 8, "generate_batch_size": 4},
        "ground": {"top_k": 5},
        "score": {"ks": [1, 5], "bootstrap": 50},
    }
    for section, values in changes.items():
        content[section] = content.get(section, {}) | values
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    assert cli.main(["run", "--config", str(path), "--debug"]) == 0
    return folder / "run"
