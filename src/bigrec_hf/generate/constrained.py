"""Beams that can only be catalog titles, alone or mixed with the item scores of a collaborative model.

`constrained`: after every prefix only those tokens remain that can continue a catalog title (Trie); their
log-probabilities are those of the language model over its whole vocabulary.

`debiased` (debiasing-diversifying decoding, D3, arXiv 2406.14900): no length normalization, which favors titles with
many tokens that are certain anyway, and a text-free assistant that makes the beams differ:

    score(token | prefix) = a * log p_LM(token | prefix) + (1 - a) * log p_CF(token | prefix)

p_CF is the item probability (softmax of the example's item scores over the catalog) of all titles that begin with
prefix + token, normalized over the allowed tokens. p_LM is not normalized over the allowed tokens: the probability of
other tokens is lost, as in plain constrained beams and in the code of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import LogitsProcessor

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.common.fingerprints import file_fingerprint
from bigrec_hf.data.catalog import catalog_sha256
from bigrec_hf.data.item_scores import read_scores
from bigrec_hf.data.trie import TitleTrie, Trie, build_title_trie
from bigrec_hf.generate.beams import origins
from bigrec_hf.generate.strategy import NOT_NUMBERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerBase

    from bigrec_hf.data.catalog import Catalog


LEAST_MASS = 1e-10  # added to the probability of every subtree, so that none is 0, as in the code of the paper


@dataclass(frozen=True)
class Assistant:
    """Item scores of a collaborative model, (n, n_items) float32, row `rows[example id]` for each example."""

    scores: np.ndarray
    rows: dict[str, int]

    def cumulated(self, example_ids: Sequence[str], row_leaf: np.ndarray, n_leaves: int) -> np.ndarray:
        """Return the total item probability of the leaves before each leaf, (len(example_ids), n_leaves + 1) float64.

        The probability of all titles below a node is the difference of its values at the ends of the leaf range.
        """
        scores = self.scores[[self.rows[name] for name in example_ids]].astype(np.float64)  # (b, n_items)
        scores -= scores.max(axis=1, keepdims=True)
        probabilities = np.exp(scores, out=scores)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        order = np.argsort(row_leaf, kind="stable")  # rows without a leaf (-1) first
        sums = np.zeros((len(scores), len(order) + 1))
        np.cumsum(probabilities[:, order], axis=1, out=sums[:, 1:])
        return sums[:, np.searchsorted(row_leaf[order], np.arange(n_leaves + 1))]


@dataclass(frozen=True)
class Constraint:
    """The titles that constrained beams can be, the assistant, and the weight (a) of the language model."""

    titles: TitleTrie
    assistant: Assistant | None = None
    lm_weight: float = 1.0

    def __post_init__(self) -> None:
        """Raise BigrecError for a weight outside 0 to 1."""
        if not 0 <= self.lm_weight <= 1:
            raise BigrecError(f"lm_weight is {self.lm_weight}: it must be between 0 (item scores alone) and 1")

    def processor(self, trie: Trie, num_beams: int, prompt_length: int, example_ids: Sequence[str]) -> TrieProcessor:
        """Return the processor of one batch; `trie`: that of the titles, on the device of the model."""
        cumulated = None
        if self.assistant is not None:
            sums = self.assistant.cumulated(example_ids, self.titles.row_leaf, trie.n_leaves)
            cumulated = torch.from_numpy(sums).to(trie.tokens.device)
        return TrieProcessor(trie, num_beams, prompt_length, cumulated, self.lm_weight)


def load_constraint(
    strategy: str,
    catalog: Catalog,
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    example_ids: Sequence[str],
    *,
    assistant_scores: str | None,
    lm_weight: float,
) -> tuple[Constraint, dict[str, Any]]:
    """Return the constraint of `constrained` or `debiased` decoding, and the facts that the generations depend on.

    `assistant_scores` (debiased only): a file of `item_scores.write_scores` with these examples and this catalog.
    Raises BigrecError if it is missing or does not fit.
    """
    titles = build_title_trie(catalog.titles, template, tokenizer)
    facts = {
        "catalog_sha256": catalog_sha256(catalog),
        "n_titles": titles.trie.n_leaves,
        "n_ambiguous": titles.n_ambiguous,
        "longest_title_tokens": titles.trie.depth,
    }
    if strategy != "debiased":
        return Constraint(titles), facts
    if not assistant_scores:
        raise BigrecError(
            "decoding debiased needs item scores: set assistant_scores to the scores.safetensors of a model, "
            "or use decoding constrained"
        )
    scores = read_scores(assistant_scores, example_ids, catalog)
    assistant = Assistant(scores, {name: row for row, name in enumerate(example_ids)})
    facts |= {"assistant_sha256": file_fingerprint(assistant_scores), "lm_weight": lm_weight}
    return Constraint(titles, assistant, lm_weight), facts


class TrieProcessor(LogitsProcessor):
    """Set the scores of all tokens that the trie does not allow after a beam to -inf.

    For one call of `generate` with `num_beams` beams per prompt; all rows are processed at once. The node of a beam is
    a child of the node of the row that it continues (`beams.origins`). Only the first beam of a prompt starts, because
    the others would repeat it.
    """

    def __init__(
        self,
        trie: Trie,
        num_beams: int,
        prompt_length: int,
        cumulated: torch.Tensor | None = None,
        lm_weight: float = 1.0,
    ) -> None:
        """`cumulated`: `Assistant.cumulated` of the prompts, on the device of the trie; None = no assistant."""
        self.trie, self.num_beams, self.prompt_length = trie, num_beams, prompt_length
        self.cumulated, self.lm_weight = cumulated, lm_weight
        # of the previous step: (rows, step) tokens, (rows,) nodes and summed scores, (rows, vocabulary) scores
        self.answers = self.nodes = self.totals = self.last = torch.empty(0)
        self.not_numbers = torch.tensor(False)  # whether any score was NaN
        self.ends: list[
            tuple[torch.Tensor, torch.Tensor, torch.Tensor]
        ] = []  # prompt, leaf, summed score; one entry per step

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Change `scores`, (rows, vocabulary) log-probabilities (logits if there is one beam), in place."""
        if self.num_beams == 1:
            scores = scores.log_softmax(dim=-1)
        self._advance(input_ids[:, self.prompt_length :])
        row, child = self.trie.children(self.nodes)
        token = self.trie.tokens[child]
        values = scores[row, token]
        if self.cumulated is not None:
            assistant = self._assistant(self.cumulated, row, child).to(values.dtype)
            values = self.lm_weight * values + (1 - self.lm_weight) * assistant
        self.not_numbers = self.not_numbers.to(values.device) | values.isnan().any()
        leaf = self.trie.leaf[child]
        ended = leaf >= 0
        self.ends.append((row[ended] // self.num_beams, leaf[ended], self.totals[row[ended]] + values[ended]))
        scores.fill_(-torch.inf)
        scores[row, token] = values
        self.last = scores
        return scores

    def _advance(self, answers: torch.Tensor) -> None:
        """Follow the last token of each row from the node of the row that it continues."""
        if answers.shape[1] == 0:
            self.nodes = torch.where(torch.arange(len(answers), device=answers.device) % self.num_beams == 0, 0, -1)
            self.totals = torch.zeros(len(answers), device=answers.device)
        else:
            # equal rows have the same node and the same sum, unless one of them never started
            origin, found = origins(answers[:, :-1], self.answers, self.num_beams, self.nodes >= 0)
            nodes = torch.where(found, self.nodes[origin], -1)
            self.totals = self.totals[origin] + self.last[origin, answers[:, -1]]
            self.nodes = self.trie.child(nodes, answers[:, -1])
        self.answers = answers

    def _assistant(self, cumulated: torch.Tensor, row: torch.Tensor, child: torch.Tensor) -> torch.Tensor:
        """Return log p_CF of the children of each row, (n,) float64."""
        first, last = self.trie.leaf_range[child].unbind(dim=1)
        prompt = row // self.num_beams
        mass = cumulated[prompt, last] - cumulated[prompt, first] + LEAST_MASS
        total = mass.new_zeros(len(self.nodes)).index_add_(0, row, mass)
        return mass.log() - total[row].log()

    def titles(self, sequences: torch.Tensor) -> tuple[list[list[int]], list[list[float]]]:
        """Return the leaves and summed scores of the beams that `generate` returns, `num_beams` per prompt, in order.

        `sequences`: (prompts * num_beams, prompt + answer). If the catalog has fewer titles than beams, the surplus
        beams are dropped. Raises BigrecError for scores that are NaN, any other beam that is not a title, and a
        repeated title.
        """
        leaf = sequences.new_full((len(sequences),), -1)
        node = torch.zeros_like(leaf)
        for token in sequences[:, self.prompt_length :].unbind(dim=1):
            node = self.trie.child(node, token)
            leaf = torch.where((leaf < 0) & (node >= 0), self.trie.leaf[node.clamp(min=0)], leaf)
        prompt, ended, total = (torch.cat(parts).tolist() for parts in zip(*self.ends, strict=True))
        known = dict(zip(zip(prompt, ended, strict=True), total, strict=True))
        leaves, totals = [], []
        expected = min(self.num_beams, self.trie.n_leaves)
        for number, beams in enumerate(leaf.view(-1, self.num_beams).tolist()):
            kept = [at for at in beams if at >= 0]
            if len(set(kept)) != expected or len(kept) != expected:
                if self.not_numbers:
                    raise BigrecError(NOT_NUMBERS)
                raise BigrecError(
                    f"constrained decoding found {len(set(kept))} different titles in {self.num_beams} beams for "
                    f"prompt {number} of its batch instead of {expected}: this is a bug, please report it"
                )
            leaves.append(kept)
            totals.append([known[number, at] for at in kept])
        return leaves, totals
