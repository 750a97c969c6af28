"""The least work of bi-level routing attention, where `topk` is less than all and the regions come out even."""

from collections.abc import Sequence

import torch

from .._work import Work

_INDEX = 4  # bytes


def routing(shape: tuple[int, int, int, int], regions: tuple[int, int], topk: int, dtype: torch.dtype) -> Work:
    """Means of queries and keys, their products, the choice.

    Args:
        shape: of q, (B, H, W, C).
        regions: (rows, columns).
        topk: regions chosen by each.
        dtype: of q.
    """
    b, h, w, c = shape
    count = regions[0] * regions[1]
    return Work(
        bytes=2 * b * h * w * c * dtype.itemsize + b * count * topk * _INDEX,
        flops=2 * b * h * w * c + 2 * b * count * count * c,
    )


def _attention(
    shape: tuple[int, int, int, int],
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    dtype: torch.dtype,
    maps: int,
    products: int,
) -> Work:
    """Moves so many maps, the log-sum-exp and the index, and multiplies all queries with their keys so many times."""
    b, h, w, c = shape
    count = regions[0] * regions[1]
    keys = topk * -(-h // regions[0]) * -(-w // regions[1])
    return Work(
        bytes=maps * b * h * w * c * dtype.itemsize + b * num_heads * h * w * 4 + b * count * topk * _INDEX,
        flops=2 * products * b * h * w * keys * c,
    )


def forward(
    shape: tuple[int, int, int, int], num_heads: int, regions: tuple[int, int], topk: int, dtype: torch.dtype
) -> Work:
    """Routing, then attention: q, k and v in, the result out; scores and result are products.

    Args:
        shape: of q, (B, H, W, C).
        num_heads: divides C.
        regions: (rows, columns).
        topk: regions chosen by each.
        dtype: of q.
    """
    attention = _attention(shape, num_heads, regions, topk, dtype, maps=4, products=2)
    return routing(shape, regions, topk, dtype) + attention


def inverted_index(batch: int, regions: tuple[int, int], topk: int) -> Work:
    """The lists of regions that chose each region, from the index: every entry is read and written once."""
    count = regions[0] * regions[1]
    return Work(bytes=(2 * batch * count * topk + batch * count) * _INDEX, flops=0)


def backward(
    shape: tuple[int, int, int, int], num_heads: int, regions: tuple[int, int], topk: int, dtype: torch.dtype
) -> Work:
    """The inverted index, then q, k, v, the result and its gradient in, three gradients out.

    Five products: the scores again, the gradients of the weights, and those of v, q and k. Arguments as of `forward`.
    """
    attention = _attention(shape, num_heads, regions, topk, dtype, maps=8, products=5)
    return inverted_index(shape[0], regions, topk) + attention


def operations(shape: Sequence[int], regions: tuple[int, int], topk: int) -> int:
    """Of the forward pass without the routing: the size by which `measured.json` counts. Arguments as of `routing`."""
    b, h, w, c = shape
    keys = topk * -(-h // regions[0]) * -(-w // regions[1])
    return 4 * b * h * w * c * keys
