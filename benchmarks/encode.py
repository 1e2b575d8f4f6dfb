"""Encode: the index's encoder against batches of sixteen titles in file order, padded; the bound is one large batch.

Titles: Amazon games of BIGREC_HF_DATA where it is set, else made-up ones of about the same lengths. Tokens are real
ones. The bound: tokens/s of a forward pass without LM head over one unpadded batch of titles of the mean length.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from benchmarks.common import (
    BASE_MODEL,
    Row,
    alternate,
    arguments,
    best_dtype,
    peak_mib_in_child,
    seconds,
    set_threads,
    write_result,
)
from bigrec_hf.data.catalog import load_catalog
from bigrec_hf.ground.index import PART_TITLES
from bigrec_hf.models.encoder import lazy_encode

PLAIN_BATCH = 16
ALL_TITLES = 17_408
WORDS = ("Super", "Star", "World", "Quest", "Edition", "Racing", "Legend", "Nintendo DS", "Xbox 360", "PlayStation 3")


def load_titles() -> tuple[list[str], str]:
    """Titles in catalog order, and where they come from."""
    folder = os.environ.get("BIGREC_HF_DATA")
    if folder and (Path(folder) / "titles" / "game.id2name.txt").is_file():
        titles = load_catalog(str(Path(folder) / "titles" / "game.id2name.txt")).titles
        return [clean_title(title) for title in titles], "Amazon games"
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(1.7, 0.5, ALL_TITLES).round(), 1, 30).astype(int)  # words, as in those titles
    return [f"{' '.join(rng.choice(WORDS, n))} {i}" for i, n in enumerate(lengths)], "made-up titles"


def our_vectors(titles: list[str], dtype: str) -> Callable[[], np.ndarray]:
    """The index's encoder, in the parts in which `build_index` calls it, equal titles once."""
    encode = lazy_encode(str(BASE_MODEL), dtype)
    encode(titles[:1])  # load

    def run() -> np.ndarray:
        distinct = list(dict.fromkeys(titles))
        parts = [encode(distinct[start : start + PART_TITLES]) for start in range(0, len(distinct), PART_TITLES)]
        position = {title: i for i, title in enumerate(distinct)}
        return np.concatenate(parts)[[position[title] for title in titles]]

    return run


def plain_vectors(titles: list[str], dtype: str) -> Callable[[], np.ndarray]:
    """Sixteen titles a time in file order, padded on the left; the last position's state."""
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL, padding_side="left")
    model = AutoModel.from_pretrained(BASE_MODEL, dtype=getattr(torch, dtype)).eval()

    def run() -> np.ndarray:
        vectors = []
        for start in range(0, len(titles), PLAIN_BATCH):
            batch = tokenizer(titles[start : start + PLAIN_BATCH], padding=True, return_tensors="pt")
            positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
            with torch.inference_mode():
                vectors.append(model(**batch, position_ids=positions).last_hidden_state[:, -1].float().numpy())
        return np.concatenate(vectors)

    return run


WAYS = {"ours": our_vectors, "plain": plain_vectors}


def prepared(which: str, n: int, dtype: str) -> Callable[[], np.ndarray]:
    """For the child process that measures memory."""
    logging.set_verbosity_error()
    set_threads()
    return WAYS[which](load_titles()[0][:n], dtype)


def bound_tokens_s(length: int, dtype: str, tokens: int = 4096, repeats: int = 2) -> float:
    """Tokens/s of one forward pass without LM head over `tokens` tokens in rows of `length`, no padding."""
    model = AutoModel.from_pretrained(BASE_MODEL, dtype=getattr(torch, dtype)).eval()
    ids = torch.randint(0, model.config.vocab_size, (tokens // length, length))
    with torch.inference_mode():
        model(input_ids=ids, use_cache=False)
        return ids.numel() / min(seconds(lambda: model(input_ids=ids, use_cache=False))[0] for _ in range(repeats))


def same_vectors(titles: list[str]) -> bool:
    """Both ways in float32, up to rounding."""
    ours, plain = (way(titles, "float32")() for way in WAYS.values())
    return bool(np.allclose(ours, plain, rtol=1e-3, atol=1e-3 * np.abs(plain).max()))


def main() -> None:
    chosen = arguments(__doc__, titles=[64, 256, 1024], repeats=2, checked=64, plain_titles=64)
    if chosen.full:
        chosen.titles = [1024, 4096, ALL_TITLES]
    logging.set_verbosity_error()
    set_threads()
    titles, source = load_titles()
    rng = np.random.default_rng(0)
    titles = [titles[i] for i in rng.permutation(len(titles))]
    dtype, rows = best_dtype(), []
    tokenizer = AutoTokenizer.from_pretrained(BASE_MODEL)
    same = same_vectors(titles[: chosen.checked])
    lengths = [len(ids) for ids in tokenizer(titles[: max(chosen.titles)])["input_ids"]]
    bound = bound_tokens_s(round(np.mean(lengths)), dtype)
    for n in chosen.titles:
        part = titles[:n]
        count = sum(lengths[:n])
        timed = part[: chosen.plain_titles]
        share = sum(lengths[: len(timed)]) / count
        ways = {"ours": our_vectors(part, dtype), "plain": plain_vectors(timed, dtype)}
        taken, _ = alternate(ways, chosen.repeats)
        size = f"{n:,} {source} of {count / n:.0f} tokens, {dtype}"
        row = Row("encode", size, n, taken["ours"], taken["plain"] / share)
        row.note = f"plain scaled from {len(timed)}" if share < 1 else ""
        row.count, row.counted, row.same = count, "tokens", same
        row.fraction, row.ceiling = count / taken["ours"] / bound, f"forward bound of {bound:,.0f} tokens/s"
        rows.append(row)
    rows[-1].aim("fraction of the bound", rows[-1].fraction, least=0.9)
    rows[-1].peak_mib = peak_mib_in_child(prepared, which="ours", n=chosen.titles[0], dtype=dtype)
    rows[-1].baseline_peak_mib = peak_mib_in_child(prepared, which="plain", n=chosen.titles[0], dtype=dtype)
    write_result("encode", rows, chosen.out, titles=source, all_titles=len(titles))


if __name__ == "__main__":
    main()
