"""A hook of MkDocs: the site has the same tree as the repository, so that links work on both.

Pages are the Markdown files that git tracks, and the notebooks; every file that one of them links to is part of the
site as well.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/*.md",
    "recipes/README.md",
    "benchmarks/README.md",
    "metrics/ndcg_hr/README.md",
)
LINK = re.compile(r"\]\(([^)#:\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the content of `docs_dir` by the pages, at their places in the repository, and what they link to."""
    paths = {path.resolve() for pattern in PAGES for path in ROOT.glob(pattern)}
    linked = set()
    for page in paths:
        for target in LINK.findall(page.read_text(encoding="utf-8")):
            path = (page.parent / target).resolve()
            if path.is_file() and path.is_relative_to(ROOT):
                linked.add(path)
    kept = Files([file for file in files if file.src_dir is None or Path(file.src_dir) != Path(config.docs_dir)])
    for path in sorted(paths | linked):
        kept.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    for path in sorted(ROOT.glob("docs/notebooks/*.ipynb")):
        page = path.relative_to(ROOT).with_suffix(".md").as_posix()
        kept.append(File.generated(config, page, content=notebook_page(path)))
    return kept


def notebook_page(path: Path) -> str:
    """The cells of a notebook as Markdown; links to other notebooks lead to their pages."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        parts.append(f"```python\n{text}\n```" if cell["cell_type"] == "code" else text.replace(".ipynb)", ".md)"))
    return "\n\n".join(parts) + "\n"
