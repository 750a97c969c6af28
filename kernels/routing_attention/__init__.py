"""Bi-level routing attention: each region of queries attends to the tokens of the regions that it matches best."""

import torch

from .. import _derivatives, _dispatch
from ..large_kernel_attention import depthwise_conv
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


def _check_packed(
    qkv: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
    local_weight: torch.Tensor | None = None,
    local_bias: torch.Tensor | None = None,
) -> None:
    qkv, local_weight, local_bias = _dispatch.autocast(qkv, local_weight, local_bias)
    check_packed(qkv, num_heads, regions, topk, scale, local_weight, local_bias)


def _why_not_packed(
    qkv: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
    local_weight: torch.Tensor | None = None,
    local_bias: torch.Tensor | None = None,
) -> str | None:
    qkv, local_weight, local_bias = _dispatch.autocast(qkv, local_weight, local_bias)
    return operator.why_not_packed(qkv, num_heads, regions, topk, scale, local_weight, local_bias)


def routing_attention_packed(
    qkv: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
    local_weight: torch.Tensor | None = None,
    local_bias: torch.Tensor | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """`routing_attention` of q, k and v that lie in one tensor, as a linear layer of 3 * C channels gives them.

    With `local_weight` a depth-wise convolution of v with "same" zero padding is added to it: equation 7 of the paper.
    Triton's kernels read everything where it lies; their backward pass writes one gradient, where the parts' gradients
    would be joined.

    Args:
        qkv: (B, H, W, 3 * C), q, k and v one after the other, floating point, any strides; B may be 0.
        num_heads: divides C.
        regions: (rows, columns) of the region grid, as there.
        topk: regions that a query region attends to, 1 to rows * columns.
        scale: factor of the dot products, finite.
        local_weight: (C, 1, K, L), K and L odd, or None; Triton's kernels take sides of up to 31.
        local_bias: (C,) or None; None where `local_weight` is.
        backend: "auto", "triton" or "torch"; see `attnzoo.kernels`.

    Returns:
        (B, H, W, C), `routing_attention(*qkv.chunk(3, -1), ...)` and the local term; dtype of `qkv`; under autocast all
        are taken in its dtype first.

    Raises:
        TypeError: for what is no tensor of floating-point numbers, no integer or no number.
        ValueError: where shapes, dtypes, devices, heads, regions and `topk` do not fit each other, or for an unknown
            backend.
        RuntimeError: where Triton is asked for and cannot run.
    """
    if torch.jit.is_scripting():
        check_packed(qkv, num_heads, regions, topk, scale, local_weight, local_bias)
    else:
        qkv, local_weight, local_bias = _dispatch.autocast(qkv, local_weight, local_bias)
        untraced(check_packed, qkv, num_heads, regions, topk, scale, local_weight, local_bias)
        reason = untraced(operator.why_not_packed, qkv, num_heads, regions, topk, scale, local_weight, local_bias)
        b, height, width, channels = qkv.shape
        triton = _dispatch.use_triton(
            "routing_attention_packed",
            backend,
            (qkv, local_weight, local_bias),
            reason,
            operations((b, height, width, channels // 3), regions, topk),
        )
        if triton and qkv.numel() > 0 and topk < regions[0] * regions[1]:
            return operator.packed_forward(qkv, local_weight, local_bias, num_heads, list(regions), topk, scale)[0]
    q, k, v = qkv.chunk(3, dim=-1)
    out = routing_attention(q, k, v, num_heads, regions, topk, scale, backend)
    if local_weight is None:
        return out
    local = depthwise_conv(v.permute(0, 3, 1, 2), local_weight, local_bias, backend=backend)
    return out + local.permute(0, 2, 3, 1)


_dispatch.register("routing_attention", routing_attention, _check, _why_not)
_dispatch.register("routing_attention_packed", routing_attention_packed, _check_packed, _why_not_packed)
