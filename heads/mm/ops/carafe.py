"""CARAFE (Wang et al., "CARAFE: Content-Aware ReAssembly of FEatures", ICCV 2019): upsampling by predicted kernels.

One kernel tap at a time, so that nothing larger than the output is kept; the gradients are written out for the same
reason (autograd would keep every tap).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ....kernels.tracing import is_exporting
from ._checks import check_tensors, check_whole
from ._dtypes import widen

__all__ = ["OPERATORS", "carafe_backward", "carafe_forward", "carafe_naive_backward", "carafe_naive_forward"]


def _check(
    operator: str,
    features: Tensor,
    masks: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
    **upsampled: Tensor,
) -> None:
    """Check maps and kernels, and `upsampled`, a map of the size that comes out."""
    if is_exporting():
        return
    check_whole(operator, 1, kernel_size=kernel_size, group_size=group_size, scale_factor=scale_factor)
    check_tensors(operator, features=(features, "B C H W"))
    batch, channels, height, width = features.shape
    if kernel_size % 2 == 0:
        raise ValueError(f"{operator}: kernel_size={kernel_size}: must be odd")
    if channels % group_size:
        raise ValueError(f"{operator}: group_size={group_size}: must divide the {channels} channels of features")
    size = (height * scale_factor, width * scale_factor)
    shapes = {key: (tensor, (batch, channels, *size)) for key, tensor in upsampled.items()}
    kernels = (batch, group_size * kernel_size**2, *size)
    check_tensors(operator, features=(features, "B C H W"), masks=(masks, kernels), **shapes)


def _grouped(tensor: Tensor, groups: int, scale: int) -> Tensor:
    """Views `(B, C, H * scale, W * scale)` as `(B, groups, C / groups, H, scale, W, scale)`."""
    batch, channels, height, width = tensor.shape
    return tensor.reshape(batch, groups, channels // groups, height // scale, scale, width // scale, scale)


def _taps(padded: Tensor, kernel_size: int) -> Iterator[Tensor]:
    """Yields the map under each kernel tap, row by row, as views `(..., H, W)` of `padded`."""
    height, width = padded.shape[-2] - kernel_size + 1, padded.shape[-1] - kernel_size + 1
    for row in range(kernel_size):
        for column in range(kernel_size):
            yield padded[..., row : row + height, column : column + width]


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Each output pixel is a sum of the input pixels around its own, weighted by its own kernel.

    Args:
        features: `(B, C, H, W)` float.
        masks: `(B, group_size * kernel_size**2, H * scale_factor, W * scale_factor)` float, one kernel per output pixel
            and group of channels.
        output: `(B, C, H * scale_factor, W * scale_factor)`, overwritten.
        kernel_size: Side of a kernel, odd; zeros beyond the border.
        group_size: Groups of channels.
        scale_factor: Output pixels per input pixel and axis.

    Raises:
        TypeError: If a tensor has another dtype.
        ValueError: If shapes do not fit, `kernel_size` is even or `group_size` does not divide C.
    """
    _check("carafe_naive_forward", features, masks, kernel_size, group_size, scale_factor, output=output)
    source, kernels = widen(features, masks)
    padded = _grouped(F.pad(source, [kernel_size // 2] * 4), group_size, 1).squeeze((4, 6))
    total = kernels.new_zeros(())
    for tap, weight in zip(
        _taps(padded, kernel_size), _grouped(kernels, group_size, scale_factor).unbind(2), strict=True
    ):
        total = total + tap[..., None, :, None] * weight[:, :, None]
    output.copy_(total.reshape(output.shape))


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Writes the gradients of `carafe_naive_forward` to `bottom_grad` (features) and `mask_grad`; else as there."""
    name = "carafe_naive_backward"
    _check(name, features, masks, kernel_size, group_size, scale_factor, top_grad=top_grad)
    check_tensors(name, bottom_grad=(bottom_grad, features.shape), mask_grad=(mask_grad, masks.shape))
    grad, source, kernels = widen(top_grad, features, masks)
    grad = _grouped(grad, group_size, scale_factor)
    padded = _grouped(F.pad(source, [kernel_size // 2] * 4), group_size, 1).squeeze((4, 6))
    grad_padded, grad_kernels = torch.zeros_like(padded), []
    for tap, grad_tap, weight in zip(
        _taps(padded, kernel_size),
        _taps(grad_padded, kernel_size),
        _grouped(kernels, group_size, scale_factor).unbind(2),
        strict=True,
    ):
        grad_kernels.append((grad * tap[..., None, :, None]).sum(2))
        grad_tap += (grad * weight[:, :, None]).sum((4, 6))
    height, width = features.shape[2:]
    border = kernel_size // 2
    inner = grad_padded[..., border : border + height, border : border + width]
    bottom_grad.copy_(inner.reshape(bottom_grad.shape))
    mask_grad.copy_(torch.stack(grad_kernels, 2).reshape(mask_grad.shape))


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """As `carafe_naive_forward`, with the buffers of mmcv's faster kernel.

    `rfeatures` becomes `features` as `(B, H, W, C)`, because `carafe_backward` gets nothing else of them; `routput` and
    `rmasks` are scratch and stay as they are.
    """
    check_tensors("carafe_forward", features=(features, "B C H W"))
    rows = features.permute(0, 2, 3, 1)
    rfeatures.resize_(rows.shape).copy_(rows)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """As `carafe_naive_backward`, from the `rfeatures` of `carafe_forward`; the other `r` tensors are scratch."""
    check_tensors("carafe_backward", rfeatures=(rfeatures, "B H W C"))
    features = rfeatures.permute(0, 3, 1, 2)
    carafe_naive_backward(top_grad, features, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)


OPERATORS = (carafe_naive_forward, carafe_naive_backward, carafe_forward, carafe_backward)
