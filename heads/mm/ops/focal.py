"""Focal losses (Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017) and their gradients, in closed form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._checks import check_indices, check_numbers, check_tensors
from ._dtypes import widen

__all__ = [
    "OPERATORS",
    "sigmoid_focal_loss_backward",
    "sigmoid_focal_loss_forward",
    "softmax_focal_loss_backward",
    "softmax_focal_loss_forward",
]


def _class_weight(weight: Tensor, target: Tensor, like: Tensor) -> Tensor:
    """Weight of each row's class, `(N,)`; 1 without weights and for background, where mmcv reads past the end."""
    if not weight.numel():
        return like.new_ones(len(target))
    known = (target >= 0) & (target < len(weight))
    return torch.where(known, weight.to(like.dtype)[target.clamp(0, len(weight) - 1)], 1)


def _check(
    operator: str,
    input: Tensor,
    target: Tensor,
    weight: Tensor,
    gamma: float,
    alpha: float,
    **written: tuple[Tensor, str],
) -> None:
    """Check what all four operators get; `written` are their results, with their shapes."""
    weights = {} if isinstance(weight, Tensor) and weight.shape == (0,) else {"weight": (weight, "C")}
    check_tensors(operator, input=(input, "N C"), target=(target, "N", torch.int64), **weights, **written)
    check_numbers(operator, 0, gamma=gamma, alpha=alpha)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of independent classes.

    The logarithms come from the logits, so that they stay exact where mmcv's kernel rounds `1 - p` to 0 and clips.

    Args:
        input: `(N, C)` float, logits.
        target: `(N,)` int64, class of each row; any other number, usually C, is background.
        weight: `(C,)` float, factor by the row's class, or empty.
        output: `(N, C)`, overwritten by the loss of each logit.
        gamma: Exponent that plays down easy logits.
        alpha: Factor of the positive class; the others get `1 - alpha`.

    Raises:
        TypeError: If a tensor has another dtype.
        ValueError: If shapes do not fit, or `gamma` or `alpha` is negative.
    """
    _check("sigmoid_focal_loss_forward", input, target, weight, gamma, alpha, output=(output, "N C"))
    (logits,) = widen(input)
    p, positive = logits.sigmoid(), _positive(target, logits)
    loss = torch.where(
        positive,
        -alpha * (1 - p) ** gamma * F.logsigmoid(logits),
        -(1 - alpha) * p**gamma * F.logsigmoid(-logits),
    )
    output.copy_(loss * _class_weight(weight, target, logits)[:, None])


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Writes d loss / d logit of `sigmoid_focal_loss_forward` to `grad_input` `(N, C)`; arguments as there."""
    _check("sigmoid_focal_loss_backward", input, target, weight, gamma, alpha, grad_input=(grad_input, "N C"))
    (logits,) = widen(input)
    p, positive = logits.sigmoid(), _positive(target, logits)
    grad = torch.where(
        positive,
        -alpha * (1 - p) ** gamma * (1 - p - gamma * p * F.logsigmoid(logits)),
        -(1 - alpha) * p**gamma * (gamma * (1 - p) * F.logsigmoid(-logits) - p),
    )
    grad_input.copy_(grad * _class_weight(weight, target, logits)[:, None])


def _positive(target: Tensor, logits: Tensor) -> Tensor:
    """Whether a column is its row's class, `(N, C)` bool."""
    return target[:, None] == torch.arange(logits.shape[1], device=logits.device)


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss of exclusive classes.

    Args:
        input: `(N, C)` float, probabilities (mmcv takes the softmax before the call).
        target: `(N,)` int64, class of each row in `[0, C)`; a negative one has no loss.
        weight: `(C,)` float, factor by the row's class, or empty.
        output: `(N,)`, overwritten by the loss of each row.
        gamma: Exponent that plays down easy rows.
        alpha: Factor of all rows.

    Raises:
        TypeError: If a tensor has another dtype.
        ValueError: If shapes do not fit, a class is C or more, or `gamma` or `alpha` is negative.
    """
    name = "softmax_focal_loss_forward"
    _check(name, input, target, weight, gamma, alpha, output=(output, "N"))
    _check_classes(name, target, input)
    (probabilities,) = widen(input)
    p, log_p, factor = _true_class(probabilities, target, weight)
    output.copy_(-alpha * (1 - p) ** gamma * log_p * factor)


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Writes d loss / d logit (not probability) to `grad_input` `(N, C)`; `buff` `(N,)` is scratch, else as forward."""
    name = "softmax_focal_loss_backward"
    _check(name, input, target, weight, gamma, alpha, buff=(buff, "N"), grad_input=(grad_input, "N C"))
    _check_classes(name, target, input)
    (probabilities,) = widen(input)
    p, log_p, factor = _true_class(probabilities, target, weight)
    # (1 - p)**(gamma - 1) is infinite at p = 1 for gamma < 1, where p * log(p) vanishes: 0, not NaN.
    focus = torch.where(p < 1, (1 - p) ** (gamma - 1) * p * log_p, 0)
    slope = alpha * (gamma * focus - (1 - p) ** gamma) * factor
    buff.copy_(slope)
    grad_input.copy_(slope[:, None] * (_positive(target, probabilities).to(p.dtype) - probabilities))


def _check_classes(operator: str, target: Tensor, input: Tensor) -> None:
    """Check that each row's class has a column; mmcv reads past the end of the row."""
    check_indices(operator, -(2**63), input.shape[1], target=target)


def _true_class(probabilities: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns each row's probability of its class, its logarithm and its factor (0 if target < 0), all `(N,)`."""
    p = probabilities.gather(1, target.clamp_min(0)[:, None])[:, 0]
    factor = torch.where(target >= 0, _class_weight(weight, target, probabilities), 0)
    return p, p.clamp_min(torch.finfo(p.dtype).tiny).log(), factor


OPERATORS = (
    sigmoid_focal_loss_forward,
    sigmoid_focal_loss_backward,
    softmax_focal_loss_forward,
    softmax_focal_loss_backward,
)
