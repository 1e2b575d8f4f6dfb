"""What a result depends on besides its inputs: versions, hardware, time and memory."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

PACKAGES = tuple(
    "bigrec_hf torch transformers trl peft bitsandbytes datasets accelerate evaluate huggingface_hub "  # noqa: SIM905
    "sentence-transformers tokenizers numpy pandas polars pyarrow safetensors".split()
)

MEMORY_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # of a control group


def environment() -> dict[str, Any]:
    """Versions, commit and hardware that a result depends on, without any path or host name."""
    versions = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    record: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": cpu_count(),
        "packages": versions,
    }
    commit = _git_commit()
    if commit is not None:
        record["git_commit"] = commit
    cuda = _cuda()
    if cuda is not None:
        record["gpus"] = [cuda.get_device_name(i) for i in range(cuda.device_count())]
    return record


def cpu_count() -> int:
    """The CPU threads that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib() -> float:
    """The memory of this machine or, if that is less, of this process's control group, in GiB."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for file in MEMORY_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            total = min(total, int(Path(file).read_text()))
    return total / 2**30


def _cuda() -> Any:
    """`torch.cuda` where torch has been imported and sees a GPU, else None. torch is never imported for this."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def _git_commit() -> str | None:
    """Commit of the source tree this package runs from, `-dirty` if it has local changes; None outside a checkout."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("-dirty" if status.stdout.strip() else "")


def peak_memory_mib() -> int:
    """Peak resident memory of this process so far, in MiB."""
    with contextlib.suppress(
        OSError, IndexError
    ):  # on Linux `ru_maxrss` is never below the parent's memory, so ask the kernel
        return int(Path("/proc/self/status").read_bytes().split(b"VmHWM:")[1].split()[0]) // 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (1024 if sys.platform != "darwin" else 1024**2))


@contextlib.contextmanager
def measured(record: dict[str, Any]) -> Iterator[None]:
    """Fill `record` with the block's start (UTC), wall-clock seconds and peak memory in MiB, also on the GPU if any."""
    record["started"] = datetime.now(UTC).isoformat(timespec="seconds")
    start = time.perf_counter()
    cuda = _cuda()
    if cuda is not None:
        cuda.reset_peak_memory_stats()
    yield
    record["seconds"] = round(time.perf_counter() - start, 2)
    record["process_peak_memory_mib"] = peak_memory_mib()
    if cuda is not None:
        record["gpu_peak_memory_mib"] = round(cuda.max_memory_allocated() / 2**20)
