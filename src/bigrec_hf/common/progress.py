"""Progress bars, in one place: as usual in a terminal, once a minute where they end up in a file."""

from __future__ import annotations

import os
import sys

SECONDS = "60"  # without a terminal: to the first line of a bar, and between its lines


def slow_bars_without_terminal() -> None:
    """Unless stderr is a terminal, tell every tqdm bar (ours, the Trainer's, those of datasets and the Hub's client).

    tqdm reads these variables once, so call this before anything imports it. A variable that is set already stays;
    TQDM_DISABLE=1 turns all bars off.
    """
    if not sys.stderr.isatty():
        for name in ("TQDM_DELAY", "TQDM_MININTERVAL"):
            os.environ.setdefault(name, SECONDS)
        os.environ.setdefault("TQDM_MAXINTERVAL", "600")  # a watching thread would refresh every ten seconds
