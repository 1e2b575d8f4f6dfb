"""Push one folder to one repository in a single commit, with retries when the network or the Hub fails."""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.hub_names import hub_errors

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi


ATTEMPTS = 6
FIRST_WAIT = 1.0  # seconds; doubled after every attempt, unless the Hub sends Retry-After
LONGEST_WAIT = 120.0
KEPT = {".gitattributes"}  # the Hub's own file, never deleted

T = TypeVar("T")


@dataclass(frozen=True)
class Pushed:
    """The state of a repository after a push: its commit, and whether this push created it."""

    repo_id: str
    commit: str
    changed: bool
    url: str


def local_files(folder: Path) -> dict[str, Path]:
    """Path in the repository -> local file."""
    return {file.relative_to(folder).as_posix(): file for file in sorted(folder.rglob("*")) if file.is_file()}


def push_folder(
    folder: str | Path,
    repo_id: str,
    repo_type: str,
    *,
    message: str,
    private: bool = False,
    must_be_private: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> Pushed:
    """Make the repository's content exactly that of `folder`, with one commit, or none if it already is.

    The commit names its parent, so that it never mixes with someone else's changes; until it is made, readers see the
    complete previous state. (`upload_folder` is not used: with hf_xet it splits a folder that is large, or slow to
    upload, into several commits.) `must_be_private`: the reason why a public repository is refused, if it is. Raises
    BigrecError for a public repository that must be private, a conflicting change, and errors of the Hub.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    api, branch = HfApi(), revision or "main"
    with hub_errors(repo_id):
        options: dict[str, Any] = {"space_sdk": "gradio"} if repo_type == "space" else {}
        retry(lambda: api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, **options))
        is_private = retry(lambda: api.repo_info(repo_id, repo_type=repo_type).private)
        if not is_private and (private or must_be_private):
            reason = must_be_private or "you asked for a private one"
            raise BigrecError(f"{repo_id} exists and is public, but {reason}: make it private on the Hub first")
        if revision:
            retry(lambda: api.create_branch(repo_id, branch=branch, repo_type=repo_type, exist_ok=True))
        started_from: str | None = None

        def attempt() -> Pushed:
            nonlocal started_from
            head = str(api.repo_info(repo_id, repo_type=repo_type, revision=branch).sha)
            operations = changes(api, Path(folder), repo_id, repo_type, head)
            url = f"{api.endpoint}/{'' if repo_type == 'model' else repo_type + 's/'}{repo_id}"
            if not operations:  # nothing to do, or an earlier attempt succeeded and its response was lost
                return Pushed(repo_id, head, started_from not in (None, head), url)
            if started_from not in (None, head):
                raise BigrecError(
                    f"{repo_id} was changed by someone else during the push: check {head[:8]}, then publish again"
                )
            started_from = head
            if create_pr and (opened := open_request(api, Path(folder), repo_id, repo_type, message)):
                return opened
            with warnings.catch_warnings():  # intended: the index in a model repository is parquet
                warnings.filterwarnings("ignore", message=".*about to commit a data file.*")
                done = api.create_commit(
                    repo_id,
                    operations,
                    commit_message=message,
                    repo_type=repo_type,
                    revision=branch,
                    create_pr=create_pr,
                    parent_commit=head,
                )
            return Pushed(repo_id, str(done.oid), True, done.pr_url or url)

        try:
            return retry(attempt)
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code in CONFLICTS:
                raise BigrecError(
                    f"{repo_id} is being changed by someone else ({error.response.status_code}): publish again later"
                ) from error
            raise


def open_request(api: HfApi, folder: Path, repo_id: str, repo_type: str, title: str) -> Pushed | None:
    """The open pull request with this title and content, left by an earlier run or a lost response; None if none."""
    for found in api.get_repo_discussions(
        repo_id, repo_type=repo_type, discussion_type="pull_request", discussion_status="open"
    ):
        ref = f"refs/pr/{found.num}"
        if found.title == title and not changes(api, folder, repo_id, repo_type, ref):
            commit = api.repo_info(repo_id, repo_type=repo_type, revision=ref).sha
            return Pushed(repo_id, str(commit), False, found.url)
    return None


def changes(
    api: HfApi, folder: Path, repo_id: str, repo_type: str, commit: str
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """The operations that turn the repository's state at `commit` into `folder`; new objects on every call."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete
    from huggingface_hub.hf_api import RepoFile

    tree = api.list_repo_tree(repo_id, recursive=True, repo_type=repo_type, revision=commit)
    there = {entry.path: entry for entry in tree if isinstance(entry, RepoFile)}
    files = local_files(folder)
    add = [
        CommitOperationAdd(path, file)
        for path, file in files.items()
        if path not in there or not _same(file, there[path])
    ]
    delete = [CommitOperationDelete(path) for path in there if path not in files and path not in KEPT]
    return [*add, *delete]


def _same(file: Path, entry: Any) -> bool:
    """Whether the repository's file has this content, compared by sha256 if it is in LFS, else by git's blob hash."""
    if entry.size != file.stat().st_size:
        return False
    digest = hashlib.sha256() if entry.lfs else hashlib.sha1(f"blob {entry.size}\0".encode())
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == (entry.lfs.sha256 if entry.lfs else entry.blob_id)


CONFLICTS = (409, 412)


def retry(action: Callable[[], T]) -> T:
    """Call `action`, and again after a pause if the connection breaks or the Hub returns 409, 412, 429 or 5xx."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    wait = FIRST_WAIT
    for number in range(1, ATTEMPTS + 1):
        try:
            return action()
        except (HfHubHTTPError, httpx2.TransportError, ConnectionError, TimeoutError) as error:
            response = getattr(error, "response", None)
            status = getattr(response, "status_code", None)
            passing = status is None or status in (*CONFLICTS, 429) or status >= 500
            if isinstance(error, OfflineModeIsEnabled) or not passing or number == ATTEMPTS:
                raise
            pause = wait
            asked = response.headers.get("Retry-After", "") if response is not None else ""
            if asked.replace(".", "", 1).isdigit():
                pause = min(float(asked), LONGEST_WAIT)
            reason = f"the Hub returned {status}" if status else f"the connection broke ({type(error).__name__})"
            print(f"publish: {reason}; retrying in {pause:.1f} s ({number} of {ATTEMPTS - 1})", flush=True)
            time.sleep(pause)
            wait = min(2 * wait, LONGEST_WAIT)
    raise AssertionError("unreachable")
