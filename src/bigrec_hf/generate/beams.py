"""Where a beam came from, and the sum of its log-probabilities, without keeping the scores of a whole vocabulary.

`generate` does not tell a logits processor how it reordered the beams; a row is recognized by its tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import LogitsProcessor

if TYPE_CHECKING:
    from collections.abc import Sequence


def origins(
    now: torch.Tensor, before: torch.Tensor, num_beams: int, started: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The row that each row continues, and whether there is one, (rows,) int64 and bool.

    `now`: (rows, step) tokens without the newest, `before`: the rows of the step before; a row continues one of its own
    prompt's `num_beams` rows, the first that equals it and has `started` (rows,) bool.
    """
    shape = (len(now) // num_beams, num_beams, now.shape[1])
    equal = (now.reshape(shape)[:, :, None] == before.reshape(shape)[:, None]).all(dim=-1)  # (prompts, beams, beams)
    if started is not None:
        equal &= started.view(-1, 1, num_beams)
    found, beam = equal.max(dim=-1)
    first = torch.arange(shape[0], device=now.device)[:, None] * num_beams
    return (first + beam).view(-1), found.view(-1)


class BeamScores(LogitsProcessor):
    """Sums of log-probabilities of free beams, for one call of `generate` with `num_beams` beams for each prompt.

    The same sums, in the same order, as `generate`'s `sequences_scores`, which would need `output_scores`: the scores
    of all tokens at all steps, 5 GB for 128 beams, 64 steps and a vocabulary of 152,000.
    """

    def __init__(self, num_beams: int, prompt_length: int, end_ids: Sequence[int]) -> None:
        self.num_beams, self.prompt_length, self.end_ids = num_beams, prompt_length, list(end_ids)
        # for each step: (rows, step) tokens, (rows,) sums, (rows, end tokens) log-probabilities of an end
        self.steps: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.last = torch.empty(0)  # (rows, vocabulary) log-probabilities of the newest step

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """`scores`: (rows, vocabulary) log-probabilities, unchanged."""
        answers = input_ids[:, self.prompt_length :]
        sums = torch.zeros(len(answers), device=scores.device, dtype=scores.dtype)
        if self.steps:
            before, old_sums, _ = self.steps[-1]
            row, _ = origins(answers[:, :-1], before, self.num_beams)
            sums = old_sums[row] + self.last[row, answers[:, -1]]
        self.steps.append((answers, sums, scores[:, self.end_ids]))
        self.last = scores
        return scores

    def sums(self, answers: Sequence[Sequence[int]], n_returned: int) -> torch.Tensor:
        """The summed log-probability of each answer, end token included, `n_returned` answers for each prompt.

        (len(answers),) float32, on the CPU.
        """
        tokens, sums, ends = zip(*((part.tolist() for part in step) for step in self.steps), strict=True)
        before, newest = [], []
        for number, (*start, token) in enumerate(answers):
            step, first = len(start), number // n_returned * self.num_beams
            row = next(row for row in range(first, first + self.num_beams) if tokens[step][row] == start)
            before.append(sums[step][row])
            if token in self.end_ids:
                newest.append(ends[step][row][self.end_ids.index(token)])
            elif step == len(self.steps) - 1:
                newest.append(self.last[row, token].item())
            else:
                raise ValueError(
                    f"answer {number} ends after {step + 1} of {len(self.steps)} steps without an end token"
                )
        return torch.tensor(before) + torch.tensor(newest)
