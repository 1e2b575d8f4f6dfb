"""The stages of a run: which are done, what each depends on, what it took.

A stage's mark is a fingerprint of the settings and the inputs it depends on, the outputs of the stages before it
included. It goes into `manifest.json` when the stage has finished, with the fingerprints of its outputs; a stage runs
again where its mark differs, an output is not the one it wrote (or missing), or `--from` says so. Inside a stage the
stage's own resumption applies (shards, checkpoints).
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bigrec_hf.common.environment import measured
from bigrec_hf.common.files import read_json, write_json
from bigrec_hf.common.fingerprints import file_fingerprint, fingerprint
from bigrec_hf.common.processes import process_state
from bigrec_hf.settings.train import RUN_STAGES

MANIFEST = "manifest.json"


class Steps:
    """The stages of one run: skips what is done, measures what is not, keeps the manifest."""

    def __init__(self, folder: Path, redo_from: str | None):
        self.folder = folder
        self.redo = RUN_STAGES[RUN_STAGES.index(redo_from) :] if redo_from else ()
        self.manifest = read_json(folder / MANIFEST)
        self.state = process_state()

    def do(
        self,
        stage: str,
        action: Callable[[], Any],
        *,
        depends: Any,
        outputs: list[Path],
        label: str = "",
        distributed: bool = False,
        resumes_from: Path | None = None,
    ) -> str:
        """Run one stage unless it is done. Returns a fingerprint of its mark and outputs, for the stages that depend on
        it.

        `depends`: JSON-able, what the outputs depend on. `distributed`: every process takes part, not the first alone.
        `resumes_from`: what the stage would go on from instead of starting anew; `--from` removes it with the outputs.
        """
        name = f"{stage}:{label}" if label else stage
        mark = fingerprint(stage, label, depends)
        done = self.manifest.get("stages", {}).get(name, {})
        written = output_marks(outputs)
        if done.get("fingerprint") == mark and stage not in self.redo and done.get("outputs") == written:
            self.state.print(f"== {name}: done and unchanged")
            return fingerprint(mark, written)
        self.state.print(f"== {name}", flush=True)
        self.state.wait_for_everyone()  # all have looked at the outputs before the first process removes or writes any
        if self.state.is_main_process and stage in self.redo:
            for output in [*outputs, *([resumes_from] if resumes_from is not None else [])]:
                shutil.rmtree(output) if output.is_dir() else output.unlink(missing_ok=True)
        self.state.wait_for_everyone()
        record: dict[str, Any] = {"fingerprint": mark}
        with measured(record):
            if distributed or self.state.is_main_process:
                action()
        self.state.wait_for_everyone()
        gc.collect()
        record["outputs"] = output_marks(outputs)
        self.manifest.setdefault("stages", {})[name] = record
        self.save()
        return fingerprint(mark, record["outputs"])

    def save(self) -> None:
        """Write the manifest."""
        if self.state.is_main_process:
            write_json(self.folder / MANIFEST, self.manifest)


def output_marks(outputs: list[Path]) -> dict[str, str | None]:
    """A fingerprint of each output's content by its name: of a file, of all files in a folder, None where missing."""
    marks: dict[str, str | None] = {}
    for output in outputs:
        files = sorted(file for file in output.rglob("*") if file.is_file()) if output.is_dir() else [output]
        name = f"{output.parent.name}/{output.name}"
        marks[name] = file_fingerprint(*files) if all(map(Path.is_file, files)) else None
    return marks
