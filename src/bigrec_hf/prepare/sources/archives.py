"""MovieLens archives from GroupLens: resumable downloads, verified if a checksum is published, safely unpacked."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import shutil
import stat
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.files import readable

URL_BASE = "https://files.grouplens.org/datasets/movielens"
URL_VARIABLE = "BIGREC_HF_MOVIELENS_URL"  # another server with the same archives: a mirror, a test
ARCHIVES = {"ml-latest-small": "ml-latest-small", "1m": "ml-1m", "10m": "ml-10m", "32m": "ml-32m"}
CHECKSUM_PUBLISHED = {"1m", "10m", "32m"}  # as NAME.zip.md5 next to the archive
MOST_DEFLATED = 1032  # bytes that one compressed byte can stand for (DEFLATE, the method of these archives)
ATTEMPTS, WAIT_S, TIMEOUT_S, BLOCK = 5, 1.0, 60, 2**20


def download_movielens(name: str, raw_dir: str | Path | None) -> Path:
    """Download and unpack one archive into `raw_dir`; returns the folder of its files.

    An interrupted download resumes where it stopped; an archive that is already there is not downloaded again. Raises
    BigrecError if the server does not respond, the checksum differs, or the archive contains an unsafe path.
    """
    if name not in ARCHIVES:
        raise BigrecError(f"unknown archive {name!r}: choose from {', '.join(ARCHIVES)}")
    if raw_dir is None:
        raise BigrecError("raw_dir is not set: give the folder to download to as --raw_dir")
    folder = Path(raw_dir)
    folder.mkdir(parents=True, exist_ok=True)
    base = os.environ.get(URL_VARIABLE, URL_BASE).rstrip("/")
    archive = folder / f"{ARCHIVES[name]}.zip"
    if not archive.is_file():
        md5 = fetch_md5(f"{base}/{archive.name}.md5") if name in CHECKSUM_PUBLISHED else None
        download_file(f"{base}/{archive.name}", archive, md5)
    return unpack(archive, folder)


def fetch_md5(url: str) -> str:
    """The checksum in a published `.md5` file, in either of the usual layouts."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            text = answer.read(4096).decode("ascii", "replace")
    except (OSError, http.client.HTTPException) as error:
        raise BigrecError(
            f"{url}: cannot be downloaded ({error}): check the network, or unpack the archive yourself"
        ) from error
    found = re.search(r"\b[0-9a-f]{32}\b", text.lower())
    if found is None:
        raise BigrecError(f"{url}: contains {text[:60]!r} instead of an md5 checksum: unpack the archive yourself")
    return found[0]


def download_file(url: str, target: Path, md5: str | None = None) -> None:
    """Download `url` to `target.part`, resuming a partial file; verify it, then rename it to `target`.

    Raises BigrecError if the download fails repeatedly or the checksum differs.
    """
    part, tag = target.with_name(target.name + ".part"), target.with_name(target.name + ".part.etag")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            if _continue_download(url, part, tag):
                break
            reason = "the connection closed early"
        except urllib.error.HTTPError as error:
            if error.code < 500:
                raise BigrecError(
                    f"{url}: the server returned {error.code} {error.reason}: check the address"
                ) from error
            reason = str(error)
        except (OSError, http.client.HTTPException) as error:  # the latter: a body sent in chunks that ends too early
            reason = str(error)
        if attempt == ATTEMPTS:
            raise BigrecError(f"{url}: cannot be downloaded ({reason}): run again to resume the download")
        time.sleep(WAIT_S * attempt)
    if md5 is not None:
        with part.open("rb") as file:
            digest = hashlib.file_digest(file, "md5").hexdigest()
        if digest != md5:
            part.unlink()
            tag.unlink(missing_ok=True)
            raise BigrecError(f"{url}: md5 is {digest}, but {md5} was published: the download was removed, run again")
    part.replace(target)
    tag.unlink(missing_ok=True)


def _continue_download(url: str, part: Path, tag: Path) -> bool:
    """Make one request. True if the whole file is there."""
    done = part.stat().st_size if part.is_file() else 0
    headers = {"User-Agent": "bigrec-hf"}
    known = tag.read_text(encoding="utf-8") if tag.is_file() else ""
    if done and known:
        headers |= {
            "Range": f"bytes={done}-",
            "If-Range": known,
        }  # if the file has changed since, the server sends all of it
    request = urllib.request.Request(url, headers=headers)
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing left to send, or the file has shrunk: start over
            part.unlink()
            return False
        raise
    with answer:
        resumed = answer.status == 206
        total = int(answer.headers.get("Content-Length") or 0) + (done if resumed else 0)
        tag.write_text(answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "", encoding="utf-8")
        with part.open("ab" if resumed else "wb") as file:
            shutil.copyfileobj(answer, file, BLOCK)
    return total == 0 or part.stat().st_size == total


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack a zip file whose members are all in one folder; every path is checked before anything is written.

    Returns that folder inside `folder`. A complete unpacked copy is kept. Raises BigrecError for a broken archive, an
    absolute path, one that leaves the folder, a link, or several top folders.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = [member for member in file.infolist() if not member.filename.startswith("__MACOSX/")]
            tops = {_checked(member, archive).parts[0] for member in members}
            if len(tops) != 1:
                raise BigrecError(
                    f"{archive}: expected one folder inside, found {', '.join(sorted(tops))}: unpack it yourself"
                )
            target = folder / tops.pop()
            files = [member for member in members if not member.is_dir()]
            sizes = {folder / member.filename: member.file_size for member in files}
            if all(path.is_file() and path.stat().st_size == size for path, size in sizes.items()):
                return target
            if target.exists():
                raise BigrecError(f"{target} exists but differs from {archive.name}: move one of them away")
            check_sizes(archive, files, folder)
            temporary = folder / f".{target.name}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                with readable(archive, "remove it and run again"):
                    for member in files:  # never more bytes than the header says, whose checksum is compared
                        file.extract(member, temporary)
                (temporary / target.name).replace(target)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise BigrecError(f"{archive}: the archive is broken ({error}): remove it and run again") from error
    return target


def check_sizes(archive: Path, files: list[zipfile.ZipInfo], folder: Path) -> None:
    """Raise BigrecError, before anything is written, for a member larger than its compressed bytes can hold, a file
    that occurs twice, and more bytes than the disk has free."""
    names = [member.filename for member in files]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    bomb = next((member.filename for member in files if member.file_size > MOST_DEFLATED * member.compress_size), None)
    if twice or bomb:
        what = f"{twice!r} occurs twice" if twice else f"{bomb!r} claims an impossible size"
        raise BigrecError(f"{archive}: {what}: nothing was unpacked; download the archive again")
    total, free = sum(member.file_size for member in files), shutil.disk_usage(folder).free
    if total > free:
        raise BigrecError(
            f"{archive}: unpacked it takes {total:,} bytes, but {folder} has {free:,} free: make room, or choose "
            "another --raw_dir"
        )


def _checked(member: zipfile.ZipInfo, archive: Path) -> PurePosixPath:
    path = PurePosixPath(member.filename)
    kind = stat.S_IFMT(member.external_attr >> 16)
    unsafe = path.is_absolute() or ".." in path.parts or "\\" in member.filename or ":" in path.parts[0]
    if unsafe or kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BigrecError(
            f"{archive}: unsafe member {member.filename!r}: nothing was unpacked; download the archive again"
        )
    return path
