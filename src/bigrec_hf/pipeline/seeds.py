"""Several seeds of one recipe: a run in `<run_dir>/seed-N` each, on the same prepared data, and a report over all.

The intervals of one run are over its examples; only other seeds show how much of a figure is luck of the training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bigrec_hf.common.environment import environment
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import read_json, write_atomically, write_json
from bigrec_hf.common.processes import process_state
from bigrec_hf.report.stage import build_report
from bigrec_hf.settings import RunSections


def seed_sections(sections: RunSections, seed: int, first: int) -> RunSections:
    """The sections of the run with `seed`: its own folder, adapter and manifest; the first seed's catalog index.

    The prepared set stays where the sections say, so it is prepared once and found unchanged by the others.
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
        ground=ground,
    )


def run_seeds(run_one: Callable[[RunSections], None], sections: RunSections) -> None:
    """Call `run_one` with the sections of every seed of the recipe, then write `<run_dir>/report.md` over all.

    Raises BigrecError for a seed named twice, or an adapter folder of the user's that all seeds would write.
    """
    seeds = sections.pipeline.seeds
    if sections.run.run_dir is None:
        raise BigrecError("no run folder: give --config RECIPE or --run_dir")
    folder = Path(sections.run.run_dir)
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise BigrecError(f"seeds={seeds} must be distinct whole numbers from 0 on")
    if sections.sft.adapter_dir not in (None, str(folder / "adapter")):
        raise BigrecError(
            f"adapter_dir {sections.sft.adapter_dir!r} is one folder for {len(seeds)} seeds: leave it out, each "
            "seed's adapter goes into its own run folder"
        )
    state = process_state()
    if state.is_main_process:
        kept = read_json(folder / "manifest.json")
        write_json(folder / "manifest.json", kept | {"seeds": seeds, "environment": environment()})
    for seed in seeds:
        state.print(f"==== seed {seed}", flush=True)
        run_one(seed_sections(sections, seed, seeds[0]))
    if state.is_main_process:
        text = build_report([folder])
        write_atomically(folder / "report.md", lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
        print(f"\n{text}\nreport over {len(seeds)} seeds: {folder / 'report.md'}")
