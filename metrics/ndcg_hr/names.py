"""Names of models and data sets: a folder, or a Hub id with an optional revision."""

from pathlib import Path


def split_revision(name: str) -> tuple[str, str | None]:
    """`folder-or-hub-id[@revision]` -> (name, revision); an existing path is never split."""
    if Path(name).exists() or "@" not in name:
        return name, None
    path, revision = name.rsplit("@", 1)
    return path, revision
