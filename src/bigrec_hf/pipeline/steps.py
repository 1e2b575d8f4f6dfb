"""The stages of a run: which are done, what each depends on, and how much time and memory it took.

The mark of a stage is a fingerprint of the settings and inputs it depends on, including the outputs of earlier stages.
When a stage finishes, its mark and the fingerprints of its outputs are written to `manifest.json`. A stage runs again
if its mark differs, an output is missing or has changed, or `--from` says so. Within a stage, its own resumption
applies (shards, checkpoints).
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
from bigrec_hf.data.run_folder import MANIFEST
from bigrec_hf.settings.train import RUN_STAGES


class Steps:
    """Runs the stages of one run: skips those that are done, measures the others, and writes the manifest."""

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
        """Run one stage unless it is done; return a fingerprint of its mark and outputs, on which later stages depend.

        `depends`: JSON-able, everything the outputs depend on. `distributed`: all processes take part instead of the
        first alone. `resumes_from`: what the stage would resume from; `--from` removes it together with the outputs.
        """
        name = f"{stage}:{label}" if label else stage
        mark = fingerprint(stage, label, depends)
        done = self.manifest.get("stages", {}).get(name, {})
        written = output_marks(outputs)
        if done.get("fingerprint") == mark and stage not in self.redo and done.get("outputs") == written:
            self.state.print(f"== {name}: done and unchanged")
            return fingerprint(mark, written)
        self.state.print(f"== {name}", flush=True)
        self.state.wait_for_everyone()  # all have seen the outputs before the first process removes or writes any
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
    """Return a fingerprint of each output by name: of a file, of all files in a folder, None if missing."""
    marks: dict[str, str | None] = {}
    for output in outputs:
        files = sorted(file for file in output.rglob("*") if file.is_file()) if output.is_dir() else [output]
        name = f"{output.parent.name}/{output.name}"
        marks[name] = file_fingerprint(*files) if all(map(Path.is_file, files)) else None
    return marks
