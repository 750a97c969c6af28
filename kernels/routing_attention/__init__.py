"""Bi-level routing attention: each region of queries attends to the tokens of the regions that it matches best."""

import torch
import torch.nn.functional as F

from .. import _dispatch
from . import chunked, operator
from .reference import routing_attention as _definition

__all__ = ["routing_attention"]

# Beyond it no tiles were found that keep all sums of float32 in registers.
_MAX_HEAD_DIM = 64


def routing_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
    backend: str = "auto",
) -> torch.Tensor:
    """Attention of each query region over the tokens of its `topk` best key regions; routing is shared by the heads.

    Where `topk` is all of them this is `scaled_dot_product_attention` over the map, whatever the backend.

    Regions are ceil(H / rows) x ceil(W / columns) pixels. Where that does not come out even, the last ones are smaller
    or empty: what lies off the map has no part in means, softmax and output, and an empty region is chosen only where
    no other is left, to no effect.

    Source: Zhu et al., BiFormer, https://arxiv.org/abs/2303.08810, equations 3 to 7.

    Args:
        q: (B, H, W, C), floating point, any strides. In an exported graph, H and W that are free must be multiples of
            `regions`.
        k: like `q`.
        v: like `q`.
        num_heads: divides C.
        regions: (rows, columns) of the region grid.
        topk: regions that a query region attends to, 1 to rows * columns.
        scale: factor of the dot products. The published models use C ** -0.5 over all heads together.
        backend: "auto", "triton" or "torch"; see `attnzoo.kernels`.

    Returns:
        (B, H, W, C), dtype of `q`.

    Raises:
        ValueError: where shapes, heads, regions and `topk` do not fit each other, or for an unknown backend.
        RuntimeError: where Triton is asked for and cannot run.
    """
    if not torch.jit.is_scripting():
        _check(q, k, v, num_heads, regions, topk)
        reason = _why_not(q, k, v, num_heads, regions, topk, scale)
        triton = _dispatch.use_triton("routing_attention", backend, q.device, reason)
        if triton and topk < regions[0] * regions[1]:
            return operator.forward(q, k, v, num_heads, list(regions), topk, scale)[0]
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
    if min(rows, cols) < 1:
        raise ValueError(f"regions must be at least 1 either way, got {(rows, cols)}")
    if num_heads < 1 or q.shape[3] % num_heads != 0:
        raise ValueError(f"num_heads must divide C = {q.shape[3]}, got {num_heads}")
    if not 1 <= topk <= rows * cols:
        raise ValueError(f"topk must be 1 to {rows * cols} for regions {(rows, cols)}, got {topk}")


def _why_not(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
) -> str | None:
    if q.shape[3] // num_heads > _MAX_HEAD_DIM:
        return f"head dimension is {q.shape[3] // num_heads}, it takes up to {_MAX_HEAD_DIM}"
    return _dispatch.why_not(q, k, v)


_dispatch.register("routing_attention", _why_not)
