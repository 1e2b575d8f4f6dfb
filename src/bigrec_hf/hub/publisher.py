"""Building and pushing the folders of one `publish` call, and the terms under which that may be done."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.version import __version__
from bigrec_hf.hub import contents as folders
from bigrec_hf.hub.commit import Pushed, local_files, push_folder
from bigrec_hf.settings import PublishSettings


class Publisher:
    """Builds the folders of one `publish` call and pushes them, or only writes them (dry run)."""

    def __init__(self, settings: PublishSettings, temporary: str | Path):
        """`temporary`: an empty folder to build in, unless this is a dry run."""
        from huggingface_hub import get_token

        self.settings = settings
        self.has_token = get_token() is not None
        self.dry = settings.dry_run or not self.has_token
        self.place = Path(settings.publish_dir or "published") if self.dry else Path(temporary)
        self.paths = [settings.published_run, settings.published_dataset]

    def build(self, repo_id: str, repo_type: str) -> Path:
        """Create an empty folder for a repository."""
        return folders.new_folder(self.place / f"{repo_type}s" / repo_id)

    def send(self, folder: Path, repo_id: str, repo_type: str, licence: dict[str, Any] | None, what: str) -> str | None:
        """Push a built folder; returns `repo_id@commit`, or None in a dry run.

        `licence`: terms of the data in it. Raises BigrecError if it contains a token or a local path.
        """
        settings = self.settings
        try:
            folders.check_nothing_private(folder, [str(path) for path in self.paths if path])
        except BigrecError:
            shutil.rmtree(folder)
            raise
        kind = f"{'private' if settings.private else 'public'} {repo_type} {repo_id}"
        files = local_files(folder)
        size = sum(file.stat().st_size for file in files.values())
        if self.dry:
            how = "a pull request" if settings.create_pr else "one commit"
            print(f"dry run: would push {how} to {settings.branch or 'main'} of the {kind}:")
            print("\n".join(f"  {file.stat().st_size:>12,}  {path}" for path, file in files.items()))
            print(f"  {len(files)} files, {size:,} bytes, in {folder}")
            if not self.has_token:
                print("no token found: run `hf auth login` (or set HF_TOKEN), then run this again to push")
            return None
        pushed = push_folder(
            folder,
            repo_id,
            repo_type,
            message=settings.message or f"Publish {what} (bigrec_hf {__version__})",
            private=settings.private,
            must_be_private=None if settings.i_have_permission else forbidden(licence),
            revision=settings.branch,
            create_pr=settings.create_pr,
        )
        say(pushed, what, settings.create_pr)
        return f"{repo_id}@{pushed.commit}"


def say(pushed: Pushed, what: str, create_pr: bool) -> None:
    """Print what a push did, with the address of the commit or pull request."""
    if not pushed.changed and "/discussions/" in pushed.url:
        print(f"{what}: the open pull request {pushed.url} has the same content, so no new one is opened")
    elif not pushed.changed:
        print(f"{what}: {pushed.url} is unchanged (commit {pushed.commit})")
    else:
        done = "pull request" if create_pr else f"commit {pushed.commit}"
        print(f"{what}: {done}, {pushed.url}")


def forbidden(licence: dict[str, Any] | None) -> str | None:
    """Why data under these terms may not be public; None if it may, or if the terms are unknown."""
    if licence and licence.get("redistribution") == "forbidden":
        return f"the data's terms forbid redistribution ({licence['name']})"
    return None


def check_terms(licence: dict[str, Any] | None, settings: PublishSettings, what: str) -> None:
    """Raise BigrecError, with the reason and the ways out, if the settings would publish what the terms forbid."""
    reason = forbidden(licence)
    if reason and not settings.private and not settings.i_have_permission:
        others = ", --with_index false" if what == "the adapter's index" else ""
        raise BigrecError(
            f"{what} is not published: {reason}; use --private{others}, or --i_have_permission if you have it"
        )
