"""Peak memory of tokenizing a training split, streamed and whole, on made-up prepared sets of several sizes.

    python -m benchmarks.streaming --rows 20000 200000

Each measurement is a process of its own that tokenizes every row once, as `sft` does with `--streaming true --sample 0`
and with `false`, without a model (mode `read`: streams and tokenizes nothing); its peak resident memory is what the
kernel reports, imports and titles included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.common import BASE_MODEL
from benchmarks.prepare import measure
from bigrec_hf.prepare.tables import CHUNK, EXAMPLE_SCHEMA, ITEM_SCHEMA, write_tables

N_ITEMS, WINDOW = 10_000, 10

PROGRAM = """
import sys, time
from itertools import islice
from bigrec_hf.data.examples import load_examples
from bigrec_hf.models.loading import load_tokenizer
from bigrec_hf.common.environment import peak_memory_mib
from bigrec_hf.sft.tokenize import tokenize_examples, tokenize_stream
from bigrec_hf.sft.streaming import stream_examples
folder, base_model, mode, buffer = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
started = time.process_time()
prompt = "alpaca-basic", load_tokenizer(base_model)
limits = {"max_history": 10, "max_length": 1024, "completion_only": True}
if mode in ("stream", "read"):
    examples, (source,) = stream_examples([folder], "train", sample=0, seed=0, shuffle_buffer=buffer, n_processes=1)
    stream = tokenize_stream(examples, *prompt, **limits) if mode == "stream" else examples
    assert sum(1 for _ in islice(stream, len(source.rows))) == len(source.rows)
else:
    tokenize_examples(load_examples(folder, "train", seed=0), *prompt, **limits)
print("MEASURED", time.process_time() - started, peak_memory_mib())
"""


def write_set(folder: Path, n_rows: int) -> None:
    """The parts of a prepared set that a training reads: facts, items, and `n_rows` training examples."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    (folder / "facts.json").write_text(json.dumps({"noun": "movies", "verb": "watched"}))
    items = [list(range(N_ITEMS)), [f"i{i}" for i in range(N_ITEMS)]]
    items += [[f"Film number {i} (1990)" for i in range(N_ITEMS)], [1] * N_ITEMS]
    table = pa.table(
        [pa.array(values, field.type) for values, field in zip(items, ITEM_SCHEMA, strict=True)], schema=ITEM_SCHEMA
    )
    write_tables(folder / "data/items/train.parquet", ITEM_SCHEMA, iter([table]))

    def parts():
        for start in range(0, n_rows, CHUNK):
            n = min(CHUNK, n_rows - start)
            history = pa.array(rng.integers(0, N_ITEMS, (n, WINDOW), np.int32).ravel())
            offsets = pa.array(np.arange(n + 1, dtype=np.int32) * WINDOW)
            ids = pa.array([f"u{row}:10" for row in range(start, start + n)])
            values = {
                "example_id": ids,
                "user_id": ids,
                "history": pa.ListArray.from_arrays(offsets, history),
                "target": pa.array(rng.integers(0, N_ITEMS, n, np.int32)),
            }
            columns = [values.get(field.name, pa.nulls(n, field.type)) for field in EXAMPLE_SCHEMA]
            yield pa.table(columns, schema=EXAMPLE_SCHEMA)

    write_tables(folder / "data/default/train.parquet", EXAMPLE_SCHEMA, parts())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--modes", nargs="+", default=["stream", "whole"], choices=("stream", "whole", "read"))
    parser.add_argument("--shuffle_buffer", type=int, default=10_000)
    parser.add_argument("--base_model", default=str(BASE_MODEL))
    chosen = parser.parse_args()
    print("| rows | mode | seconds of the processor | peak MiB |\n|---:|---|---:|---:|")
    with tempfile.TemporaryDirectory() as work:
        for n in chosen.rows:
            folder = Path(work) / str(n)
            write_set(folder, n)
            for mode in chosen.modes:
                seconds, mib = measure(PROGRAM, str(folder), chosen.base_model, mode, str(chosen.shuffle_buffer))
                print(f"| {n:,} | {mode} | {seconds:.1f} | {mib:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
