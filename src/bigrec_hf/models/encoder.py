"""The text encoder of a run: its name, its fingerprint, and a function that loads it on first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.hub_names import hub_errors, is_hub_id
from bigrec_hf.models.identity import model_revision

Encode = Callable[[Sequence[str]], np.ndarray]  # texts -> (n, d) float32


def encoder_name(encoder: str, base_model: str | None) -> str:
    """Return the name or folder of the encoder; `base` means the base model. Raises BigrecError if none is given."""
    if encoder != "base":
        return encoder
    if not base_model:
        raise BigrecError("encoder is 'base' but no base model is given: give one with --encoder or --base_model")
    return base_model


def encoder_fingerprint(encoder: str, dtype: str = "float32") -> dict[str, str]:
    """Return the identity of an encoder: name, revision (commit, or `sha256:...` of a local folder), kind, dtype.

    Raises BigrecError if there is no such model.
    """
    import torch

    from bigrec_hf.metrics.ndcg_hr.encoders import (
        LastTokenEncoder,
        SentenceEncoder,
        is_sentence_model,
        resolve_dtype,
        split_revision,
    )

    name, revision = split_revision(encoder)
    if not Path(name).is_dir() and not is_hub_id(encoder, bare=True):
        raise BigrecError(f"encoder folder {name!r} does not exist: give --encoder a model folder or a Hub id")
    local = Path(name).is_dir()
    revision = model_revision(encoder)
    with hub_errors(encoder):
        sentence = is_sentence_model(name, None if local else revision)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return {
        "encoder": name,
        "revision": revision,
        "kind": (SentenceEncoder if sentence else LastTokenEncoder).kind,
        "dtype": str(resolve_dtype(dtype, device)).removeprefix("torch."),
    }


def lazy_encode(encoder: str, dtype: str = "float32", batch_tokens: int = 4096, device: str | None = None) -> Encode:
    """Return an `Encode` that loads the model on its first call, because a run that reuses an index may not need it."""
    loaded: list[Any] = []

    def encode(texts: Sequence[str]) -> np.ndarray:
        if not loaded:
            from bigrec_hf.metrics.ndcg_hr.encoders import load_encoder

            with hub_errors(encoder):
                loaded.append(load_encoder(encoder, dtype, device))
        return loaded[0].encode(texts, batch_tokens)

    return encode
