"""One run of all stages on the tiny set and a tiny model, and what it recommends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import yaml
from safetensors.torch import load_file, save_file

from bigrec_hf import cli
from bigrec_hf.data.examples import load_examples

DENSE = {  # sections of a run that ranks by titles' probabilities
    "prompt": {"train_prompt": "titles", "short_titles": True, "max_length": 64},
    "sft": {"objective": "dense", "loss": "trie", "sample": 0, "learning_rate": 1e-2},
    "generate": {"decoding": "exact"},
    "ground": {"ranking": "scores"},
}


def write_recipe(folder: Path, raw_movies: Path, model: str, **changes: dict) -> Path:
    """A recipe on the tiny set, whose run lies beside it; `changes` by section."""
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
    return path


def make_run(folder: Path, raw_movies: Path, model: str, **changes: dict) -> Path:
    """The run of such a recipe; returns its folder."""
    assert cli.main(["run", "--config", str(write_recipe(folder, raw_movies, model, **changes)), "--debug"]) == 0
    return folder / "run"


def run_histories(run_dir):
    """Histories and ids of the run's test examples."""
    examples = load_examples(str(run_dir / "data"), "test", sample=10)
    return [list(titles) for titles in examples["history_titles"]], list(examples["example_id"])


def as_rows(results):
    """Rows and distances of a Recommender's results, as `rankings` gives those of the run."""
    return [([item.row for item in r.items], [-item.score for item in r.items]) for r in results]


def rankings(run_dir):
    table = pq.read_table(run_dir / "finetuned" / "rankings.parquet")
    return list(zip(table["top_rows"].to_pylist(), table["top_distances"].to_pylist(), strict=True))


def with_forbidden_terms(prepared, folder):
    """A copy of a prepared set that may not be passed on."""
    target = shutil.copytree(prepared, folder / "ml-100k")
    facts = json.loads((target / "facts.json").read_text())
    facts["licence"] = {"name": "no redistribution", "redistribution": "forbidden", "url": "https://example.org"}
    (target / "facts.json").write_text(json.dumps(facts))
    return target


def write_weights(adapter, value):
    """Weights of this value in the first row of each matrix of an adapter."""
    weights = load_file(adapter / "adapter_model.safetensors")
    for matrix in weights.values():
        matrix[0] = value
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
