"""The least work of depth-wise convolution and of large-kernel attention."""

from collections.abc import Sequence

import torch

from .._work import Work


def depthwise_forward(shape: tuple[int, int, int, int], kernel: tuple[int, int], dtype: torch.dtype) -> Work:
    """Map, taps and bias in, map out; a multiply-add for each tap.

    Args:
        shape: of the map, (B, C, H, W).
        kernel: its sides.
        dtype: of map, taps and bias.
    """
    b, c, h, w = shape
    taps = kernel[0] * kernel[1]
    return Work(bytes=(2 * b * c * h * w + c * (taps + 1)) * dtype.itemsize, flops=2 * b * c * h * w * taps)


def depthwise_backward(shape: tuple[int, int, int, int], kernel: tuple[int, int], dtype: torch.dtype) -> Work:
    """Gradient, map and taps in, gradients of map, taps and bias out: two convolutions. Arguments as of the forward."""
    b, c, h, w = shape
    taps = kernel[0] * kernel[1]
    return Work(bytes=(3 * b * c * h * w + c * (2 * taps + 1)) * dtype.itemsize, flops=4 * b * c * h * w * taps)


def gated_forward(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Work:
    """Map, gate, matrix and bias in, map out: a product of matrices. Arguments as of `depthwise_forward`."""
    b, c, h, w = shape
    return Work(bytes=(3 * b * c * h * w + c * c + c) * dtype.itemsize, flops=2 * b * c * c * h * w)


def gated_backward(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Work:
    """Gradient, map, gate and matrix in, gradients of map, gate, matrix and bias out.

    Three products: the gate's gradient, which is the forward's product again, the map's and the matrix's. Arguments as
    of `depthwise_forward`.
    """
    b, c, h, w = shape
    return Work(bytes=(5 * b * c * h * w + 2 * c * c + c) * dtype.itemsize, flops=6 * b * c * c * h * w)


def forward(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Work:
    """Of VAN's large-kernel attention, 5 x 5 and 7 x 7, as three kernels. Arguments as of `depthwise_forward`."""
    chain = depthwise_forward(shape, (5, 5), dtype) + depthwise_forward(shape, (7, 7), dtype)
    return chain + gated_forward(shape, dtype)


def backward(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Work:
    """Of `forward`. Arguments as of `depthwise_forward`."""
    chain = depthwise_backward(shape, (5, 5), dtype) + depthwise_backward(shape, (7, 7), dtype)
    return chain + gated_backward(shape, dtype)


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
