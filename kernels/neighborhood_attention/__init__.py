"""Neighborhood attention: each pixel attends to a window around itself, moved inside at the borders of the map."""

import torch

from .. import _dispatch
from .operator import attention
from .reference import attend

__all__ = ["neighborhood_attention"]

MAX_HEAD_DIM = 128


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    bias_table: torch.Tensor | None,
) -> None:
    if q.dim() != 4 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(f"q, k and v must be (B, H, W, C) alike, got {q.shape}, {k.shape} and {v.shape}")
    if num_heads < 1 or q.shape[3] % num_heads != 0:
        raise ValueError(f"num_heads must divide C = {q.shape[3]}, got {num_heads}")
    if not 3 <= kernel_size <= 15 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and 3 to 15, got {kernel_size}")
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation}")
    table_shape = (num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1)
    if bias_table is not None and tuple(bias_table.shape) != table_shape:
        raise ValueError(f"bias_table must be {table_shape}, got {tuple(bias_table.shape)}")
    # Sizes of a graph that is being traced must stay symbolic: a check would bind them to the example's.
    if not torch.compiler.is_compiling() and 0 in q.shape[1:]:
        raise ValueError(f"H, W and C must be at least 1, got {tuple(q.shape[1:])}")


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
    reason = _dispatch.why_not(q, k, v)
    if reason is None and bias_table is not None:
        # Of its own dtype: under autocast a parameter keeps float32.
        reason = _dispatch.why_not(bias_table)
        if reason is None and bias_table.device != q.device:
            reason = f"tensors differ: q on {q.device} and bias_table on {bias_table.device}"
    if reason is None and q.shape[3] > MAX_HEAD_DIM * num_heads:
        reason = f"a head has {q.shape[3] // num_heads} channels, it takes up to {MAX_HEAD_DIM}"
    return reason


_dispatch.register("neighborhood_attention", _why_not)


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
        q: (B, H, W, C), floating point, any strides.
        k: like `q`.
        v: like `q`.
        num_heads: divides C.
        kernel_size: odd, 3 to 15.
        dilation: at least 1.
        bias_table: (num_heads, 2 * kernel_size - 1, 2 * kernel_size - 1), added to the scaled dot products: row and
            column are the key's position minus the query's in units of `dilation`, plus `kernel_size - 1`. Swin's
            tables count the other way.
        scale: factor of the dot products, by default (C / num_heads) ** -0.5.
        backend: "auto", "triton" or "torch"; see `attnzoo.kernels.can_run`.

    Returns:
        (B, H, W, C), dtype of `q`.

    Raises:
        ValueError: where shapes, `num_heads`, `kernel_size` or `dilation` do not fit each other, or for an unknown
            `backend`.
        RuntimeError: where `backend` is "triton" and that cannot run.
    """
    if not torch.jit.is_scripting():
        _check(q, k, v, num_heads, kernel_size, dilation, bias_table)
        reason = _why_not(q, k, v, num_heads, kernel_size, dilation, bias_table)
        if _dispatch.use_triton("neighborhood_attention", backend, q.device, reason):
            return attention(q, k, v, bias_table, num_heads, kernel_size, dilation, scale)[0]
    return attend(q, k, v, num_heads, kernel_size, dilation, bias_table, scale)
