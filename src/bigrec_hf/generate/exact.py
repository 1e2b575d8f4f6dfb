"""`generate` with `decoding: exact`: the log-probability of every catalog title, for every evaluation example.

Writes `<run_dir>/<method>/scores.safetensors` (`data.item_scores`: one row per example, one column per catalog row),
which `ground` ranks and which every stage that mixes item scores reads; and generations.parquet with the most likely
titles. `hub.by_score` scores histories with the same functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from tqdm import tqdm

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.processes import process_state
from bigrec_hf.common.shards import POSITION
from bigrec_hf.data.catalog import catalog_sha256, catalog_source, load_catalog
from bigrec_hf.data.examples import read_train_counts
from bigrec_hf.data.generations import GENERATIONS_FILE, write_generations
from bigrec_hf.data.item_scores import SCORES_FILE, write_scores
from bigrec_hf.data.prompts import TITLE_LIST
from bigrec_hf.data.title_lists import TitleLists, title_lists
from bigrec_hf.data.trie import Trie, build_trie
from bigrec_hf.generate.batches import plan_batches
from bigrec_hf.generate.inputs import load_evaluation, render_together, template_of
from bigrec_hf.generate.job import Job, load_network, settings_facts
from bigrec_hf.generate.title_scores import TitleScorer
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.models.catalog_head import catalog_head
from bigrec_hf.models.loading import load_tokenizer
from bigrec_hf.models.trie_loss import token_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bigrec_hf.common.shards import ShardFolder, Shards
    from bigrec_hf.generate.job import Work
    from bigrec_hf.settings import DataSettings, GenerateSettings, ModelSettings, PromptSettings, RunSettings
    from bigrec_hf.settings.ray import RaySettings

N_TEXTS = 10  # most likely titles kept per example, unless num_return_sequences is set
WITHOUT_TEXT = -1e4  # log p, in nats, of a row whose title has no text


@dataclass(frozen=True)
class CatalogTokens:
    """A catalog's titles as the template `titles` writes them, and the trie of those that have a text."""

    n_items: int
    lists: TitleLists
    trie: Trie
    rows: list[int]  # the catalog rows in the trie
    leaves: np.ndarray  # (len(rows),) int64, the leaf of each of them
    popularity: np.ndarray | None = None  # (n_leaves,) float64, as in `TitleScorer`

    def plan(
        self, prompts: Sequence[Sequence[int]], *, width: int, batch_size: int, batch_tokens: int
    ) -> list[list[int]]:
        """Return batches of prompts (`batches.plan_batches`); `width` as in `TitleScorer`."""
        return plan_batches(
            [len(row) for row in prompts],
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            extra_tokens=width * self.trie.depth if width else self.trie.n_nodes,
            copies=1,
        )


def catalog_tokens(
    tokenizer: PreTrainedTokenizerBase,
    titles: Sequence[str],
    *,
    short: bool,
    train_counts: Sequence[int] | np.ndarray | None = None,
) -> CatalogTokens:
    """Return the tokens of a catalog's titles; `short`: cut after the tokens that distinguish them.

    A title is as popular as its rows are together: 1 + `train_counts` each. Without counts all titles are equal.
    """
    lists = title_lists(tokenizer, titles, short=short)
    ids = lists.titles(titles)
    rows = [row for row, title in enumerate(ids) if title]
    trie, leaves = build_trie([ids[row] for row in rows])
    popularity = None
    if train_counts is not None:
        popularity = np.bincount(leaves, 1.0 + np.asarray(train_counts)[rows], minlength=trie.n_leaves)
    return CatalogTokens(len(titles), lists, trie, rows, leaves, popularity)


def score_batches(
    network: PreTrainedModel,
    catalog: CatalogTokens,
    prompts: Sequence[Sequence[int]],
    batches: Sequence[Sequence[int]],
    numbers: Sequence[int],
    write: Callable[[int, list[int], np.ndarray], None],
    *,
    width: int,
    label: str = "generate",
    quiet: bool = False,
) -> None:
    """Compute log p of every catalog row after the prompts of the batches with these numbers.

    Calls `write(number, positions, scores)` after each batch; `scores`: (len(positions), n_items) float32.
    """
    trie = catalog.trie.to(network.device)
    token_ids, columns = token_columns(trie)
    total = sum(len(batches[number]) for number in numbers)
    with (
        catalog_head(network, token_ids) as head,
        tqdm(total=total, desc=label, unit=" examples", disable=quiet) as progress,
    ):
        scorer = TitleScorer(network, head, trie, columns, width=width, popularity=catalog.popularity)
        for number in numbers:
            log_p = scorer.log_probs([prompts[place] for place in batches[number]])
            scores = np.full((len(log_p), catalog.n_items), WITHOUT_TEXT, np.float32)
            scores[:, catalog.rows] = log_p[:, catalog.leaves]
            write(number, list(batches[number]), scores)
            progress.update(len(log_p))


