"""Checks of the examples given to the metric, with one-line errors."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def check_examples(config_name: str, predictions: Sequence[Any] | None, references: Sequence[Any] | None) -> None:
    """Raise a one-line ValueError if predictions or references do not fit the configuration."""
    if predictions is None or references is None:
        missing = "predictions" if predictions is None else "references"
        raise ValueError(f"{missing} is missing: give one prediction and one reference per example")
    text_ids = config_name == "rankings" and len(references) > 0 and isinstance(references[0], str)
    for i, reference in enumerate(references):
        if reference is None:
            raise ValueError(f"reference {i} is missing: every example needs its target")
        is_text = isinstance(reference, str)
        if not (is_text if config_name == "titles" or text_ids else is_numeric(reference, dimensions=0, whole=True)):
            kind = "text" if config_name == "titles" or text_ids else "whole number"
            raise ValueError(f"reference {i} is {reference!r}, not a {kind}: give that of the target")
    for i, prediction in enumerate(predictions):
        if config_name == "titles" and not isinstance(prediction, str):
            raise ValueError(f"prediction {i} is {prediction!r}, not a text: give an empty text if there is none")
        if config_name == "embeddings" and not is_numeric(prediction, dimensions=1):
            raise ValueError(f"prediction {i} is not a vector of numbers: give one per example")
        if config_name == "rankings" and prediction is not None and not _is_id_list(prediction, text_ids):
            if text_ids:
                raise ValueError(f"prediction {i} is not a list of texts, as the references are: give ids of one kind")
            raise ValueError(f"prediction {i} is not a list of whole numbers: give ids, best first, or an empty list")


def _is_id_list(value: Any, text_ids: bool) -> bool:
    """Return whether a value is a list of ids: of texts, or of whole numbers (an empty one is both)."""
    if text_ids:
        return isinstance(value, list | tuple | np.ndarray) and all(isinstance(item, str) for item in value)
    return is_numeric(value, dimensions=1, whole=True)


def is_numeric(value: Any, dimensions: int, whole: bool = False) -> bool:
    """Return whether a number, list or tensor has this many dimensions and only (`whole`) numbers."""
    try:
        array = value.detach().cpu().numpy() if hasattr(value, "detach") else np.asarray(value)
    except ValueError:  # lists of different lengths
        return False
    if array.ndim != dimensions or array.dtype.kind not in "iuf":
        return False
    return not whole or array.dtype.kind in "iu" or bool((array == np.floor(array)).all())
