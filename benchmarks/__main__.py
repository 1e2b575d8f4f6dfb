"""All benchmarks, each in a process of its own; then the table in benchmarks/README.md and the plots.

    python -m benchmarks                    # = make bench
    python -m benchmarks --only sft encode  # these again; the table is made of all results that there are
    python -m benchmarks --full             # more sizes and repeats

Threads: OMP_NUM_THREADS, 1 where it is not set. Ends with an error where a benchmark failed, after the others ran.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import HEADER, RESULTS, ROOT, markdown_row, plot_cost, read_rows, thread_count

NAMES = (
    "machine", "startup", "prepare", "sft", "dense", "gamma", "generate", "constrained", "exact", "grpo", "encode",
    "ground", "metric",
)  # fmt: skip
README = Path(__file__).resolve().parent / "README.md"
START, END = "<!-- results -->", "<!-- /results -->"


def run_benchmark(name: str, out: Path, full: bool) -> bool:
    """Run one benchmark in its own process, output to `<out>/<name>.log`; False where it failed."""
    out.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", f"benchmarks.{name}", "--out", str(out), *(["--full"] if full else [])]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"OMP_NUM_THREADS": str(thread_count()), "PYTHONPATH": os.pathsep.join(paths)}
    started = time.perf_counter()
    print(f"{name} ...", end=" ", flush=True)
    with (out / f"{name}.log").open("w", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
    print(
        f"{time.perf_counter() - started:.0f} s", "" if done.returncode == 0 else f"FAILED, see {log.name}", flush=True
    )
    return done.returncode == 0


def render(out: Path) -> str:
    """The table of all results in `out`, a line about machine and dates, and the plots, drawn beside them."""
    found = [read_rows(out / f"{name}.json") for name in NAMES if (out / f"{name}.json").is_file()]
    heads = [head for head, _ in found]
    made = {key: sorted({str(head[key]) for head in heads}) for key in ("date", "cpu", "cores", "threads", "clock")}
    lines = [
        f"Measured {', '.join(made['date'])} on {', '.join(made['cpu'])}, {', '.join(made['cores'])} cores, "
        f"threads: {', '.join(made['threads'])}, clock: {', '.join(made['clock'])}."
    ]
    for head in heads:
        if head["name"] == "machine":
            lines[0] += " Ceilings: " + ", ".join(f"{key} {value:.4g}" for key, value in head["facts"].items()) + "."
    lines += ["", HEADER, *(markdown_row(row) for _, rows in found for row in rows), ""]
    for head, rows in found:
        file = out / f"{head['name']}.png"
        if plot_cost(head["name"], rows, file):
            lines.append(f"![seconds against size, {head['name']}](results/{file.name})")
    return "\n".join(lines)


def update_readme(text: str, readme: Path = README) -> None:
    """Put `text` between the markers of the README."""
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    after = rest.partition(END)[2]
    readme.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--full", action="store_true", help="larger sizes, longer")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results; elsewhere, the README stays")
    chosen = parser.parse_args()
    print(f"threads: {thread_count()}", flush=True)
    failed = [name for name in chosen.only if not run_benchmark(name, chosen.out, chosen.full)]
    table = render(chosen.out)
    print(table)
    if chosen.out.resolve() == RESULTS:
        update_readme(table)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
