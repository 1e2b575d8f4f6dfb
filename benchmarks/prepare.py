"""Time and memory of `prepare` on made-up ratings in MovieLens-10M format, beside a plain row-by-row loop.

    python -m benchmarks.prepare --sizes 100000 250000 600000 --rows 10000000

The loop (a dictionary of users, one Python object an example, one dictionary a row) is written independently of the
package and gives its rows to `datasets`, which writes the same four configurations as `prepare`: all are compared. "To
JSON alone" is the same loop writing the texts of all examples as the reference's three JSON files and nothing else,
compared with our JSON export. The large size is ours alone; the loop's time there is scaled from the largest both did.
Each measurement is a process of its own; its peak resident memory is what the kernel reports, the
interpreter included.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import Row, arguments, write_result

N_USERS, N_ITEMS, MIN_RATINGS = 69_878, 10_681, 20  # of MovieLens-10M
LEAST_RATIO, TARGET_S, TARGET_MIB = 15.0, 60.0, 4096.0

PREPARE = """
import sys, time
started = time.perf_counter()
from bigrec_hf.prepare.stage import prepare_dataset
prepare_dataset("movielens", sys.argv[1], sys.argv[2], export_reference_json=sys.argv[3] or None)
taken = time.perf_counter() - started
from bigrec_hf.common.environment import peak_memory_mib
print("MEASURED", taken, peak_memory_mib())
"""

LOOP = """
import json, sys, time
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
        users.setdefault(user, []).append((int(moment), row_of[item], float(rating)))
examples = []
for user, entries in users.items():
    entries.sort(key=lambda entry: entry[0])
    for i in range(10, len(entries)):
        examples.append((user, i, entries[i - 10 : i], entries[i]))
examples.sort(key=lambda example: example[3][0])
n = len(examples)
cuts = {"train": (0, int(n * 0.8)), "validation": (int(n * 0.8), int(n * 0.9)), "test": (int(n * 0.9), n)}
instruction = "Given a list of movies the user has watched before, "
instruction += "please recommend a new movie that the user likes to the user."

def text(user, i, history, target):
    names = ", ".join('"' + titles[row] + '"' for _, row, _ in history)
    names = "The user has watched the following movies before:" + names + "\\n "
    return {"instruction": instruction, "input": names, "output": '"' + titles[target[1]] + '"'}

if sys.argv[3] == "json":
    for split, (start, end) in cuts.items():
        with open(sys.argv[2] + "/" + split.replace("validation", "valid") + ".json", "w") as file:
            json.dump([text(*example) for example in examples[start:end]], file, indent=4)
else:
    import numpy as np
    from datasets import Dataset

    def write(config, split, rows):
        Dataset.from_list(rows).to_parquet(f"{sys.argv[2]}/data/{config}/{split}.parquet")

    counts = [0] * len(titles)
    for split, (start, end) in cuts.items():
        rows = []
        for user, i, history, (moment, target, rating) in examples[start:end]:
            row = {"example_id": f"{user}:{i}", "user_id": user, "history": [row for _, row, _ in history]}
            row |= {"history_ratings": [rating for _, _, rating in history]}
            rows.append(row | {"target": target, "rating": rating, "timestamp": moment})
            counts[target] += split == "train"
        write("default", split, rows)
        size = end - start
        if split == "train":
            drawn = np.random.default_rng(0).permutation(size)[:1024]
        else:
            drawn = np.random.RandomState(42).choice(size, size=min(size, 5000), replace=False)
        drawn = [examples[start + at] for at in drawn]
        write("text", split, [{"example_id": f"{e[0]}:{e[1]}", **text(*e)} for e in drawn])
    ids = list(row_of)
    items = [{"row": i, "item_id": ids[i], "title": titles[i], "train_count": counts[i]} for i in range(len(titles))]
    write("items", "train", items)
    rows = []
    with open(sys.argv[1] + "/ratings.dat", encoding="utf-8", newline="\\n") as file:
        for line in file:
            user, item, rating, moment = line.split("::")
            rows.append({"user_id": user, "row": row_of[item], "rating": float(rating), "timestamp": int(moment)})
    write("interactions", "train", rows)
