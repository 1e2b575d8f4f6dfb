"""Generate: for every evaluation example the language model writes the next title (step 1 of BIGRec).

Writes `<run_dir>/<method>/generations.parquet`, one row per example in the examples' own order, and `generate.json`
beside it: every setting, the fingerprints of base and adapter, counts and speed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.processes import process_state
from bigrec_hf.common.shards import write_texts
from bigrec_hf.data.catalog import catalog_source, load_catalog
from bigrec_hf.data.generations import GENERATIONS_FILE, write_generations
from bigrec_hf.data.prompts import TITLE_LIST, prompt_facts
from bigrec_hf.generate import exact
from bigrec_hf.generate.batches import decode_batches, plan_batches
from bigrec_hf.generate.constrained import Constraint, load_constraint
from bigrec_hf.generate.decoder import Decoder, common_prefix_length
from bigrec_hf.generate.inputs import load_evaluation, render_together, template_of
from bigrec_hf.generate.job import Job, load_network, settings_facts
from bigrec_hf.generate.strategy import Decoding
from bigrec_hf.generate.vllm_engine import VllmDecoder, check_vllm
from bigrec_hf.models.loading import load_tokenizer
from bigrec_hf.settings.ray import NO_ACTORS, RaySettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bigrec_hf.common.shards import ShardFolder, Shards
    from bigrec_hf.generate.job import Work
    from bigrec_hf.settings import DataSettings, GenerateSettings, ModelSettings, PromptSettings, RunSettings


def main(
    run: RunSettings,
    data: DataSettings,
    model: ModelSettings,
    prompt: PromptSettings,
    generate: GenerateSettings,
    ray: RaySettings = NO_ACTORS,
) -> None:
    """Answer every evaluation example; of several processes, each takes a part of the batches and the first joins them.
    Actors on a Ray cluster (`ray`) take them one by one.

    Finished answers of the same settings, adapter and examples are kept.
    """
    if run.run_dir is None:
        raise BigrecError("no place to write to: give --output_dir (the run folder) or --config RECIPE")
    if generate.decoding == "exact":
        return exact.main(run, data, model, prompt, generate, ray)
    if template_of(prompt) == TITLE_LIST:
        raise BigrecError(f"the prompt titles is for decoding exact, not {generate.decoding}: set decoding exact")
    decoding = Decoding.from_settings(generate, run.seed)
    state = process_state()
    facts = settings_facts(run, data, model, prompt, generate, torch.device(ray.device or state.device))
    if generate.engine == "vllm":
        facts["versions"] |= check_vllm(decoding, model.quantization, state.num_processes, ray)
    with state.main_process_first():
        examples, titles = load_evaluation(data)
        tokenizer = load_tokenizer(model.base_model, padding_side="left")
    ids = list(examples[C.EXAMPLE_ID])
    constraint = None
    if decoding.is_constrained:
        constraint, facts["constraint"] = load_constraint(
            decoding.strategy,
            load_catalog(catalog_source(data.catalog, data.dataset)),
            template_of(prompt),
            tokenizer,
            ids,
            assistant_scores=generate.assistant_scores,
            lm_weight=generate.lm_weight,
        )
        decoding = replace(decoding, max_new_tokens=constraint.titles.trie.depth)
    prompts, n_dropped = render_together(examples, tokenizer, state, prompt, decoding.max_new_tokens)
    batches = plan_batches(
        [len(row) for row in prompts],
        batch_size=generate.generate_batch_size,
        batch_tokens=generate.generate_batch_tokens,
        extra_tokens=decoding.max_new_tokens,
        copies=decoding.rows_per_prompt,
    )
    folder = Path(run.run_dir) / run.method
    record: dict[str, Any] = {"dropped_history_titles": n_dropped, **prompt_facts(template_of(prompt), tokenizer)}

    quiet = not state.is_main_process

    def load() -> Work:
        decoder = make_decoder(model, prompt, generate, facts, tokenizer, decoding, prompts, constraint)

        def work(shards: Shards, numbers: Sequence[int]) -> dict[str, Any]:
            decode_batches(decoder, prompts, ids, batches, numbers, partial(write_texts, shards), quiet=quiet)
            return {"route": decoder.route and asdict(decoder.route)}

        return work

    def join(shards: ShardFolder) -> dict[str, Any]:
        texts, scores = shards.read(len(prompts))
        return record | write_generations(folder / GENERATIONS_FILE, examples, titles, texts, scores)

    Job(folder, (GENERATIONS_FILE,), state, facts, ids, prompts, batches, ray).run(load, join)


def make_decoder(
    model: ModelSettings,
    prompt: PromptSettings,
    generate: GenerateSettings,
    facts: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    decoding: Decoding,
    prompts: Sequence[Sequence[int]],
    constraint: Constraint | None,
) -> Decoder | VllmDecoder:
    """The model behind the engine that the settings name; `facts`: `job.settings_facts` of the run."""
    if generate.engine == "vllm":
        return VllmDecoder(
            facts["base_model"],
            facts["adapter"],
            tokenizer,
            decoding,
            dtype=facts["dtype"],
            quantization=model.quantization,
            max_length=prompt.max_length,
            vllm_args=generate.vllm_args,
        )
    return Decoder(
        load_network(model, facts["base_model"], facts["adapter"]),
        tokenizer,
        decoding,
        shared_prefix=prompts[0][: common_prefix_length(prompts)],
        constraint=constraint,
        memory_gib=generate.generate_memory_gib,
    )
