"""Attention masks of PSANet (Zhao et al., "PSANet: Point-wise Spatial Attention Network", ECCV 2018)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...arguments import check_choice, check_int
from ._checks import Shape, check_tensors, check_whole

__all__ = ["OPERATORS", "psamask_backward", "psamask_forward"]

COLLECT, DISTRIBUTE = 0, 1


def _spread(masks: Tensor, psa_type: int) -> Tensor:
    """Views relative masks as attention between absolute positions.

    Args:
        masks: `(H, W, 2H - 1, 2W - 1)`, contiguous: position, then displacement of the other position.
        psa_type: 0 collect, else distribute.

    Returns:
        A view `(H, W, H, W)` of part of `masks`, in which no element occurs twice: (other position, position) for
        collect, (position, other position) for distribute.
    """
    height, width, rows, columns = masks.shape
    # One step down (right) moves a fixed other position one displacement up (left): a diagonal of the memory.
    position = (width * rows * columns - columns, rows * columns - 1)
    other = (columns, 1)
    strides = other + position if psa_type == COLLECT else position + other
    start = masks.storage_offset() + (height - 1) * columns + width - 1
    return masks.as_strided((height, width, height, width), strides, start)


def _check(
    operator: str,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> tuple[Shape, Shape]:
    """Check the numbers; returns the shapes of masks and of attention for `check_tensors`."""
    check_choice(f"{operator}: psa_type", psa_type, (COLLECT, DISTRIBUTE))
    check_whole(operator, 0, num_=num_, h_feature=h_feature, w_feature=w_feature)
    check_whole(operator, 1, h_mask=h_mask, w_mask=w_mask)
    check_int(f"{operator}: half_h_mask", half_h_mask, 0, h_mask - 1)
    check_int(f"{operator}: half_w_mask", half_w_mask, 0, w_mask - 1)
    size = (h_feature, w_feature)
    return (num_, h_mask * w_mask, *size), (num_, h_feature * w_feature, *size)


def _margins(h_feature: int, w_feature: int, h_mask: int, w_mask: int, half_h_mask: int, half_w_mask: int) -> list[int]:
    """Padding (cropping, where negative) from the mask's own displacements to all possible ones, for `F.pad`."""
    top, left = h_feature - 1 - half_h_mask, w_feature - 1 - half_w_mask
    return [left, 2 * w_feature - 1 - w_mask - left, top, 2 * h_feature - 1 - h_mask - top]


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Turns each position's mask of relative displacements into attention over the whole map.

    Works image by image: the intermediate is four times the size of one image's output.

    Args:
        input: `(B, h_mask * w_mask, H, W)` float, for each position a mask centred on it.
        output: `(B, H * W, H, W)`, overwritten; 0 beyond the mask.
        psa_type: 0 collect, `output[b, other, position]`; 1 distribute, `output[b, position, other]`.
        num_: B.
        h_feature: H.
        w_feature: W.
        h_mask: Rows of a mask.
        w_mask: Columns of a mask.
        half_h_mask: Row of the mask's centre.
        half_w_mask: Column of the mask's centre.

    Raises:
        TypeError: If a tensor has another dtype.
        ValueError: If shapes do not fit the numbers, or a number is out of its range.
    """
    geometry = (h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask)
    masks, attention = _check("psamask_forward", psa_type, num_, *geometry)
    check_tensors("psamask_forward", input=(input, masks), output=(output, attention))
    if not output.numel():
        return
    margins = _margins(*geometry)
    for relative, target in zip(input, output, strict=True):
        relative = relative.reshape(h_mask, w_mask, h_feature, w_feature).permute(2, 3, 0, 1)
        spread = _spread(F.pad(relative, margins).contiguous(), psa_type)
        target.copy_(spread.reshape(target.shape))


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Writes the gradient of `psamask_forward` with respect to `input` to `grad_input`; arguments as there."""
    geometry = (h_feature, w_feature, h_mask, w_mask, half_h_mask, half_w_mask)
    masks, attention = _check("psamask_backward", psa_type, num_, *geometry)
    check_tensors("psamask_backward", grad_input=(grad_input, masks), grad_output=(grad_output, attention))
    if not grad_input.numel():
        return
    margins = _margins(*geometry)
    for grad, target in zip(grad_output, grad_input, strict=True):
        relative = grad.new_zeros(h_feature, w_feature, 2 * h_feature - 1, 2 * w_feature - 1)
        spread = _spread(relative, psa_type)
        spread.copy_(grad.reshape(spread.shape))
        own = F.pad(relative, [-margin for margin in margins])
        target.copy_(own.permute(2, 3, 0, 1).reshape(target.shape))


OPERATORS = (psamask_forward, psamask_backward)
