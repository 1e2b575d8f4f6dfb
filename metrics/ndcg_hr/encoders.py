"""Text encoders: the last token of a causal LM (BIGRec's grounding), or a sentence-transformers model.

A name refers to a sentence-transformers model if there is a `modules.json` next to the weights (which is what that
library itself looks for); anything else is treated as a causal LM.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from .names import split_revision

SENTENCE_MODEL_FILE = "modules.json"
WORTHWHILE = 512  # tokens: in a smaller forward pass each token costs more than padding does
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Encoder(Protocol):
    """The interface that grounding needs from an encoder."""

    kind: str

    def encode(self, texts: Sequence[str], batch_tokens: int = 4096) -> np.ndarray:
        """(len(texts), d) float32, one vector per text, in order; `batch_tokens` includes padding."""


def is_sentence_model(name: str, revision: str | None = None) -> bool:
    """Whether the folder or Hub repository is a sentence-transformers model; offline, according to the local cache."""
    if Path(name).is_dir():
        return (Path(name) / SENTENCE_MODEL_FILE).is_file()
    from transformers.utils import cached_file

    found = cached_file(
        name,
        SENTENCE_MODEL_FILE,
        revision=revision,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found is not None


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` = bfloat16 if the device supports it in hardware, else float16 on a GPU and float32 on a CPU.

    A CPU without bfloat16 arithmetic is about 8 times slower in it than in float32. Raises ValueError for other names.
    """
    if name == "auto":
        if device.type == "cuda":
            fast = torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if fast else torch.float16
        flags = torch.cpu.get_capabilities()
        fast = flags.get("avx512_bf16") or flags.get("amx_bf16") or flags.get("bf16")
        return torch.bfloat16 if fast else torch.float32
    if name not in DTYPES:
        raise ValueError(f"dtype={name!r} is unknown: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def load_encoder(name: str, dtype: str = "float32", device: str | None = None) -> Encoder:
    """The encoder of a folder or Hub id (`@revision` allowed), on `device` (default: the GPU if there is one).

    A causal LM is loaded without its LM head and without any adapter. Code in a model's repository is never run. Raises
    ValueError if the folder does not exist.
    """
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    path, revision = split_revision(name)
    if path.startswith((".", "/", "~")) and not Path(path).is_dir():
        raise ValueError(f"encoder folder {path!r} does not exist: give a model folder or a Hub id")
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    precision = resolve_dtype(dtype, where)
    if is_sentence_model(path, revision):
        from sentence_transformers import SentenceTransformer

        model = SentenceTransformer(
            path,
            revision=revision,
            device=str(where),
            model_kwargs={"dtype": precision},
            trust_remote_code=False,
        )
        return SentenceEncoder(model)
    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it would report the LM head, omitted on purpose, as an unexpected key
    try:
        model = AutoModel.from_pretrained(path, revision=revision, dtype=precision, trust_remote_code=False).to(where)
    finally:
        logging.set_verbosity(verbosity)
    return LastTokenEncoder(model, tokenizer)


def unique_texts(texts: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Distinct texts in order of first appearance, and each text's index among them (int64)."""
    position: dict[str, int] = {}
    index = np.fromiter((position.setdefault(text, len(position)) for text in texts), np.int64, len(texts))
    return list(position), index


class LastTokenEncoder:
    """Hidden state of the last layer at the last real token of the bare text (BIGRec).

    `model`: a transformers base model (no LM head). The tokenizer adds its usual special tokens. A text without tokens
    (an empty one, if the tokenizer adds none) is encoded as a single BOS token, or EOS if there is no BOS. Equal texts
    are encoded once and get equal vectors. Padding is on the right, whatever the tokenizer's side is: a causal model's
    states do not depend on what follows, while padding on the left gets into those of some (RWKV).
    """

    kind = "last-token"

    def __init__(self, model, tokenizer) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.max_length = getattr(model.config, "max_position_embeddings", None) or 2048

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, at most `max_length`, never none."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), add_special_tokens=True, truncation=False, padding=False)["input_ids"]
        lone = self.tokenizer.bos_token_id if self.tokenizer.bos_token_id is not None else self.tokenizer.eos_token_id
        if lone is None and not all(encoded):
            raise ValueError("an empty text has no token and the tokenizer has neither BOS nor EOS: drop the text")
        return [(ids or [lone])[: self.max_length] for ids in encoded]

    def encode(self, texts: Sequence[str], batch_tokens: int = 4096) -> np.ndarray:
        """(len(texts), d) float32; `batch_tokens` = tokens per forward pass, padding included."""
        distinct, index = unique_texts(texts)
        tokens = self.tokenize(distinct)
        vectors = np.empty((len(distinct), self.model.config.hidden_size), np.float32)
        for batch in token_batches([len(ids) for ids in tokens], batch_tokens):
            vectors[batch] = self._last_states([tokens[i] for i in batch])
        return vectors[index]

    @torch.inference_mode()
    def _last_states(self, batch: list[list[int]]) -> np.ndarray:
        """(len(batch), d) float32 of token ids."""
        width = max(map(len, batch))
        pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else 0
        ids = torch.full((len(batch), width), pad, dtype=torch.long)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for i, row in enumerate(batch):
            ids[i, : len(row)] = torch.tensor(row)
            mask[i, : len(row)] = 1
        ids, mask = ids.to(self.model.device), mask.to(self.model.device)
        # no mask without padding: masked attention takes 2.5 times as long on a CPU
        options = {} if mask.all() else {"attention_mask": mask}
        hidden = self.model(input_ids=ids, use_cache=False, **options).last_hidden_state  # (batch, width, d)
        return last_token_states(hidden, mask).float().cpu().numpy()


def last_token_states(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """(batch, d): `hidden` (batch, width, d) at the last position where `mask` (batch, width) is 1, for any padding.

    Not `mask.sum() - 1`, which is the wrong token with left padding (a bug in the reference's Qwen script).
    """
    last = mask.shape[1] - 1 - mask.flip(1).argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def token_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of similar length, longest first, of texts x longest <= batch_tokens, but at least one text.

    A batch of at least WORTHWHILE tokens ends where the length changes, so that it needs no padding.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens={batch_tokens} must be at least 1")
    batches: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = max(1, lengths[i])
        n = len(batches[-1]) if batches else 0
        uneven = length < longest and n * longest >= WORTHWHILE
        if not batches or uneven or (n + 1) * longest > batch_tokens:
            batches.append([])
            longest = length
        batches[-1].append(i)
    return batches


class SentenceEncoder:
    """A sentence-transformers model, with the pooling and normalization that it defines."""

    kind = "sentence-transformers"

    def __init__(self, model) -> None:
        self.model = model

    def encode(self, texts: Sequence[str], batch_tokens: int = 4096) -> np.ndarray:
        """(len(texts), d) float32. The library sorts by length itself; a batch has batch_tokens / 32 texts."""
        distinct, index = unique_texts(texts)
        if not distinct:
            return np.empty((0, self.model.get_embedding_dimension()), np.float32)
        vectors = self.model.encode(
            distinct, batch_size=max(1, batch_tokens // 32), convert_to_numpy=True, show_progress_bar=False
        )
        return np.asarray(vectors, np.float32)[index]


def encode_texts(encoder: Encoder | Callable[[list[str]], Any], texts: list[str], batch_tokens: int) -> np.ndarray:
    """Return the vectors of texts, (n, d). Raises ValueError for an array of another shape."""
    vectors = np.asarray(encoder(texts)) if callable(encoder) else encoder.encode(texts, batch_tokens)
    if vectors.ndim != 2 or len(vectors) != len(texts):
        raise ValueError(
            f"the encoder returned an array of shape {vectors.shape} for {len(texts)} texts: expected (n, d), "
            "one vector per text"
        )
    return vectors


def encode_with_known(
    encoder: Encoder | Callable[[list[str]], Any],
    texts: list[str],
    rows_by_title: dict[str, list[int]],
    items: np.ndarray,
    batch_tokens: int,
) -> np.ndarray:
    """Return the vectors of texts, (n, d): a catalog title has that of its row, only the others are encoded."""
    rows = [rows_by_title.get(text, [-1])[0] for text in texts]
    vectors = items[rows].astype(np.float32)
    others = [i for i, row in enumerate(rows) if row < 0]
    if others:
        encoded = encode_texts(encoder, [texts[i] for i in others], batch_tokens)
        if encoded.shape[1] != items.shape[1]:
            raise ValueError(
                f"item_embeddings has {items.shape[1]} dimensions, the encoder {encoded.shape[1]}: give vectors of "
                "this encoder"
            )
        vectors[others] = encoded
    return vectors
