"""The processes of one job, started by `torchrun` or `accelerate launch`."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
from accelerate import PartialState

from bigrec_hf.common.errors import BigrecError

PRECISION = "ACCELERATE_MIXED_PRECISION"  # what `accelerate launch` makes of its configuration's mixed_precision


@contextlib.contextmanager
def own_precision() -> Iterator[None]:
    """TrainingArguments made within take their own fields' precision, not the accelerate configuration's: they would
    autocast float32 weights with it."""
    launched_with = os.environ.pop(PRECISION, None)
    try:
        yield
    finally:
        if launched_with is not None:
            os.environ[PRECISION] = launched_with


def process_state() -> PartialState:
    """This process's rank, device and process group (gloo on CPUs). Call it before anything else uses accelerate.

    Without an accelerator a plain `PartialState()` ignores the launcher, so that every process believes it is the only
    one, and the first caller fixes the process group. Raises BigrecError if that has already happened.
    """
    state = PartialState(cpu=not torch.accelerator.is_available())
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != launched:
        raise BigrecError(
            f"{launched} processes were launched, but accelerate sees {state.num_processes}: "
            "set ACCELERATE_USE_CPU=true on a machine without GPUs, or launch one process"
        )
    return state
