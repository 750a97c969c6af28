"""Depth-wise and point-wise convolution: by Triton on GPUs, else by PyTorch.

On the CPU the depth-wise one is arranged so that fast routines serve large, dilated and trained kernels too: oneDNN is
quick at dense depth-wise kernels, and at weight gradients of kernels at most three columns wide and no higher than the
map; elsewhere it falls back to loops of up to ten times the time. A dilated kernel is a dense one on each of the map's
dilation ** 2 sub-grids; the gradient of the input is a convolution by the turned kernel; the gradient of a wide kernel
falls into groups of three columns; a low map can be padded.
"""

import torch
import torch.nn.functional as F
from torch.nn.grad import conv2d_weight

from .. import _dispatch
from . import operator

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
        x: (B, C, H, W), floating point; quickest in channels_last.
        weight: (C, 1, K, L), K and L odd; Triton's kernels take up to 31.
        bias: (C,) or None.
        dilation: of both axes, in pixels.
        backend: "auto", "triton" or "torch"; see `attnzoo.kernels.use_backend`.

    Returns:
        (B, C, H, W), dtype and memory format of `x`; by Triton channels_last.

    Raises:
        RuntimeError: if Triton is asked for and cannot run.
    """
    if torch.jit.is_scripting():
        return _definition(x, weight, bias, dilation)
    else:
        given = _autocast(x, weight, bias)
        if _dispatch.use_triton("depthwise_conv", backend, x.device, why_not_depthwise(*given)):
            return operator.depthwise_conv(*given, dilation)
        # Compilers and exporters get the one operator that says what is meant.
        if torch.compiler.is_compiling() or not _is_rearranged(x, weight, dilation):
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
        x: (B, C, H, W), floating point; quickest in channels_last, where it is one matrix product without copies.
        weight: (D, C, 1, 1).
        bias: (D,) or None.
        gate: (B, D, H, W), or None for 1. Triton's kernel multiplies while the product is in registers.
        backend: "auto", "triton" or "torch", of the gated convolution; see `attnzoo.kernels.use_backend`.

    Returns:
        (B, D, H, W), dtype of `x`, or what `gate` promotes it to; by Triton channels_last.

    Raises:
        RuntimeError: if Triton is asked for and cannot run.
    """
    if torch.jit.is_scripting():
        out = F.conv2d(x, weight, bias)
    else:
        if gate is not None:
            given = _autocast(x, weight, bias)
            reason = why_not_pointwise(*given, gate)
            if _dispatch.use_triton("pointwise_conv", backend, x.device, reason):
                return operator.gated_pointwise_conv(*given, gate)
        if torch.compiler.is_compiling():
            out = F.conv2d(x, weight, bias)
        else:
            out = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return out if gate is None else gate * out


def why_not_depthwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, dilation: int = 1
) -> str | None:
    """What keeps Triton from running, None if nothing does."""
    reason = _dispatch.why_not(x, weight, bias)
    rows, cols = weight.shape[2:]
    if reason is None and (rows % 2 == 0 or cols % 2 == 0 or max(rows, cols) > operator.MAX_KERNEL):
        reason = f"the kernel has {rows} x {cols} taps, it needs odd sides of {operator.MAX_KERNEL} at most"
    return reason


def why_not_pointwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, gate: torch.Tensor | None = None
) -> str | None:
    """What keeps Triton from running, None if nothing does."""
    if gate is None:
        return "there is no gate: the rest is PyTorch's matrix product"
    reason = _dispatch.why_not(x, weight, bias) or _dispatch.why_not(gate)
    if reason is None and gate.device != x.device:
        reason = f"tensors differ: x is on {x.device}, gate on {gate.device}"
    return reason


_dispatch.register("depthwise_conv", why_not_depthwise)
_dispatch.register("pointwise_conv", why_not_pointwise)


def _autocast(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """The tensors as autocast would give them to PyTorch's convolution; it does not know of other operators."""
    device = x.device.type
    # Of other devices, such as meta, PyTorch raises when it is asked.
    if device not in ("cpu", "cuda") or torch.float64 in (x.dtype, weight.dtype):
        return x, weight, bias
    if not torch.is_autocast_enabled(device):
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), bias if bias is None else bias.to(dtype)


def _definition(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dilation: int) -> torch.Tensor:
    padding = [dilation * (weight.shape[2] // 2), dilation * (weight.shape[3] // 2)]
    return F.conv2d(x, weight, bias, padding=padding, dilation=dilation, groups=weight.shape[0])


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
        ctx.save_for_backward(x, weight)
        ctx.dilation = dilation
        return _convolve(x, weight, bias, dilation)

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        dilation = ctx.dilation
        grad_bias = grad.sum((0, 2, 3)) if ctx.needs_input_grad[2] else None
        grids = grad if dilation == 1 else _split(grad, dilation)
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_x = _definition(grids, weight.flip(2, 3), None, 1)
            grad_x = grad_x if dilation == 1 else _join(grad_x, x, dilation)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_gradient(x if dilation == 1 else _split(x, dilation), grids, weight)
        return grad_x, grad_weight, grad_bias, None
