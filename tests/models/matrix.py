"""What works with which architecture, measured on tiny models against transformers' own code: docs/models.md.

`python -m tests.models.matrix` writes the page anew (`make models`).
"""

from __future__ import annotations

import contextlib
import io
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from bigrec_hf.metrics.ndcg_hr.encoders import LastTokenEncoder
from bigrec_hf.metrics.ndcg_hr.titles import clean_title
from transformers import GenerationConfig, PreTrainedModel

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.prompts import build_output, completion_token_ids, parse_answer
from bigrec_hf.data.trie import build_title_trie
from bigrec_hf.generate.constrained import Constraint
from bigrec_hf.generate.decoder import Decoder, common_prefix_length, cut_answer
from bigrec_hf.generate.route import NO_CACHE, SHARED_PREFIX
from bigrec_hf.generate.strategy import Decoding
from tests.helpers.architectures import ARCHITECTURES, tiny_architecture
from tests.helpers.tiny import TITLES, tiny_tokenizer
from tests.helpers.training import check_equal, make_trainer

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
YES, FALLS_BACK, REFUSED = "yes", "falls back", "refused"
STRATEGIES = {
    "greedy": Decoding("greedy", max_new_tokens=6),
    "beams": Decoding("beam", num_beams=3, max_new_tokens=6),
    "constrained": Decoding("constrained", num_beams=4),
}
COLUMNS = ("trains", "shared prompts", *STRATEGIES, "encoder")
TEMPLATE = "alpaca-basic"
TEXTS = ("Toy Story, Heat and some more of them", "nothing", "Babe")
PROMPTS = [f"The user has watched the following movies before:{text}\n" for text in TEXTS]
EOS, PAD = 2, 3  # of tiny_tokenizer
# transformers' own beams of these leave recurrent states where they were: its code without a cache is the reference
STATES_STAY = ("rwkv", "recurrent_gemma", "minimax")


@dataclass(frozen=True)
class Cell:
    """What was measured, and why it is not `yes`. A wrong result is no cell: it raises AssertionError."""

    verdict: str
    reason: str = ""


def measure_row(name: str) -> dict[str, Cell]:
    """The cells of one architecture, by column."""
    cells = dict(zip(COLUMNS[:2], training_cells(name), strict=True))
    model = tiny_architecture(name)
    for column, decoding in STRATEGIES.items():
        cells[column] = decoding_cell(name, model, decoding)
    return cells | {"encoder": encoder_cell(model)}


def training_cells(name: str) -> tuple[Cell, Cell]:
    """Whether loss and gradients are those of the model's own logits, and whether prompts are shared."""
    told = io.StringIO()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(told):
        try:
            trainer = make_trainer(Path(folder), name)
        except BigrecError as error:
            return Cell(REFUSED, str(error)), Cell(REFUSED, str(error))
        check_equal(trainer)
    lines = dict(line.split(": ", 1) for line in told.getvalue().splitlines() if line.startswith(("loss", "batches")))
    trains = Cell(FALLS_BACK, plain(lines["loss"])) if "loss" in lines else Cell(YES)
    if trainer.shares:
        return trains, Cell(YES)
    if trainer.aux_loss_enabled:
        return trains, Cell(FALLS_BACK, "the router's loss is over all tokens; router_aux_loss_coef 0 turns it off")
    return trains, Cell(FALLS_BACK, plain(re.search(r"\((.*)\)", lines.get("batches", lines.get("loss", "()")))[1]))


def decoding_cell(name: str, model: PreTrainedModel, decoding: Decoding) -> Cell:
    """A batch, decoded with a shared prefix where that goes, against transformers' own `generate`, prompt by prompt."""
    tokenizer = tiny_tokenizer(padding_side="left")
    prompts = [tokenizer(text)["input_ids"] for text in PROMPTS]
    constraint = Constraint(build_title_trie(TITLES, TEMPLATE, tokenizer)) if decoding.is_constrained else None
    prefix = prompts[0][: common_prefix_length(prompts)]
    decoder = Decoder(model, tokenizer, decoding, shared_prefix=prefix, constraint=constraint)
    try:
        texts, scores = decoder.decode(prompts, list("abc"))
    except BigrecError as error:
        return Cell(REFUSED, str(error))
    route = decoder.route
    assert (route.name == NO_CACHE) == (decoding.has_beams and name in STATES_STAY), route
    for row, prompt in enumerate(prompts):
        answers = stock_answers(model, prompt, decoding, use_cache=route.name != NO_CACHE)
        answers = [cut_answer(answer, decoder.cut_ids) for answer in answers]
        expected = [parse_answer(text) for text in tokenizer.batch_decode(answers, skip_special_tokens=True)]
        assert texts[row] == expected, (texts[row], expected)
        wanted = [mean_log_prob(model, prompt, answer) for answer in answers]
        np.testing.assert_allclose(scores[row], wanted, atol=2e-4)
    if route.name == SHARED_PREFIX:
        return Cell(YES)
    return Cell(FALLS_BACK, f"{route.name}: " + "; ".join(dict.fromkeys(map(plain, route.reasons.values()))))


def allowed_tokens() -> dict[tuple[int, ...], list[int]]:
    """Prefix of a title's token ids -> the tokens that may follow it."""
    tokenizer = tiny_tokenizer()
    prompt = tokenizer(PROMPTS[0])["input_ids"]
    found: dict[tuple[int, ...], set[int]] = {}
    for title in map(clean_title, TITLES):
        ids = completion_token_ids(PROMPTS[0], prompt, build_output(title), TEMPLATE, tokenizer)
        for i, token in enumerate(ids):
            found.setdefault(tuple(ids[:i]), set()).add(token)
    return {prefix: sorted(tokens) for prefix, tokens in found.items()}


