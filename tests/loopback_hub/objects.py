"""Git's object format: blobs, trees and commits, loose and compressed, so that `git` itself can read a repository."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

POINTER_START = b"version https://git-lfs.github.com/spec/v1\n"
FILE_MODE, FOLDER_MODE = "100644", "40000"


def write_atomically(path: Path, data: bytes) -> None:
    """A reader sees the old content or the new one, never a part of either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".tmp-")
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
    Path(temporary).replace(path)


@dataclass(frozen=True)
class Blob:
    """One file of a commit: `oid` is git's SHA-1; `size` and `sha256` are those of the LFS object where it is one."""

    oid: str
    size: int
    sha256: str | None = None
    pointer_size: int = 0


@dataclass(frozen=True)
class Commit:
    oid: str
    tree: str
    parents: tuple[str, ...]
    author: str
    date: int
    title: str
    message: str


@dataclass(frozen=True)
class Tree:
    """All files and folders below a commit's root, by path."""

    files: dict[str, str]
    folders: dict[str, str]


def pointer(sha256: str, size: int) -> bytes:
    """The text that git keeps in place of an LFS object."""
    return POINTER_START + f"oid sha256:{sha256}\nsize {size}\n".encode()


class Objects:
    """The objects of one bare git repository."""

    def __init__(self, repository: Path) -> None:
        self.folder = repository / "objects"

    def _path(self, oid: str) -> Path:
        return self.folder / oid[:2] / oid[2:]

    def write(self, kind: str, data: bytes) -> str:
        content = f"{kind} {len(data)}\0".encode() + data
        oid = hashlib.sha1(content).hexdigest()
        if not self._path(oid).exists():
            write_atomically(self._path(oid), zlib.compress(content, 1))
        return oid

    def read(self, oid: str, kind: str) -> bytes:
        """The object's content; KeyError where there is none of that kind."""
        if not re.fullmatch("[0-9a-f]{40}", oid) or not self._path(oid).is_file():
            raise KeyError(oid)
        head, _, data = zlib.decompress(self._path(oid).read_bytes()).partition(b"\0")
        if head.split()[0].decode() != kind:
            raise KeyError(oid)
        return data

    def blob(self, oid: str) -> Blob:
        data = self.read(oid, "blob")
        if not data.startswith(POINTER_START):
            return Blob(oid, len(data))
        fields = dict(line.split(" ", 1) for line in data.decode().splitlines())
        return Blob(oid, int(fields["size"]), fields["oid"].removeprefix("sha256:"), len(data))

    def write_tree(self, files: dict[str, str]) -> str:
        """The tree of path -> blob oid. ValueError where a path is a file and a folder."""
        entries: dict[str, tuple[str, str]] = {}
        below: dict[str, dict[str, str]] = {}
        for path, oid in files.items():
            name, _, rest = path.partition("/")
            if rest:
                below.setdefault(name, {})[rest] = oid
            else:
                entries[name] = (FILE_MODE, oid)
        for name, inside in below.items():
            if name in entries:
                raise ValueError(f"'{name}' is a file and a folder")
            entries[name] = (FOLDER_MODE, self.write_tree(inside))
        order = sorted(entries, key=lambda name: (name + "/" * (entries[name][0] == FOLDER_MODE)).encode())
        lines = (f"{entries[name][0]} {name}\0".encode() + bytes.fromhex(entries[name][1]) for name in order)
        return self.write("tree", b"".join(lines))

    def read_tree(self, oid: str, prefix: str = "") -> Tree:
        tree = Tree({}, {})
        data = self.read(oid, "tree")
        while data:
            head, _, data = data.partition(b"\0")
            mode, name = head.decode().split(" ", 1)
            entry, data = data[:20].hex(), data[20:]
            if mode == FOLDER_MODE:
                below = self.read_tree(entry, f"{prefix}{name}/")
                tree.folders[prefix + name] = entry
                tree.folders.update(below.folders)
                tree.files.update(below.files)
            else:
                tree.files[prefix + name] = entry
        return tree

    def write_commit(self, tree: str, parents: list[str], author: str, date: int, message: str) -> str:
        who = f"{author} <{author}@loopback.invalid> {date} +0000"
        lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents), f"author {who}", f"committer {who}"]
        return self.write("commit", ("\n".join(lines) + f"\n\n{message}\n").encode())

    def commit(self, oid: str) -> Commit:
        head, _, text = self.read(oid, "commit").decode().partition("\n\n")
        fields = [line.split(" ", 1) for line in head.splitlines()]
        author, date = next(re.match(r"(.*) <.*> (\d+)", value).groups() for key, value in fields if key == "author")
        title, _, message = text.rstrip("\n").partition("\n\n")
        parents = tuple(value for key, value in fields if key == "parent")
        return Commit(oid, dict(fields)["tree"], parents, author, int(date), title, message)
