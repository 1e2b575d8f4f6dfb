"""The processes of one job, started by `torchrun` or `accelerate launch`."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState

from bigrec_hf.common.errors import BigrecError


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
