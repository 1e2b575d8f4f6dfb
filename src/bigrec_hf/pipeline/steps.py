"""The stages of a run: which are done, what each depends on, and how much time and memory it took.

The mark of a stage is a fingerprint of the settings and inputs it depends on, including the outputs of earlier stages.
When a stage finishes, its mark and the size and hash of every file it wrote are recorded in `manifest.json`. A stage
runs again if its mark differs, a file is missing or has changed, or `--from` says so. Where only files have changed,
all that the stage wrote is removed first, so that the stage itself keeps none of it. Within a stage, its own resumption
applies (shards, checkpoints).
"""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bigrec_hf.common.environment import measured
from bigrec_hf.common.files import read_record, write_json
from bigrec_hf.common.fingerprints import file_fingerprint, fingerprint
from bigrec_hf.common.processes import process_state
from bigrec_hf.data.run_folder import MANIFEST
from bigrec_hf.settings.train import RUN_STAGES


class Steps:
    """Runs the stages of one run: skips those that are done, measures the others, and writes the manifest."""

    def __init__(self, folder: Path, redo_from: str | None):
        self.folder = folder
        self.redo = RUN_STAGES[RUN_STAGES.index(redo_from) :] if redo_from else ()
        self.manifest = read_record(folder / MANIFEST)
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

        `depends`: JSON-able, everything the outputs depend on. `outputs`: files, which need not all be written, and
        folders of the stage's own. `distributed`: all processes take part instead of the first alone. `resumes_from`:
        what the stage would resume from; `--from` removes it, too.
        """
        name = f"{stage}:{label}" if label else stage
        mark = fingerprint(stage, label, depends)
        done = self.manifest.get("stages", {}).get(name, {})
        recorded = done.get("outputs", {})
        files = output_files(outputs, recorded)
        written = output_marks(files, done)
        changed = sorted(file for file in {*recorded, *written} if recorded.get(file) != written.get(file))
        if done.get("fingerprint") == mark and stage not in self.redo and not changed:
            self.state.print(f"== {name}: done and unchanged")
            return fingerprint(mark, recorded)
        lost = [file for file in changed if file in recorded and file in files]  # not of an earlier release's record
        damaged = done.get("fingerprint") == mark and bool(lost)
        why = f": {lost[0]} is lost or has changed, so it is made again" if damaged and stage not in self.redo else ""
        self.state.print(f"== {name}{why}", flush=True)
        self.state.wait_for_everyone()  # all have seen the outputs before the first process removes or writes any
        if self.state.is_main_process and (stage in self.redo or damaged):
            for file in files.values():
                file.unlink(missing_ok=True)
        if self.state.is_main_process and stage in self.redo and resumes_from is not None:
            shutil.rmtree(resumes_from, ignore_errors=True)
        self.state.wait_for_everyone()
        record: dict[str, Any] = {"fingerprint": mark}
        with measured(record):
            if distributed or self.state.is_main_process:
                action()
        self.state.wait_for_everyone()
        gc.collect()
        files = output_files(outputs, {})
        record["outputs"] = output_marks(files, {})
        record["files"] = {file: stamp(files[file]) for file in record["outputs"]}
        self.manifest.setdefault("stages", {})[name] = record
        self.save()
        return fingerprint(mark, record["outputs"])

    def save(self) -> None:
        """Write the manifest."""
        if self.state.is_main_process:
            write_json(self.folder / MANIFEST, self.manifest)


def output_files(outputs: list[Path], recorded: Mapping[str, Any]) -> dict[str, Path]:
    """Return the files of a stage by name: the `outputs`; of a folder those recorded, or if none is, all in it."""
    files: dict[str, Path] = {}
    for output in outputs:
        name = f"{output.parent.name}/{output.name}"
        inside = [file.removeprefix(f"{name}/") for file in recorded if file.startswith(f"{name}/")]
        if not inside and output.is_dir():
            inside = [file.relative_to(output).as_posix() for file in sorted(output.rglob("*")) if file.is_file()]
        if inside or output.is_dir():
            files |= {f"{name}/{file}": output / file for file in inside}
        else:
            files[name] = output
    return files


def stamp(path: Path) -> list[int] | None:
    """Return a file's size in bytes and its modification time in nanoseconds; None if there is no such file."""
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else None


def output_marks(files: Mapping[str, Path], done: Mapping[str, Any]) -> dict[str, str]:
    """Return the hash of each file that exists, by name; of one whose size and time are those recorded in `done`, the
    recorded hash."""
    known = done.get("files", {})
    return {
        name: done["outputs"][name] if stamp(path) == known.get(name) else file_fingerprint(path)
        for name, path in files.items()
        if path.is_file()
    }