taken = time.perf_counter() - started
from bigrec_hf.common.environment import peak_memory_mib
print("MEASURED", taken, peak_memory_mib())
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
    """Run a program in a fresh interpreter; (seconds, peak resident MiB) as it reports them."""
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    _, seconds, mib = done.stdout.strip().splitlines()[-1].split()
    return float(seconds), float(mib)


def same_files(loop: Path, ours: Path, loop_json: Path, our_json: Path) -> bool:
    """Whether both wrote the same rows: every Parquet file, and the JSON files."""
    files = sorted(file.relative_to(ours) for file in ours.glob("data/*/*.parquet"))
    if files != sorted(file.relative_to(loop) for file in loop.glob("data/*/*.parquet")):
        return False
    for file in files:
        one, other = pq.read_table(loop / file), pq.read_table(ours / file)
        columns = [(one[name].cast(other[name].type), other[name]) for name in other.column_names]
        if one.column_names != other.column_names or not all(a.equals(b) for a, b in columns):
            return False
    names = ("train.json", "valid.json", "test.json")
    return all(json.loads((our_json / n).read_text()) == json.loads((loop_json / n).read_text()) for n in names)


def measure_beside(folder: Path, n_rows: int, repeats: int) -> Row:
    """The loop and `prepare` on the same ratings, in turns, and whether what they write is equal."""
    raw, loop_dir, loop_json, ours_dir, our_json = (folder / name for name in ("raw", "loop", "json", "ours", "export"))
    write_ratings(raw, n_rows)
    loop_dir.mkdir()
    loop_json.mkdir()
    loops, ours = [], []
    for _ in range(repeats):
        loops.append(measure(LOOP, str(raw), str(loop_dir), "parquet"))
        shutil.rmtree(ours_dir, ignore_errors=True)
        ours.append(measure(PREPARE, str(raw), str(ours_dir), ""))
    json_s, _ = measure(LOOP, str(raw), str(loop_json), "json")
    with_json_s, _ = measure(PREPARE, str(raw), str(folder / "again"), str(our_json))
    same = same_files(loop_dir, ours_dir, loop_json, our_json)
    (loop_s, loop_mib), (ours_s, ours_mib) = (np.median(taken, axis=0).tolist() for taken in (loops, ours))
    note = f"JSON alone: plain {json_s:.1f} s; Parquet and JSON: ours {with_json_s:.1f} s"
    row = Row("prepare", f"{n_rows:,} ratings", n_rows, ours_s, loop_s, same=same, note=note)
    row.peak_mib, row.baseline_peak_mib = ours_mib, loop_mib
    return row


def main() -> None:
    chosen = arguments(__doc__, sizes=[100_000, 250_000, 600_000], rows=10_000_000, repeats=2, work_dir="")
    with tempfile.TemporaryDirectory(dir=chosen.work_dir or None) as work:
        rows = [measure_beside(Path(work) / str(n), n, chosen.repeats) for n in chosen.sizes]
        write_ratings(Path(work) / "large", chosen.rows)
        taken, mib = measure(PREPARE, str(Path(work) / "large"), str(Path(work) / "ours_large"), "")
    scaled = rows[-1].baseline_s * chosen.rows / rows[-1].work
    large = Row("prepare", f"{chosen.rows:,} ratings", chosen.rows, taken, scaled, note="plain scaled")
    large.peak_mib = mib
    large.aim("times plain", large.ratio, least=LEAST_RATIO)
    large.aim("seconds", taken, most=TARGET_S)
    large.aim("MiB", large.peak_mib, most=TARGET_MIB)
    write_result("prepare", [*rows, large], chosen.out)


if __name__ == "__main__":
    main()
