"""Fingerprints of settings and files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def fingerprint(*values: Any) -> str:
    """sha256 (first 16 hex digits) of JSON-serializable values, regardless of key order."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_fingerprint(*paths: str | Path) -> str:
    """sha256 (first 16 hex digits) of the files' contents, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        with Path(path).open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:16]
