"""Bi-level routing attention: each region of queries attends to the tokens of the regions that it matches best."""

import torch

from .. import _derivatives, _dispatch
from ..tracing import leaves_sizes_free, untraced
from . import operator
from .cpu import attend_in_chunks, attend_in_one
from .operator import check, check_packed, operations

__all__ = ["routing_attention", "routing_attention_packed"]


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
) -> None:
    q, k, v = _dispatch.autocast(q, k, v)
    check(q, k, v, num_heads, regions, topk, scale)


def _why_not(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
) -> str | None:
    q, k, v = _dispatch.autocast(q, k, v)
    return operator.why_not(q, k, v, num_heads, regions, topk, scale)


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
        q: (B, H, W, C), floating point, any strides; B may be 0. In an exported graph, H and W that are free must be
            multiples of `regions`.
        k: like `q`.
        v: like `q`.
        num_heads: divides C.
        regions: (rows, columns) of the region grid.
        topk: regions that a query region attends to, 1 to rows * columns.
        scale: factor of the dot products, finite. The published models use C ** -0.5 over all heads together.
        backend: "auto", "triton" or "torch"; see `attnzoo.kernels`.

    Returns:
        (B, H, W, C), dtype of `q`; under autocast q, k and v are taken in its dtype first.

    Raises:
        TypeError: for what is no tensor of floating-point numbers, no integer or no number.
        ValueError: where shapes, dtypes, devices, heads, regions and `topk` do not fit each other, or for an unknown
            backend.
        RuntimeError: where Triton is asked for and cannot run.
    """
    if torch.jit.is_scripting():
        check(q, k, v, num_heads, regions, topk, scale)
    else:
        q, k, v = _dispatch.autocast(q, k, v)
        untraced(check, q, k, v, num_heads, regions, topk, scale)
        reason = untraced(operator.why_not, q, k, v, num_heads, regions, topk, scale)
        triton = _dispatch.use_triton(
            "routing_attention", backend, (q, k, v), reason, operations(q.shape, regions, topk)
        )
        if not leaves_sizes_free() and q.numel() == 0:
            return _derivatives.nothing(q.shape, q, k, v)
        if triton and topk < regions[0] * regions[1]:
            return operator.forward(q, k, v, num_heads, list(regions), topk, scale)[0]
    if topk == regions[0] * regions[1]:
        return _attend_to_all(q, k, v, num_heads, scale)
    if torch.jit.is_scripting():
        return attend_in_one(q, k, v, num_heads, regions, topk, scale)
    else:
        # Compilers, exporters and transforms get one plain graph.
        if torch.compiler.is_compiling() or leaves_sizes_free() or _derivatives.is_transformed():
            return attend_in_one(q, k, v, num_heads, regions, topk, scale)
        if q.device.type != "cpu":
            return attend_in_one(q, k, v, num_heads, regions, topk, scale)
        return attend_in_chunks(q, k, v, num_heads, regions, topk, scale)


def _attend_to_all(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, scale: float) -> torch.Tensor:
    """(B, H, W, C) -> the same; regions do not matter where all are chosen."""
    b, h, w, c = q.shape
    q, k, v = [x.reshape(b, h * w, num_heads, c // num_heads).transpose(1, 2) for x in (q, k, v)]
    out = _derivatives.attend(q, k, v, None, scale).transpose(1, 2).reshape(b, h, w, c)
    if torch.jit.is_scripting():
        return out
    else:
        # What `attend` gives must not be changed in place, what an operator gives may.
        return out.clone() if out.requires_grad and not torch.compiler.is_compiling() else out


def _check_packed(qkv: torch.Tensor, num_heads: int, regions: tuple[int, int], topk: int, scale: float) -> None:
    (qkv,) = _dispatch.autocast(qkv)
    check_packed(qkv, num_heads, regions, topk, scale)


def _why_not_packed(qkv: torch.Tensor, num_heads: int, regions: tuple[int, int], topk: int, scale: float) -> str | None:
    (qkv,) = _dispatch.autocast(qkv)
    return operator.why_not_packed(qkv, num_heads, regions, topk, scale)


def routing_attention_packed(
    qkv: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
    backend: str = "auto",
) -> torch.Tensor:
    """`routing_attention` of one map of queries, keys and values, as a linear layer gives them.

    Triton's kernels read it where it lies and write its gradient in one piece, of which autograd would make three maps
    and concatenate them.

    Args:
        qkv: (B, H, W, 3 * C), floating point: the channels of q, those of k, those of v.
        num_heads: divides C.
        regions: (rows, columns) of the region grid.
        topk: regions that a query region attends to, 1 to rows * columns.
        scale: factor of the dot products, finite.
        backend: "auto", "triton" or "torch"; see `attnzoo.kernels`.

    Returns:
        (B, H, W, C), as `routing_attention(*qkv.chunk(3, -1), ...)`.

    Raises:
        TypeError: for what is no tensor of floating-point numbers, no integer or no number.
        ValueError: where the shape, heads, regions and `topk` do not fit each other, or for an unknown backend.
        RuntimeError: where Triton is asked for and cannot run.
    """
    if torch.jit.is_scripting():
        check_packed(qkv, num_heads, regions, topk, scale)
    else:
        (qkv,) = _dispatch.autocast(qkv)
        untraced(check_packed, qkv, num_heads, regions, topk, scale)
        reason = untraced(operator.why_not_packed, qkv, num_heads, regions, topk, scale)
        b, height, width, channels = qkv.shape
        flops = operations((b, height, width, channels // 3), regions, topk)
        triton = _dispatch.use_triton("routing_attention_packed", backend, (qkv,), reason, flops)
        if triton and qkv.numel() > 0 and topk < regions[0] * regions[1]:
            return operator.packed_forward(qkv, num_heads, list(regions), topk, scale)[0]
    q, k, v = qkv.chunk(3, dim=-1)
    return routing_attention(q, k, v, num_heads, regions, topk, scale, backend)


_dispatch.register("routing_attention", routing_attention, _check, _why_not)
_dispatch.register("routing_attention_packed", routing_attention_packed, _check_packed, _why_not_packed)
