"""Batches of prompts: how they are planned, and decoded one after another."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tqdm import tqdm

from bigrec_hf.generate.decoder import Decoder
from bigrec_hf.generate.vllm_engine import VllmDecoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def plan_batches(
    lengths: Sequence[int], *, batch_size: int, batch_tokens: int, extra_tokens: int, copies: int
) -> list[list[int]]:
    """Positions in batches of similar prompt length, longest first (what does not fit in memory fails at once).

    A batch holds at most `batch_size` prompts and `batch_tokens` tokens: (longest prompt + `extra_tokens` for the
    answer) x prompts x `copies` (beams or samples); a single prompt is always a batch. Ties keep the examples' order.
    """
    order = sorted(range(len(lengths)), key=lambda position: -lengths[position])
    batches: list[list[int]] = []
    for position in order:
        if batches:
            longest = lengths[batches[-1][0]] + extra_tokens
            n = len(batches[-1]) + 1
            if n <= batch_size and longest * n * copies <= batch_tokens:
                batches[-1].append(position)
                continue
        batches.append([position])
    return batches


def decode_batches(
    decoder: Decoder | VllmDecoder,
    prompts: Sequence[Sequence[int]],
    example_ids: Sequence[str],
    batches: Sequence[Sequence[int]],
    numbers: Sequence[int],
    write: Callable[[int, list[int], list[list[str]], list[list[float]]], None],
    *,
    label: str = "generate",
    quiet: bool = False,
) -> None:
    """Decode the batches of these numbers; hand each to `write(number, positions, texts, scores)` when it is done."""
    total = sum(len(batches[number]) for number in numbers)
    with tqdm(total=total, desc=label, unit=" titles", disable=quiet or not total, smoothing=0) as progress:
        for number in numbers:
            positions = list(batches[number])
            texts, scores = decoder.decode([prompts[p] for p in positions], [example_ids[p] for p in positions])
            write(number, positions, texts, scores)
            progress.update(len(positions))
