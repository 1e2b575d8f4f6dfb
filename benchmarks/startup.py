"""Start-up: `bigrec-hf --help` answers without importing torch; `import torch` alone is the plain way's least."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.common import Row, alternate, arguments, write_result

HELP = "import sys; from bigrec_hf.cli import main; sys.argv = ['bigrec-hf', '--help']; main()"
NO_TORCH = """
import sys
from bigrec_hf.cli import main
try:
    main(["--help"])
except SystemExit:
    pass
sys.exit("torch" in sys.modules)
"""


def run(program: str) -> int:
    return subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL).returncode


def main() -> None:
    chosen = arguments(__doc__, repeats=5)
    functions = {"ours": lambda: run(HELP), "torch": lambda: run("import torch, transformers")}
    run(HELP)  # compiled files
    taken, _ = alternate(functions, chosen.repeats)
    row = Row(
        "start-up", "bigrec-hf --help", 1, taken["ours"], taken["torch"], note="plain: import torch, transformers"
    )
    row.aim("seconds", taken["ours"], most=1)
    row.targets["no torch import"] = run(NO_TORCH) == 0
    write_result("startup", [row], chosen.out)


if __name__ == "__main__":
    main()
