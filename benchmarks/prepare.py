"""Time and memory of `prepare` on made-up ratings in MovieLens-10M format, beside a plain row-by-row loop.

    python -m benchmarks.prepare --rows 10000000 --loop_rows 1000000

The loop is what the reference scripts do (a dictionary of users, one Python object an example, JSON arrays), written
independently of the package. It runs on a smaller part, for it is slow; both are measured there, and their JSON must be
equal. Each measurement is a process of its own; its peak resident memory is what the kernel reports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

N_USERS, N_ITEMS, MIN_RATINGS = 69_878, 10_681, 20  # of MovieLens-10M
TARGET_S, TARGET_GIB = 60, 4.0

PREPARE = """
import resource, sys, time
started = time.perf_counter()
from bigrec_hf.prepare import prepare_dataset
prepare_dataset("movielens", sys.argv[1], sys.argv[2], export_reference_json=sys.argv[3] or None)
print("MEASURED", time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""

LOOP = """
import json, resource, sys, time
started = time.perf_counter()
titles, row_of, users = [], {}, {}
with open(sys.argv[1] + "/movies.dat", encoding="utf-8", newline="\\n") as file:
    for line in file:
        item, title, _ = line.rstrip("\\n").split("::")
        row_of[item] = len(titles)
        titles.append(title)
with open(sys.argv[1] + "/ratings.dat", encoding="utf-8", newline="\\n") as file:
    for line in file:
        user, item, rating, moment = line.split("::")
        users.setdefault(user, []).append((int(moment), row_of[item]))
examples = []
for user, entries in users.items():
    entries.sort(key=lambda entry: entry[0])
    for i in range(10, len(entries)):
        examples.append((entries[i][0], [row for _, row in entries[i - 10 : i]], entries[i][1]))
examples.sort(key=lambda example: example[0])
n = len(examples)
cuts = {"train": (0, int(n * 0.8)), "valid": (int(n * 0.8), int(n * 0.9)), "test": (int(n * 0.9), n)}
instruction = "Given a list of movies the user has watched before, "
instruction += "please recommend a new movie that the user likes to the user."
for split, (start, end) in cuts.items():
    rows = []
    for _, history, target in examples[start:end]:
        text = ", ".join('"' + titles[row] + '"' for row in history)
        text = "The user has watched the following movies before:" + text + "\\n "
        rows.append({"instruction": instruction, "input": text, "output": '"' + titles[target] + '"'})
    with open(sys.argv[2] + "/" + split + ".json", "w") as file:
        json.dump(rows, file, indent=4)
print("MEASURED", time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


def write_ratings(folder: Path, n_rows: int, seed: int = 0) -> None:
    """`ratings.dat` and `movies.dat` in MovieLens-10M format: users in blocks, popularity and activity long-tailed."""
    import polars as pl

    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    n_users = max(1, n_rows * N_USERS // 10_000_054)
    activity = rng.lognormal(0, 1.2, n_users)
    counts = np.minimum(MIN_RATINGS + (n_rows - MIN_RATINGS * n_users) * activity / activity.sum(), N_ITEMS).astype(int)
    np.add.at(counts, rng.integers(0, n_users, max(n_rows - counts.sum(), 0)), 1)
    users = np.repeat(np.arange(1, n_users + 1), counts)
    n = len(users)
    item_ids = np.sort(rng.choice(65_133, N_ITEMS, replace=False) + 1)
    items = item_ids[(N_ITEMS * rng.random(n) ** 3).astype(int)]
    begun = rng.integers(789_652_009, 1_200_000_000, n_users)[users - 1]
    times = begun + (rng.exponential(50_000, n)).astype(int)
    ratings = np.array(["0.5", "1", "1.5", "2", "2.5", "3", "3.5", "4", "4.5", "5"])[rng.integers(0, 10, n)]
    nothing = pl.lit(None, dtype=pl.String)
    frame = pl.DataFrame({"user": users, "item": items, "rating": ratings, "time": times})
    frame = frame.select("user", nothing.alias("a"), "item", nothing.alias("b"), "rating", nothing.alias("c"), "time")
    frame.write_csv(folder / "ratings.dat", separator=":", include_header=False, null_value="", quote_style="never")
    kinds = ("Film {}, The ({})", "Film: {} ({})", 'The "{}" ({})', "Amélie {} ({})")
    lines = [f"{i}::{kinds[i % 4].format(i, 1920 + i % 90)}::Drama|Comedy\n" for i in item_ids]
    (folder / "movies.dat").write_text("".join(lines), encoding="utf-8", newline="\n")


def measure(program: str, *arguments: str) -> tuple[float, float]:
    """Run a program in a fresh interpreter; (seconds, peak resident GiB) as it reports them."""
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    _, seconds, gib = done.stdout.strip().splitlines()[-1].split()
    return float(seconds), float(gib)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000, help="ratings of the large measurement")
    parser.add_argument("--loop_rows", type=int, default=1_000_000, help="ratings of the side-by-side measurement")
    parser.add_argument("--work_dir", help="folder for the data, removed afterwards (default: the system's)")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.work_dir) as work:
        folder = Path(work)
        write_ratings(folder / "small", chosen.loop_rows)
        write_ratings(folder / "large", chosen.rows)
        (folder / "loop").mkdir()
        places = str(folder / "small"), str(folder / "ours"), str(folder / "json")
        loop = measure(LOOP, places[0], str(folder / "loop"))
        ours = measure(PREPARE, *places)
        large = measure(PREPARE, str(folder / "large"), str(folder / "ours_large"), "")
        names = ("train", "valid", "test")
        equal = all(
            json.loads((folder / "json" / f"{name}.json").read_text())
            == json.loads((folder / "loop" / f"{name}.json").read_text())
            for name in names
        )
        print("| what | ratings | output | time | peak memory |\n|---|---|---|---|---|")
        print(f"| row-by-row loop | {chosen.loop_rows:,} | JSON | {loop[0]:.1f} s | {loop[1]:.2f} GiB |")
        print(f"| prepare | {chosen.loop_rows:,} | prepared set + JSON | {ours[0]:.1f} s | {ours[1]:.2f} GiB |")
        print(f"| prepare | {chosen.rows:,} | prepared set | {large[0]:.1f} s | {large[1]:.2f} GiB |")
        print(f"\nThe two at {chosen.loop_rows:,} ratings: JSON {'equal' if equal else 'DIFFERENT'}, ", end="")
        print(f"time ratio {loop[0] / ours[0]:.1f}, memory ratio {loop[1] / ours[1]:.1f}.")
        within = large[0] <= TARGET_S and large[1] <= TARGET_GIB
        print(f"Target for 10,000,000 ratings: {TARGET_S} s, {TARGET_GIB} GiB: {'met' if within else 'NOT met'}.")
        if not equal:
            sys.exit(1)


if __name__ == "__main__":
    main()
