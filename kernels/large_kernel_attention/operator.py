"""Depth-wise convolution and gated point-wise convolution by Triton as PyTorch operators; and what they ask for."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _derivatives, _dispatch
from . import naive

# Patches lie in registers, so that larger kernels cost time alone; these are the ones that are tested.
MAX_KERNEL = 31


def check_depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    names: tuple[str, str] = ("weight", "bias"),
) -> None:
    """Raises TypeError and ValueError for what no backend takes; arguments as of `depthwise_conv`.

    `names` are those of weight and bias, for errors.
    """
    if not torch.jit.is_scripting():
        _checks.check_tensors(("x", names[0], names[1]), (x, weight, bias), (names[1],))
        _checks.check_integer("dilation", dilation)
    _check_map(x)
    channels = x.shape[1]
    if weight.dim() != 4 or weight.shape[0] != channels or weight.shape[1] != 1:
        raise ValueError(f"{names[0]} must be (C={channels}, 1, K, L), got {_checks.shape(weight)}")
    if weight.shape[2] % 2 == 0 or weight.shape[3] % 2 == 0:
        raise ValueError(f"{names[0]} must have odd sides, got {weight.shape[2]} x {weight.shape[3]}")
    _check_bias(bias, channels, names[1])
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation}")


def check_pointwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    names: tuple[str, str] = ("weight", "bias"),
) -> None:
    """Raises TypeError and ValueError for what no backend takes; arguments as of `pointwise_conv`.

    `names` are those of weight and bias, for errors.
    """
    if not torch.jit.is_scripting():
        _checks.check_tensors(("x", names[0], names[1]), (x, weight, bias), (names[1],))
        _checks.check_tensors(("x", "gate"), (x, gate), ("gate",), one_dtype=False)
    _check_map(x)
    inputs, outputs = x.shape[1], weight.shape[0] if weight.dim() > 0 else 0
    if weight.dim() != 4 or outputs < 1 or weight.shape[1] != inputs or weight.shape[2] != 1 or weight.shape[3] != 1:
        raise ValueError(f"{names[0]} must be (D, C={inputs}, 1, 1), got {_checks.shape(weight)}")
    _check_bias(bias, outputs, names[1])
    if gate is not None:
        b, _, height, width = x.shape
        if gate.dim() != 4 or gate.shape[0] != b or gate.shape[1] != outputs or gate.shape[2:] != x.shape[2:]:
            raise ValueError(f"gate must be {(b, outputs, height, width)}, got {_checks.shape(gate)}")


def _check_map(x: Tensor) -> None:
    if x.dim() != 4 or x.shape[1] < 1:
        raise ValueError(f"x must be (B, C, H, W) with a channel at least, got {_checks.shape(x)}")


def _check_bias(bias: Tensor | None, channels: int, name: str) -> None:
    if bias is not None and (bias.dim() != 1 or bias.shape[0] != channels):
        raise ValueError(f"{name} must be ({channels},), got {_checks.shape(bias)}")


def reach(x: Tensor, dilation: int) -> int:
    """A dilation that gives the same result: beyond the map's sides all taps but the central ones see nothing."""
    return min(dilation, max(x.shape[2], x.shape[3], 1))


def why_not_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, dilation: int = 1) -> str | None:
    """What keeps Triton from running on arguments that passed their check, None if nothing does."""
    reason = _dispatch.why_not(x, weight, bias)
    rows, cols = weight.shape[2:]
    if reason is None and max(rows, cols) > MAX_KERNEL:
        reason = f"the kernel has {rows} x {cols} taps, it needs sides of {MAX_KERNEL} at most"
    return reason


def why_not_pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, gate: Tensor | None = None) -> str | None:
    """What keeps Triton from running on arguments that passed their check, None if nothing does."""
    if gate is None:
        return "there is no gate: the rest is PyTorch's matrix product"
    return _dispatch.why_not(x, weight, bias) or _dispatch.why_not(gate)


def depthwise_operations(shape: Sequence[int], weight: Sequence[int]) -> int:
    """Of the forward pass: the size by which `measured.json` counts.

    Args:
        shape: of the map, (B, C, H, W).
        weight: shape of the taps, (C, 1, K, L).
    """
    b, c, h, w = shape
    return 2 * b * c * h * w * weight[2] * weight[3]


