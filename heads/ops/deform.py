"""Deformable convolutions and attention: torchvision's `deform_conv2d` and attnzoo's `deformable_attention`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from ...kernels.deformable_attention import deformable_attention
from ._dtypes import widen

__all__ = [
    "OPERATORS",
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
    "ms_deform_attn_backward",
    "ms_deform_attn_forward",
]


def _as_output(points: Tensor, size: tuple[int, ...], name: str) -> Tensor:
    """Returns the part of `points` `(B, C, H', W')` that the compiled operator reads for an output of `size`.

    It walks each image's memory with the output's strides, whatever the map's own size: of a larger map (mmdet's DyHead
    passes them) it reads the first `C * H * W` numbers.
    """
    if points.shape[2:] == size:
        return points
    batch, channels = points.shape[:2]
    needed = channels * size[0] * size[1]
    if points[0].numel() < needed:
        raise ValueError(f"{name} has size {tuple(points.shape[2:])}, smaller than the output, {size}")
    return points.flatten(1)[:, :needed].reshape(batch, channels, *size)


def _add_prefix(total: Tensor, part: Tensor) -> None:
    """Adds `part`, a gradient with respect to what `_as_output` returned, to `total`, that of the whole map."""
    rest = total[0].numel() - part[0].numel()
    total += F.pad(part.flatten(1), (0, rest)).view(total.shape)


def _forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    bias: Tensor | None,
    output: Tensor,
    geometry: tuple[int, ...],
) -> None:
    """Writes the convolution to `output`; `geometry` as torchvision has it, stride to offset groups."""
    size = tuple(output.shape[2:])
    offset = _as_output(offset, size, "offset")
    modulation = offset.new_zeros(len(input), 1) if mask is None else _as_output(mask, size, "mask")
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    tensors = widen(input, weight, offset, modulation, bias)
    output.copy_(torch.ops.torchvision.deform_conv2d(*tensors, *geometry, mask is not None))


def _backward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    grad_output: Tensor,
    geometry: tuple[int, ...],
) -> tuple[Tensor, ...]:
    """Returns the gradients with respect to input, weight, offset (as read), mask (as read) and bias."""
    size = tuple(grad_output.shape[2:])
    offset = _as_output(offset, size, "offset")
    modulation = offset.new_zeros(len(input), 1) if mask is None else _as_output(mask, size, "mask")
    tensors = widen(grad_output, input, weight, offset, modulation, weight.new_zeros(len(weight)))
    grads = list(torch.ops.torchvision._deform_conv2d_backward(*tensors, *geometry, mask is not None))
    grads[2] = grads[2].masked_fill(_on_far_border(tensors[3], weight.shape[2:], geometry), 0)
    return tuple(grads)


def _on_far_border(offset: Tensor, kernel: Sequence[int], geometry: tuple[int, ...]) -> Tensor:
    """Whether a tap's row or column is exactly -1, one pixel outside the map, where its samples begin to be zero.

    There the derivative by the offset has a step: mmcv takes the outer value, 0, torchvision the inner one. It matters,
    because offsets start at zero, which puts the border taps of a padded convolution on this line.

    Args:
        offset: `(B, 2 * G * kH * kW, H', W')`.
        kernel: `(kH, kW)`.
        geometry: As torchvision has it: stride, padding and dilation, each `(y, x)`, first.

    Returns:
        bool, as `offset`.
    """
    height, width = offset.shape[2:]
    stride, padding, dilation = geometry[0:2], geometry[2:4], geometry[4:6]
    tap_y, tap_x, y, x = (torch.arange(length, device=offset.device) for length in (*kernel, height, width))
    y = (y * stride[0] - padding[0])[:, None] + (tap_y * dilation[0])[:, None, None, None]
    x = (x * stride[1] - padding[1]) + (tap_x * dilation[1])[:, None, None]
    places = torch.stack(torch.broadcast_tensors(y, x), 2)
    return (offset.reshape(len(offset), -1, *places.shape) + places == -1).view(offset.shape)


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Deformable convolution (Dai et al., "Deformable Convolutional Networks", ICCV 2017).

    Args:
        input: `(B, C, H, W)` float.
        weight: `(O, C / group, kH, kW)` float.
        offset: `(B, 2 * deformable_group * kH * kW, H', W')` float, `(y, x)` per tap in pixels.
        output: `(B, O, H', W')`, overwritten.
        columns: Scratch of the compiled operator, unused, like `ones` and `im2col_step`.
        ones: Unused.
        kW: Width of the kernel, known from `weight`; likewise `kH`.
        kH: Height of the kernel.
        dW: Stride; likewise `dH`.
        dH: Stride.
        padW: Padding; likewise `padH`.
        padH: Padding.
        dilationW: Dilation; likewise `dilationH`.
        dilationH: Dilation.
        group: Groups of the convolution.
        deformable_group: Groups of input channels with offsets of their own.
        im2col_step: Unused.

    Raises:
        ValueError: If the offset map is smaller than the output.
    """
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    _forward(input, weight, offset, None, None, output, geometry)


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Adds the gradients of `deform_conv_forward` to `gradInput` and `gradOffset`; arguments as there."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grad_input, _, grad_offset, _, _ = _backward(input, weight, offset, None, gradOutput, geometry)
    gradInput += grad_input
    _add_prefix(gradOffset, grad_offset)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Adds `scale` times the gradient of `deform_conv_forward` to `gradWeight`; arguments as there."""
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    grad_weight = _backward(input, torch.zeros_like(gradWeight), offset, None, gradOutput, geometry)[1]
    gradWeight += scale * grad_weight


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Deformable convolution with modulated taps (Zhu et al., "Deformable ConvNets v2", CVPR 2019).

    Args:
        input: `(B, C, H, W)` float.
        weight: `(O, C / group, kernel_h, kernel_w)` float.
        bias: `(O,)` float, read if `with_bias`.
        ones: Scratch of the compiled operator, unused, like `columns`.
        offset: `(B, 2 * deformable_group * kernel_h * kernel_w, H', W')` float, `(y, x)` per tap in pixels.
        mask: `(B, deformable_group * kernel_h * kernel_w, H', W')` float, factor per tap.
        output: `(B, O, H', W')`, overwritten.
        columns: Unused.
        kernel_h: Height of the kernel, known from `weight`; likewise `kernel_w`.
        kernel_w: Width of the kernel.
        stride_h: Stride; likewise `stride_w`.
        stride_w: Stride.
        pad_h: Padding; likewise `pad_w`.
        pad_w: Padding.
        dilation_h: Dilation; likewise `dilation_w`.
        dilation_w: Dilation.
        group: Groups of the convolution.
        deformable_group: Groups of input channels with offsets of their own.
        with_bias: Whether to add `bias`.

    Raises:
        ValueError: If the offset map or the mask is smaller than the output.
    """
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    _forward(input, weight, offset, mask, bias if with_bias else None, output, geometry)


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Adds the gradients of `modulated_deform_conv_forward` to the five `grad_` tensors; arguments as there."""
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    grads = _backward(input, weight, offset, mask, grad_output, geometry)
    grad_input += grads[0]
    grad_weight += grads[1]
    _add_prefix(grad_offset, grads[2])
    _add_prefix(grad_mask, grads[3])
    if with_bias:
        grad_bias += grads[4]


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Multi-scale deformable attention; see `attnzoo.kernels.deformable_attention`. `im2col_step` is unused."""
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
    leaves = [tensor.detach().requires_grad_() for tensor in (value, sampling_locations, attention_weights)]
    with torch.enable_grad():
        output = deformable_attention(leaves[0], value_spatial_shapes, value_level_start_index, leaves[1], leaves[2])
    grads = torch.autograd.grad(output, leaves, grad_output)
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads, strict=True):
        target.copy_(grad)


OPERATORS = (
    deform_conv_forward,
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    modulated_deform_conv_forward,
    modulated_deform_conv_backward,
    ms_deform_attn_forward,
    ms_deform_attn_backward,
)
