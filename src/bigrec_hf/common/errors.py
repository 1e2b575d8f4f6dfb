"""Errors meant for the user: the command line prints them on one line, without a traceback."""

from __future__ import annotations


class BigrecError(ValueError):
    """A mistake in input, settings or files. The message names the value, where it was found, and the remedy."""
