"""Approximate search (FAISS) against exact ranking: recall, time of building and of searching.

    OMP_NUM_THREADS=1 python -m benchmarks.approximate --made_up 200000x384
    OMP_NUM_THREADS=1 python -m benchmarks.approximate --titles movies.csv --encoder .assets/SmolLM2-135M-Instruct

With --titles the catalog is a file that `bigrec-hf ground` reads, and the queries are its titles without what stands in
brackets at the end (the year): texts that are near a title and none. Made-up vectors stand in 1 + m / 100 clusters.
Times are processor time.
"""

from __future__ import annotations

import argparse
import os
import re
import time

import numpy as np
from bigrec_hf.metrics.ndcg_hr.distances import catalog_mean
from bigrec_hf.metrics.ndcg_hr.encoders import load_encoder
from bigrec_hf.metrics.ndcg_hr.ranking import rank_catalog

from bigrec_hf.data.catalog import load_catalog
from bigrec_hf.ground.approximate import build_cells, number_of_cells

KS = (1, 10, 50)


def made_up(m: int, d: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    centers = 2 * rng.standard_normal((1 + m // 100, d), np.float32)
    items, queries = (centers[rng.integers(0, len(centers), k)] for k in (m, n))
    return items + rng.standard_normal((m, d), np.float32), queries + rng.standard_normal((n, d), np.float32)


def from_titles(catalog: str, encoder: str, n: int) -> tuple[np.ndarray, np.ndarray]:
    model, titles = load_encoder(encoder, "auto"), load_catalog(catalog).titles
    chosen = np.random.default_rng(0).permutation(len(titles))[:n]
    known, shortened = set(titles), (re.sub(r"\s*\([^()]*\)$", "", titles[i]) for i in chosen)
    return model.encode(titles), model.encode([text for text in shortened if text and text not in known])


def measure(items: np.ndarray, queries: np.ndarray, probes: list[int]) -> str:
    """A Markdown table over `probes`."""
    start = time.process_time()
    exact = rank_catalog(queries, items, [0] * len(queries), max(KS)).top_rows
    exact_s = time.process_time() - start
    start = time.process_time()
    index = build_cells(items)
    build_s = time.process_time() - start
    lines = [
        f"{len(items):,} items x {items.shape[1]}, {len(queries):,} queries, {number_of_cells(len(items)):,} cells: "
        f"exact {exact_s:.2f} s, building the cells {build_s:.1f} s\n",
        f"| n_probe | search | times faster | {' | '.join(f'recall@{k}' for k in KS)} |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    centered = queries - catalog_mean(items)
    for n_probe in probes:
        index.nprobe = n_probe
        start = time.process_time()
        rows = index.search(centered, max(KS))[1]
        taken = time.process_time() - start
        recall = [np.mean([len({*a[:k]} & {*b[:k]}) / k for a, b in zip(rows, exact, strict=True)]) for k in KS]
        shown = " | ".join(f"{value:.3f}" for value in recall)
        lines.append(f"| {n_probe} | {taken:.3f} s | {exact_s / taken:.1f} | {shown} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--made_up", help="items x dimensions, e.g. 200000x384")
    parser.add_argument("--titles", help="catalog with real titles")
    parser.add_argument("--encoder", default=".assets/SmolLM2-135M-Instruct", help="for --titles")
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--probes", type=int, nargs="+", default=[1, 4, 16, 32, 64])
    options = parser.parse_args()
    import faiss

    faiss.omp_set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if options.made_up:
        m, d = map(int, options.made_up.split("x"))
        print(measure(*made_up(m, d, options.queries), options.probes))
    if options.titles:
        print(measure(*from_titles(options.titles, options.encoder, options.queries), options.probes))


if __name__ == "__main__":
    main()
