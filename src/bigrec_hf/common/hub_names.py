"""Names on the Hugging Face Hub: `user/name[@revision]` -> commit, file or folder, with one-line errors.

Wherever a folder is accepted, so is a Hub id. A command pins its names first (`pin`): `user/name` becomes
`user/name@<commit>`, so that all its stages see the same revision and every record holds a commit rather than a moving
branch. Anything downloaded before is found again without a network (`HF_HUB_OFFLINE=1`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.metrics.ndcg_hr.names import split_revision

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
FILE_SUFFIXES = {".dat", ".item", ".inter", ".csv", ".tsv", ".txt", ".json", ".jsonl", ".parquet", ".gz", ".yaml"}


def is_hub_id(name: str, *, bare: bool = False) -> bool:
    """Whether a name refers to the Hub: not an existing path, not a data file, no leading `.`, `/`, `~`, one slash.

    `bare`: names without an owner and slash (`gpt2`) count as well; only models have them.
    """
    path, _ = split_revision(name)
    if Path(path).exists() or path.startswith((".", "/", "~")) or Path(path).suffix in FILE_SUFFIXES:
        return False
    return HUB_ID.fullmatch(path) is not None and (bare or "/" in path)


def check_repo_id(name: str | None, flag: str) -> str:
    """The name of a repository to write to, unchanged. Raises BigrecError unless it is a `user/name` the Hub allows."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    path, _, revision = (name or "").partition("@")
    if name is None or HUB_ID.fullmatch(path) is None or "/" not in path or revision:
        raise BigrecError(f"{flag} is {name!r}: expected user/name (give a branch with --revision)")
    try:
        validate_repo_id(path)
    except HFValidationError as error:
        raise BigrecError(f"{flag} is {name!r}, which the Hub does not allow: {' '.join(str(error).split())}") from None
    return name


# --- errors ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def hub_errors(name: str) -> Iterator[None]:
    """Turn a Hub client's exception about `name` into a one-line BigrecError; other exceptions pass unchanged."""
    try:
        yield
    except BigrecError:
        raise
    except Exception as error:
        message = explain(error, name)
        if message is None:
            raise
        raise BigrecError(message) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, outermost first: libraries wrap the Hub's errors in their own."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def explain(error: BaseException, name: str) -> str | None:
    """One line: what is wrong with `name` on the Hub and what to do about it; None if the error has another cause."""
    from huggingface_hub import constants, errors

    repo_id = split_revision(name)[0]
    chain = list(_chain(error))

    def found(*kinds: type[BaseException]) -> BaseException | None:
        return next((link for link in chain if isinstance(link, kinds)), None)

    if any(isinstance(link, ValueError) and "trust_remote_code" in str(link) for link in chain):
        return (
            f"{repo_id!r} needs Python code from its own repository, which is never run: give a model that the "
            "installed transformers knows by itself, or a converted copy of this one"
        )
    if any(isinstance(link, OSError) and link.errno == errno.ENOSPC for link in chain):
        return f"no space left on the disk while fetching {name!r}: free some, or move HF_HOME to a larger disk"
    if found(errors.GatedRepoError):
        return (
            f"{repo_id!r} is gated: accept its terms at {constants.ENDPOINT}/{repo_id}, then run `hf auth login` with "
            "an account that has access"
        )
    if found(errors.RevisionNotFoundError):
        revision = split_revision(name)[1] or "main"
        return f"{repo_id!r} has no revision {revision!r}: use one of its branches, tags or commits"
    response = getattr(found(errors.HfHubHTTPError), "response", None)
    status = getattr(response, "status_code", None)
    said = (response.headers.get("X-Error-Message") or "") if response is not None else ""
    if status == 401 and re.search("credential|token|expired", said, re.IGNORECASE):
        return f"the Hub rejects the token for {repo_id!r} (expired or revoked): `hf auth login`, or renew HF_TOKEN"
    if found(errors.RepositoryNotFoundError):
        return (
            f"{repo_id!r} does not exist on the Hub or is private, and there is no such folder: check the spelling, or "
            "run `hf auth login` with an account that can read it"
        )
    if status in (401, 403):
        return f"the token lacks permission for {repo_id!r} ({status}): run `hf auth login` with a token that has it"
    if found(errors.OfflineModeIsEnabled) or (found(errors.LocalEntryNotFoundError) and constants.is_offline_mode()):
        return (
            f"{name!r} is not in the cache, and HF_HUB_OFFLINE=1 prevents downloading it: run `bigrec-hf download` "
            "while online, or check the path if a folder is meant (there is none)"
        )
    if status is not None and (status == 429 or status >= 500):
        return f"the Hub returned {status} for {repo_id!r}: try again later"
    missing = found(errors.RemoteEntryNotFoundError)
    if missing is not None:
        return f"{name!r} lacks a required file ({_file_of(response)}): is it the right kind of repository?"
    if found(errors.HFValidationError):
        return f"{name!r} is neither a folder nor a Hub id (user/name): check the path"
    if found(errors.LocalEntryNotFoundError, ConnectionError, TimeoutError, *_transport_errors()):
        return (
            f"there is no folder {repo_id!r}, the Hub at {constants.ENDPOINT} cannot be reached, and {name!r} is not "
            "in the cache: check the path or the network, or download it on another machine with `bigrec-hf download "
            "--local_dir`"
        )
    return None


def _transport_errors() -> tuple[type[BaseException], ...]:
    import httpx2

    return (httpx2.TransportError,)


def _file_of(response: Any) -> str:
    """The file that a response is about, from its URL; the query is dropped because it may contain a signature."""
    url = str(getattr(response, "url", "")).partition("?")[0]
    return url.partition("/resolve/")[2].partition("/")[2] or "see --debug"


