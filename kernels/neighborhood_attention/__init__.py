"""Neighborhood attention: each pixel attends to a window around itself, moved inside at the borders of the map."""

import torch

from .. import _derivatives, _dispatch
from .._checks import default_scale
from ..tracing import leaves_sizes_free, untraced
from .cpu import attend
from .generalized import generalized_neighborhood_attention
from .operator import attention, attention_packed, check, check_packed, operations, why_not

__all__ = ["generalized_neighborhood_attention", "neighborhood_attention", "neighborhood_attention_packed"]


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int = 1,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
) -> None:
    q, k, v = _dispatch.autocast(q, k, v)
    check(q, k, v, num_heads, kernel_size, dilation, bias_table, scale)


def _why_not(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int = 1,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
) -> str | None:
    q, k, v = _dispatch.autocast(q, k, v)
    return why_not(q, k, v, num_heads, bias_table)


def neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int = 1,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Attention of each pixel to a `kernel_size` x `kernel_size` window of pixels `dilation` apart.

    Along an axis of n pixels, pixel i is number p = i // dilation of the m pixels in its residue class r =
    i % dilation; its window is pixels (s + j) * dilation + r for j = 0 ... kernel_size - 1, where s =
    clamp(p - kernel_size // 2, 0, m - kernel_size). At the borders the window is shifted, never padded or masked.
    Where a class is shorter than the window, m < kernel_size, the window is all of it: s = 0, j = 0 ... m - 1. That
    extends NATTEN, which takes no such maps.

    In a graph that is compiled, Triton's kernels are one node. In plain PyTorch, compiled or exported, indices stand
    for the tiles of eager mode: slower, but one graph serves every size.

    Source: Hassani et al., Neighborhood Attention Transformer, https://arxiv.org/abs/2204.07143, equations 1 to 4;
    dilated: Hassani and Shi, https://arxiv.org/abs/2209.15001; the rule at the borders as in NATTEN.

    Args:
        q: (B, H, W, C), floating point, any strides; B may be 0.
        k: like `q`.
        v: like `q`.
        num_heads: divides C.
        kernel_size: odd, 3 to 15.
        dilation: at least 1.
        bias_table: (num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1), added to the scaled dot products: row and
            column are the key's position minus the query's in units of `dilation`, plus `kernel_size - 1`. Swin's
            tables count the other way. Rounded to the dtype of `q`, its gradient summed in float32 at least.
        scale: factor of the dot products, finite, by default (C / num_heads) ** -0.5.
        backend: "auto", "triton" or "torch"; see `attnzoo.kernels.can_run`.

    Returns:
        (B, H, W, C), dtype of `q`; under autocast q, k and v are taken in its dtype first.

    Raises:
        TypeError: for what is no tensor of floating-point numbers, no integer or no number.
        ValueError: where shapes, dtypes, devices, `num_heads`, `kernel_size` or `dilation` do not fit each other, or
            for an unknown `backend`.
        RuntimeError: where `backend` is "triton" and that cannot run.
    """
    if torch.jit.is_scripting():
        check(q, k, v, num_heads, kernel_size, dilation, bias_table, scale)
        if scale is None:
            scale = default_scale(q, num_heads)
    else:
        q, k, v = _dispatch.autocast(q, k, v)
        untraced(check, q, k, v, num_heads, kernel_size, dilation, bias_table, scale)
        if scale is None:
            scale = untraced(default_scale, q, num_heads)
        reason = untraced(why_not, q, k, v, num_heads, bias_table)
        triton = _dispatch.use_triton(
            "neighborhood_attention", backend, (q, k, v, bias_table), reason, operations(q.shape, kernel_size)
        )
        if not leaves_sizes_free() and q.numel() == 0:
            return _derivatives.nothing(q.shape, q, k, v, bias_table)
        if triton:
            return attention(q, k, v, bias_table, num_heads, kernel_size, dilation, scale)[0]
    return attend(q, k, v, num_heads, kernel_size, dilation, bias_table, scale)


def _check_packed(
    qkv: torch.Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int = 1,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
) -> None:
    (qkv,) = _dispatch.autocast(qkv)
    check_packed(qkv, num_heads, kernel_size, dilation, bias_table, scale)


def _why_not_packed(
    qkv: torch.Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int = 1,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
) -> str | None:
    (qkv,) = _dispatch.autocast(qkv)
    # Three times the heads in three times the channels.
    return why_not(qkv, qkv, qkv, 3 * num_heads, bias_table)


def neighborhood_attention_packed(
    qkv: torch.Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int = 1,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """`neighborhood_attention` of q, k and v that lie in one tensor, as a linear layer of 3 * C channels gives them.

    The result is that of `neighborhood_attention(*qkv.chunk(3, -1), ...)`. Triton's backward pass writes one gradient,
    where the parts' gradients would be joined.

    Args:
        qkv: (B, H, W, 3 * C), q, k and v one after the other, floating point, any strides; B may be 0.
        num_heads: divides C.
        kernel_size: odd, 3 to 15.
        dilation: at least 1.
        bias_table: (num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1), as there.
        scale: factor of the dot products, finite, by default (C / num_heads) ** -0.5.
        backend: "auto", "triton" or "torch"; see `attnzoo.kernels.can_run`.

    Returns:
        (B, H, W, C), dtype of `qkv`; under autocast `qkv` is taken in its dtype first.

    Raises:
        TypeError: as `neighborhood_attention`.
        ValueError: as there.
        RuntimeError: where `backend` is "triton" and that cannot run.
    """
    if torch.jit.is_scripting():
        check_packed(qkv, num_heads, kernel_size, dilation, bias_table, scale)
        if scale is None:
            scale = default_scale(qkv, 3 * num_heads)
    else:
        (qkv,) = _dispatch.autocast(qkv)
        untraced(check_packed, qkv, num_heads, kernel_size, dilation, bias_table, scale)
        if scale is None:
            scale = untraced(default_scale, qkv, 3 * num_heads)
        reason = untraced(why_not, qkv, qkv, qkv, 3 * num_heads, bias_table)
        shape = (qkv.shape[0], qkv.shape[1], qkv.shape[2], qkv.shape[3] // 3)
        triton = _dispatch.use_triton(
            "neighborhood_attention_packed", backend, (qkv, bias_table), reason, operations(shape, kernel_size)
        )
        if not leaves_sizes_free() and qkv.numel() == 0:
            return _derivatives.nothing(shape, qkv, bias_table)
        if triton:
            return attention_packed(qkv, bias_table, num_heads, kernel_size, dilation, scale)[0]
    q, k, v = qkv.chunk(3, -1)
    return attend(q, k, v, num_heads, kernel_size, dilation, bias_table, scale)


_dispatch.register("neighborhood_attention", neighborhood_attention, _check, _why_not)
_dispatch.register("neighborhood_attention_packed", neighborhood_attention_packed, _check_packed, _why_not_packed)
