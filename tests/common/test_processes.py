"""Two processes (gloo on CPUs): encode and ground give the files of one process, and one that fails ends the job.

The same for `generate` and `sft` stands in test_generate.py and test_sft.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bigrec_hf.common.locks import LOCK_FILE
from bigrec_hf.common.shards import share_of_rows
from tests.helpers.processes import ACCELERATE, flags, run_pair, run_python
from tests.helpers.tiny import save_tiny_model

FILES = ("index/embeddings.safetensors", "index/catalog.parquet", "index/fingerprint.json")
FILES += ("beams/rankings.parquet", "beams_hybrid/rankings.parquet")

# what a process runs: small parts, a log of what it encodes, and the fault under test on rank 1
SCRIPT = """
import os, signal, sys
from pathlib import Path
from bigrec_hf import cli
from bigrec_hf.ground import distance, index, stage
from bigrec_hf.sft import trainer
from bigrec_hf.metrics.ndcg_hr import encoders
rank, run_dir, fault, *stages = os.environ.get("RANK", "0"), *sys.argv[1:3], *sys.argv[3].split(",")
index.PART_TITLES = 8
distance.PART_EXAMPLES = stage.PART_EXAMPLES = 4
encode = encoders.LastTokenEncoder.encode
def broken(*rest, **more):
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("this process is broken")
def logged(self, texts, *rest):
    with open(Path(run_dir, f"encoded-{rank}.txt"), "a") as log:
        log.write("".join(text + "\\n" for text in texts))
    return encode(self, texts, *rest)
encoders.LastTokenEncoder.encode = logged
if rank == "1" and fault != "none":
    encoders.LastTokenEncoder.encode = trainer.CompletionLossTrainer.compute_loss = broken
