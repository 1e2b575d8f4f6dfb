"""Repositories on disk: each is a bare git repository with its LFS objects, settings and discussions beside it."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from tests.loopback_hub.objects import Blob, Commit, Objects, Tree, pointer, write_atomically

KINDS = ("model", "dataset", "space")
LFS_SUFFIXES = """
    7z arrow bin bz2 ckpt ftz gguf gz h5 joblib lz4 model msgpack npy npz onnx parquet pickle pkl pt pth rar safetensors
    tar tgz wasm xz zip zst
"""
LFS_PATTERNS = [*(f"*.{suffix}" for suffix in LFS_SUFFIXES.split()), "saved_model/**/*", "*.tar.*", "*tfevents*"]
GITATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS)


class Repo:
    """One repository. All methods but `save` and those that write refs are free of side effects on its history."""

    def __init__(self, folder: Path, kind: str, repo_id: str) -> None:
        self.folder, self.kind, self.id = folder, kind, repo_id
        self.objects = Objects(folder)
        self.tree = lru_cache(maxsize=64)(self._tree)
        self.blob = lru_cache(maxsize=20_000)(self.objects.blob)

    @property
    def url_path(self) -> str:
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"

    # -- settings and discussions ------------------------------------------------------------------------------------

    def load(self, name: str) -> dict:
        return json.loads((self.folder / f"hub-{name}.json").read_text(encoding="utf-8"))

    def save(self, name: str, values: dict) -> None:
        write_atomically(self.folder / f"hub-{name}.json", json.dumps(values, indent=1).encode())

    # -- revisions ---------------------------------------------------------------------------------------------------

    def ref(self, name: str) -> str | None:
        """The commit that a full ref name (refs/heads/main) points to."""
        path = self.folder / name
        return path.read_text().strip() if is_ref_name(name) and path.is_file() else None

    def set_ref(self, name: str, oid: str | None) -> None:
        if oid is None:
            (self.folder / name).unlink()
        else:
            write_atomically(self.folder / name, f"{oid}\n".encode())

    def refs(self, group: str) -> dict[str, str]:
        """Name -> commit for `heads`, `tags` or `pr`."""
        root = self.folder / "refs" / group
        paths = sorted(path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".tmp-"))
        return {str(path.relative_to(root)): path.read_text().strip() for path in paths}

    def writable_ref(self, revision: str) -> str | None:
        """The ref that a commit to `revision` moves: a branch or a pull request; None for tags and commits."""
        names = [revision] if revision.startswith("refs/pr/") else [f"refs/heads/{revision}"]
        names += [revision] if revision.startswith("refs/heads/") else []
        return next((name for name in names if self.ref(name)), None)

    def resolve(self, revision: str) -> str | None:
        """The commit id of a branch, tag, full ref or commit id; None where there is no such revision."""
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name.startswith("refs/") and (oid := self.ref(name)):
                return oid
        try:
            return self.objects.commit(revision).oid
        except KeyError:
            return None

    def history(self, oid: str) -> Iterator[Commit]:
        """The first-parent history, newest first."""
        while oid:
            commit = self.objects.commit(oid)
            yield commit
            oid = commit.parents[0] if commit.parents else ""

    # -- content -----------------------------------------------------------------------------------------------------

    def _tree(self, commit_oid: str) -> Tree:
        return self.objects.read_tree(self.objects.commit(commit_oid).tree)

    def text(self, commit_oid: str, path: str) -> str:
        """A text file of a commit; empty where there is none."""
        oid = self.tree(commit_oid).files.get(path)
        return self.objects.read(oid, "blob").decode("utf-8", "replace") if oid else ""

    def last_commit(self, commit_oid: str, path: str) -> Commit:
        """The newest commit in the history that changed the file or folder."""

        def entry(oid: str) -> str | None:
            tree = self.tree(oid)
            return tree.files.get(path) or tree.folders.get(path)

        newest, *older = self.history(commit_oid)
        for commit in older:
            if entry(commit.oid) != entry(newest.oid):
                break
            newest = commit
        return newest

    def lfs_path(self, sha256: str) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"'{sha256}' is no sha256")
        return self.folder / "lfs" / "objects" / sha256[:2] / sha256[2:4] / sha256

    def store_lfs(self, sha256: str, stream: BinaryIO) -> None:
        """Keep the stream's content under its hash; ValueError where the hash is another."""
        target = self.lfs_path(sha256)
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256()
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".tmp-", delete=False) as copy:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
                copy.write(chunk)
        if digest.hexdigest() != sha256:
            Path(copy.name).unlink()
            raise ValueError(f"content has sha256 {digest.hexdigest()}, announced was {sha256}")
        Path(copy.name).replace(target)

    def write_lfs_pointer(self, sha256: str) -> str:
        return self.objects.write("blob", pointer(sha256, self.lfs_path(sha256).stat().st_size))

    def commit(self, ref: str, parents: list[str], files: dict[str, str], author: str, message: str) -> str:
        """A commit of path -> blob oid on top of `parents`; moves `ref` there last, in one step."""
        tree = self.objects.write_tree(files)
        oid = self.objects.write_commit(tree, parents, author, int(time.time()), message)
        self.set_ref(ref, oid)
        return oid


def is_ref_name(name: str) -> bool:
    return bool(re.fullmatch(r"refs/(heads|tags|pr)(/(?![.-])[\w.-]+)+", name)) and ".." not in name


def is_repo_name(name: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]{1,96}", name)) and not re.search(r"^[-.]|[-.]$|--|\.\.|\.git$", name)


class Store:
    """All repositories below a folder: <folder>/{models,datasets,spaces}/<namespace>/<name>."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self._open: dict[Path, Repo] = {}

    def find(self, kind: str, repo_id: str) -> Repo | None:
        folder = self.folder / f"{kind}s" / repo_id
        if not all(map(is_repo_name, repo_id.split("/"))) or not (folder / "HEAD").is_file():
            return None
        with self.lock:
            return self._open.setdefault(folder, Repo(folder, kind, repo_id))

    def all(self, kind: str) -> list[Repo]:
        root = self.folder / f"{kind}s"
        found = (self.find(kind, str(head.parent.relative_to(root))) for head in sorted(root.glob("*/*/HEAD")))
        return [repo for repo in found if repo]

    def create(self, kind: str, repo_id: str, author: str, **settings: object) -> Repo:
        """A repository whose first commit holds the Hub's .gitattributes (what goes to LFS)."""
        folder = self.folder / f"{kind}s" / repo_id
        repo = Repo(folder, kind, repo_id)
        with self.lock:
            repo.save("settings", {"private": False, "gated": False, "granted": [], "created": time.time(), **settings})
            repo.save("discussions", {"items": []})
            (folder / "config").write_text("[core]\n\trepositoryformatversion = 0\n\tbare = true\n")
            (folder / "objects").mkdir()
            attributes = repo.objects.write("blob", GITATTRIBUTES.encode())
            repo.commit("refs/heads/main", [], {".gitattributes": attributes}, author, "initial commit")
            write_atomically(folder / "HEAD", b"ref: refs/heads/main\n")
            self._open[folder] = repo
        return repo

    def delete(self, repo: Repo) -> None:
        with self.lock:
            self._open.pop(repo.folder, None)
            (repo.folder / "HEAD").unlink()
            shutil.rmtree(repo.folder)


__all__ = ["KINDS", "Blob", "Commit", "Repo", "Store", "is_ref_name", "is_repo_name"]
