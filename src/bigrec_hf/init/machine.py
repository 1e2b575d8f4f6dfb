"""The machine that `init` finds, and the base model on it."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from bigrec_hf.common.environment import cpu_count, memory_gib
from bigrec_hf.common.hub_names import cached_folder
from bigrec_hf.common.processes import process_state
from bigrec_hf.metrics.ndcg_hr.encoders import resolve_dtype
from bigrec_hf.metrics.ndcg_hr.names import split_revision

SIZE_IN_NAME = re.compile(r"(\d+(?:\.\d+)?)([mb])(?![a-z])", re.IGNORECASE)  # SmolLM2-135M, Qwen2.5-1.5B
WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Machine:
    """What decides how a model is trained here. Memory in GiB."""

    cpus: int
    memory: float
    dtype: str  # in which it multiplies fast: what `dtype: auto` means here
    gpu: str | None = None
    gpu_memory: float = 0.0

    @property
    def room(self) -> float:
        """The memory that a model has to fit into."""
        return self.gpu_memory if self.gpu else self.memory

    def __str__(self) -> str:
        """In words, as in `2 CPU cores with bfloat16 arithmetic, 8 GiB`."""
        cpus = f"{self.cpus} CPU {'core' if self.cpus == 1 else 'cores'}"
        if self.gpu:
            return f"{self.gpu}, {self.gpu_memory:.0f} GiB ({self.dtype}); {cpus}, {self.memory:.0f} GiB"
        bf16 = "with" if self.dtype == "bfloat16" else "without"
        return f"{cpus} {bf16} bfloat16 arithmetic, {self.memory:.0f} GiB"


def find_machine() -> Machine:
    """The machine of this process; of several GPUs, the one that it uses."""
    device = process_state().device
    dtype = str(resolve_dtype("auto", device)).removeprefix("torch.")
    if device.type != "cuda":
        return Machine(cpu_count(), memory_gib(), dtype)
    gpu = torch.cuda.get_device_properties(device)
    return Machine(cpu_count(), memory_gib(), dtype, gpu.name, gpu.total_memory / 2**30)


def local_folder(base_model: str) -> Path | None:
    """The folder of a base model that is on this machine, its own or that of the Hub client's cache; else None."""
    path, revision = split_revision(base_model)
    folder = Path(path) if Path(path).is_dir() else cached_folder(path, revision or "main", "model")
    return folder if folder is not None and any(any(folder.glob(pattern)) for pattern in WEIGHTS) else None


def n_parameters(base_model: str) -> int | None:
    """The number of parameters: counted in the files of a model on this machine, else told by its name; None if
    neither says."""
    folder = local_folder(base_model)
    if folder is not None and (files := sorted(folder.glob("*.safetensors"))):
        from safetensors import safe_open

        total = 0
        for file in files:
            with safe_open(file, framework="np") as weights:
                total += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
        return total
    found = SIZE_IN_NAME.search(split_revision(base_model)[0].rsplit("/", 1)[-1])
    return round(float(found[1]) * (1e9 if found[2] in "bB" else 1e6)) if found else None
