"""Focal losses against loops written from the definitions."""

import pytest
import torch
from mmcv import ops as mmcv_ops
from seeded import randn


def sigmoid_focal_by_definition(logits, target, weight, gamma, alpha):
    rows = []
    for row, label in zip(logits, target.tolist(), strict=True):
        for c, logit in enumerate(row):
            p = 1 / (1 + torch.exp(-logit))
            loss = -alpha * (1 - p) ** gamma * p.log() if c == label else -(1 - alpha) * p**gamma * (1 - p).log()
            rows.append(loss * (weight[label] if weight is not None and label < len(weight) else 1))
    return torch.stack(rows).view_as(logits)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weighted", [True, False])
def test_sigmoid_focal_loss(gamma, weighted):
    logits, target = randn(5, 3), torch.tensor([0, 2, 3, 1, 3])
    weight = torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64) if weighted else None
    output = mmcv_ops.sigmoid_focal_loss(logits, target, gamma, 0.25, weight, "none")
    torch.testing.assert_close(output, sigmoid_focal_by_definition(logits, target, weight, gamma, 0.25))
    logits.requires_grad_()
    for reduction in ("mean", "sum"):
        assert torch.autograd.gradcheck(
            lambda x, reduction=reduction: mmcv_ops.sigmoid_focal_loss(x, target, gamma, 0.25, weight, reduction),
            logits,
        )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("weighted", [True, False])
def test_softmax_focal_loss(gamma, weighted):
    logits, target = randn(5, 3), torch.tensor([0, 2, -1, 1, 2])
    weight = torch.tensor([0.5, 1.5, 2.0], dtype=torch.float64) if weighted else None
    expected = torch.zeros(5, dtype=torch.float64)
    for n, label in enumerate(target.tolist()):
        p = logits[n].exp()[label] / logits[n].exp().sum()
        if label >= 0:
            expected[n] = -0.25 * (1 - p) ** gamma * p.log() * (1 if weight is None else weight[label])
    loss = mmcv_ops.softmax_focal_loss
    torch.testing.assert_close(loss(logits, target, gamma, 0.25, weight, "none"), expected)
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, target, gamma, 0.25, weight, "sum"), logits)


def test_focal_losses_stay_finite_at_the_ends():
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    for loss in (mmcv_ops.sigmoid_focal_loss, mmcv_ops.softmax_focal_loss):
        value = loss(logits, torch.tensor([0, 0]), 0.5, 0.25, None, "sum")
        (grad,) = torch.autograd.grad(value, logits)
        assert value.isfinite() and grad.isfinite().all() and grad[1, 0] < 0
