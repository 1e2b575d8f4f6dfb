"""What every benchmark shares: alternating timing, memory, the row of results, its file, table and plot."""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
BASE_MODEL = ROOT / ".assets" / "SmolLM2-135M-Instruct"
ML_100K = ROOT / ".assets" / "ml-100k"


def thread_count() -> int:
    """OMP_NUM_THREADS, or 1: two threads on shared cores were measured slower than one (docs/experiments.md)."""
    return int(os.environ.get("OMP_NUM_THREADS") or 1)


def set_threads() -> int:
    """Give torch `thread_count()` threads, and say so."""
    import torch

    torch.set_num_threads(thread_count())
    print(f"threads: {torch.get_num_threads()}", flush=True)
    return torch.get_num_threads()


def cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "unknown CPU"


# --- timing and memory ----------------------------------------------------------------------------------------------


def now() -> float:
    """Seconds of the clock; with BENCH_CLOCK=processor those of this process and its finished children, which other
    work on the machine does not inflate as much (the results say so)."""
    if os.environ.get("BENCH_CLOCK") == "processor":
        times = os.times()
        return time.process_time() + times.children_user + times.children_system
    return time.perf_counter()


def seconds(function: Callable, *args: Any) -> tuple[float, Any]:
    """Seconds that one call takes, and what it returns."""
    start = now()
    result = function(*args)
    return now() - start, result


