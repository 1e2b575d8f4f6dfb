"""Tiny encoders of texts, saved as folders: a causal language model and a sentence-transformers model.

Nothing here imports the package: the metric is tested without it.
"""

from __future__ import annotations

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)


def save_lm(path, *, bos=True, padding_side="right", pad=True):
    """A two-layer random Llama and a word-level tokenizer of six words."""
    words = ["<pad>", "<s>", "</s>", "<unk>", *"abcdef"]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>" if bos else None,
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<pad>" if pad else None,
        padding_side=padding_side,
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


def one_by_one(path, texts):
    """The definition: the causal LM's own last hidden state, no padding, one text a forward pass."""
    model = LlamaForCausalLM.from_pretrained(path).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path)
    rows = []
    for text in texts:
        output = model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False), output_hidden_states=True)
        rows.append(output.hidden_states[-1][0, -1].detach().numpy())
    return np.stack(rows)


def save_sentence_model(path):
    """A random BERT of two layers with mean pooling, made of sentence-transformers modules."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer

    bert = path / "bert"
    bert.mkdir(parents=True)
    (bert / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdef"]))
    BertTokenizerFast(vocab=str(bert / "vocab.txt")).save_pretrained(bert)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=11, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    BertModel(config).save_pretrained(bert)
    transformer = Transformer(str(bert), max_seq_length=32)
    model = SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu")
    model.save(str(path / "sentence"))
    return str(path / "sentence")
