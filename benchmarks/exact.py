"""Exact: the probability of every catalog title after a prompt, against one row per title.

    python -m benchmarks.exact --prompts 8

MovieLens-100K, and Amazon Video Games where BIGREC_HF_DATA names the folder that holds `amazon-games-2018`; histories
of up to ten short titles, SmolLM2-135M without an adapter. Ours walks the token trie (`generate.title_scores`), all of
it or the likeliest prefixes of each level. Plain reads prompt and title anew for every title, in batches of 64 rows
with the logits of the titles' tokens alone, and takes the same softmax over the trie's continuations; timed on a part
of the titles of one prompt. Results are compared in float32. The bound: 2 FLOP x non-embedding parameters x tokens that
ours runs through the model.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from benchmarks.common import (
    BASE_MODEL,
    Row,
    alternate,
    arguments,
    best_dtype,
    matmul_gflops,
    peak_mib_in_child,
    seconds,
    set_threads,
    write_result,
)
from benchmarks.dense import prepared_sets
from benchmarks.grpo import load_data
from benchmarks.sft import non_embedding_parameters
from bigrec_hf.generate.exact import CatalogTokens
from bigrec_hf.generate.title_scores import TOLERANCE, TitleScorer
from bigrec_hf.models.catalog_head import catalog_head
from bigrec_hf.models.loading import load_base
from bigrec_hf.models.trie_loss import title_choices, token_columns, trie_losses

WIDTHS = {"movies": (0, 64, 16), "games": (16, 8)}
ROWS = 64  # of a batch of the plain side


@dataclass
class Work:
    """A model, a catalog's titles, and prompts."""

    model: PreTrainedModel
    tokens: CatalogTokens
    titles: list[list[int]]  # token ids by catalog row
    prompts: list[list[int]]

    def walk(self, width: int) -> np.ndarray:
        """log p of every catalog row after every prompt, (prompts, n_items) float32."""
        token_ids, columns = token_columns(self.tokens.trie)
        with catalog_head(self.model, token_ids) as head:
            shares = self.tokens.popularity
            scorer = TitleScorer(self.model, head, self.tokens.trie, columns, width=width, popularity=shares)
            scorer.checked = True  # once in a run
            return scorer.log_probs(self.prompts)[:, self.tokens.leaves]

    def plainly(self, rows: np.ndarray) -> np.ndarray:
        """log p of these rows after the first prompt, (len(rows),) float32."""
        prompt, titles = self.prompts[0], [self.titles[row] for row in rows]
        choices = title_choices(titles, self.tokens.trie)
        token_ids, columns = token_columns(self.tokens.trie)
        found = []
        for start in range(0, len(rows), ROWS):
            part = titles[start : start + ROWS]
            width = max(map(len, part)) - 1
            ids = torch.tensor([[*prompt, *title[:-1], *[0] * (width - len(title) + 1)] for title in part])
            with torch.inference_mode():
                logits = self.model(input_ids=ids, logits_to_keep=width + 1, use_cache=False).logits[..., token_ids]
            for number in range(len(part)):
                mine = choices.of(start + number)
                steps = trie_losses(
                    logits[number, torch.from_numpy(choices.position[mine])],
                    torch.from_numpy(choices.node[mine]),
                    torch.from_numpy(choices.child[mine]),
                    self.tokens.trie,
                    columns,
                )
                found.append(-float(steps.sum()))
        return np.array(found, np.float32)


def load_work(dataset: str, n_prompts: int, dtype: str = "") -> Work:
    data = load_data(dataset)
    histories = data.examples.histories[:n_prompts]
    prompts = [data.collator.prompt(history) for history in histories]
    tokens = data.catalog.tokens
    titles = [data.catalog.ids[row] for row in tokens.rows]
    return Work(load_base(str(BASE_MODEL), dtype=dtype or best_dtype()).eval(), tokens, titles, prompts)


def off_in_float32(dataset: str, n_titles: int = 32) -> float:
    """Largest difference of both sides' log p, in nats."""
    work = load_work(dataset, 1, "float32")
    sample = np.linspace(0, len(work.titles) - 1, n_titles).astype(int)
    return float(np.abs(work.walk(0)[0][sample] - work.plainly(sample)).max())


def walking(dataset: str, n_prompts: int, width: int) -> Callable[[], np.ndarray]:
    """For `peak_mib_in_child`."""
    work = load_work(dataset, n_prompts)
    return lambda: work.walk(width)


def reading(dataset: str, n_prompts: int, n_titles: int) -> Callable[[], np.ndarray]:
    """For `peak_mib_in_child`: the plain side's batches."""
    work = load_work(dataset, n_prompts)
    rows = np.linspace(0, len(work.titles) - 1, n_titles).astype(int)
    return lambda: work.plainly(rows)


@contextmanager
def counted_tokens(model: PreTrainedModel) -> Iterator[list[int]]:
    """The number of tokens of each call of the model."""
    calls: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: calls.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    yield calls
    hook.remove()


def measure(name: str, dataset: str, n_prompts: int, n_titles: int, repeats: int) -> list[Row]:
    """One row per width; the plain side is the same."""
    work, dtype = load_work(dataset, n_prompts), best_dtype()
    n_items = len(work.titles)
    sample = np.linspace(0, n_items - 1, n_titles).astype(int)
    work.plainly(sample[:ROWS])  # warm
    plain_s = seconds(work.plainly, sample)[0] * n_items / len(sample)  # of one prompt
    taken, _ = alternate({str(w): lambda w=w: work.walk(w) for w in WIDTHS[name]}, repeats)
    gflops, rows = matmul_gflops(dtype), []
    for width in WIDTHS[name]:
        with counted_tokens(work.model) as calls:
            work.walk(width)
        own_s = taken[str(width)] / n_prompts
        flop = 2 * non_embedding_parameters() * sum(calls) / n_prompts
        row = Row(
            f"exact, {name}",
            f"{n_items:,} titles, {f'width {width}' if width else 'all'}, {np.mean(list(map(len, work.prompts))):.0f} "
            f"tokens a prompt, {dtype}",
            width or n_items,
            own_s,
            plain_s,
            count=n_items,
            counted="titles",
            fraction=1e-9 * flop / own_s / gflops,
            ceiling=f"arithmetic bound at {gflops:.0f} GFLOP/s",
            note=f"{1 / own_s:.3g} prompts/s; plain timed on {len(sample)} titles",
        )
        if not width:
            off = off_in_float32(dataset)
            row.same = off <= TOLERANCE[torch.float32]
            row.note += f", log p in float32 within {off:.1g} nats"
            options = {"dataset": dataset, "n_prompts": n_prompts}
            row.peak_mib = peak_mib_in_child(walking, width=0, **options)
            row.baseline_peak_mib = peak_mib_in_child(reading, n_titles=ROWS, **options)
        rows.append(row)
    return rows


def main() -> None:
    chosen = arguments(__doc__, prompts=8, titles=256, repeats=3)
    logging.set_verbosity_error()
    set_threads()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, dataset in prepared_sets(folder).items():
            rows += measure(name, dataset, chosen.prompts, chosen.titles, chosen.repeats)
    write_result("exact", rows, chosen.out)


if __name__ == "__main__":
    main()