def likeliest_titles(
    scores: np.ndarray, titles: Sequence[str], n_texts: int
) -> tuple[list[list[str]], list[list[float]]]:
    """Return the `n_texts` most likely different titles of each example, best first, ties by row; and their log p.

    `scores`: (n, n_items) float32.
    """
    clean = [clean_title(title) for title in titles]
    texts, values = [], []
    for row in scores:
        order = np.argsort(-row, kind="stable")
        best: dict[str, float] = {}
        for item in order.tolist():
            if clean[item] and clean[item] not in best:
                best[clean[item]] = float(row[item])
                if len(best) == n_texts:
                    break
        texts.append(list(best))
        values.append(list(best.values()))
    return texts, values


def main(
    run: RunSettings,
    data: DataSettings,
    model: ModelSettings,
    prompt: PromptSettings,
    generate: GenerateSettings,
    ray: RaySettings,
) -> None:
    """Score all titles for every example; finished scores of the same settings, adapter and examples are kept."""
    if template_of(prompt) != TITLE_LIST or generate.engine != "hf":
        raise BigrecError(
            f"decoding exact scores titles after lists of titles, with engine hf; the prompt is "
            f"{template_of(prompt)!r}, the engine {generate.engine!r}: train with objective dense and set train_prompt "
            "titles"
        )
    state = process_state()
    facts = settings_facts(run, data, model, prompt, generate, torch.device(ray.device or state.device))
    with state.main_process_first():
        examples, titles = load_evaluation(data)
        tokenizer = load_tokenizer(model.base_model)
        catalog = load_catalog(catalog_source(data.catalog, data.dataset))
    facts["catalog_sha256"] = catalog_sha256(catalog)
    counts = read_train_counts(data.dataset[0]) if data.dataset and not data.catalog else None
    facts["shares"] = "popularity" if counts is not None else "equal"
    tokens = catalog_tokens(tokenizer, titles, short=prompt.short_titles, train_counts=counts)
    prompts, n_dropped = render_together(examples, tokenizer, state, prompt, 0, tokens.lists)
    example_ids = list(examples[C.EXAMPLE_ID])
    batches = tokens.plan(
        prompts,
        width=generate.exact_width,
        batch_size=generate.generate_batch_size,
        batch_tokens=generate.generate_batch_tokens,
    )
    folder = Path(str(run.run_dir)) / run.method

    quiet = not state.is_main_process

    def load() -> Work:
        network = load_network(model, model.base_model, facts["adapter"])

        def work(shards: Shards, numbers: Sequence[int]) -> dict[str, Any]:
            def write(number: int, positions: list[int], scores: np.ndarray) -> None:
                offsets = np.arange(len(scores) + 1) * len(titles)
                rows = pa.LargeListArray.from_arrays(offsets, scores.ravel())
                shards.write_table(number, pa.table({POSITION: positions, C.SCORES: rows}))

            score_batches(network, tokens, prompts, batches, numbers, write, width=generate.exact_width, quiet=quiet)
            return {}

        return work

    def join(shards: ShardFolder) -> dict[str, Any]:
        all_scores = np.empty((len(prompts), len(titles)), np.float32)
        for table in shards.read_tables():
            values = table[C.SCORES].combine_chunks().flatten().to_numpy()
            all_scores[table[POSITION].to_numpy()] = values.reshape(len(table), -1)
        kept = {key: facts[key] for key in ("base_fingerprint", "adapter_sha256", "dtype")}
        write_scores(folder / SCORES_FILE, all_scores, example_ids, catalog, model="language model", **kept)
        texts, values = likeliest_titles(all_scores, titles, generate.num_return_sequences or N_TEXTS)
        counts = write_generations(folder / GENERATIONS_FILE, examples, titles, texts, values)
        return counts | {"dropped_history_titles": n_dropped}

    outputs = (SCORES_FILE, GENERATIONS_FILE)
    Job(folder, outputs, state, facts, example_ids, prompts, batches, ray).run(load, join)
