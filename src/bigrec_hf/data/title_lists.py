"""The `titles` template: a short header, then a user's history as a list of titles, one per line.

    The user has watched the following movies before:
    Toy Story (1995)
    Heat (1995)

The next line is the answer. Every title is tokenized once, on its own, and followed by one end token, so that the same
tokens represent it in a history, as a training target, in the token trie and in an answer.

Titles may be shortened to the tokens that distinguish them (`shorten`): the rest of a title is known once these are, so
it costs time in every history and teaches nothing. In MovieLens-100K a title then has 3.2 tokens instead of 11.6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.metrics.ndcg_hr.titles import clean_title

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends a title: the line break if it is a token by itself, else EOS.

    Raises BigrecError if there is neither.
    """
    ids = tokenizer("a\n", add_special_tokens=False)["input_ids"]
    if ids and tokenizer.decode([ids[-1]]) == "\n":
        return ids[-1]
    if tokenizer.eos_token_id is None:
        raise BigrecError(
            f"tokenizer {tokenizer.name_or_path!r} has neither a line-break token nor an EOS token: set eos_token"
        )
    return tokenizer.eos_token_id


def shorten(titles: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return every title up to the first token that no other title shares, then its end token (the last one).

    A title that is the beginning of another keeps all its tokens, of which the last distinguishes the two. Equal titles
    stay equal.
    """
    order = sorted({tuple(ids) for ids in titles})
    shared = [0] * (len(order) + 1)  # number of tokens that a title shares with the one before it
    for i, (before, after) in enumerate(pairwise(order), start=1):
        differs = (place for place, (a, b) in enumerate(zip(before, after, strict=False)) if a != b)
        shared[i] = next(differs, min(len(before), len(after)))
    kept = {ids: max(shared[i], shared[i + 1]) + 1 for i, ids in enumerate(order)}
    return [list(ids) if kept[tuple(ids)] >= len(ids) else [*ids[: kept[tuple(ids)]], ids[-1]] for ids in titles]


@dataclass
class TitleLists:
    """Token ids of headers, titles and prompts of the template; each distinct text is tokenized once."""

    tokenizer: PreTrainedTokenizerBase
    known: dict[str, list[int]] = field(default_factory=dict)  # by clean title, including the end token

    @cached_property
    def end(self) -> int:
        """The token that ends a title."""
        return end_token_id(self.tokenizer)

    def shorten(self, catalog_titles: Sequence[str]) -> None:
        """Use the short form of every catalog title from now on; other titles stay whole."""
        self.titles(catalog_titles)
        self.known = dict(zip(self.known, shorten(list(self.known.values())), strict=True))

    def header(self, text: str) -> list[int]:
        """Return the token ids of the line before the first title, with the special tokens in front."""
        ids = self.tokenizer(text)["input_ids"]
        if ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]
        return [*ids, self.end]

    def titles(self, titles: Sequence[str]) -> list[list[int]]:
        """Return the token ids of every title, including the end token; [] for a title without text.

        Line breaks inside a title become spaces; a title that contains the end token is cut after it.
        """
        clean = [" ".join(clean_title(title).split()) for title in titles]
        new = [title for title in dict.fromkeys(clean) if title and title not in self.known]
        if new:
            rows = self.tokenizer(new, add_special_tokens=False)["input_ids"]
            for title, ids in zip(new, rows, strict=True):
                ids = [*ids, self.end]
                self.known[title] = ids[: ids.index(self.end) + 1]
        return [self.known[title] if title else [] for title in clean]

    def prompt(self, header: str, titles: Sequence[str], *, max_history: int, max_tokens: int) -> tuple[list[int], int]:
        """Return the token ids of one prompt, and how many of its last `max_history` titles were dropped to fit.

        `max_tokens`: the maximum length; the oldest titles are dropped first. Raises BigrecError if not even the header
        fits.
        """
        start = self.header(header)
        if len(start) > max_tokens:
            raise BigrecError(
                f"the prompt titles has {len(start)} tokens without any history, but only {max_tokens} fit: "
                "raise max_length"
            )
        kept = self.titles(titles[-max_history:]) if max_history > 0 else []
        n_wanted, n_tokens = len(kept), len(start) + sum(map(len, kept))
        while n_tokens > max_tokens:
            n_tokens -= len(kept[0])
            kept = kept[1:]
        return [*start, *(token for ids in kept for token in ids)], n_wanted - len(kept)


def title_lists(tokenizer: PreTrainedTokenizerBase, catalog_titles: Sequence[str], *, short: bool) -> TitleLists:
    """Return the tokens of a catalog's titles: whole, or shortened to what distinguishes them."""
    lists = TitleLists(tokenizer)
    if short:
        lists.shorten(catalog_titles)
    return lists
