"""Large-kernel attention: a depth-wise convolution chain that gates its own input; and the convolutions alone."""

import torch
import torch.nn.functional as F

from .. import _derivatives, _dispatch
from .._checks import shape
from ..tracing import leaves_sizes_free, untraced
from . import cpu, operator
from .naive import depthwise_conv as _definition
from .operator import (
    check_depthwise,
    check_pointwise,
    depthwise_operations,
    pointwise_operations,
    why_not_depthwise,
    why_not_pointwise,
)

__all__ = ["depthwise_conv", "large_kernel_attention", "pointwise_conv"]


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
        reason = untraced(why_not_depthwise, x, weight, bias, dilation)
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
        return cpu.depthwise_conv(x, weight, bias, operator.reach(x, dilation))


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
            untraced(why_not_pointwise, x, weight, bias, gate),
            pointwise_operations(x.shape, weight.shape),
        ):
            return operator.gated_pointwise_conv(x, weight, bias, gate)
        if torch.compiler.is_compiling() or leaves_sizes_free():
            out = F.conv2d(x, weight, bias)
        else:
            out = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
    return out if gate is None else gate * out


def large_kernel_attention(
    x: torch.Tensor,
    local_weight: torch.Tensor,
    local_bias: torch.Tensor | None,
    dilated_weight: torch.Tensor,
    dilated_bias: torch.Tensor | None,
    pointwise_weight: torch.Tensor,
    pointwise_bias: torch.Tensor | None,
    dilation: int = 3,
    backend: str = "auto",
) -> torch.Tensor:
    """Gates `x` by a decomposed large-kernel depth-wise convolution of itself.

    `x * pointwise(dilated(local(x)))`, every convolution with stride 1 and "same" zero padding, no activation and
    no sigmoid. A 5x5 `local` and a 7x7 `dilated` kernel of dilation 3 see 23x23 pixels. Triton's kernels keep `x`,
    `local`'s and `dilated`'s outputs for the backward pass, and no more.

    Source: Guo et al., Visual Attention Network, https://arxiv.org/abs/2202.09741, equations 2 and 3.

    Args:
        x: (B, C, H, W), floating point; quickest in channels_last. B may be 0.
        local_weight: (C, 1, K, L), K and L odd.
        local_bias: (C,) or None.
        dilated_weight: like `local_weight`, of its own sides.
        dilated_bias: (C,) or None.
        pointwise_weight: (C, C, 1, 1).
        pointwise_bias: (C,) or None.
        dilation: of `dilated_weight`, in pixels, at least 1.
        backend: "auto", "triton" or "torch"; see `attnzoo.kernels.use_backend`.

    Returns:
        (B, C, H, W), dtype and memory format of `x`; by Triton channels_last. Under autocast every convolution runs in
        its dtype.

    Raises:
        TypeError: for what is no tensor of floating-point numbers, and no integer.
        ValueError: where shapes, dtypes and devices do not fit each other, or for an unknown backend.
        RuntimeError: if Triton is asked for and cannot run.
    """
    if torch.jit.is_scripting():
        _check_attention(
            x, local_weight, local_bias, dilated_weight, dilated_bias, pointwise_weight, pointwise_bias, dilation
        )
    else:
        weights = local_weight, local_bias, dilated_weight, dilated_bias, pointwise_weight, pointwise_bias
        untraced(_check_attention, x, *weights, dilation)
    gate = depthwise_conv(x, local_weight, local_bias, backend=backend)
    gate = depthwise_conv(gate, dilated_weight, dilated_bias, dilation, backend)
    return pointwise_conv(gate, pointwise_weight, pointwise_bias, x, backend)


def _check_attention(
    x: torch.Tensor,
    local_weight: torch.Tensor,
    local_bias: torch.Tensor | None,
    dilated_weight: torch.Tensor,
    dilated_bias: torch.Tensor | None,
    pointwise_weight: torch.Tensor,
    pointwise_bias: torch.Tensor | None,
    dilation: int = 3,
) -> None:
    """By the names of this operator's arguments, before any of its parts runs."""
    inner = x
    if not torch.jit.is_scripting():
        inner, local_weight, local_bias = _dispatch.autocast(x, local_weight, local_bias)
        _, dilated_weight, dilated_bias = _dispatch.autocast(x, dilated_weight, dilated_bias)
        _, pointwise_weight, pointwise_bias = _dispatch.autocast(x, pointwise_weight, pointwise_bias)
    check_depthwise(inner, local_weight, local_bias, 1, ("local_weight", "local_bias"))
    check_depthwise(inner, dilated_weight, dilated_bias, dilation, ("dilated_weight", "dilated_bias"))
    check_pointwise(inner, pointwise_weight, pointwise_bias, None, ("pointwise_weight", "pointwise_bias"))
    if pointwise_weight.shape[0] != x.shape[1]:
        channels = x.shape[1]
        raise ValueError(f"pointwise_weight must be {(channels, channels, 1, 1)}, got {shape(pointwise_weight)}")


def _why_not_attention(
    x: torch.Tensor,
    local_weight: torch.Tensor,
    local_bias: torch.Tensor | None,
    dilated_weight: torch.Tensor,
    dilated_bias: torch.Tensor | None,
    pointwise_weight: torch.Tensor,
    pointwise_bias: torch.Tensor | None,
    dilation: int = 3,
) -> str | None:
    for weight, bias in ((local_weight, local_bias), (dilated_weight, dilated_bias)):
        reason = why_not_depthwise(*_dispatch.autocast(x, weight, bias))
        if reason is not None:
            return reason
    inner, pointwise_weight, pointwise_bias = _dispatch.autocast(x, pointwise_weight, pointwise_bias)
    return why_not_pointwise(inner, pointwise_weight, pointwise_bias, x)


def _check_depthwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, dilation: int = 1
) -> None:
    x, weight, bias = _dispatch.autocast(x, weight, bias)
    check_depthwise(x, weight, bias, dilation)


def _why_not_depthwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, dilation: int = 1
) -> str | None:
    x, weight, bias = _dispatch.autocast(x, weight, bias)
    return why_not_depthwise(x, weight, bias, dilation)


def _check_pointwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, gate: torch.Tensor | None = None
) -> None:
    x, weight, bias = _dispatch.autocast(x, weight, bias)
    check_pointwise(x, weight, bias, gate)


def _why_not_pointwise(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, gate: torch.Tensor | None = None
) -> str | None:
    x, weight, bias = _dispatch.autocast(x, weight, bias)
    return why_not_pointwise(x, weight, bias, gate)


_dispatch.register("depthwise_conv", depthwise_conv, _check_depthwise, _why_not_depthwise)
_dispatch.register("pointwise_conv", pointwise_conv, _check_pointwise, _why_not_pointwise)
_dispatch.register("large_kernel_attention", large_kernel_attention, _check_attention, _why_not_attention)
