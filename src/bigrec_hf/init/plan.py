"""How long to train and how much to score, and what that will take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bigrec_hf.init.measure import Speed

MOST_PASSES = 10.0  # over the training data; the validation loss may end it before
SLACK = 1.1  # more passes than the time allows: the clock ends the training, not the data
MOST_MINUTES, UNKNOWN_MINUTES = 60, 20  # of training, unless others are given
SAMPLES = (1000, 500, 200)  # examples to score per split, the first that does not take longer than
SCORE_MINUTES = 20.0  # this, or than the training
SPLITS = ("validation", "test")  # that a run scores: validation for the weights of its pool


@dataclass(frozen=True)
class Plan:
    """What goes into the recipe, and the estimate in words."""

    epochs: float
    eval_sample: int
    lines: list[str]


def usual_minutes(speed: Speed | None) -> float:
    """Minutes of training unless others are wanted: one pass over the data, at least 1 and at most MOST_MINUTES."""
    if speed is None:
        return UNKNOWN_MINUTES
    return min(max(1, math.ceil(speed.seconds_per_pass / 60)), MOST_MINUTES)


def make_plan(speed: Speed | None, minutes: float, facts: dict[str, Any]) -> Plan:
    """The passes over the data that `minutes` allow, and the examples to score. `facts`: those of the prepared set."""
    if speed is None:
        unknown = "Time and memory: not estimated, as the base model is not here and its name does not give its size."
        return Plan(MOST_PASSES, SAMPLES[0], [unknown])
    passes = SLACK * 60 * minutes / speed.seconds_per_pass
    epochs = min(MOST_PASSES, max(0.01, float(f"{passes:.2g}")))

    def scored(sample: int) -> int:
        return sum(min(sample, facts["examples"][split]) for split in SPLITS)

    limit = 60 * max(SCORE_MINUTES, minutes)
    sample = next((n for n in SAMPLES if scored(n) * speed.seconds_per_example <= limit), SAMPLES[-1])
    one_pass = speed.seconds_per_pass / 60
    train, score = min(minutes, epochs * one_pass), scored(sample) * speed.seconds_per_example / 60
    return Plan(
        epochs,
        sample,
        [
            f"Time: training {in_words(train)} (one pass over the data: {in_words(one_pass)}), scoring "
            f"{scored(sample):,} histories {in_words(score)}; the baselines come on top.",
            f"Memory: {speed.memory:.1f} GiB in these steps; a whole run may take twice as much.",
            f"How this is known: {speed.how}.",
        ],
    )


def in_words(minutes: float) -> str:
    """A duration: `40 s`, `12 min`, `3.5 h`."""
    if minutes < 1:
        return f"{max(1, round(60 * minutes))} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
