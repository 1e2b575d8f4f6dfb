"""The loss over the catalog, against a softmax over all titles written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bigrec_hf.common.errors import BigrecError
from bigrec_hf.data.trie import build_trie
from bigrec_hf.models.catalog_head import CatalogHead, catalog_head
from bigrec_hf.models.trie_loss import title_choices, token_columns, trie_losses

END = 1
TITLES = [[5, END], [5, 6, END], [7, 8, 9, END]]


def losses_of_all(
    titles: list[list[int]], logits_of: dict[tuple[int, ...], torch.Tensor], temperature: float = 1.0
) -> list[float]:
    """-log p of every title by the module, given the logits (vocabulary,) after each prefix."""
    trie, _ = build_trie(titles)
    token_ids, columns = token_columns(trie)
    choices = title_choices(titles, trie)
    found = []
    for number, title in enumerate(titles):
        own = choices.of(number)
        rows = [logits_of[tuple(title[:place])][token_ids] for place in choices.position[own]]
        if not rows:
            found.append(0.0)
            continue
        nodes, children = (torch.from_numpy(x[own]) for x in (choices.node, choices.child))
        found.append(float(trie_losses(torch.stack(rows), nodes, children, trie, columns, temperature).sum()))
    return found


def test_by_hand():
    zeros = torch.zeros(16)
    first, second = zeros.clone(), zeros.clone()
    first[5], first[7] = np.log(3.0), 0.0  # 3 : 1 at the beginning
    second[END], second[6] = 0.0, np.log(4.0)  # 1 : 4 after 5
    table = {(): first, (5,): second}
    expected = [-np.log(3 / 4 * 1 / 5), -np.log(3 / 4 * 4 / 5), -np.log(1 / 4)]
    np.testing.assert_allclose(losses_of_all(TITLES, table), expected, rtol=1e-6)
    # at temperature 2 the odds are the roots: sqrt(3) : 1, then 1 : 2
    p = np.sqrt(3) / (np.sqrt(3) + 1)
    expected = [-np.log(p / 3), -np.log(p * 2 / 3), -np.log(1 - p)]
    np.testing.assert_allclose(losses_of_all(TITLES, table, 2.0), expected, rtol=1e-6)


def test_choices_by_hand():
    trie, _ = build_trie(TITLES)
    choices = title_choices(TITLES, trie)
    assert choices.starts.tolist() == [0, 2, 4, 5]
    assert choices.position.tolist() == [0, 1, 0, 1, 0]
    assert (choices.node[[0, 2, 4]] == 0).all()


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.integers(2, 6), min_size=1, max_size=4), min_size=1, max_size=10),
    st.integers(0, 10),
    st.floats(0.3, 5),
)
def test_the_probabilities_of_all_titles_sum_to_one(rows, seed, temperature):
    titles = [[*row, END] for row in sorted(set(map(tuple, rows)))]
    generator = torch.Generator().manual_seed(seed)
    prefixes = {tuple(title[:place]) for title in titles for place in range(len(title))}
    table = {prefix: torch.randn(8, generator=generator) for prefix in sorted(prefixes)}
    assert abs(np.exp(-np.array(losses_of_all(titles, table, temperature))).sum() - 1) < 1e-5


def test_a_title_that_is_not_in_the_trie_is_named():
    trie, _ = build_trie(TITLES)
    with pytest.raises(BigrecError, match="title 1 is not in the token trie"):
        title_choices([TITLES[0], [5, 9, END]], trie)


def test_the_head_gives_the_models_own_logits_at_its_tokens_and_positions():
    torch.manual_seed(0)
    head = torch.nn.Linear(4, 10, bias=True)
    sliced = CatalogHead(head, torch.tensor([2, 7, 9]))
    hidden = torch.randn(2, 3, 4)
    torch.testing.assert_close(sliced(hidden), head(hidden)[..., [2, 7, 9]])
    sliced.positions = torch.tensor([1, 5])
    torch.testing.assert_close(sliced(hidden), head(hidden).reshape(6, 10)[[1, 5]][:, [2, 7, 9]])
    with pytest.raises(BigrecError, match="linear layer"):
        CatalogHead(torch.nn.Identity(), torch.tensor([0]))


def test_a_cap_that_the_model_puts_on_its_logits_still_applies():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    config = Gemma2Config(
        vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, final_logit_softcapping=0.1, query_pre_attn_scalar=4,
    )  # fmt: skip
    model = Gemma2ForCausalLM(config).eval()
    ids = torch.tensor([[3, 4, 5]])
    expected = model(ids).logits[0, [0, 2]][:, [6, 11]]
    with catalog_head(model, torch.tensor([6, 11])) as head:
        head.positions = torch.tensor([0, 2])
        torch.testing.assert_close(model(ids).logits, expected)
