"""Compare two folders of artifacts byte for byte: what a change that should change nothing has changed.

    python scripts/compare_runs.py runs/before runs/after

JSON files are compared without what differs from run to run (times, memory, speed, versions, the commit). Checkpoints
and locks are left out. Prints every difference; exits with 1 if there is one.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

VARYING = {
    "started",
    "seconds",
    "process_peak_memory_mib",
    "titles_per_second",
    "environment",
    "versions",
    "git_commit",
}
VARYING |= {"train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos"}
VARYING |= {"eval_runtime", "eval_samples_per_second", "eval_steps_per_second"}
LEFT_OUT = re.compile(r"(^|/)(\.lock.*|checkpoints/.*)$")


def settled(value: Any) -> Any:
    """The value without the keys that vary."""
    if isinstance(value, dict):
        return {key: settled(part) for key, part in value.items() if key not in VARYING}
    return [settled(part) for part in value] if isinstance(value, list) else value


def content(file: Path) -> Any:
    """What is compared of a file."""
    return settled(json.loads(file.read_text(encoding="utf-8"))) if file.suffix == ".json" else file.read_bytes()


def files(folder: Path) -> dict[str, Path]:
    """Relative path -> file."""
    found = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    return {name: file for name, file in sorted(found.items()) if not LEFT_OUT.search(name)}


def main() -> int:
    """Compare the two folders named on the command line."""
    if len(sys.argv) != 3 or not all(Path(folder).is_dir() for folder in sys.argv[1:]):
        raise SystemExit(__doc__)
    before, after = (files(Path(folder)) for folder in sys.argv[1:])
    problems = [f"only in {sys.argv[1]}: {name}" for name in before if name not in after]
    problems += [f"only in {sys.argv[2]}: {name}" for name in after if name not in before]
    both = [name for name in before if name in after]
    problems += [f"differs: {name}" for name in both if content(before[name]) != content(after[name])]
    print("\n".join([*problems, f"{len(both)} files in both, {len(problems)} differences"]))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
