"""Several seeds of one recipe: one run per seed in `<run_dir>/seed-N`, on the same prepared data, and a joint report.

The intervals of one run cover the sampling of its examples; only several seeds show how much a figure depends on
the randomness of training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bigrec_hf.common.environment import environment
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, write_json
from bigrec_hf.common.processes import process_state
from bigrec_hf.pipeline.protect import start_run
from bigrec_hf.report.stage import write_report
from bigrec_hf.settings import RunSections


def seed_sections(sections: RunSections, seed: int, first: int) -> RunSections:
    """Return the sections of the run with `seed`: its own folder, adapter and manifest; the catalog index of the first.

    The prepared data set stays where the sections say, so that it is prepared once and found unchanged afterwards.
    """
    folder = Path(str(sections.run.run_dir))
    own, ground = folder / f"seed-{seed}", sections.ground
    if ground.index_dir is None and seed != first:
        ground = replace(ground, index_dir=str(folder / f"seed-{first}" / "index"))
    return replace(
        sections,
        run=replace(sections.run, run_dir=str(own), seed=seed),
        pipeline=replace(sections.pipeline, seeds=[]),
        sft=replace(sections.sft, adapter_dir=str(own / "adapter")),
        grpo=replace(sections.grpo, grpo_adapter_dir=str(own / "grpo_adapter")),
        ground=ground,
    )


def run_seeds(run_one: Callable[[RunSections], None], sections: RunSections) -> None:
    """Call `run_one` with the sections of every seed of the recipe, then write a joint report.md and report.html.

    Raises BigrecError for a repeated seed, or an adapter folder that all seeds would write to.
    """
    seeds = sections.pipeline.seeds
    if sections.run.run_dir is None:
        raise BigrecError("no run folder: give --config RECIPE or --run_dir")
    folder = Path(sections.run.run_dir)
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise BigrecError(f"seeds={seeds} must be distinct whole numbers of at least 0")
    named = {"adapter": sections.sft.adapter_dir, "grpo_adapter": sections.grpo.grpo_adapter_dir}
    for name, given in named.items():
        if given not in (None, str(folder / name)):
            raise BigrecError(
                f"{name}_dir {given!r} is one folder for {len(seeds)} seeds: omit it, each seed's adapter goes into "
                "its own run folder"
            )
    state = process_state()
    if state.is_main_process:
        kept = read_json(folder / "manifest.json")
        write_json(folder / "manifest.json", kept | {"seeds": seeds, "environment": environment()})
    runs = {seed: seed_sections(sections, seed, seeds[0]) for seed in seeds}
    for one in runs.values():  # all before the first: a report would else mix seeds of two recipes if interrupted
        start_run(Path(str(one.run.run_dir)), one)
    for seed, one in runs.items():
        state.print(f"==== seed {seed}", flush=True)
        run_one(one)
    if state.is_main_process:
        print(f"\n{write_report(folder)}")
