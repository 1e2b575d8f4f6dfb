"""The `demo` command: a page in the browser for runs and adapters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow.parquet as pq

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.generations import GENERATIONS_FILE
from bigrec_hf.data.run_folder import existing_run, run_name
from bigrec_hf.demo.table import CSS

if TYPE_CHECKING:
    from bigrec_hf.recommend.rankers import Rankers
    from bigrec_hf.settings import DemoSettings

N_EXAMPLES = 3


def example_histories(run_dir: str | Path, rankers: Rankers) -> list[list[str]]:
    """Return the histories of a run's first evaluated examples, as titles; [] if the run has none."""
    file = Path(run_dir) / "finetuned" / GENERATIONS_FILE
    if not file.is_file():
        return []
    rows = next(pq.ParquetFile(file).iter_batches(N_EXAMPLES, columns=[C.HISTORY])).column(0).to_pylist()
    titles = rankers.catalog.titles
    return [[titles[row] for row in history if 0 <= row < len(titles)] for history in rows]


def main(demo: DemoSettings) -> None:
    """Load the recommenders and serve the page until it is interrupted.

    Raises BigrecError if none is named, if two have the same name, or if gradio is missing.
    """
    names = {
        **{run_name(run): run for run in demo.demo_runs},
        **{name: name for name in demo.demo_adapters},
    }
    if len(names) < len(demo.demo_runs) + len(demo.demo_adapters):
        raise BigrecError("two of the recommenders have the same name: rename a run folder, as the page shows names")
    if not names:
        raise BigrecError("there is nothing to show: name a run with --run_dir or an adapter with --adapter")
    for run in demo.demo_runs:
        existing_run(run)
    try:
        from bigrec_hf.demo.app import build
    except ModuleNotFoundError as error:
        raise BigrecError("the demo needs gradio: pip install 'bigrec_hf[demo]'") from error
    from bigrec_hf.recommend.rankers import Rankers

    shown = {name: Rankers(source) for name, source in names.items()}
    for rankers in shown.values():
        print(f"{rankers.name}: {len(rankers.recommender.catalog):,} items, rankers {', '.join(rankers.names())}")
    examples = example_histories(demo.demo_runs[0], next(iter(shown.values()))) if demo.demo_runs else []
    page = build(shown, examples)
    page.launch(server_name=demo.host, server_port=demo.port, css=CSS, footer_links=["api"])
