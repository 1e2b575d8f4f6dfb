"""Time and memory of `prepare` on made-up ratings in MovieLens-10M format, beside a plain row-by-row loop.

    python -m benchmarks.prepare --sizes 100000 300000 1000000 --rows 10000000

The loop is what the reference scripts do (a dictionary of users, one Python object an example, JSON arrays), written
independently of the package. `prepare` writes its prepared set (Parquet) and, for the check that both are equal, once
more with its JSON export. The large size is ours alone, the loop's time there is scaled from the largest common size.
Each measurement is a process of its own; its peak resident memory is what the kernel reports, the interpreter included.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks.common import Row, arguments, write_result

N_USERS, N_ITEMS, MIN_RATINGS = 69_878, 10_681, 20  # of MovieLens-10M
LEAST_RATIO, TARGET_S, TARGET_MIB = 15.0, 60.0, 4096.0

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


def measure_beside(folder: Path, n_rows: int, repeats: int) -> Row:
    """The loop and `prepare` on the same ratings, in turns, and whether their JSON is equal."""
    raw, loop_dir, ours_dir, json_dir = (folder / name for name in ("raw", "loop", "ours", "json"))
    write_ratings(raw, n_rows)
    loop_dir.mkdir()
    loops, ours = [], []
    for _ in range(repeats):
        loops.append(measure(LOOP, str(raw), str(loop_dir)))
        shutil.rmtree(ours_dir, ignore_errors=True)
        ours.append(measure(PREPARE, str(raw), str(ours_dir), ""))
    with_json = measure(PREPARE, str(raw), str(folder / "again"), str(json_dir))
    names = ("train.json", "valid.json", "test.json")
    same = all(json.loads((json_dir / n).read_text()) == json.loads((loop_dir / n).read_text()) for n in names)
    (loop_s, loop_gib), (ours_s, ours_gib) = (np.median(taken, axis=0).tolist() for taken in (loops, ours))
    note = f"with the JSON export {with_json[0]:.1f} s"
    row = Row("prepare", f"{n_rows:,} ratings", n_rows, ours_s, loop_s, same=same, note=note)
    row.peak_mib, row.baseline_peak_mib = 1024 * ours_gib, 1024 * loop_gib
    return row


def main() -> None:
    chosen = arguments(__doc__, sizes=[100_000, 300_000, 1_000_000], rows=10_000_000, repeats=2, work_dir="")
    with tempfile.TemporaryDirectory(dir=chosen.work_dir or None) as work:
        rows = [measure_beside(Path(work) / str(n), n, chosen.repeats) for n in chosen.sizes]
        write_ratings(Path(work) / "large", chosen.rows)
        taken, gib = measure(PREPARE, str(Path(work) / "large"), str(Path(work) / "ours_large"), "")
    for row in rows:
        row.aim("times plain", row.ratio, least=LEAST_RATIO)
    scaled = rows[-1].baseline_s * chosen.rows / rows[-1].work
    large = Row("prepare", f"{chosen.rows:,} ratings", chosen.rows, taken, scaled, note="plain scaled")
    large.peak_mib = 1024 * gib
    large.aim("times plain", large.ratio, least=LEAST_RATIO)
    large.aim("seconds", taken, most=TARGET_S)
    large.aim("MiB", large.peak_mib, most=TARGET_MIB)
    write_result("prepare", [*rows, large], chosen.out)


if __name__ == "__main__":
    main()
