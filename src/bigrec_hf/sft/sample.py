"""One prediction at each evaluation: titles of a history, what the model makes of them, and what came next in truth.

Greedy, with the weights as they are, and without any random number, so that the training is the same with and without.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import SFTTrainer

from bigrec_hf.common.columns import Columns as C
from bigrec_hf.common.progress import say
from bigrec_hf.data.prompts import fit_prompt, parse_answer
from bigrec_hf.data.trie import Trie
from bigrec_hf.models.catalog_head import CatalogHead

MOST_TOKENS = 32  # of a generated title
SHOWN = 3  # titles of a history
WIDTH = 40  # characters of a title


@dataclass(frozen=True)
class Sample:
    """One validation example. `predict` gives the title that the model of a trainer predicts."""

    history: Sequence[str]  # oldest first
    target: str
    predict: Callable[[Any], str]

    def line(self, predicted: str) -> str:
        """The example in one line, with the newest titles of the history only."""

        def short(title: str) -> str:
            title = " ".join(title.split())
            return title if len(title) <= WIDTH else f"{title[: WIDTH - 3]}..."

        newest = [short(title) for title in self.history[-SHOWN:]]
        history = "; ".join([*(["..."] if len(self.history) > SHOWN else []), *newest]) or "no history"
        return f"{history} -> {short(predicted) or 'nothing'} (next in truth: {short(self.target)})"


def text_sample(
    example: dict[str, Any],
    template: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_history: int,
    max_length: int,
) -> Sample:
    """Return an example (EXAMPLE_FEATURES) whose prediction is the text that the model generates after its prompt."""
    titles = list(example[C.HISTORY_TITLES])
    _, prompt, n_dropped = fit_prompt(
        template,
        example[C.INSTRUCTION],
        example[C.INPUT_PREFIX],
        titles,
        tokenizer,
        max_history=max_history,
        max_tokens=max_length,
    )
    kept = max(min(len(titles), max_history) - n_dropped, 0)

    def predict(trainer: SFTTrainer) -> str:
        ids = greedy_tokens(cast(torch.nn.Module, trainer.model), prompt, tokenizer.eos_token_id)
        return parse_answer(str(tokenizer.decode(ids, skip_special_tokens=True)))

    return Sample(titles[len(titles) - kept :], example[C.TARGET_TITLE], predict)


def greedy_tokens(model: torch.nn.Module, prompt: Sequence[int], end: int | None) -> list[int]:
    """Return the likeliest token after a prompt, then the likeliest after that, up to `end` or MOST_TOKENS."""
    device = next(model.parameters()).device
    given, cache = torch.tensor([list(prompt)], device=device), None
    found: list[int] = []
    while len(found) < MOST_TOKENS:
        outputs = model(input_ids=given, past_key_values=cache, use_cache=True)
        token = int(outputs.logits[0, -1].argmax())
        if token == end:
            break
        found.append(token)
        cache = getattr(outputs, "past_key_values", None)
        given = torch.tensor([[token] if cache is not None else [*prompt, *found]], device=device)
    return found


def greedy_leaf(
    model: torch.nn.Module, head: CatalogHead, prompt: Sequence[int], trie: Trie, columns: torch.Tensor
) -> int:
    """Return the leaf that the likeliest continuations in the trie lead to, one after another.

    `head`: the model's, for the tokens that `columns` (n_nodes,) finds in its logits. No leaf of the trie has children.
    """
    ids, node = list(prompt), 0
    while trie.leaf[node] < 0:
        begin, end = trie.first_child[node : node + 2].tolist()
        if end - begin > 1:
            head.positions = torch.tensor([len(ids) - 1], device=columns.device)
            logits = model(input_ids=torch.tensor([ids], device=columns.device), use_cache=False).logits
            begin += int(logits[0, columns[begin:end]].argmax())
        node = begin
        ids.append(int(trie.tokens[node]))
    return int(trie.leaf[node])


class ShowSample(TrainerCallback):
    """Shows the sample's prediction after each evaluation, and adds it to the log and to TensorBoard's texts."""

    def __init__(self, trainer: SFTTrainer, sample: Sample) -> None:
        self.trainer = trainer
        self.sample: Sample | None = sample
        if trainer.is_fsdp_enabled or is_deepspeed_zero3_enabled() or not trainer.is_world_process_zero():
            self.sample = None  # the weights are spread over the processes, or the first process shows it

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Predict and show."""
        if self.sample is None:
            return
        model = cast(torch.nn.Module, self.trainer.model)
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                predicted = self.sample.predict(self.trainer)
        except Exception as error:  # whatever a model's own code raises; no training ends for a line on the console
            say(f"no sample predictions: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
            self.sample = None
            return
        finally:
            model.train(training)
        line = self.sample.line(predicted)
        say(f"  {line}")
        log: list[dict[str, Any]] = cast(Any, state.log_history)  # declared to hold numbers only
        log.append({"step": state.global_step, "sample_prediction": predicted, "sample": line})
        for callback in self.trainer.callback_handler.callbacks:
            writer = getattr(callback, "tb_writer", None)
            if writer is not None:
                writer.add_text("eval/sample", line, state.global_step)
