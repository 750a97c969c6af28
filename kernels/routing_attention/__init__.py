"""Bi-level routing attention: each region of queries attends to the tokens of the regions that it matches best."""

import torch
import torch.nn.functional as F

from . import chunked
from .reference import route
from .reference import routing_attention as _definition

__all__ = ["route", "routing_attention"]


def routing_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
) -> torch.Tensor:
    """Attention of each query region over the tokens of its `topk` best key regions; routing is shared by the heads.

    Source: Zhu et al., BiFormer, https://arxiv.org/abs/2303.08810, equations 3 to 7.

    Args:
        q: (B, H, W, C), floating point, any strides.
        k: like `q`.
        v: like `q`.
        num_heads: divides C.
        regions: (rows, columns) of the region grid; H must be a multiple of rows and W of columns.
        topk: regions that a query region attends to, 1 to rows * columns.
        scale: factor of the dot products. The published models use C ** -0.5 over all heads together.

    Returns:
        (B, H, W, C), dtype of `q`.

    Raises:
        ValueError: where H, W, C or `topk` do not fit `regions` and `num_heads`.
    """
    if not torch.jit.is_scripting():
        _check(q, k, v, num_heads, regions, topk)
    if topk == regions[0] * regions[1]:
        return _attend_to_all(q, k, v, num_heads, scale)
    if torch.jit.is_scripting():
        return _definition(q, k, v, num_heads, regions, topk, scale)
    else:
        # Compilers and exporters get one plain graph.
        if torch.compiler.is_compiling() or q.device.type != "cpu":
            return _definition(q, k, v, num_heads, regions, topk, scale)
        return chunked.routing_attention(q, k, v, num_heads, regions, topk, scale)


def _attend_to_all(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, scale: float) -> torch.Tensor:
    """(B, H, W, C) -> the same; regions do not matter where all are chosen."""
    b, h, w, c = q.shape
    q, k, v = [x.reshape(b, h * w, num_heads, c // num_heads).transpose(1, 2) for x in (q, k, v)]
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).reshape(b, h, w, c)


def _check(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, regions: tuple[int, int], topk: int
) -> None:
    if q.dim() != 4 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(f"q, k and v must be (B, H, W, C) alike, got {q.shape}, {k.shape} and {v.shape}")
    rows, cols = regions
    if q.shape[3] % num_heads != 0:
        raise ValueError(f"num_heads must divide C = {q.shape[3]}, got {num_heads}")
    if not 1 <= topk <= rows * cols:
        raise ValueError(f"topk must be 1 to {rows * cols} for regions {(rows, cols)}, got {topk}")
    # Sizes of a graph that is being traced must stay symbolic: a check would bind them to the example's.
    if not torch.compiler.is_compiling() and (q.shape[1] % rows != 0 or q.shape[2] % cols != 0):
        raise ValueError(f"H and W must be multiples of regions {regions}, got {(q.shape[1], q.shape[2])}")
