"""The least work of neighborhood attention."""

from collections.abc import Sequence

import torch

from .._work import Work


def _seen(size: int, kernel_size: int, dilation: int) -> int:
    """Pairs of query and key along an axis: a window, or all of a shorter residue class."""
    lengths = [(size - 1 - residue) // dilation + 1 for residue in range(min(dilation, size))]
    return sum(length * min(length, kernel_size) for length in lengths)


def _attention(
    shape: tuple[int, int, int, int],
    num_heads: int,
    kernel_size: int,
    dilation: int,
    dtype: torch.dtype,
    maps: int,
    tables: int,
    products: int,
) -> Work:
    """Moves so many maps and tables and the log-sum-exp, and multiplies all queries with their keys so many times."""
    b, height, width, c = shape
    pairs = b * _seen(height, kernel_size, dilation) * _seen(width, kernel_size, dilation)
    table = num_heads * (2 * kernel_size - 1) ** 2
    return Work(
        bytes=(maps * b * height * width * c + tables * table) * dtype.itemsize + b * num_heads * height * width * 4,
        flops=2 * products * pairs * c,
    )


def forward(
    shape: tuple[int, int, int, int], num_heads: int, kernel_size: int, dilation: int, dtype: torch.dtype
) -> Work:
    """q, k, v and the bias table in, the result out; scores and result are products.

    Args:
        shape: of q, (B, H, W, C).
        num_heads: divides C.
        kernel_size: odd, 3 to 15.
        dilation: at least 1.
        dtype: of q and of the table.
    """
    return _attention(shape, num_heads, kernel_size, dilation, dtype, maps=4, tables=1, products=2)


def backward(
    shape: tuple[int, int, int, int], num_heads: int, kernel_size: int, dilation: int, dtype: torch.dtype
) -> Work:
    """q, k, v, the result, its gradient and the bias table in, four gradients out.

    Five products: the scores again, the gradients of the weights, and those of v, q and k. Arguments as of `forward`.
    """
    return _attention(shape, num_heads, kernel_size, dilation, dtype, maps=8, tables=2, products=5)


def operations(shape: Sequence[int], kernel_size: int) -> int:
    """Of the forward pass, as if every window were whole: the size by which `measured.json` counts.

    Args:
        shape: of q, (B, H, W, C).
        kernel_size: odd, 3 to 15.
    """
    b, height, width, c = shape
    return 4 * b * height * width * c * kernel_size**2
