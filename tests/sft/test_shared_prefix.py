"""A merged batch gives the padded batch's loss and gradients; hand-made cases first, then random ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from bigrec_hf.sft.shared_prefix import ATTENTION, common_prefix, merge_batch, use_shared_attention

IGNORED = -100
VOCABULARY = 50


def model(kind: str = "llama", dtype: torch.dtype = torch.float64):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    built = {
        "llama": lambda: LlamaForCausalLM(LlamaConfig(**sizes, **heads)),
        "llama, a key a head": lambda: LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4)),
        "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**sizes, **heads)),
    }[kind]()
    return built.to(dtype)


def batch(rows: list[list[int]], supervised_from: list[int]):
    """Right-padded input_ids, attention_mask, labels of rows whose tokens from `supervised_from` on have a loss."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = (torch.arange(width) < torch.tensor([[len(row)] for row in rows])).long()
    start = torch.tensor(supervised_from)[:, None]
    labels = torch.where(mask.bool() & (torch.arange(width) >= start), ids, IGNORED)
    return ids, mask, labels


def padded_loss(built, ids, mask, labels):
    logits = built(input_ids=ids, attention_mask=mask).logits[:, :-1].reshape(-1, VOCABULARY)
    return cross_entropy(logits, labels[:, 1:].reshape(-1), ignore_index=IGNORED, reduction="sum")


def gradients(loss, built):
    return torch.autograd.grad(loss, list(built.parameters()))


def test_the_layout_of_a_small_batch():
    ids, mask, labels = batch([[7, 8, 9, 1], [7, 8, 5], [7, 8, 9, 2]], [2, 2, 1])
    merged = merge_batch(ids, mask, labels, IGNORED)
    assert merged.prefix == 2 and merged.own.tolist() == [[2, 3], [4, -1], [5, 6]]
    assert merged.input_ids.tolist() == [[7, 8, 9, 1, 5, 9, 2]]
    assert merged.position_ids.tolist() == [[0, 1, 2, 3, 2, 2, 3]]
    pairs = zip(
        merged.positions[merged.pair_position].tolist(),
        merged.pair_target.tolist(),
        merged.counts.tolist(),
        strict=True,
    )
    # position 1 (the 8) predicts 9 in two rows and 5 in one; position 0 predicts 8 in the third row only
    assert sorted(pairs) == [(0, 8, 1), (1, 5, 1), (1, 9, 2), (2, 1, 1), (5, 2, 1)]


def test_the_prefix_leaves_every_row_a_token_of_its_own():
    ids, mask, _ = batch([[4, 5, 6], [4, 5, 6], [4, 5]], [0, 0, 0])
    assert common_prefix(ids, mask.sum(dim=1)) == 1


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ([[3, 4, 5, 6]], "a single row"),
        ([[3, 4, 5], [4, 4, 5]], "nothing in common, nothing padded"),
    ],
)
def test_not_merged_where_it_saves_nothing(rows, why):
    assert merge_batch(*batch(rows, [0] * len(rows)), IGNORED) is None, why


def test_left_padding_is_left_to_the_padded_path():
    ids, mask, labels = batch([[3, 4, 5, 6], [3, 4]], [0, 0])
    assert merge_batch(ids.flip(1), mask.flip(1), labels.flip(1), IGNORED) is None


@pytest.mark.parametrize("kind", ["llama", "llama, a key a head", "qwen2"])
def test_loss_and_gradients_equal_the_padded_batch(kind):
    built = model(kind)
    prefix = [5, 9, 11, 30, 2, 17]
    rows = [prefix + own for own in ([1, 2, 3], [1, 4], [20, 21, 22, 23, 24, 25, 26], [6])]
    inputs = batch(rows, [0, 7, 4, 6])
    expected = padded_loss(built, *inputs)
    wanted = gradients(expected, built)
    assert use_shared_attention(built, 64) is None and built.config._attn_implementation == ATTENTION
    assert padded_loss(built, *inputs).item() == pytest.approx(expected.item(), abs=1e-10)  # plain calls still work
    merged = merge_batch(*inputs, IGNORED)
    assert merged.input_ids.shape == (1, len(prefix) + 3 + 2 + 7 + 1)
    loss = merged.loss(built(**merged.model_inputs()).logits.double())
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)  # the merged loss is summed in float32
    for got, want in zip(gradients(loss, built), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


SHARED = model()
use_shared_attention(SHARED, 64)
PADDED = model()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, VOCABULARY - 1), max_size=8),
    st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=8), min_size=2, max_size=5),
    st.data(),
)
def test_any_batch(prefix, own, data):
    rows = [prefix + part for part in own]
    inputs = batch(rows, [data.draw(st.integers(0, len(row) - 1)) for row in rows])
    merged = merge_batch(*inputs, IGNORED)
    if merged is None:
        return
    supervised = (inputs[2][:, 1:] != IGNORED).sum()
    assert merged.counts.sum() == supervised
    if supervised == 0:
        return
    with torch.no_grad():
        loss = merged.loss(SHARED(**merged.model_inputs()).logits)
        assert loss.item() == pytest.approx(padded_loss(PADDED, *inputs).item(), rel=1e-5, abs=1e-4)


def windowed(window: int, n_layers: int = 1):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen2Config(**sizes, **heads, use_sliding_window=True, sliding_window=window, max_window_layers=n_layers)
    return Qwen2ForCausalLM(config).double()


def test_sliding_windows_and_other_kernels_are_left_alone():
    assert use_shared_attention(windowed(16), 17) == "its attention sees 16 tokens, examples may have 17"
    eager = model()
    eager.set_attn_implementation("eager")
    assert "eager" in use_shared_attention(eager, 8) and eager.config._attn_implementation == "eager"


def test_a_window_that_no_row_exceeds_does_not_matter():
    built = windowed(16)
    inputs = batch([[5, 9, 11, *own] for own in ([1, 2, 3], [1, 4], [6])], [3, 3, 3])
    expected = padded_loss(built, *inputs)
    assert use_shared_attention(built, 16) is None
    merged = merge_batch(*inputs, IGNORED)
    assert merged.loss(built(**merged.model_inputs()).logits).item() == pytest.approx(expected.item(), rel=1e-6)
    assert len(merged.attended) == 2
    longer = merge_batch(*batch([[5] * 14 + own for own in ([1, 2, 3], [1, 4], [6])], [14, 14, 14]), IGNORED)
    with pytest.raises(ValueError, match="attention over 16 tokens, the batch has rows of 17"):
        built(**longer.model_inputs())
