"""Tiny models, tokenizers and example files, made on the spot: nothing is downloaded."""

from __future__ import annotations

import csv
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from bigrec_hf.data.prompts import (
    ALPACA_PREAMBLE,
    ENHANCED_CHAT,
    ENHANCED_LINE,
    SYSTEM_MESSAGE,
    build_input,
    build_instruction,
)

SPECIAL_TOKENS = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TITLES = (
    "Toy Story (1995)",
    "GoldenEye (1995)",
    "Four Rooms (1995)",
    "Get Shorty (1995)",
    "Copycat (1995)",
    "Twelve Monkeys (1995)",
    "Babe (1995)",
    "Dead Man Walking (1995)",
    "Richard III (1995)",
    "Seven (Se7en) (1995)",
    "Usual Suspects, The (1995)",
    "Mighty Aphrodite (1995)",
    "Postino, Il (1994)",
    "Braveheart (1995)",
    "Taxi Driver (1976)",
    "Amélie (2001)",
    "Star Wars (1977)",
    "Fargo (1996)",
    "Jumanji (1995)",
    "Heat (1995)",
)


@cache
def _trained_tokenizer() -> str:
    corpus = [
        ALPACA_PREAMBLE + "\n\n### Instruction:\n\n### Input:\n\n### Response:\n",
        ENHANCED_LINE,
        ENHANCED_CHAT,
        SYSTEM_MESSAGE,
        build_instruction("movies", "watched"),
        build_instruction("video games", "played"),
        build_input("movies", "watched", TITLES),
    ]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=640,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus * 4, trainer)
    return tokenizer.to_str()


def tiny_tokenizer(*, chat: bool = True, padding_side: str = "right") -> PreTrainedTokenizerFast:
    """Byte-level BPE over the project's prompts: every string survives encoding and decoding."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained_tokenizer()),
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side=padding_side,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE if chat else None,
    )


def tiny_model(architecture: str = "llama", *, seed: int = 0, spread: float = 0.3, **config: object) -> PreTrainedModel:
    """Two layers, 64 wide, random weights with standard deviation `spread` (wide enough for varied answers)."""
    tokenizer = tiny_tokenizer()
    values: dict[str, object] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "initializer_range": spread,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **config,
    }
    kinds = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}
    config_class, model_class = kinds[architecture]
    torch.manual_seed(seed)
    return model_class(config_class(**values)).eval()


def save_tiny_model(
    path: str | Path,
    architecture: str = "llama",
    *,
    seed: int = 0,
    chat: bool = True,
    generation: dict[str, object] | None = None,
    **config: object,
) -> str:
    """A checkpoint folder with model and tokenizer; `generation` goes into its generation_config.json."""
    model = tiny_model(architecture, seed=seed, **config)
    if generation:
        model.generation_config = GenerationConfig(**generation)
    model.save_pretrained(path)
    tiny_tokenizer(chat=chat).save_pretrained(path)
    return str(path)


def write_tiny_catalog(path: str | Path) -> str:
    """A CSV catalog of TITLES in order, ids i0, i1, ..."""
    with Path(path).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["item_id", "title"])
        writer.writerows([f"i{row}", title] for row, title in enumerate(TITLES))
    return str(path)


def write_tiny_json(path: str | Path, n: int, *, seed: int = 0) -> str:
    """`n` records in the reference's format, histories of 1 to 10 of TITLES."""
    rng = np.random.default_rng(seed)
    records = []
    for _ in range(n):
        drawn = [TITLES[i] for i in rng.permutation(len(TITLES))[: rng.integers(2, 12)]]
        records.append(
            {
                "instruction": build_instruction("movies", "watched"),
                "input": build_input("movies", "watched", drawn[:-1]),
                "output": f'"{drawn[-1]}"',
            }
        )
    Path(path).write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
    return str(path)


def write_raw_movies(folder: Path) -> Path:
    """Raw files in the CSV shape of MovieLens: TITLES, 24 users with 15 ratings each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = ["userId,movieId,rating,timestamp"]
    for user in range(1, 25):
        for step, movie in enumerate(rng.permutation(len(TITLES))[:15]):
            lines.append(f"{user},{movie + 1},{rng.integers(1, 6)}.0,{1_000_000 + 1000 * step + user}")
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    rows = [f'{i + 1},"{title}",Drama' for i, title in enumerate(TITLES)]
    (folder / "movies.csv").write_text("\n".join(["movieId,title,genres", *rows]) + "\n", encoding="utf-8")
    return folder
