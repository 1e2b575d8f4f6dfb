"""Generate: for every evaluation example the language model writes the next title (step 1 of BIGRec).

Writes `<run_dir>/<method>/generations.parquet`, one row an example in the examples' own order, and `generate.json`
beside it: every setting, the fingerprints of base and adapter, counts and speed.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, write_json
from bigrec_hf.common.fingerprints import fingerprint
from bigrec_hf.common.processes import process_state
from bigrec_hf.common.shards import ShardFolder, processes
from bigrec_hf.common.version import __version__
from bigrec_hf.data.catalog import catalog_source, load_catalog
from bigrec_hf.data.generations import GENERATIONS_FILE, print_summary, write_generations
from bigrec_hf.data.prompts import TITLE_LIST
from bigrec_hf.generate import exact
from bigrec_hf.generate.batches import decode_batches, plan_batches
from bigrec_hf.generate.constrained import Constraint, load_constraint
from bigrec_hf.generate.decoder import Decoder, common_prefix_length
from bigrec_hf.generate.inputs import load_evaluation, render_together
from bigrec_hf.generate.strategy import Decoding
from bigrec_hf.generate.vllm_engine import VllmDecoder, check_vllm
from bigrec_hf.metrics.ndcg_hr.encoders import resolve_dtype
from bigrec_hf.models.identity import adapter_fingerprint, check_same_base, model_revision
from bigrec_hf.models.loading import find_model, load_generator, load_tokenizer

if TYPE_CHECKING:
    from bigrec_hf.settings import DataSettings, GenerateSettings, ModelSettings, PromptSettings, RunSettings


FACTS_FILE = "generate.json"


def main(
    run: RunSettings,
    data: DataSettings,
    model: ModelSettings,
    prompt: PromptSettings,
    generate: GenerateSettings,
) -> None:
    """Answer every evaluation example; of several processes, each takes a part of the batches and the first joins.

    Finished answers of the same settings, adapter and examples are kept.
    """
    if run.run_dir is None:
        raise BigrecError("no place to write to: give --output_dir (the run folder) or --config RECIPE")
    if not model.base_model:
        raise BigrecError("no base model given: set base_model (section `model`) to a folder or Hub id")
    if generate.decoding == "exact":
        return exact.main(run, data, model, prompt, generate)
    if (prompt.inference_prompt or prompt.train_prompt) == TITLE_LIST:
        raise BigrecError(f"the prompt titles is for decoding exact, not {generate.decoding}: set decoding exact")
    decoding = Decoding(
        strategy=generate.decoding,
        num_beams=generate.num_beams,
        length_penalty=0.0 if generate.decoding == "debiased" else generate.length_penalty,
        num_return_sequences=generate.num_return_sequences,
        max_new_tokens=generate.max_new_tokens,
        temperature=generate.temperature,
        top_p=generate.top_p,
        top_k=generate.sample_top_k,
        seed=run.seed,
    )
    adapter = None
    if run.method != "zero_shot":
        adapter = generate.adapter or str(Path(run.run_dir) / "adapter")
    adapter_sha256 = adapter_fingerprint(adapter)
    find_model(model.base_model)
    base_revision = model_revision(model.base_model)
    if adapter is not None:
        check_same_base(adapter, model.base_model)
    state = process_state()
    engine_version = {}
    if generate.engine == "vllm":
        engine_version = check_vllm(decoding, model.quantization, state.num_processes)
    with state.main_process_first():
        examples, titles = load_evaluation(
            data.dataset, data.test_json, data.catalog, split=data.split, eval_sample=data.eval_sample
        )
        tokenizer = load_tokenizer(model.base_model, padding_side="left")
    template = prompt.inference_prompt or prompt.train_prompt
    example_ids = list(examples[C.EXAMPLE_ID])
    constraint: Constraint | None = None
    constraint_facts: dict[str, Any] = {}
    if decoding.is_constrained:
        constraint, constraint_facts = load_constraint(
            generate.decoding,
            load_catalog(catalog_source(data.catalog, data.dataset)),
            template,
            tokenizer,
            example_ids,
            assistant_scores=generate.assistant_scores,
            lm_weight=generate.lm_weight,
        )
        decoding = replace(decoding, max_new_tokens=constraint.titles.trie.depth)
    prompts, n_dropped = render_together(
        examples,
        tokenizer,
        state,
        template=template,
        max_history=prompt.max_history,
        max_tokens=prompt.max_length - decoding.max_new_tokens,
    )
    lengths = [len(ids) for ids in prompts]
    batches = plan_batches(
        lengths,
        batch_size=generate.generate_batch_size,
        batch_tokens=generate.generate_batch_tokens,
        extra_tokens=decoding.max_new_tokens,
        copies=decoding.rows_per_prompt,
    )
    facts: dict[str, Any] = {
        "method": run.method,
        "base_model": model.base_model,
        "base_fingerprint": base_revision,
        "adapter": adapter,
        "adapter_sha256": adapter_sha256,
        "dtype": str(resolve_dtype(model.dtype, state.device)).removeprefix("torch."),
        "quantization": model.quantization,
        "attn_implementation": model.attn_implementation,
        "device": state.device.type,
        "seed": run.seed,
        "data": asdict(data),
        "prompt": asdict(prompt),
        "generate": asdict(generate),
        "constraint": constraint_facts,
        "versions": {
            "bigrec_hf": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            **engine_version,
        },
        "prompts_sha256": hashlib.sha256(json.dumps([example_ids, prompts]).encode()).hexdigest(),
    }
    folder = Path(run.run_dir) / run.method
    mark = fingerprint(facts)
    if read_json(folder / FACTS_FILE).get("fingerprint") == mark and (folder / GENERATIONS_FILE).is_file():
        state.print(f"generations in {folder} are done and their settings are unchanged: kept")
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
            if generate.engine == "vllm":
                decoder: Decoder | VllmDecoder = VllmDecoder(
                    model.base_model,
                    adapter,
                    tokenizer,
                    decoding,
                    dtype=facts["dtype"],
                    quantization=model.quantization,
                    max_length=prompt.max_length,
                    vllm_args=generate.vllm_args,
                )
            else:
                network = load_generator(
                    model.base_model,
                    adapter,
                    dtype=model.dtype,
                    quantization=model.quantization,
                    attn_implementation=model.attn_implementation,
                )
                prefix = prompts[0][: common_prefix_length(prompts)]
                decoder = Decoder(
                    network,
                    tokenizer,
                    decoding,
                    shared_prefix=prefix,
                    constraint=constraint,
                    memory_gib=generate.generate_memory_gib,
                )
            start = time.perf_counter()
            decode_batches(
                decoder, prompts, example_ids, batches, numbers, shards.write, quiet=not state.is_main_process
            )
        if state.is_main_process:
            shards.wait_complete()
            seconds = time.perf_counter() - start
            (folder / FACTS_FILE).unlink(missing_ok=True)  # never beside answers that it does not speak of
            counts = write_generations(folder / GENERATIONS_FILE, examples, titles, *shards.read(len(prompts)))
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
        else:
            shards.wait_joined()
