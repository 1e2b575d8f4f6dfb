"""`generate` with `decoding: exact`: the log-probability of every catalog title, for every evaluation example.

Writes `<run_dir>/<method>/scores.safetensors` (`data.item_scores`: one row per example, one column per catalog row),
which `ground` ranks and which every stage that mixes item scores reads; and generations.parquet with the likeliest
titles.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, write_json
from bigrec_hf.common.fingerprints import fingerprint
from bigrec_hf.common.processes import process_state
from bigrec_hf.common.shards import POSITION, ShardFolder, processes
from bigrec_hf.common.version import __version__
from bigrec_hf.data.catalog import catalog_sha256, catalog_source, load_catalog
from bigrec_hf.data.generations import GENERATIONS_FILE, print_summary, write_generations
from bigrec_hf.data.item_scores import SCORES_FILE, write_scores
from bigrec_hf.data.prompts import TITLE_LIST
from bigrec_hf.data.title_lists import title_lists
from bigrec_hf.data.trie import build_trie
from bigrec_hf.generate.batches import plan_batches
from bigrec_hf.generate.inputs import load_evaluation, render_together
from bigrec_hf.generate.title_scores import TitleScorer
from bigrec_hf.metrics.ndcg_hr.encoders import resolve_dtype
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from bigrec_hf.models.catalog_head import catalog_head
from bigrec_hf.models.identity import adapter_fingerprint, check_same_base, model_revision
from bigrec_hf.models.loading import load_generator, load_tokenizer
from bigrec_hf.models.trie_loss import token_columns

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bigrec_hf.settings import DataSettings, GenerateSettings, ModelSettings, PromptSettings, RunSettings

FACTS_FILE = "generate.json"
N_TEXTS = 10  # likeliest titles kept per example, unless num_return_sequences says otherwise
WITHOUT_TEXT = -1e4  # nats, for a row whose title has no text: it cannot be written


def likeliest_titles(
    scores: np.ndarray, titles: Sequence[str], n_texts: int
) -> tuple[list[list[str]], list[list[float]]]:
    """The `n_texts` likeliest different titles of each example, best first, ties by row; and their log p.

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
    run: RunSettings, data: DataSettings, model: ModelSettings, prompt: PromptSettings, generate: GenerateSettings
) -> None:
    """Score all titles for every example; finished scores of the same settings, adapter and examples are kept."""
    template = prompt.inference_prompt or prompt.train_prompt
    if template != TITLE_LIST or generate.engine != "hf":
        raise BigrecError(
            f"decoding exact scores titles after lists of titles, with engine hf; the prompt is {template!r}, the "
            f"engine {generate.engine!r}: train with objective dense and set train_prompt titles"
        )
    adapter = None
    if run.method != "zero_shot":
        adapter = generate.adapter or str(Path(str(run.run_dir)) / "adapter")
        check_same_base(adapter, str(model.base_model))
    state = process_state()
    with state.main_process_first():
        examples, titles = load_evaluation(
            data.dataset, data.test_json, data.catalog, split=data.split, eval_sample=data.eval_sample
        )
        tokenizer = load_tokenizer(model.base_model)
        catalog = load_catalog(catalog_source(data.catalog, data.dataset))
    lists = title_lists(tokenizer, titles, short=prompt.short_titles)
    ids = lists.titles(titles)
    known = [row for row, title in enumerate(ids) if title]
    trie, leaves = build_trie([ids[row] for row in known])
    prompts, n_dropped = render_together(
        examples,
        tokenizer,
        state,
        template=template,
        max_history=prompt.max_history,
        max_tokens=prompt.max_length,
        lists=lists,
    )
    example_ids = list(examples[C.EXAMPLE_ID])
    batches = plan_batches(
        [len(row) for row in prompts],
        batch_size=generate.generate_batch_size,
        batch_tokens=generate.generate_batch_tokens,
        extra_tokens=trie.n_nodes if not generate.exact_width else generate.exact_width * trie.depth,
        copies=1,
    )
    facts: dict[str, Any] = {
        "method": run.method,
        "base_model": model.base_model,
        "base_fingerprint": model_revision(str(model.base_model)),
        "adapter": adapter,
        "adapter_sha256": adapter_fingerprint(adapter),
        "dtype": str(resolve_dtype(model.dtype, state.device)).removeprefix("torch."),
        "quantization": model.quantization,
        "device": state.device.type,
        "seed": run.seed,
        "data": asdict(data),
        "prompt": asdict(prompt),
        "generate": asdict(generate),
        "catalog_sha256": catalog_sha256(catalog),
        "versions": {"bigrec_hf": __version__},
        "prompts_sha256": hashlib.sha256(json.dumps([example_ids, prompts]).encode()).hexdigest(),
    }
    folder = Path(str(run.run_dir)) / run.method
    mark = fingerprint(facts)
    outputs = (folder / GENERATIONS_FILE, folder / SCORES_FILE)
    if read_json(folder / FACTS_FILE).get("fingerprint") == mark and all(file.is_file() for file in outputs):
        state.print(f"scores in {folder} are done and their settings are unchanged: kept")
        return
    shards = ShardFolder(folder / "shards", mark, len(batches), **processes(state))
    missing, numbers = shards.missing(), shards.own()
    n_missing = sum(len(batches[number]) for number in missing)
    if state.is_main_process and n_missing < len(prompts):
        print(f"generate: resuming, {len(prompts) - n_missing} of {len(prompts)} examples are done")
    state.wait_for_everyone()  # everyone has seen the same shards before the first new one appears
    start = time.perf_counter()
    with shards.shared_failure():
        if numbers:
            network = load_generator(
                str(model.base_model),
                adapter,
                dtype=model.dtype,
                quantization=model.quantization,
                attn_implementation=model.attn_implementation,
            )
            on_device = trie.to(network.device)
            token_ids, columns = token_columns(on_device)
            start = time.perf_counter()
            total = sum(len(batches[number]) for number in numbers)
            with (
                catalog_head(network, token_ids) as head,
                tqdm(total=total, desc="generate", unit=" examples", disable=not state.is_main_process) as progress,
            ):
                scorer = TitleScorer(network, head, on_device, columns, width=generate.exact_width)
                for number in numbers:
                    log_p = scorer.log_probs([prompts[place] for place in batches[number]])
                    scores = np.full((len(log_p), len(titles)), WITHOUT_TEXT, np.float32)
                    scores[:, known] = log_p[:, leaves]
                    offsets = np.arange(len(scores) + 1) * len(titles)
                    rows = pa.LargeListArray.from_arrays(offsets, scores.ravel())
                    shards.write_table(number, pa.table({POSITION: list(batches[number]), C.SCORES: rows}))
                    progress.update(len(log_p))
        if not state.is_main_process:
            return shards.wait_joined()
        shards.wait_complete()
        seconds = time.perf_counter() - start
        all_scores = np.empty((len(prompts), len(titles)), np.float32)
        for table in shards.read_tables():
            values = table[C.SCORES].combine_chunks().flatten().to_numpy()
            all_scores[table[POSITION].to_numpy()] = values.reshape(len(table), -1)
        (folder / FACTS_FILE).unlink(missing_ok=True)  # never beside outputs that it does not describe
        kept = {key: facts[key] for key in ("base_fingerprint", "adapter_sha256", "dtype")}
        write_scores(folder / SCORES_FILE, all_scores, example_ids, catalog, model="language model", **kept)
        texts, values = likeliest_titles(all_scores, titles, generate.num_return_sequences or N_TEXTS)
        counts = write_generations(folder / GENERATIONS_FILE, examples, titles, texts, values)
        lengths = [len(row) for row in prompts]
        facts |= counts | {
            "fingerprint": mark,
            "n_processes": state.num_processes,
            "n_resumed": len(prompts) - n_missing,
            "dropped_history_titles": n_dropped,
            "prompt_tokens_mean": sum(lengths) / len(lengths),
            "prompt_tokens_max": max(lengths),
            "seconds": seconds,
            "titles_per_second": n_missing / seconds if n_missing else None,
        }
        write_json(folder / FACTS_FILE, facts)
        shards.remove()
        print_summary(facts)
