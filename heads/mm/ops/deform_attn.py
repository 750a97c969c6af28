"""Multi-scale deformable attention on attnzoo's `deformable_attention`."""

from __future__ import annotations

import torch
from torch import Tensor

from ....kernels.deformable_attention import deformable_attention
from ._checks import check_gradients, check_tensors

__all__ = ["OPERATORS", "ms_deform_attn_backward", "ms_deform_attn_forward"]


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention; see `attnzoo.kernels.deformable_attention`. `im2col_step` is unused."""
    check_tensors(
        "ms_deform_attn_forward",
        value=(value, "B K M C"),
        sampling_locations=(sampling_locations, "B Q M L P 2"),
        attention_weights=(attention_weights, "B Q M L P"),
    )
    return deformable_attention(
        value, value_spatial_shapes, value_level_start_index, sampling_locations, attention_weights
    )


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Writes the gradients of `ms_deform_attn_forward` to the last three tensors; `im2col_step` is unused."""
    places, weights = sampling_locations, attention_weights
    check_gradients(
        "ms_deform_attn_backward",
        grad_value=(grad_value, value),
        grad_sampling_loc=(grad_sampling_loc, places),
        grad_attn_weight=(grad_attn_weight, weights),
    )
    leaves = [tensor.detach().requires_grad_() for tensor in (value, places, weights)]
    with torch.enable_grad():
        output = deformable_attention(leaves[0], value_spatial_shapes, value_level_start_index, leaves[1], leaves[2])
    check_tensors("ms_deform_attn_backward", grad_output=(grad_output, output.shape))
    grads = torch.autograd.grad(output, leaves, grad_output)
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)


OPERATORS = (ms_deform_attn_forward, ms_deform_attn_backward)