SECRET = re.compile(  # of the Hub, GitHub, GitLab, OpenAI and the like, AWS, Slack; private keys
    r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}|\bgh[oprsu]_[A-Za-z0-9]{36}|\bgithub_pat_\w{22,}|\bglpat-[\w-]{20,}"
    r"|\bsk-(?:proj-|ant-)?\w{24,}|\bAKIA[0-9A-Z]{16}\b|\bxox[abprs]-[\w-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY-----",
    re.ASCII,
)
SECRET_KEY = re.compile(r"password|passwd|secret|credential|api_?key|(hub|hf|access|auth|bearer)_?token", re.IGNORECASE)


def known_tokens() -> set[str]:
    """The access tokens in use, from the environment and from `hf auth login`."""
    from huggingface_hub import get_token

    values = {os.environ.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")} | {get_token()}
    return {value for value in values if value and len(value) >= 8}


def redact(text: str) -> str:
    """The text with access tokens replaced: those in use, and anything that looks like one."""
    for token in known_tokens():
        text = text.replace(token, "[token]")
    return SECRET.sub("[token]", text)


# --- commits, files and folders -------------------------------------------------------------------------------------


def resolve_commit(name: str, repo_type: str) -> str:
    """The commit that a Hub name refers to now; offline or without a network, the one fetched last."""
    from huggingface_hub import HfApi, constants

    repo_id, revision = split_revision(name)
    revision = revision or "main"
    known = cached_commit(repo_id, revision, repo_type)
    if known is not None and (known == revision or constants.is_offline_mode()):
        return known
    try:
        with hub_errors(name):
            commit = HfApi().repo_info(repo_id, revision=revision, repo_type=repo_type).sha
    except BigrecError as error:
        if known is None or not _is_network(error.__cause__):
            raise
        print(f"the Hub cannot be reached: using {repo_id} as last fetched, commit {known}", flush=True)
        return known
    if commit != revision:  # recorded where the Hub's own client does, for later runs without a network
        ref = _storage(repo_id, repo_type) / "refs" / revision
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(str(commit))
    return str(commit)


def _is_network(error: BaseException | None) -> bool:
    kinds: tuple[type[BaseException], ...] = (ConnectionError, TimeoutError, *_transport_errors())
    return any(isinstance(link, kinds) for link in _chain(error))


def _storage(repo_id: str, repo_type: str) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo_id, repo_type=repo_type)


def cached_commit(repo_id: str, revision: str, repo_type: str) -> str | None:
    """The commit that the local cache holds for a revision, or None."""
    storage = _storage(repo_id, repo_type)
    if COMMIT.fullmatch(revision):
        return revision if (storage / "snapshots" / revision).is_dir() else None
    ref = storage / "refs" / revision
    return ref.read_text().strip() if ref.is_file() else None


def cached_folder(repo_id: str, revision: str, repo_type: str) -> Path | None:
    """The folder of a revision's files in the local cache, or None. The network is not asked."""
    commit = cached_commit(repo_id, revision, repo_type)
    folder = _storage(repo_id, repo_type) / "snapshots" / str(commit)
    return folder if commit is not None and folder.is_dir() else None


def fetch_file(name: str, file: str, repo_type: str, *, optional: bool = False) -> Path | None:
    """A file of a local folder or of a Hub repository, as a local path; None if the folder or repository lacks it.

    `optional`: when offline, a file missing from a cached repository counts as missing from the repository.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RemoteEntryNotFoundError

    path, revision = split_revision(name)
    if Path(path).is_dir():
        return Path(path) / file if (Path(path) / file).is_file() else None
    with hub_errors(name):
        try:
            return Path(hf_hub_download(path, file, repo_type=repo_type, revision=revision))
        except RemoteEntryNotFoundError:
            return None
        except LocalEntryNotFoundError:
            if optional and cached_commit(path, revision or "main", repo_type) is not None:
                return None  # the repository was cached without this file, so it has none
            raise


def fetch_folder(name: str, repo_type: str, patterns: Sequence[str] | None = None) -> Path:
    """A local folder itself, or the cache folder of a Hub repository with its files (those that match `patterns`)."""
    from huggingface_hub import snapshot_download

    path, revision = split_revision(name)
    if Path(path).is_dir():
        return Path(path)
    allowed = None if patterns is None else list(patterns)
    with hub_errors(name):
        return Path(snapshot_download(path, repo_type=repo_type, revision=revision, allow_patterns=allowed))


# --- pinning --------------------------------------------------------------------------------------------------------


def pin_name(name: str, repo_type: str) -> str:
    """`user/name[@revision]` -> `user/name@<commit>`; a path is returned unchanged."""
    if not is_hub_id(name, bare=repo_type == "model"):
        return name
    return f"{split_revision(name)[0]}@{resolve_commit(name, repo_type)}"


def pin(section: Any) -> Any:
    """A settings section with every Hub name in it (fields with `hub` in their metadata) pinned to its commit."""
    changes: dict[str, Any] = {}
    for item in fields(section):
        repo_type, value = item.metadata.get("hub"), getattr(section, item.name)
        if not repo_type or not value or value in item.metadata.get("words", ()):
            continue
        if isinstance(value, list):
            changes[item.name] = [pin_name(name, repo_type) for name in value]
            continue
        try:
            changes[item.name] = pin_name(value, repo_type)
        except BigrecError:
            if not item.metadata.get("creates") or "@" in value:
                raise
            print(f"{item.name} {value!r} is not on the Hub: treated as a folder to create", flush=True)
    return replace(section, **changes)
