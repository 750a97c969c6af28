"""Large-kernel attention: a depth-wise convolution chain that gates its own input."""

import torch

from .. import _dispatch
from .._checks import shape
from ..tracing import untraced
from .depthwise import depthwise_conv, pointwise_conv
from .operator import check_depthwise, check_pointwise, why_not_depthwise, why_not_pointwise

__all__ = ["depthwise_conv", "large_kernel_attention", "pointwise_conv"]


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
        _check(x, local_weight, local_bias, dilated_weight, dilated_bias, pointwise_weight, pointwise_bias, dilation)
    else:
        weights = local_weight, local_bias, dilated_weight, dilated_bias, pointwise_weight, pointwise_bias
        untraced(_check, x, *weights, dilation)
    gate = depthwise_conv(x, local_weight, local_bias, backend=backend)
    gate = depthwise_conv(gate, dilated_weight, dilated_bias, dilation, backend)
    return pointwise_conv(gate, pointwise_weight, pointwise_bias, x, backend)


def _check(
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


def _why_not(
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


_dispatch.register("large_kernel_attention", large_kernel_attention, _check, _why_not)
