"""Errors meant for the person at the keyboard: the command line prints them in one line, without a traceback."""

from __future__ import annotations


class BigrecError(ValueError):
    """A mistake in input, settings or files. The message names the value, the place and the remedy."""
