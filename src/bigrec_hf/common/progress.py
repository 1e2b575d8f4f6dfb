"""Progress bars, in one place: a terminal shows those that move, a file gets a line of each once a minute."""

from __future__ import annotations

import os
import sys

SECONDS = "60"  # without a terminal: to the first line of a bar, and between its lines


def settle_bars() -> None:
    """Tell every tqdm bar (ours, the Trainer's, those of datasets and the Hub's client) how to behave: in a terminal a
    finished bar goes; elsewhere bars are slow.

    tqdm reads these variables once, so call this before anything imports it. A variable that is set already stays;
    TQDM_DISABLE=1 turns all bars off.
    """
    if sys.stderr.isatty():
        os.environ.setdefault("TQDM_LEAVE", "")  # tqdm makes a bool of it: only the empty string is false
    else:
        for name in ("TQDM_DELAY", "TQDM_MININTERVAL"):
            os.environ.setdefault(name, SECONDS)
        os.environ.setdefault("TQDM_MAXINTERVAL", "600")  # a watching thread would refresh every ten seconds


def say(line: str) -> None:
    """Print a line that stays, above the bars of a terminal; to stdout."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        tqdm.write(line)
    else:  # tqdm would draw every bar anew, whatever its pace
        print(line, flush=True)
