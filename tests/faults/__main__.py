"""`make attack`: hostile inputs, kills and full disks until the time is over; prints the counts."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TQDM_DISABLE": "1"}
os.environ.pop("HF_TOKEN", None)


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.faults", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="of all parts together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=10_000, help="kills, and full disks, at most")
    parser.add_argument("--only", choices=("kills", "inputs"))
    given = parser.parse_args()
    start, unclear = time.monotonic(), []
    if given.only != "inputs":  # first: a fork must not inherit the threads of other libraries
        from tests.faults.kills import attack

        share = given.seconds * (1 if given.only else 0.5)
        for action, count in attack(given.kills, given.seed, share).items():
            name = {"kill": "kills", "full": "full disks"}[action]
            print(f"{name}: {count}", flush=True)
            unclear += count.unclear
    if given.only != "kills":
        unclear += attack_inputs(given.seed, start + given.seconds)
    print("\n".join(unclear))
    return 1 if unclear else 0


def attack_inputs(seed: int, end: float) -> list[str]:
    """Rounds of hostile inputs until `end`; prints their counts."""
    from bigrec_hf import Recommender
    from tests.faults import inputs
    from tests.faults.make import raw_sources
    from tests.helpers.tiny import save_tiny_model, write_raw_movies
    from tests.helpers.tiny_run import DENSE, make_run

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        output, sys.stdout = sys.stdout, (folder / "log").open("w")
        try:
            base = save_tiny_model(folder / "base", spread=0.05)
            run = make_run(folder, write_raw_movies(folder / "raw"), base)
            saved = Recommender.from_pretrained(run).save_pretrained(folder / "saved")
            (folder / "dense").mkdir()
            scoring = make_run(folder / "dense", folder / "raw", base, **DENSE)
            saved_scoring = Recommender.from_pretrained(scoring).save_pretrained(folder / "saved-dense")
            raw = raw_sources(folder / "sources")
        finally:
            sys.stdout = output
        parts = {
            "recipes": lambda seed: inputs.attack_recipes(100, seed),
            "raw files": lambda seed: inputs.attack_raw_files(raw, 100, seed),
            "a saved recommender": lambda seed: inputs.attack_recommender(saved, 25, seed),
            "one that scores titles": lambda seed: inputs.attack_recommender(saved_scoring, 15, seed),
            "a run": lambda seed: inputs.attack_run(run, 25, seed),
        }
        total = {name: inputs.Count() for name in parts}
        while time.monotonic() < end:
            for name, part in parts.items():
                count = part(seed)
                total[name].tried += count.tried
                total[name].refused += count.refused
                total[name].unclear += count.unclear
            seed += 1
        for name, count in total.items():
            print(f"{name}: {count}", flush=True)
        return [line for count in total.values() for line in count.unclear]


if __name__ == "__main__":
    sys.exit(main())
