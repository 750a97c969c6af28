"""Depth-wise convolution and gated point-wise convolution by Triton as PyTorch operators."""

from typing import Any

import torch
from torch import Tensor

# Patches lie in registers, so that larger kernels cost time alone; these are the ones that are tested.
MAX_KERNEL = 31


@torch.library.custom_op("attnzoo::depthwise_conv", mutates_args=())
def depthwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    """As the public function; the result is in channels_last."""
    from .triton import depthwise_forward

    return depthwise_forward(x, weight, bias, dilation)


@depthwise_conv.register_fake
def _(x, weight, bias, dilation):
    return _channels_last(x)


@torch.library.custom_op("attnzoo::depthwise_conv_backward", mutates_args=())
def _depthwise_backward(grad: Tensor, x: Tensor, weight: Tensor, dilation: int) -> tuple[Tensor, Tensor]:
    """Gradients of map and weight."""
    from .triton import depthwise_backward

    return depthwise_backward(grad, x, weight, dilation)


@_depthwise_backward.register_fake
def _(grad, x, weight, dilation):
    return _channels_last(x), torch.empty_like(weight, memory_format=torch.contiguous_format)


def _save_depthwise(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.dilation = inputs
    ctx.save_for_backward(x, weight)


def _depthwise_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    grad_x, grad_weight = _depthwise_backward(grad, x, weight, ctx.dilation)
    return grad_x, grad_weight, _sum(grad) if ctx.needs_input_grad[2] else None, None


depthwise_conv.register_autograd(_depthwise_gradients, setup_context=_save_depthwise)


@torch.library.custom_op("attnzoo::gated_pointwise_conv", mutates_args=())
def gated_pointwise_conv(x: Tensor, weight: Tensor, bias: Tensor | None, gate: Tensor) -> Tensor:
    """`gate * pointwise_conv(x, weight, bias)`, in channels_last; the gate may be of another dtype than the rest."""
    from .triton import gated_pointwise_forward

    return gated_pointwise_forward(x, weight, bias, gate)


@gated_pointwise_conv.register_fake
def _(x, weight, bias, gate):
    return _channels_last(gate).to(torch.promote_types(x.dtype, gate.dtype))


def _save_gated(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gated_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The ungated product is not kept: the gradient of the gate computes it again, gated by `grad`."""
    x, weight, bias, gate = ctx.saved_tensors
    inner = (grad * gate).to(x.dtype).permute(0, 2, 3, 1)
    grad_x = (inner @ weight.flatten(1)).permute(0, 3, 1, 2)
    grad_weight = (inner.flatten(0, 2).t() @ x.permute(0, 2, 3, 1).flatten(0, 2)).view(weight.shape)
    grad_bias = _sum(inner.permute(0, 3, 1, 2)) if ctx.needs_input_grad[2] else None
    return grad_x, grad_weight, grad_bias, gated_pointwise_conv(x, weight, bias, grad).to(gate.dtype)


gated_pointwise_conv.register_autograd(_gated_gradients, setup_context=_save_gated)


def _channels_last(x: Tensor) -> Tensor:
    return torch.empty_like(x.permute(0, 2, 3, 1), memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


def _sum(grad: Tensor) -> Tensor:
    """(B, C, H, W) -> (C,), added up in float32."""
    return grad.sum((0, 2, 3), dtype=torch.float32).to(grad.dtype)
