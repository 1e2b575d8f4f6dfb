"""Advantages, divergence and S-DPO by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from bigrec_hf.grpo.losses import advantages, expected_loss, group_divergence, policy_loss, sdpo_loss


def test_advantages_by_hand():
    rewards = np.array([[1.0, 0, 0, 0], [2, 2, 2, 2]])
    equal = np.full((2, 4), 0.25)
    spread = math.sqrt(3) / 4
    expected = [[0.75, -0.25, -0.25, -0.25], [0, 0, 0, 0]]
    np.testing.assert_allclose(advantages(rewards, equal, scale=False), expected)
    np.testing.assert_allclose(advantages(rewards, equal, scale=True)[0], np.array(expected[0]) / spread)
    assert (advantages(rewards, equal, scale=True)[1] == 0).all()


def test_weights_count_in_mean_and_deviation():
    found = advantages(np.array([[1.0, 0.0]]), np.array([[0.2, 0.8]]), scale=True)
    np.testing.assert_allclose(found, [[0.8 / 0.4, -0.2 / 0.4]])


def test_policy_loss():
    log_p = torch.log(torch.tensor([[0.5, 0.25]]))
    loss = policy_loss(log_p, torch.tensor([[0.3, -0.3]]))
    assert loss.item() == pytest.approx(-0.3 * math.log(2))


def test_the_expected_reward_has_the_gradient_of_all_titles():
    """Four titles, the group is the first three: d/dz_j of sum p_i r_i is p_j (r_j - sum p_i r_i), with 0 for the
    fourth title's reward."""
    z = torch.tensor([[0.3, -0.2, 0.1, 0.5]], requires_grad=True)
    rewards = torch.tensor([[1.0, -0.5, 0.25]])
    p = torch.softmax(z.detach(), dim=1)
    mean = float((p[:, :3] * rewards).sum())
    loss = expected_loss(torch.log_softmax(z, dim=1)[:, :3], rewards)
    assert loss.item() == pytest.approx(-mean)
    loss.sum().backward()
    every = torch.tensor([[1.0, -0.5, 0.25, 0.0]])
    torch.testing.assert_close(z.grad, -p * (every - mean))


def test_divergence_over_the_group_and_the_rest():
    p, q = torch.tensor([[0.5, 0.2]]), torch.tensor([[0.4, 0.4]])
    expected = 0.5 * math.log(0.5 / 0.4) + 0.2 * math.log(0.2 / 0.4) + 0.3 * math.log(0.3 / 0.2)
    assert group_divergence(p.log(), q.log()).item() == pytest.approx(expected, rel=1e-5)
    assert group_divergence(p.log(), p.log()).item() == pytest.approx(0, abs=1e-7)
    whole = torch.tensor([[0.5, 0.5]])
    assert torch.isfinite(group_divergence(whole.log(), q.log())).all()


def test_sdpo_by_hand():
    """Ratios: target log 2, others log 1 and log 4; margin log((1/2)^b + 2^b) at beta b."""
    reference = torch.log(torch.tensor([[0.1, 0.1, 0.1]]))
    log_p = reference + torch.log(torch.tensor([[1.0, 2.0, 4.0]]))
    is_target = torch.tensor([[False, True, False]])
    for beta in (1.0, 0.5):
        loss, preferred = sdpo_loss(log_p, reference, is_target, beta=beta)
        margin = math.log(0.5**beta + 2**beta)
        assert loss.item() == pytest.approx(math.log(1 + math.exp(margin)), rel=1e-5)
        assert preferred.tolist() == [False]
    loss, _ = sdpo_loss(reference, reference, is_target, beta=1.0)
    assert loss.item() == pytest.approx(math.log(3), rel=1e-5)  # as many others, plus one


def test_sdpo_with_one_negative_is_dpo():
    torch.manual_seed(0)
    log_p, reference = torch.randn(5, 2), torch.randn(5, 2)
    is_target = torch.tensor([[True, False]] * 5)
    loss, preferred = sdpo_loss(log_p, reference, is_target, beta=0.3)
    ratios = log_p - reference
    torch.testing.assert_close(loss, -torch.nn.functional.logsigmoid(0.3 * (ratios[:, 0] - ratios[:, 1])))
    assert preferred.tolist() == (ratios[:, 0] > ratios[:, 1]).tolist()
