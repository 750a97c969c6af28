"""Deformable convolutions on torchvision's `deform_conv2d`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from ....kernels.tracing import are_sizes_free, is_exporting
from ._checks import Shape, check_gradients, check_numbers, check_tensors, check_whole
from ._dtypes import widen

__all__ = [
    "OPERATORS",
    "deform_conv_backward_input",
    "deform_conv_backward_parameters",
    "deform_conv_forward",
    "modulated_deform_conv_backward",
    "modulated_deform_conv_forward",
]


def _check(
    operator: str,
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor | None,
    output: tuple[str, Tensor],
    kernel: tuple[int, int],
    geometry: tuple[int, ...],
) -> None:
    """Check what all operators get; `output` is the map that comes out, or its gradient, by its name.

    Raises:
        TypeError: A tensor of another dtype, a number that is not whole.
        ValueError: Another shape, or a number out of its range.
    """
    if is_exporting():
        return
    names = ("stride_h", "stride_w", "pad_h", "pad_w", "dilation_h", "dilation_w", "group", "deformable_group")
    for name, value in zip(names, geometry, strict=True):
        check_whole(operator, 0 if name.startswith("pad") else 1, **{name: value})
    check_whole(operator, 1, kernel_h=kernel[0], kernel_w=kernel[1])
    groups, offset_groups = geometry[6:]
    check_tensors(operator, input=(input, "B C H W"))
    _, channels, *size = input.shape
    if not min(size):
        raise ValueError(f"{operator}: input has no pixel, {size[0]} x {size[1]}")
    if not channels or channels % groups or channels % offset_groups:
        raise ValueError(
            f"{operator}: input has {channels} channels, no multiple of group={groups} and "
            f"deformable_group={offset_groups}"
        )
    taps = offset_groups * kernel[0] * kernel[1]
    modulation: dict[str, tuple[Tensor, Shape]] = {} if mask is None else {"mask": (mask, ("B", taps, "y", "x"))}
    result = [
        (length + 2 * pad - dilation * (side - 1) - 1) // stride + 1
        for length, side, stride, pad, dilation in zip(
            size, kernel, geometry[0:2], geometry[2:4], geometry[4:6], strict=True
        )
    ]
    if min(result) < 1:
        raise ValueError(f"{operator}: the kernel {kernel} does not fit into the padded input {tuple(size)}")
    shape: Shape = ("B", "O", *result)
    check_tensors(
        operator,
        input=(input, "B C H W"),
        weight=(weight, ("O", channels // groups, *kernel)),
        **{output[0]: (output[1], shape)},
        offset=(offset, ("B", 2 * taps, "h", "w")),
        **modulation,
    )
    if len(weight) % groups:
        raise ValueError(f"{operator}: weight has {len(weight)} outputs, no multiple of group={groups}")


def _as_output(points: Tensor, size: tuple[int, ...], name: str) -> Tensor:
    """Returns the part of `points` `(B, C, H', W')` that the compiled operator reads for an output of `size`.

    It walks each image's memory with the output's strides, whatever the map's own size: of a larger map (mmdet's DyHead
    passes them) it reads the first `C * H * W` numbers.
    """
    if points.shape[2:] == size:
        return points
    batch, channels = points.shape[:2]
    needed = channels * size[0] * size[1]
    if channels * points.shape[2] * points.shape[3] < needed:
        raise ValueError(f"{name} has size {tuple(points.shape[2:])}, smaller than the output, {size}")
    return points.flatten(1)[:, :needed].reshape(batch, channels, *size)


def _add_prefix(total: Tensor, part: Tensor) -> None:
    """Adds `part`, a gradient with respect to what `_as_output` returned, to `total`, that of the whole map."""
    rest = math.prod(total.shape[1:]) - math.prod(part.shape[1:])
    total += F.pad(part.flatten(1), (0, rest)).view(total.shape)


def _finite(offset: Tensor) -> tuple[Tensor, Tensor | float]:
    """Returns offsets to compute with, and what makes a place NaN, `(B, 1, H', W')`, that has one that is not finite.

    The place of such an offset is no place in memory: torchvision would read, and may crash, where it points.
    """
    if is_exporting():
        return offset, 0.0
    return offset.nan_to_num(0, 0, 0), (offset * 0).sum(1, keepdim=True)


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
    if not are_sizes_free() and not len(input):
        return
    image, kernel, offset, modulation, bias = widen(input, weight, offset, modulation, bias)
    offset, poison = _finite(offset)
    result = torch.ops.torchvision.deform_conv2d(image, kernel, offset, modulation, bias, *geometry, mask is not None)
    output.copy_(result + poison)


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
    if not are_sizes_free() and not len(input):
        bias = weight.new_zeros(len(weight))
        return tuple(torch.zeros_like(tensor) for tensor in (input, weight, offset, modulation, bias))
    grad, *tensors = widen(grad_output, input, weight, offset, modulation, weight.new_zeros(len(weight)))
    tensors[2], poison = _finite(tensors[2])
    grads = list(torch.ops.torchvision._deform_conv2d_backward(grad + poison, *tensors, *geometry, mask is not None))
    grads[2] = grads[2].masked_fill(_on_far_border(tensors[2], weight.shape[2:], geometry), 0)
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
        TypeError: If a tensor has another dtype.
        ValueError: If shapes do not fit, a number is out of its range, or the offset map is smaller than the output.
    """
    geometry = (dH, dW, padH, padW, dilationH, dilationW, group, deformable_group)
    _check("deform_conv_forward", input, weight, offset, None, ("output", output), (kH, kW), geometry)
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
    name = "deform_conv_backward_input"
    _check(name, input, weight, offset, None, ("gradOutput", gradOutput), (kH, kW), geometry)
    check_gradients(name, gradInput=(gradInput, input), gradOffset=(gradOffset, offset))
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
    name = "deform_conv_backward_parameters"
    _check(name, input, gradWeight, offset, None, ("gradOutput", gradOutput), (kH, kW), geometry)
    check_numbers(name, -math.inf, scale=scale)
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
        TypeError: If a tensor has another dtype.
        ValueError: If shapes do not fit, a number is out of its range, or the offset map or the mask is smaller than
            the output.
    """
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group, deformable_group)
    name = "modulated_deform_conv_forward"
    _check(name, input, weight, offset, mask, ("output", output), (kernel_h, kernel_w), geometry)
    if with_bias:
        check_tensors(name, weight=(weight, "O C h w"), bias=(bias, "O"))
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
    name = "modulated_deform_conv_backward"
    _check(name, input, weight, offset, mask, ("grad_output", grad_output), (kernel_h, kernel_w), geometry)
    targets = dict(grad_input=(grad_input, input), grad_weight=(grad_weight, weight))
    targets |= dict(grad_offset=(grad_offset, offset), grad_mask=(grad_mask, mask))
    check_gradients(name, **targets)
    if with_bias:
        check_tensors(name, weight=(weight, "O C h w"), grad_bias=(grad_bias, "O"))
    grads = _backward(input, weight, offset, mask, grad_output, geometry)
    grad_input += grads[0]
    grad_weight += grads[1]
    _add_prefix(grad_offset, grads[2])
    _add_prefix(grad_mask, grads[3])
    if with_bias:
        grad_bias += grads[4]


OPERATORS = (
    deform_conv_forward,
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    modulated_deform_conv_forward,
    modulated_deform_conv_backward,
)
