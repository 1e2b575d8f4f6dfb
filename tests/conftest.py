"""Shared fixtures. Tests never reach the network: the Hub client is told so before anything imports it."""

from __future__ import annotations

import gc
import os

from tests.loopback_hub.fixtures import ENVIRONMENT, hub, hub_server  # noqa: F401  (fixtures)

os.environ |= ENVIRONMENT | {
    "HF_HUB_OFFLINE": "1",
    "HF_EVALUATE_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
}

from pathlib import Path

import hypothesis
import pytest

# a busy machine is no failure: no time limit for an example
hypothesis.settings.register_profile("plain", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("plain")


def pytest_collection_finish() -> None:
    """What the imports made stays: the collections that each stage of a run asks for need not look at it."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Tiny matrices: threads only wait for each other."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny random Llama with its tokenizer."""
    from tests.helpers.tiny import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("model") / "tiny-llama", spread=0.05)


@pytest.fixture(scope="session")
def raw_movies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw files in the CSV shape of MovieLens: 20 movies, 24 users with 15 ratings each."""
    from tests.helpers.tiny import write_raw_movies

    return write_raw_movies(tmp_path_factory.mktemp("raw-movies"))


@pytest.fixture(scope="session")
def tiny_prepared(raw_movies: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The prepared set of `raw_movies`: 120 examples, 96 / 12 / 12."""
    from bigrec_hf.prepare.stage import prepare_dataset

    target = tmp_path_factory.mktemp("prepared") / "movies"
    prepare_dataset("movielens", str(raw_movies), str(target))
    return str(target)


@pytest.fixture(scope="session")
def tiny_run(raw_movies: Path, tiny_model_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run (tests/tiny_run.py) with the baselines random and popularity."""
    from tests.helpers.tiny_run import make_run

    return make_run(tmp_path_factory.mktemp("tiny-run"), raw_movies, tiny_model_dir)


@pytest.fixture(scope="session")
def dense_run(raw_movies: Path, tiny_model_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run that ranks by titles' probabilities, alone and pooled with EASE and popularity."""
    from tests.helpers.tiny_run import DENSE, make_run

    folder = tmp_path_factory.mktemp("dense-run")
    return make_run(
        folder,
        raw_movies,
        tiny_model_dir,
        **DENSE,
        pipeline={"baselines": ["popularity", "cooccurrence"], "rankers": ["linear", "pool"]},
        pool={"pool_models": ["ease", "popularity"]},
    )
