"""log p of a group over one tree, and the gradient of a loss of it, against one plain pass per title."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigrec_hf.data.title_lists import title_lists
from bigrec_hf.data.trie import build_trie
from bigrec_hf.grpo.losses import group_divergence, policy_loss
from bigrec_hf.grpo.tree import TreeBuilder, tree_log_probs
from bigrec_hf.models.catalog_head import catalog_head
from bigrec_hf.models.trie_loss import title_choices, token_columns
from tests.helpers.tiny import TITLES, tiny_model, tiny_tokenizer


def plain_log_p(model, prompt: list[int], title: list[int], titles: list[list[int]]) -> torch.Tensor:
    """log p of a title: at every token, the softmax over tokens that continue some title with the same beginning."""
    logits = model(input_ids=torch.tensor([prompt + title])).logits[0].float()
    total = torch.zeros(())
    for place, token in enumerate(title):
        allowed = sorted({ids[place] for ids in titles if ids[:place] == title[:place]})
        values = logits[len(prompt) + place - 1, allowed]
        total = total + torch.log_softmax(values, dim=0)[allowed.index(token)]
    return total


@pytest.mark.parametrize("short", [True, False])
def test_log_p_and_gradients_are_those_of_plain_passes(short):
    tokenizer = tiny_tokenizer()
    lists = title_lists(tokenizer, TITLES, short=short)
    ids, header = lists.titles(TITLES), lists.header("Seen:")
    trie, _ = build_trie(ids)
    token_ids, columns = token_columns(trie)
    prompts = [header + ids[3] + ids[7], header + ids[1], header]
    rows = np.array([[0, 4, 11, 19], [2, 5, 6, 18], [12, 13, 14, 15]])
    torch.manual_seed(1)
    coefficients, reference = torch.randn(3, 4), torch.log(torch.rand(3, 4) / 5)

    def loss_of(log_p: torch.Tensor) -> torch.Tensor:
        return (policy_loss(log_p, coefficients) + 0.1 * group_divergence(log_p, reference)).sum()

    plain = tiny_model()
    expected = torch.stack(
        [
            torch.stack([plain_log_p(plain, prompt, ids[row], ids) for row in group])
            for prompt, group in zip(prompts, rows.tolist(), strict=True)
        ]
    )
    loss_of(expected).backward()
    model = tiny_model()
    with catalog_head(model, token_ids) as head:
        batch = TreeBuilder(trie, title_choices(ids, trie)).build(prompts, rows)
        found = tree_log_probs(model, head, batch, trie, columns, group_size=4, dtype=torch.float32)
        loss_of(found).backward()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    wanted = {name: p.grad for name, p in plain.named_parameters() if "lm_head" not in name and "embed" not in name}
    got = dict(model.named_parameters())
    assert len(wanted) > 10
    for name, gradient in wanted.items():
        torch.testing.assert_close(got[name].grad, gradient, atol=1e-5, rtol=1e-3)


def test_a_shared_prefix_is_there_once_and_nothing_after_the_last_choice():
    """Of [1 2 9], [1 3 9], [4 9] only token 1 must be read: 4 decides the third title, 2 and 3 the others."""
    titles = [[1, 2, 9], [1, 3, 9], [4, 9]]
    trie, _ = build_trie(titles)
    builder = TreeBuilder(trie, title_choices(titles, trie))
    batch = builder.build([[7, 8], [7]], np.array([[0, 1], [2, 0]]))
    assert batch.input_ids.tolist() == [[7, 8, 1], [7, 1, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2], [0, 1, 0]]
    assert batch.positions.tolist() == [1, 2, 3, 4] and batch.nodes.tolist() == [0, 1, 0, 1]
    assert batch.seen[0].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert batch.seen[1].int().tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]  # padding sees itself alone
    assert batch.pair_title.tolist() == [0, 0, 1, 1, 2, 3, 3]


@settings(max_examples=25)
@given(
    st.lists(st.lists(st.integers(10, 14), min_size=1, max_size=4), min_size=2, max_size=12, unique_by=tuple),
    st.integers(0, 2**32),
)
def test_any_catalog(titles, seed):
    titles = [[*ids, 9] for ids in titles]
    trie, _ = build_trie(titles)
    rng = np.random.default_rng(seed)
    prompts = [rng.integers(20, 90, rng.integers(1, 5)).tolist() for _ in range(2)]
    rows = np.stack([rng.permutation(len(titles))[:2] for _ in prompts])
    model = tiny_model(num_hidden_layers=1)
    token_ids, columns = token_columns(trie)
    with torch.no_grad():
        with catalog_head(model, token_ids) as head:
            batch = TreeBuilder(trie, title_choices(titles, trie)).build(prompts, rows)
            found = tree_log_probs(model, head, batch, trie, columns, group_size=2, dtype=torch.float32)
        for prompt, group, values in zip(prompts, rows.tolist(), found, strict=True):
            for row, value in zip(group, values, strict=True):
                torch.testing.assert_close(value, plain_log_p(model, prompt, titles[row], titles), atol=1e-4, rtol=1e-4)