for stage in stages:
    name, *flags = stage.split(":")
    code = cli.main([name, *flags, *sys.argv[4:]])
    if code:
        sys.exit(code)
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("script") / "process.py"
    path.write_text(SCRIPT)
    return str(path)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A tiny model, a catalog of 45 rows with 41 titles, and the answers to 19 examples."""
    folder = tmp_path_factory.mktemp("inputs")
    rng = np.random.default_rng(0)
    words = ["Toy", "Story", "Four", "Rooms", "Heat", "Get", "Shorty", "Dead", "Man", "Walking"]
    titles = [" ".join(rng.choice(words, rng.integers(1, 9))) + f" ({1950 + row})" for row in range(41)]
    titles += titles[:4]
    rows = [f'i{row},"{title}"\n' for row, title in enumerate(titles)]
    (folder / "catalog.csv").write_text("item_id,title\n" + "".join(rows))
    n = 19
    targets = rng.integers(0, len(titles), n)
    texts = [
        [titles[rng.integers(0, 45)] if rng.random() < 0.3 else " ".join(rng.choice(words, 3)), titles[i]]
        for i in range(n)
    ]
    texts[5] = ["", titles[0]]
    columns = {
        "example_id": [f"e{i}" for i in range(n)],
        "target": pa.array(targets, pa.int32()),
        "target_title": [titles[row] for row in targets],
        "history": [[int(row)] for row in rng.integers(0, 45, n)],
        "texts": texts,
    }
    pq.write_table(pa.table(columns), folder / "generations.parquet")
    save_tiny_model(folder / "model")
    return folder


def ground_flags(inputs: Path, run_dir: Path) -> list[str]:
    """Puts the answers into the run folder; the flags of the stage."""
    (run_dir / "beams").mkdir(parents=True, exist_ok=True)
    (run_dir / "beams" / "generations.parquet").write_bytes((inputs / "generations.parquet").read_bytes())
    return flags(output_dir=run_dir, catalog=inputs / "catalog.csv", base_model=inputs / "model", method="beams")


BOTH = "ground,ground:--ranking:hybrid"


@pytest.fixture(scope="module")
def alone(script, inputs, tmp_path_factory):
    """The run folder of one process."""
    run_dir = tmp_path_factory.mktemp("alone")
    done = run_python(script, run_dir, "none", BOTH, *ground_flags(inputs, run_dir))
    assert done.returncode == 0, done.stderr
    return run_dir


def assert_same_files(run_dir: Path, alone: Path) -> None:
    for name in FILES:
        assert (run_dir / name).read_bytes() == (alone / name).read_bytes(), name
    hidden = [path.name for path in run_dir.rglob(".*")]
    left_over = [name for name in hidden if not name.startswith(LOCK_FILE)]
    assert not left_over


@pytest.mark.slow
def test_encode_and_ground_give_the_same_files_bit_for_bit(script, inputs, alone, tmp_path):
    done = run_pair(script, tmp_path, "none", BOTH, *ground_flags(inputs, tmp_path), launcher=ACCELERATE)
    assert done.returncode == 0, done.stderr
    assert_same_files(tmp_path, alone)
    assert done.stdout.count("19 examples, 45 items") == 2  # once a ranking
    logs = [(tmp_path / f"encoded-{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    whole = (alone / "encoded-0.txt").read_text().splitlines()  # the catalog's 41 titles, then the answers, twice
    shares = [set(log) & set(whole[:41]) for log in logs]
    assert [len(share) for share in shares] == [3 * 8, 2 * 8 + 1]
    assert sorted(logs[0] + logs[1]) == sorted(whole)  # everything once


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["raise", "kill"])
def test_a_broken_process_ends_the_job_and_leaves_nothing_half_written(script, inputs, alone, tmp_path, fault):
    arguments = ground_flags(inputs, tmp_path)
    done = run_pair(script, tmp_path, fault, "ground", *arguments)
    assert done.returncode != 0
    assert ("this process is broken" if fault == "raise" else "SIGKILL") in done.stderr
    assert not any((tmp_path / name).exists() for name in FILES)
    if fault == "kill":
        return
    again = run_python(script, tmp_path, "none", BOTH, *arguments)  # goes on with what the other had encoded
    assert again.returncode == 0, again.stderr
    assert_same_files(tmp_path, alone)


@pytest.mark.slow
def test_a_broken_process_ends_the_training(script, tiny_model_dir, tiny_prepared, tmp_path):
    arguments = flags(dataset=tiny_prepared, base_model=tiny_model_dir, run_dir=tmp_path, epochs=1)
    arguments += flags(sample=8, validation_sample=4, global_batch_size=4, micro_batch_size=2)
    done = run_pair(script, tmp_path, "raise", "sft", *arguments)
    assert done.returncode != 0
    assert "this process is broken" in done.stderr
    left = {file.name for file in (tmp_path / "adapter").glob("*")}
    assert not left & {"training.json", "adapter_config.json", "adapter_model.safetensors"}


@pytest.mark.slow
def test_run_shares_index_and_ground(tiny_run, tmp_path):
    """All stages under two processes: they meet in each, and what does not depend on the training is the same."""
    recipe = tiny_run.parent / "recipe.yaml"
    done = run_pair("-m", "bigrec_hf", "run", "--config", recipe, "--run_dir", tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("embeddings.safetensors", "catalog.parquet"):
        assert (tmp_path / "index" / name).read_bytes() == (tiny_run / "index" / name).read_bytes()
    ranks = [pq.read_table(run / "finetuned" / "rankings.parquet")["example_id"] for run in (tmp_path, tiny_run)]
    assert ranks[0] == ranks[1]
    assert json.loads((tmp_path / "finetuned" / "results.json").read_text())["n_examples"] == 10


@given(st.integers(0, 40), st.integers(1, 7), st.integers(1, 5))
def test_shares_cover_all_rows_once_and_begin_at_parts(n, part_rows, n_processes):
    shares = [share_of_rows(n, part_rows, rank, n_processes) for rank in range(n_processes)]
    assert [row for share in shares for row in range(n)[share]] == list(range(n))
    assert all(share.start % part_rows == 0 or share.start == n for share in shares)
