"""The metric module, config `rankings`: its time beyond evaluate's own Arrow round trip.

The round trip is what `evaluate` does for a metric that computes nothing (write Arrow, read it back as lists). The
plain way is a loop over users and cut-offs, on the same lists.
"""

from __future__ import annotations

import math

import datasets
import evaluate
import numpy as np

from benchmarks.common import ROOT, PeakMemory, Row, alternate, arguments, seconds, write_result

KS = [1, 3, 5, 10, 20, 50]


class RoundTrip(evaluate.Metric):
    """The same features, no computation."""

    def _info(self):
        features = {"predictions": datasets.List(datasets.Value("int64")), "references": datasets.Value("int64")}
        return evaluate.MetricInfo("", "", datasets.Features(features), inputs_description="")

    def _compute(self, predictions, references):
        return {}


def loop_scores(predictions: list[list[int]], references: list[int]) -> dict[str, float]:
    """NDCG and HR user by user, K by K."""
    sums = {f"{name}@{k}": 0.0 for name in ("ndcg", "hr") for k in KS}
    for ranked, target in zip(predictions, references, strict=True):
        for k in KS:
            for position, item in enumerate(ranked[:k]):
                if item == target:
                    sums[f"ndcg@{k}"] += 1 / math.log2(position + 2)
                    sums[f"hr@{k}"] += 1
                    break
    return {name: total / len(references) for name, total in sums.items()}


def inputs(n: int, width: int) -> tuple[list[list[int]], list[int]]:
    """Ranked lists of distinct ids, and targets, half of which are in them."""
    rng = np.random.default_rng(0)
    start = rng.integers(0, 10_000, n)
    step = rng.choice([1, 3, 7, 9], n)
    predictions = (start[:, None] + step[:, None] * np.arange(width)) % 10_000
    references = np.where(rng.random(n) < 0.5, predictions[np.arange(n), rng.integers(0, width, n)], 10_000)
    return predictions.tolist(), references.tolist()


def measure(n: int, width: int, repeats: int) -> Row:
    predictions, references = inputs(n, width)
    metric = evaluate.load(str(ROOT / "metrics" / "ndcg_hr"), config_name="rankings")
    bare = RoundTrip()
    functions = {
        "metric": lambda: metric.compute(predictions=predictions, references=references, ks=KS),
        "round trip": lambda: bare.compute(predictions=predictions, references=references),
        "loop": lambda: loop_scores(predictions, references),
    }
    with PeakMemory() as memory:
        functions["metric"]()
    taken, results = alternate(functions, repeats)
    computing, scores = seconds(lambda: metric._compute(predictions, references, ks=KS))
    beyond = max(taken["metric"] - taken["round trip"], computing)
    same = all(math.isclose(scores[name], value) for name, value in results["loop"].items())
    note = f"beyond a round trip of {taken['round trip']:.1f} s"
    row = Row(
        "metric", f"{n:,} x {width}", n, beyond, taken["loop"], note=note, same=same and results["metric"] == scores
    )
    row.peak_mib = memory.mib
    return row


def main() -> None:
    chosen = arguments(__doc__, examples=[10_000, 30_000, 100_000], width=50, repeats=3)
    rows = [measure(n, chosen.width, chosen.repeats) for n in chosen.examples]
    rows[-1].aim("seconds beyond the round trip", rows[-1].ours_s, most=1)
    write_result("metric", rows, chosen.out)


if __name__ == "__main__":
    main()
