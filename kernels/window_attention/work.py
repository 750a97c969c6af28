"""The least work of window attention."""

from collections.abc import Sequence

import torch

from .._work import Work


def _pairs(size: int, window: int, shift: int, overlap: int) -> int:
    """Pairs of query and key along an axis that see each other; keys beyond the border are known to be zero."""
    if shift > 0:
        # The window that wraps falls into two.
        return (size // window - 1) * window**2 + shift**2 + (window - shift) ** 2
    half = overlap // 2
    return sum(window * (min(start + window + half, size) - max(start - half, 0)) for start in range(0, size, window))


def _attention(
    shape: tuple[int, int, int, int],
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    overlap: int,
    biased: bool,
    dtype: torch.dtype,
    maps: int,
    tables: int,
    products: int,
) -> Work:
    """Moves so many maps and tables and the log-sum-exp, and multiplies all queries with their keys so many times."""
    b, height, width, c = shape
    pairs = b * _pairs(height, window[0], shift[0], overlap) * _pairs(width, window[1], shift[1], overlap)
    table = num_heads * (2 * window[0] - 1 + overlap) * (2 * window[1] - 1 + overlap) if biased else 0
    return Work(
        bytes=(maps * b * height * width * c + tables * table) * dtype.itemsize + b * height * width * num_heads * 4,
        flops=2 * products * pairs * c,
    )


def forward(
    shape: tuple[int, int, int, int],
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    overlap: int,
    biased: bool,
    dtype: torch.dtype,
) -> Work:
    """q, k, v and the bias table in, the result and the log-sum-exp out; scores and result are products.

    Args:
        shape: of q, (B, H, W, C).
        num_heads: divides C.
        window: sides of the windows of queries, pixels.
        shift: of the windows, pixels.
        overlap: pixels by which windows of keys are larger.
        biased: with a bias table.
        dtype: of q and of the table.
    """
    return _attention(shape, num_heads, window, shift, overlap, biased, dtype, maps=4, tables=1, products=2)


def backward(
    shape: tuple[int, int, int, int],
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    overlap: int,
    biased: bool,
    dtype: torch.dtype,
) -> Work:
    """q, k, v, the result, its gradient, the log-sum-exp and the bias table in, four gradients out.

    Five products: the scores again, the gradients of the weights, and those of v, q and k. Arguments as of `forward`.
    """
    return _attention(shape, num_heads, window, shift, overlap, biased, dtype, maps=8, tables=2, products=5)


def operations(shape: Sequence[int], window: tuple[int, int], overlap: int) -> int:
    """Of the forward pass, as if no border cut any window: the size by which `measured.json` counts.

    Args:
        shape: of q, (B, H, W, C).
        window: sides of the windows of queries, pixels.
        overlap: pixels by which windows of keys are larger.
    """
    b, height, width, c = shape
    return 4 * b * height * width * c * (window[0] + overlap) * (window[1] + overlap)
