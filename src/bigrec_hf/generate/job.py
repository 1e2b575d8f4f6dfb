"""The frame of a `generate` run: finished outputs are kept, processes share the batches, the first joins them."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch
import transformers
from tqdm import tqdm

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_record, write_json
from bigrec_hf.common.fingerprints import fingerprint
from bigrec_hf.common.ray_actors import map_on_ray
from bigrec_hf.common.shards import ShardFolder, Shards, ShardsInMemory, processes
from bigrec_hf.common.version import __version__
from bigrec_hf.data.generations import GENERATE_FILE, print_summary
from bigrec_hf.data.run_folder import VALIDATION_DIR
from bigrec_hf.metrics.ndcg_hr.encoders import resolve_dtype
from bigrec_hf.models.identity import adapter_fingerprint, check_same_base, model_revision
from bigrec_hf.models.loading import find_model, load_generator

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from accelerate import PartialState
    from transformers import PreTrainedModel

    from bigrec_hf.settings import DataSettings, GenerateSettings, ModelSettings, PromptSettings, RunSettings
    from bigrec_hf.settings.ray import RaySettings

    # writes the shards of the batches of these numbers, and returns what is to be recorded
    Work = Callable[[Shards, Sequence[int]], dict[str, Any]]

FACTS = b"facts"  # key in the metadata of the shards that actors send


def settings_facts(
    run: RunSettings,
    data: DataSettings,
    model: ModelSettings,
    prompt: PromptSettings,
    generate: GenerateSettings,
    device: torch.device,
) -> dict[str, Any]:
    """Return what the outputs depend on: settings, base model, adapter and device.

    Raises BigrecError if the base or the adapter is missing, or the adapter was trained on another base.
    """
    find_model(model.base_model)
    base = str(model.base_model)
    adapter = None
    if run.method != "zero_shot":
        adapter = generate.adapter or str(Path(str(run.run_dir)) / "adapter")
    adapter_sha256 = adapter_fingerprint(adapter)
    if adapter is not None:
        check_same_base(adapter, base)
    return {
        "method": run.method,
        "base_model": base,
        "base_fingerprint": model_revision(base),
        "adapter": adapter,
        "adapter_sha256": adapter_sha256,
        "dtype": str(resolve_dtype(model.dtype, device)).removeprefix("torch."),
        "quantization": model.quantization,
        "attn_implementation": model.attn_implementation,
        "device": device.type,
        "seed": run.seed,
        "data": asdict(data),
        "prompt": asdict(prompt),
        "generate": asdict(generate),
        "constraint": {},
        "versions": {
            "bigrec_hf": __version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }


def load_network(model: ModelSettings, base_model: str | None, adapter: str | None) -> PreTrainedModel:
    """Return the base model according to the section `model`, with its adapter."""
    return load_generator(
        str(base_model),
        adapter,
        dtype=model.dtype,
        quantization=model.quantization,
        attn_implementation=model.attn_implementation,
    )


@dataclass(frozen=True)
class Job:
    """Examples and prompts (token ids), planned as batches of positions; `facts`: what the outputs depend on.

    `ray`: the actors that compute the batches, if there are any.
    """

    folder: Path
    outputs: tuple[str, ...]  # files that the job writes to the folder, in addition to GENERATE_FILE
    state: PartialState
    facts: dict[str, Any]
    example_ids: list[str]
    prompts: list[list[int]]
    batches: list[list[int]]
    ray: RaySettings

    def run(self, load: Callable[[], Work], join: Callable[[ShardFolder], dict[str, Any]]) -> None:
        """Do what is missing.

        `load` loads the model and returns the function that writes shards (with actors it is called in each of them);
        `join`, in the main process, writes the outputs from all shards and returns what is recorded with them.
        """
        questions = hashlib.sha256(json.dumps([self.example_ids, self.prompts]).encode()).hexdigest()
        facts = {**self.facts, "prompts_sha256": questions}
        key = fingerprint(facts)
        record = self.folder / GENERATE_FILE
        there, wanted = (each.get("data", {}).get("split") for each in (read_record(record), facts))
        if there not in (None, wanted):
            raise BigrecError(
                f"{self.folder} holds answers for the {there} split, which those for the {wanted} split would replace: "
                f"delete that folder or choose another run folder, for validation {self.folder.parent / VALIDATION_DIR}"
            )
        if read_record(record).get("fingerprint") == key and all(
            (self.folder / name).is_file() for name in self.outputs
        ):
            what = Path(self.outputs[0]).stem
            self.state.print(f"{what} in {self.folder} are done and their settings are unchanged: kept")
            return
        shards = ShardFolder(self.folder / "shards", key, len(self.batches), **processes(self.state))
        missing, numbers = shards.missing(), shards.own()
        n_missing = sum(len(self.batches[number]) for number in missing)
        n_resumed = len(self.prompts) - n_missing
        if n_resumed:
            self.state.print(f"generate: resuming, {n_resumed} of {len(self.prompts)} examples are done")
        self.state.wait_for_everyone()  # all processes have seen the same shards before the first new one appears
        with shards.shared_failure():
            if self.ray.num_actors:
                load = partial(self._by_actors, load)
            work = load() if numbers else None
            start = time.perf_counter()
            found = work(shards, numbers) if work is not None else {}
            if not self.state.is_main_process:
                shards.wait_joined()
                return
            shards.wait_complete()
            seconds = time.perf_counter() - start
            record.unlink(missing_ok=True)  # never next to outputs that it does not describe
            lengths = [len(ids) for ids in self.prompts]
            facts |= (
                found
                | join(shards)
                | {
                    "fingerprint": key,
                    "n_processes": self.ray.num_actors or self.state.num_processes,
                    "n_resumed": n_resumed,
                    "prompt_tokens_mean": sum(lengths) / len(lengths),
                    "prompt_tokens_max": max(lengths),
                    "seconds": seconds,
                    "titles_per_second": n_missing / seconds if n_missing else None,
                }
            )
            write_json(record, facts)
            shards.remove()
            print_summary(facts)

    def _by_actors(self, load: Callable[[], Work]) -> Work:
        """The same work, done by actors on a Ray cluster."""

        def work(shards: Shards, numbers: Sequence[int]) -> dict[str, Any]:
            facts: dict[str, Any] = {}
            total = sum(len(self.batches[number]) for number in numbers)
            with tqdm(total=total, desc="generate", unit=" examples", smoothing=0) as progress:

                def write(number: int, table: pa.Table) -> None:
                    facts.update(json.loads(table.schema.metadata[FACTS]))
                    shards.write_table(number, table.replace_schema_metadata(None))
                    progress.update(len(self.batches[number]))

                empty = pa.table({})  # the prompts travel once, with `load`
                map_on_ray(partial(_actor, load), ((number, empty) for number in numbers), write, self.ray)
            return facts

        return work


def _actor(load: Callable[[], Work]) -> Callable[[int, pa.Table], pa.Table]:
    """The function that computes the shard of a batch in an actor; what is to be recorded is in its metadata."""
    work = load()

    def compute(number: int, _: pa.Table) -> pa.Table:
        shards = ShardsInMemory()
        facts = work(shards, [number])
        return shards.tables[number].replace_schema_metadata({FACTS: json.dumps(facts)})

    return compute
