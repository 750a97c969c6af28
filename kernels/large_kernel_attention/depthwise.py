"""Depth-wise and point-wise convolution: by Triton on GPUs, else by PyTorch.

On the CPU the depth-wise one is arranged so that fast routines serve large, dilated and trained kernels too: oneDNN is
quick at dense depth-wise kernels, and at weight gradients of kernels at most three columns wide and no higher than the
map; elsewhere it falls back to loops of up to ten times the time. A dilated kernel is a dense one on each of the map's
dilation ** 2 sub-grids; the gradient of the input is a convolution by the turned kernel; the gradient of a wide kernel
falls into groups of three columns; a low map can be padded.
"""

import functools

import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_weight

from .. import _derivatives, _dispatch
from ..tracing import leaves_sizes_free, untraced
from . import operator
from .operator import check_depthwise, check_pointwise
from .reference import depthwise as _definition
from .work import depthwise_operations, pointwise_operations

_COLUMNS = 3


def depthwise_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    dilation: int = 1,
    backend: str = "auto",
) -> torch.Tensor:
    """Depth-wise convolution with stride 1 and "same" zero padding.

    Args:
        x: (B, C, H, W), floating point; quickest in channels_last. B may be 0.
        weight: (C, 1, K, L), K and L odd; Triton's kernels take up to 31.
        bias: (C,) or None.
        dilation: of both axes, in pixels, at least 1.
        backend: "auto", "triton" or "torch"; see `attnzoo.kernels.use_backend`.

    Returns:
        (B, C, H, W), dtype and memory format of `x`; by Triton channels_last. Under autocast x, weight and bias are
        taken in its dtype first.

    Raises:
        TypeError: for what is no tensor of floating-point numbers, and no integer.
        ValueError: where shapes, dtypes and devices do not fit each other, or for an unknown backend.
        RuntimeError: if Triton is asked for and cannot run.
    """
    if torch.jit.is_scripting():
        check_depthwise(x, weight, bias, dilation)
        return _definition(x, weight, bias, dilation)
    else:
        x, weight, bias = _dispatch.autocast(x, weight, bias)
        untraced(check_depthwise, x, weight, bias, dilation)
        reason = untraced(operator.why_not_depthwise, x, weight, bias, dilation)
        triton = _dispatch.use_triton(
            "depthwise_conv", backend, (x, weight, bias), reason, depthwise_operations(x.shape, weight.shape)
        )
        if not leaves_sizes_free() and x.numel() == 0:
            return _derivatives.nothing(x.shape, x, weight, bias)
        if triton:
            return operator.depthwise_conv(x, weight, bias, dilation)
        # Compilers, exporters and transforms get the one operator that says what is meant.
        plain = torch.compiler.is_compiling() or leaves_sizes_free() or _derivatives.is_transformed()
        if plain:
            return _definition(x, weight, bias, dilation)
        dilation = operator.reach(x, dilation)
        if not _is_rearranged(x, weight, dilation):
            return _definition(x, weight, bias, dilation)
        if torch.is_grad_enabled() and (
            x.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad)
        ):
            return _DepthwiseConv.apply(x, weight, bias, dilation)
        return _convolve(x, weight, bias, dilation)


def pointwise_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    gate: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Convolution of kernel 1, and the product with a gate.

    Args:
        x: (B, C, H, W), floating point; B may be 0. Quickest in channels_last, where it is one matrix product without
            copies.
        weight: (D, C, 1, 1).
        bias: (D,) or None.
        gate: (B, D, H, W), or None for 1. Triton's kernel multiplies while the product is in registers.
        backend: "auto", "triton" or "torch", of the gated convolution; see `attnzoo.kernels.use_backend`.

    Returns:
        (B, D, H, W), dtype of `x`, or what `gate` promotes it to; by Triton channels_last. Under autocast x, weight and
        bias are taken in its dtype first.

    Raises:
        TypeError: for what is no tensor of floating-point numbers.
        ValueError: where shapes, dtypes and devices do not fit each other, or for an unknown backend.
        RuntimeError: if Triton is asked for and cannot run.
    """
    if torch.jit.is_scripting():
        check_pointwise(x, weight, bias, gate)
        out = F.conv2d(x, weight, bias)
    else:
        x, weight, bias = _dispatch.autocast(x, weight, bias)
        untraced(check_pointwise, x, weight, bias, gate)
        if gate is not None and _dispatch.use_triton(
            "pointwise_conv",
            backend,
            (x, weight, bias, gate),
            untraced(operator.why_not_pointwise, x, weight, bias, gate),
            pointwise_operations(x.shape, weight.shape),
        ):
            return operator.gated_pointwise_conv(x, weight, bias, gate)
        if torch.compiler.is_compiling() or leaves_sizes_free():
            out = F.conv2d(x, weight, bias)
        else:
            out = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return out if gate is None else gate * out


def _check_depthwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, dilation: int = 1
) -> None:
    x, weight, bias = _dispatch.autocast(x, weight, bias)
    check_depthwise(x, weight, bias, dilation)


def _why_not_depthwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, dilation: int = 1
) -> str | None:
    x, weight, bias = _dispatch.autocast(x, weight, bias)
    return operator.why_not_depthwise(x, weight, bias, dilation)


def _check_pointwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, gate: torch.Tensor | None = None
) -> None:
    x, weight, bias = _dispatch.autocast(x, weight, bias)
    check_pointwise(x, weight, bias, gate)


def _why_not_pointwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, gate: torch.Tensor | None = None
) -> str | None:
    x, weight, bias = _dispatch.autocast(x, weight, bias)
    return operator.why_not_pointwise(x, weight, bias, gate)


_dispatch.register("depthwise_conv", depthwise_conv, _check_depthwise, _why_not_depthwise)
_dispatch.register("pointwise_conv", pointwise_conv, _check_pointwise, _why_not_pointwise)


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