def stock_answers(
    model: PreTrainedModel, prompt: list[int], decoding: Decoding, *, use_cache: bool = True
) -> list[list[int]]:
    """Token ids of the answers of transformers' `generate`, best first, constrained by `prefix_allowed_tokens_fn`."""
    options: dict[str, Any] = {}
    n_new, n = decoding.max_new_tokens, decoding.num_beams if decoding.has_beams else 1
    if decoding.is_constrained:
        allowed = allowed_tokens()
        n_new = 1 + max(map(len, allowed))
        options["prefix_allowed_tokens_fn"] = lambda _, ids: allowed.get(tuple(ids[len(prompt) :].tolist()), [PAD])
    output = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
        generation_config=GenerationConfig(
            max_new_tokens=n_new,
            num_beams=n,
            num_return_sequences=n,
            eos_token_id=EOS,
            pad_token_id=PAD,
            use_cache=use_cache,
        ),
        **options,
    )
    return output[:, len(prompt) :].tolist()


@torch.inference_mode()
def mean_log_prob(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> float:
    """The answer's mean log-probability from one forward pass over the whole text, without a cache."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer]]), use_cache=False).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(dim=-1)[torch.arange(len(answer)), answer].mean().item()


@torch.inference_mode()
def encoder_cell(model: PreTrainedModel) -> Cell:
    """Texts of different lengths together, with a tokenizer of either side, against one by one."""
    network = model.base_model if model.base_model is not model else model.model
    texts = [*TITLES, "a", "Heat"]
    for side in ("left", "right"):
        encoder = LastTokenEncoder(network, tiny_tokenizer(padding_side=side))
        rows = [network(input_ids=torch.tensor([ids]), use_cache=False) for ids in encoder.tokenize(texts)]
        expected = torch.stack([row.last_hidden_state[0, -1] for row in rows]).numpy()
        np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-5 * np.abs(expected).max())
    return Cell(YES)


def plain(reason: str) -> str:
    """A reason without the numbers that differ from machine to machine."""
    reason = re.sub(r"a loss of [\d.e+-]+ instead of [\d.e+-]+", "another loss", reason)
    reason = re.sub(r"TRL's loss of this model is [\d.e+-]+, that of its logits [\d.e+-]+", "TRL's differs", reason)
    return re.sub(r"(differs?) by [\d.e+-]+", r"\1", reason)


def write_page(rows: dict[str, dict[str, Cell]], version: str = transformers.__version__) -> str:
    """The page: the table, reasons as numbered notes below it."""
    notes: dict[str, int] = {}
    lines = []
    for name, cells in rows.items():
        shown = [
            cell.verdict + (f" ({notes.setdefault(cell.reason, len(notes) + 1)})" if cell.reason else "")
            for cell in (cells[column] for column in COLUMNS)
        ]
        lines.append(f"| {' | '.join([name, *shown])} |")
    counts = {
        column: [sum(row[column].verdict == verdict for row in rows.values()) for verdict in (YES, FALLS_BACK, REFUSED)]
        for column in COLUMNS
    }
    lines += [f"| **yes / falls back / refused** | {' | '.join(' / '.join(map(str, counts[c])) for c in COLUMNS)} |"]
    explained = "\n".join(f"{number}. {reason}" for reason, number in notes.items())
    return INTRODUCTION.format(
        n=len(rows),
        version=version,
        table="\n".join([f"| {' | '.join(['architecture', *COLUMNS])} |", "|" + "---|" * (len(COLUMNS) + 1), *lines]),
        notes=explained,
    )


INTRODUCTION = """# Which models work

Measured, not listed: {n} tiny models with random weights, one for each architecture and kind of attention, with
transformers {version} on a CPU in float32. `make models` writes this page; `make test-all` measures every row again and
fails where it differs.

- **trains**: loss and gradients equal those of the model's own logits.
- **shared prompts**: on a CPU, the tokens that all prompts of a batch begin with are computed once.
- **greedy**, **beams**, **constrained** (to the catalog's titles): a padded batch gives the texts of transformers'
  `generate` on each prompt alone (constrained: with `prefix_allowed_tokens_fn`), and the scores of one forward pass.
- **encoder**: texts encoded in one batch equal texts encoded one by one.

*yes* is the fastest way; *falls back* is a slower one with the same results, chosen by measuring when a stage starts;
*refused* is an error before anything is written. A row says nothing of how good a model is, and nothing of weights that
need a custom class.

{table}

Why:

{notes}
"""


def read_page(text: str) -> dict[str, dict[str, Cell]]:
    """The rows of `write_page`."""
    notes = dict(re.findall(r"^(\d+)\. (.+)$", text, re.MULTILINE))
    found = {}
    for line in text.splitlines():
        name, *cells = line.strip("| ").split(" | ")
        if name in ARCHITECTURES:
            parts = [re.fullmatch(r"([a-z ]+?)(?: \((\d+)\))?", cell).groups() for cell in cells]
            row = [Cell(verdict, notes.get(number, "")) for verdict, number in parts]
            found[name] = dict(zip(COLUMNS, row, strict=True))
    return found


if __name__ == "__main__":
    PAGE.write_text(write_page({name: measure_row(name) for name in ARCHITECTURES}), encoding="utf-8")
    print(f"{PAGE}: {len(ARCHITECTURES)} architectures")
