"""Depth-wise convolution arranged for the CPU, so that fast routines serve large, dilated and trained kernels too.

oneDNN is quick at dense depth-wise kernels, and at weight gradients of kernels at most three columns wide and no higher
than the map; elsewhere it falls back to loops of up to ten times the time. A dilated kernel is a dense one on each of
the map's dilation ** 2 sub-grids; the gradient of the input is a convolution by the turned kernel; the gradient of a
wide kernel falls into groups of three columns; a low map can be padded.
"""

import functools

import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_weight

from .. import _derivatives
from .naive import depthwise_conv as _definition

_COLUMNS = 3


def depthwise_conv(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int) -> torch.Tensor:
    """The definition, or its arrangement where that is quicker; as the public function."""
    if not _is_rearranged(x, weight, dilation):
        return _definition(x, weight, bias, dilation)
    if torch.is_grad_enabled() and (
        x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
    ):
        return _DepthwiseConv.apply(x, weight, bias, dilation)
    return _convolve(x, weight, bias, dilation)


def _is_rearranged(x: torch.Tensor, weight: torch.Tensor, dilation: int) -> bool:
    """Whether the rearrangement was measured to be the quicker one (PyTorch 2.15, AVX2) and keeps the dtype."""
    rows, cols = weight.shape[2:]
    return (
        (dilation > 1 or min(rows, cols) > _COLUMNS or cols > 7 or rows > x.shape[2])
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and x.dtype == weight.dtype
        and not torch.is_autocast_enabled("cpu")
    )


def _split(x: torch.Tensor, dilation: int) -> torch.Tensor:
    """(B, C, H, W) -> (B * dilation ** 2, C, ceil(H / dilation), ceil(W / dilation)), its zero-padded sub-grids."""
    b, c, h, w = x.shape
    height, width = -(-h // dilation), -(-w // dilation)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, width * dilation - w, 0, height * dilation - h))
    x = x.reshape(b, height, dilation, width, dilation, c).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(b * dilation**2, height, width, c).permute(0, 3, 1, 2)


def _join(grids: torch.Tensor, like: torch.Tensor, dilation: int) -> torch.Tensor:
    """The inverse of `_split`, in shape and memory format of `like`."""
    grids = grids.unflatten(0, (like.shape[0], dilation, dilation))
    out = torch.empty_like(like)
    for i in range(dilation):
        for j in range(dilation):
            grid = out[:, :, i::dilation, j::dilation]
            grid.copy_(grids[:, i, j, :, : grid.shape[2], : grid.shape[3]])
    return out


def _convolve(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int) -> torch.Tensor:
    if dilation == 1:
        return _definition(x, weight, bias, 1)
    return _join(_definition(_split(x, dilation), weight, bias, 1), x, dilation)


def _weight_gradient(x: torch.Tensor, grad: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Of a dense kernel, from its input and the gradient of its output."""
    channels, _, rows, cols = weight.shape
    if cols > _COLUMNS >= rows:
        return _weight_gradient(x.mT, grad.mT, weight.mT).mT
    if x.shape[2] < rows:
        below = (0, 0, 0, rows - x.shape[2])
        x, grad = F.pad(x, below), F.pad(grad, below)
    if cols <= _COLUMNS:
        return conv2d_weight(x, weight.shape, grad, padding=(rows // 2, cols // 2), groups=channels)
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, cols // 2, cols // 2)).permute(0, 3, 1, 2)
    parts = []
    for start in range(0, cols, _COLUMNS):
        some = min(_COLUMNS, cols - start)
        shifted = x[..., start : start + grad.shape[3] + some - 1]
        parts.append(conv2d_weight(shifted, (channels, 1, rows, some), grad, padding=(rows // 2, 0), groups=channels))
    return torch.cat(parts, -1)


class _DepthwiseConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, dilation):
        ctx.save_for_backward(x, weight, bias)
        ctx.dilation = dilation
        return _convolve(x, weight, bias, dilation)

    @staticmethod
    def backward(ctx, grad):
        x, weight, bias = ctx.saved_tensors
        dilation = ctx.dilation
        if _derivatives.backward_is_differentiated(grad):
            definition = functools.partial(_definition, dilation=dilation)
            return *_derivatives.gradients(definition, (x, weight, bias), ctx.needs_input_grad[:3], grad), None
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        grids = grad if dilation == 1 else _split(grad, dilation)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _definition(grids, weight.flip(2, 3), None, 1)
            grad_x = grad_x if dilation == 1 else _join(grad_x, x, dilation)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x if dilation == 1 else _split(x, dilation), grids, weight)
        return grad_x, grad_weight, grad_bias, None
