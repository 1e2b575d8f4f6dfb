"""Generate: the package's decoder against the plain loop, `model.generate` in file order, sixteen prompts a time.

Prompts of MovieLens-100K, four beams and greedy, SmolLM2-135M with a shortly trained adapter (so that answers end where
a trained model ends them). The plain loop leaves the adapter unmerged, as PEFT loads it. Texts are compared in float32,
on a part: in bfloat16 merged and unmerged weights round differently. The bound, for greedy: prompts/s of a forward pass
without LM head over one large unpadded batch of prompts of the mean length.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
from transformers.utils import logging

from benchmarks.common import (
    BASE_MODEL,
    Row,
    alternate,
    arguments,
    best_dtype,
    peak_mib_in_child,
    seconds,
    set_threads,
    write_result,
)
from benchmarks.lm_data import MAX_LENGTH, TEMPLATE, examples, trained_adapter
from bigrec_hf.data.prompts import parse_answer
from bigrec_hf.generate.batches import decode_batches, plan_batches
from bigrec_hf.generate.decoder import Decoder, common_prefix_length
from bigrec_hf.generate.inputs import render_prompts
from bigrec_hf.generate.route import choose_route
from bigrec_hf.generate.strategy import Decoding
from bigrec_hf.models.loading import load_generator, load_tokenizer
from bigrec_hf.settings import GenerateSettings, PromptSettings

MAX_NEW_TOKENS = 32
PLAIN_BATCH = 16
Texts = list[list[str]]


def prompt_ids(n: int, history: int, tokenizer) -> list[list[int]]:
    """Token ids of `n` test prompts, in file order."""
    settings = PromptSettings(train_prompt=TEMPLATE, max_history=history, max_length=MAX_LENGTH)
    prompts, _ = render_prompts(examples("test", n), tokenizer, settings, MAX_NEW_TOKENS)
    return prompts


def our_texts(prompts: list[list[int]], strategy: str, dtype: str) -> Callable[[], Texts]:
    """The `generate` stage's decoding, in its default batches. The cache of the common beginning is in the time; the
    check of the faster routes, made once for each loaded model, is not."""
    tokenizer = load_tokenizer(str(BASE_MODEL), padding_side="left")
    model = load_generator(
        str(BASE_MODEL), str(trained_adapter()), dtype=dtype, quantization="none", attn_implementation=None
    )
    decoding = Decoding(strategy, num_beams=4, max_new_tokens=MAX_NEW_TOKENS)
    settings = GenerateSettings()
    batches = plan_batches(
        list(map(len, prompts)),
        batch_size=settings.generate_batch_size,
        batch_tokens=settings.generate_batch_tokens,
        extra_tokens=MAX_NEW_TOKENS,
        copies=decoding.rows_per_prompt,
    )
    ids = [str(i) for i in range(len(prompts))]
    choose_route(model, max(prompts, key=len), tokenizer.pad_token_id, beams=strategy == "beam")

    def run() -> Texts:
        found: dict[int, list[str]] = {}
        decoder = Decoder(model, tokenizer, decoding, shared_prefix=prompts[0][: common_prefix_length(prompts)])

        def keep(number: int, positions: list[int], texts: Texts, scores: list[list[float]]) -> None:
            found.update(zip(positions, texts, strict=True))

        decode_batches(decoder, prompts, ids, batches, range(len(batches)), keep, quiet=True)
        return [found[i] for i in range(len(prompts))]

    return run


def plain_texts(prompts: list[list[int]], strategy: str, dtype: str) -> Callable[[], Texts]:
    """The plain loop."""
    tokenizer = load_tokenizer(str(BASE_MODEL), padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(BASE_MODEL, dtype=getattr(torch, dtype))
    model = PeftModel.from_pretrained(model, trained_adapter()).eval()
    n = 4 if strategy == "beam" else 1
    options = {
        "num_beams": n,
        "num_return_sequences": n,
        "max_new_tokens": MAX_NEW_TOKENS,
        "do_sample": False,
        "temperature": None,
        "top_p": None,
        "pad_token_id": tokenizer.pad_token_id,
    }

    def run() -> Texts:
        texts: Texts = []
        for start in range(0, len(prompts), PLAIN_BATCH):
            batch = tokenizer.pad({"input_ids": prompts[start : start + PLAIN_BATCH]}, return_tensors="pt")
            with torch.inference_mode():
                output = model.generate(**batch, **options)
            answers = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
            answers = [parse_answer(answer) for answer in answers]
            texts += [answers[i : i + n] for i in range(0, len(answers), n)]
        return texts

    return run


WAYS = {"ours": our_texts, "plain": plain_texts}


def prepared(which: str, history: int, n: int, strategy: str, dtype: str) -> Callable[[], Texts]:
    """For the child process that measures memory."""
    logging.set_verbosity_error()
    set_threads()
    prompts = prompt_ids(n, history, load_tokenizer(str(BASE_MODEL)))
    return WAYS[which](prompts, strategy, dtype)


def prefill_prompts_s(mean_length: float, dtype: str, tokens: int = 4096, repeats: int = 2) -> float:
    """The bound: prompts/s of one forward pass without LM head over about `tokens` tokens, no padding."""
    from transformers import AutoModel

    model = AutoModel.from_pretrained(BASE_MODEL, dtype=getattr(torch, dtype)).eval()
    length = round(mean_length)
    ids = torch.randint(0, model.config.vocab_size, (max(1, tokens // length), length))
    with torch.inference_mode():
        model(input_ids=ids, use_cache=False)
        taken = min(seconds(lambda: model(input_ids=ids, use_cache=False))[0] for _ in range(repeats))
    return len(ids) * length / taken / mean_length


def equal_share(one: Texts, other: Texts) -> float:
    """Share of prompts with the same texts, in the same order."""
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def measure(n: int, history: int, strategy: str, dtype: str, repeats: int, n_checked: int) -> Row:
    prompts = prompt_ids(n, history, load_tokenizer(str(BASE_MODEL)))
    mean_length = sum(map(len, prompts)) / n
    part = prompts[:PLAIN_BATCH]
    ways = {"ours": our_texts(prompts, strategy, dtype), "plain": plain_texts(part, strategy, dtype)}
    taken, texts = alternate(ways, repeats)
    exact = [way(prompts[:n_checked], strategy, "float32")() for way in WAYS.values()] if n_checked else None
    note = f"plain timed on {len(part)}"
    if dtype != "float32":
        note += f"; {equal_share(texts['ours'][: len(part)], texts['plain']):.0%} the same in {dtype}"
    row = Row(
        f"generate, {'4 beams' if strategy == 'beam' else 'greedy'}",
        f"{n} prompts of {mean_length:.0f} tokens, {dtype}",
        mean_length,
        taken["ours"] / n,
        taken["plain"] / len(part),
        count=1,
        counted="titles",
        same=None if exact is None else exact[0] == exact[1],
        note=note,
    )
    if strategy == "beam":
        row.aim("times plain", row.ratio, least=2.5)
    else:
        row.fraction, row.ceiling = n / taken["ours"] / prefill_prompts_s(mean_length, dtype), "prefill bound"
        row.aim("fraction of the bound", row.fraction, least=0.5)
    return row


def main() -> None:
    options: dict[str, Any] = {"histories": [1, 4, 10], "prompts": 16, "repeats": 1, "checked": 4}
    chosen = arguments(__doc__, **options)
    if chosen.full:
        chosen.prompts, chosen.repeats = 4 * chosen.prompts, 2
    logging.set_verbosity_error()
    set_threads()
    dtype, rows = best_dtype(), []
    for strategy in ("greedy", "beam"):
        rows += [
            measure(chosen.prompts, history, strategy, dtype, chosen.repeats, chosen.checked if number == 0 else 0)
            for number, history in enumerate(chosen.histories)
        ]
    common = {"history": chosen.histories[-1], "n": 8, "strategy": "beam", "dtype": dtype}
    rows[-1].peak_mib = peak_mib_in_child(prepared, which="ours", **common)
    rows[-1].baseline_peak_mib = peak_mib_in_child(prepared, which="plain", **common)
    write_result("generate", rows, chosen.out)


if __name__ == "__main__":
    main()