def pointwise_operations(shape: Sequence[int], weight: Sequence[int]) -> int:
    """Of the forward pass: the size by which `measured.json` counts.

    Args:
        shape: of the map, (B, C, H, W).
        weight: shape of the matrix, (D, C, 1, 1).
    """
    b, c, h, w = shape
    return 2 * b * c * h * w * weight[0]


@torch.library.custom_op("attnzoo::depthwise_conv", mutates_args=())
def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """As the public function; the result is in channels_last."""
    from .triton import depthwise_forward

    # A compiled graph leaves sizes free, which nobody checked yet.
    check_depthwise(x, weight, bias, dilation)
    return depthwise_forward(x, weight, bias, reach(x, dilation))


@depthwise_conv.register_fake
def _(x, weight, bias, dilation):
    return _channels_last(x)


@torch.library.custom_op("attnzoo::depthwise_conv_backward", mutates_args=())
def _depthwise_backward(grad: Tensor, x: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    """Gradients of map and weight."""
    from .triton import depthwise_backward

    return depthwise_backward(grad, x, weight, reach(x, dilation))


@_depthwise_backward.register_fake
def _(grad, x, weight, dilation):
    return _channels_last(x), torch.empty_like(weight, memory_format=torch.contiguous_format)


def _save_depthwise(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.dilation = inputs
    ctx.save_for_backward(x, weight, bias)


def _depthwise_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    if _derivatives.backward_is_differentiated(grad):

        def definition(x, weight, bias):
            return naive.depthwise_conv(x, weight, bias, ctx.dilation)

        return *_derivatives.gradients(definition, (x, weight, bias), ctx.needs_input_grad[:3], grad), None
    grad_x, grad_weight = _depthwise_backward(grad, x, weight, ctx.dilation)
    return grad_x, grad_weight, _sum(grad) if ctx.needs_input_grad[2] else None, None


depthwise_conv.register_autograd(_depthwise_gradients, setup_context=_save_depthwise)


@torch.library.custom_op("attnzoo::gated_pointwise_conv", mutates_args=())
def gated_pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor) -> Tensor:
    """`gate * pointwise_conv(x, weight, bias)`, in channels_last; the gate may be of another dtype than the rest."""
    from .triton_pointwise import gated_pointwise_forward

    # A compiled graph leaves sizes free, which nobody checked yet.
    check_pointwise(x, weight, bias, gate)
    return gated_pointwise_forward(x, weight, bias, gate)


@gated_pointwise_conv.register_fake
def _(x, weight, bias, gate):
    return _channels_last(gate).to(torch.promote_types(x.dtype, gate.dtype))


@torch.library.custom_op("attnzoo::gated_pointwise_conv_backward", mutates_args=())
def _gated_backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the ungated product, of the gate, and of the bias: the last of no number where there is none."""
    from .triton_pointwise import gated_pointwise_backward

    return gated_pointwise_backward(grad, x, weight, bias, gate)


@_gated_backward.register_fake
def _(grad, x, weight, bias, gate):
    grad_gate = _channels_last(gate)
    return torch.empty_like(grad_gate, dtype=x.dtype), grad_gate, weight.new_empty(0 if bias is None else bias.shape[0])


def _save_gated(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gated_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, gate = ctx.saved_tensors
    if _derivatives.backward_is_differentiated(grad):
        needed = ctx.needs_input_grad
        return tuple(_derivatives.gradients(naive.pointwise_conv, (x, weight, bias, gate), needed, grad))
    inner, grad_gate, grad_bias = _gated_backward(grad, x, weight, bias, gate)
    inner = inner.permute(0, 2, 3, 1)
    grad_x = (inner @ weight.flatten(1)).permute(0, 3, 1, 2)
    grad_weight = (inner.flatten(0, 2).t() @ x.permute(0, 2, 3, 1).flatten(0, 2)).view(weight.shape)
    return grad_x, grad_weight, None if bias is None else grad_bias, grad_gate


gated_pointwise_conv.register_autograd(_gated_gradients, setup_context=_save_gated)


def _channels_last(x: Tensor) -> Tensor:
    return torch.empty_like(x.permute(0, 2, 3, 1), memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


def _sum(grad: Tensor) -> Tensor:
    """(B, C, H, W) -> (C,), added up in float32."""
    return grad.sum((0, 2, 3), dtype=torch.float32).to(grad.dtype)