def alternate(functions: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds of each function, and its last result; they take turns, so that a slow minute hits them all."""
    taken: dict[str, list[float]] = {name: [] for name in functions}
    results = {}
    for _ in range(repeats):
        for name, function in functions.items():
            gc.collect()
            one, results[name] = seconds(function)
            taken[name].append(one)
    return {name: statistics.median(times) for name, times in taken.items()}, results


class PeakMemory:
    """Resident memory above that at the start, in MiB, while the block runs (sampled every 5 ms)."""

    def __enter__(self) -> PeakMemory:
        self.process, self.done = psutil.Process(), threading.Event()
        self.start = self.peak = self.process.memory_info().rss
        self.thread = threading.Thread(target=self._sample)
        self.thread.start()
        return self

    def _sample(self) -> None:
        while not self.done.wait(0.005):
            self.peak = max(self.peak, self.process.memory_info().rss)

    def __exit__(self, *error: object) -> None:
        self.done.set()
        self.thread.join()

    @property
    def mib(self) -> float:
        return (self.peak - self.start) / 2**20


def _measure_memory(prepare: Callable, options: dict[str, Any], queue: multiprocessing.Queue) -> None:
    try:
        function = prepare(**options)
        with PeakMemory() as memory:
            function()
        queue.put(memory.mib)
    except BaseException as error:  # the parent waits for an answer
        queue.put(f"{type(error).__name__}: {error}")
        raise


def peak_mib_in_child(prepare: Callable[..., Callable[[], Any]], **options: Any) -> float:
    """Peak MiB of a call beyond what its inputs take, in a fresh process: memory that the allocator kept from earlier
    work would hide it. `prepare(**options)`, a module's function, loads the inputs and gives the call to measure."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=_measure_memory, args=(prepare, options, queue))
    child.start()
    answer = None
    while answer is None:
        alive = child.is_alive()  # asked first: what a child that has ended left behind is in the queue by then
        try:
            answer = queue.get(timeout=1)
        except Empty:
            if not alive:
                answer = f"the process ended with {child.exitcode}"
    child.join()
    if isinstance(answer, str):
        raise RuntimeError(f"measuring the memory of {prepare.__name__}: {answer}")
    return answer


# --- the machine's ceiling ------------------------------------------------------------------------------------------


def matmul_gflops(dtype: str, size: int = 2048, repeats: int = 5) -> float:
    """GFLOP/s of a square matrix product in a torch dtype (name), best of `repeats`: what the machine can do."""
    import torch

    a, b = (torch.randn(size, size).to(getattr(torch, dtype)) for _ in range(2))
    a @ b  # warm
    return 2e-9 * size**3 / min(seconds(torch.matmul, a, b)[0] for _ in range(repeats))


def memory_gib_s(mib: int = 256, repeats: int = 5) -> float:
    """GiB/s of a copy, bytes read and bytes written both counted, best of `repeats`."""
    source = np.ones(mib * 2**17)
    target = np.empty_like(source)
    np.copyto(target, source)
    return 2 * mib / 1024 / min(seconds(np.copyto, target, source)[0] for _ in range(repeats))


def best_dtype() -> str:
    """bfloat16 where the CPU multiplies it in hardware, else float32 (the package's own `auto`)."""
    import torch
    from bigrec_hf.metrics.ndcg_hr.encoders import resolve_dtype

    return str(resolve_dtype("auto", torch.device("cpu"))).removeprefix("torch.")


# --- results --------------------------------------------------------------------------------------------------------


@dataclass
class Row:
    """One measurement: ours beside the baseline on the same work, at one size."""

    stage: str
    size: str  # in words
    work: float  # the size as a number: the plot's x axis
    ours_s: float
    baseline_s: float | None = None
    count: float | None = None  # how many `counted` were done in that time; without them the table shows seconds
    counted: str = ""
    fraction: float | None = None  # of the ceiling
    ceiling: str = ""  # which ceiling
    peak_mib: float | None = None
    baseline_peak_mib: float | None = None
    same: bool | None = None  # both gave the same result
    targets: dict[str, bool] = field(default_factory=dict)  # target in words -> met
    note: str = ""

    @property
    def ratio(self) -> float | None:
        return None if self.baseline_s is None else self.baseline_s / self.ours_s

    def aim(self, what: str, value: float, *, least: float | None = None, most: float | None = None) -> None:
        """Note a target, whether `value` meets it, and the shortfall where it does not."""
        goal = f"{what} >= {least:g}" if least is not None else f"{what} <= {most:g}"
        met = value >= least if least is not None else value <= most
        self.targets[goal if met else f"{goal} (is {value:.3g})"] = bool(met)


def write_result(name: str, rows: Sequence[Row], folder: Path = RESULTS, **facts: Any) -> Path:
    """`<folder>/<name>.json`: date, CPU, threads, facts and rows. Exits with an error where results differed."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    head = {"name": name, "date": date.today().isoformat(), "cpu": cpu_name(), "cores": os.cpu_count()}
    head["clock"] = os.environ.get("BENCH_CLOCK", "wall")
    record = head | {"threads": thread_count(), "facts": facts, "rows": [asdict(row) for row in rows]}
    file.write_text(json.dumps(_rounded(record), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for row in rows:
        print(markdown_row(row), flush=True)
    if any(row.same is False for row in rows):
        raise SystemExit(f"{name}: ours and the baseline give different results")
    return file


def _rounded(value: Any) -> Any:
    """Floats at five significant digits: more are noise."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float | np.floating) else value


def arguments(doc: str | None, **options: Any) -> argparse.Namespace:
    """The command line of one benchmark: `--full`, `--out` and, by their defaults, the benchmark's own options."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="larger sizes, longer")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON files")
    for name, default in options.items():
        many = isinstance(default, list)
        kind = type(default[0] if many else default)
        parser.add_argument(f"--{name}", type=kind, nargs="+" if many else None, default=default)
    return parser.parse_args()


# --- table and plot -------------------------------------------------------------------------------------------------

HEADER = (
    "| stage | size | ours | plain | ratio | of the ceiling | peak MiB, ours / plain | same result | target | met |\n"
    "|---|---|---:|---:|---:|---:|---:|---|---|---|"
)


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10 ** (digits - 1) else f"{value:.{digits}g}"


def markdown_row(row: Row) -> str:
    """One line of the table. A rate where something was counted, else seconds."""

    def speed(taken: float | None) -> str:
        if taken is None:
            return "-"
        return f"{_number(row.count / taken)} {row.counted}/s" if row.count else f"{_number(taken)} s"

    cells = [
        row.stage,
        row.size + (f" ({row.note})" if row.note else ""),
        speed(row.ours_s),
        speed(row.baseline_s),
        "-" if row.ratio is None else f"{row.ratio:.1f}",
        "-" if row.fraction is None else f"{row.fraction:.0%} {row.ceiling}",
        f"{_number(row.peak_mib)} / {_number(row.baseline_peak_mib)}",
        {True: "yes", False: "NO", None: "-"}[row.same],
        "; ".join(row.targets) or "-",
        "; ".join("yes" if met else "NO" for met in row.targets.values()) or "-",
    ]
    return "| " + " | ".join(cells) + " |"


def plot_cost(name: str, rows: Sequence[Row], file: Path) -> bool:
    """Seconds against size, ours and the baseline, a panel a stage with three sizes or more; False where there is none.

    Both axes are logarithmic; the dotted line through our first point is what linear cost would be.
    """
    from matplotlib.figure import Figure

    stages = list(dict.fromkeys(row.stage for row in rows))
    panels = {stage: sorted((r for r in rows if r.stage == stage), key=lambda r: r.work) for stage in stages}
    panels = {stage: part for stage, part in panels.items() if len({row.work for row in part}) >= 3}
    if not panels:
        return False
    figure = Figure(figsize=(4.2 * len(panels), 3.2), layout="constrained")
    for axes, (stage, part) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        work = np.array([row.work for row in part])
        axes.plot(work, [row.ours_s for row in part], "o-", label="ours")
        plain = [(row.work, row.baseline_s) for row in part if row.baseline_s is not None]
        if plain:
            axes.plot(*zip(*plain, strict=True), "s--", label="plain")
        axes.plot(work, part[0].ours_s * work / work[0], "k:", linewidth=1, label="linear")
        axes.set(title=stage, xlabel="size", ylabel="seconds", xscale="log", yscale="log")
        axes.set_xticks(work, [f"{value:,.0f}" for value in work])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7, frameon=False)
    figure.savefig(file, format=file.suffix[1:], dpi=80)
    return True


def read_rows(file: Path) -> tuple[dict[str, Any], list[Row]]:
    """A result file's head and rows."""
    record = json.loads(file.read_text(encoding="utf-8"))
    return record, [Row(**row) for row in record.pop("rows")]
