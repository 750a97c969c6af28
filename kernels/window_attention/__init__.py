"""Window attention: plain, shifted (Swin) or with key windows that overlap (HAT), with a relative position bias."""

import torch

from .. import _derivatives, _dispatch
from .._checks import default_scale
from ..tracing import leaves_sizes_free, untraced
from .cpu import attend, attend_in_one, attend_rolled, attend_with_gradients, is_small
from .operator import (
    attention,
    attention_packed,
    check,
    check_packed,
    operations,
    pair,
    why_not,
    why_not_packed,
)
from .windows import position_bias

__all__ = ["window_attention", "window_attention_packed"]


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    window_size: int | tuple[int, int],
    shift: int | tuple[int, int] = 0,
    overlap: int = 0,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
) -> None:
    q, k, v = _dispatch.autocast(q, k, v)
    check(q, k, v, num_heads, pair(window_size), pair(shift), overlap, bias_table, scale)


def _why_not(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    window_size: int | tuple[int, int],
    shift: int | tuple[int, int] = 0,
    overlap: int = 0,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
) -> str | None:
    q, k, v = _dispatch.autocast(q, k, v)
    return why_not(q, k, v, num_heads, bias_table)


def window_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    window_size: int | tuple[int, int],
    shift: int | tuple[int, int] = 0,
    overlap: int = 0,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """Attention of each window of queries over the keys of its own window, or of a larger one around it.

    Sources: Liu et al., Swin Transformer, https://arxiv.org/abs/2103.14030, section 3.2 (shift, bias); Chen et al.,
    HAT, https://arxiv.org/abs/2205.04437, section 3.2.3 (overlap). Swin rolls the map and masks, with -100, what a
    window that wraps round the border must not see; here such windows are cut at the border instead: nothing is
    rolled, masked or computed in vain, and the results differ by less than exp(-100).

    Args:
        q: (B, H, W, C), floating point, any strides; H and W multiples of the window's sides. B may be 0.
        k: like `q`.
        v: like `q`.
        num_heads: divides C.
        window_size: sides of the windows in pixels, (height, width) or one for both.
        shift: pixels by which the windows are moved down and right, less than a window.
        overlap: pixels by which the windows of keys and values are larger than those of queries, half on either side;
            even. Beyond the border they are zero, and those zeros take part in the softmax.
        bias_table: (R * S, heads) with R = 2 * height - 1 + overlap, S likewise: a bias for each distance of query
            minus key, smallest first, row by row; rounded to the dtype of `q`, its gradient summed in float32 at least.
            None for none.
        scale: factor of the dot products, finite; `(C / heads) ** -0.5` if None.
        backend: "auto", "triton" or "torch"; see `attnzoo.kernels.can_run`.

    Returns:
        (B, H, W, C), dtype of `q`; under autocast q, k and v are taken in its dtype first.

    Raises:
        TypeError: for what is no tensor of floating-point numbers, no integer or no number.
        ValueError: where shapes, dtypes, devices, heads, windows, shift, overlap and table do not fit each other, or
            for an unknown `backend`.
        RuntimeError: where `backend` is "triton" and that cannot run.
    """
    window, shifts = pair(window_size), pair(shift)
    if torch.jit.is_scripting():
        check(q, k, v, num_heads, window, shifts, overlap, bias_table, scale)
        if scale is None:
            scale = default_scale(q, num_heads)
    else:
        q, k, v = _dispatch.autocast(q, k, v)
        untraced(check, q, k, v, num_heads, window, shifts, overlap, bias_table, scale)
        if scale is None:
            scale = untraced(default_scale, q, num_heads)
        reason = untraced(why_not, q, k, v, num_heads, bias_table)
        triton = _dispatch.use_triton(
            "window_attention", backend, (q, k, v, bias_table), reason, operations(q.shape, window, overlap)
        )
        if not leaves_sizes_free() and q.numel() == 0:
            return _derivatives.nothing(q.shape, q, k, v, bias_table)
        if triton:
            return attention(q, k, v, bias_table, num_heads, list(window), list(shifts), overlap, scale)[0]
    return _attend(q, k, v, num_heads, window, shifts, overlap, bias_table, scale)


def _check_packed(
    qkv: torch.Tensor,
    num_heads: int,
    window_size: int | tuple[int, int],
    shift: int | tuple[int, int] = 0,
    overlap: int = 0,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
) -> None:
    (qkv,) = _dispatch.autocast(qkv)
    check_packed(qkv, num_heads, pair(window_size), pair(shift), overlap, bias_table, scale)


def _why_not_packed(
    qkv: torch.Tensor,
    num_heads: int,
    window_size: int | tuple[int, int],
    shift: int | tuple[int, int] = 0,
    overlap: int = 0,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
) -> str | None:
    (qkv,) = _dispatch.autocast(qkv)
    return why_not_packed(qkv, num_heads, bias_table)


def window_attention_packed(
    qkv: torch.Tensor,
    num_heads: int,
    window_size: int | tuple[int, int],
    shift: int | tuple[int, int] = 0,
    overlap: int = 0,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
    backend: str = "auto",
) -> torch.Tensor:
    """`window_attention` of one map of queries, keys and values, as a linear layer gives them.

    Triton's kernels read it where it lies and write its gradient in one piece, of which autograd would make three maps
    and concatenate them.

    Args:
        qkv: (B, H, W, 3 * C), floating point: the channels of q, those of k, those of v; H and W multiples of the
            window's sides. B may be 0.
        num_heads: divides C.
        window_size: as of `window_attention`, and so the others.
        shift: likewise.
        overlap: likewise.
        bias_table: likewise.
        scale: likewise.
        backend: "auto", "triton" or "torch"; see `attnzoo.kernels.can_run`.

    Returns:
        (B, H, W, C), as `window_attention(*qkv.chunk(3, -1), ...)`.

    Raises:
        TypeError: for what is no tensor of floating-point numbers, no integer or no number.
        ValueError: where shape, dtypes, devices, heads, windows, shift, overlap and table do not fit each other, or
            for an unknown `backend`.
        RuntimeError: where `backend` is "triton" and that cannot run.
    """
    window, shifts = pair(window_size), pair(shift)
    if torch.jit.is_scripting():
        check_packed(qkv, num_heads, window, shifts, overlap, bias_table, scale)
        if scale is None:
            scale = default_scale(qkv, 3 * num_heads)
    else:
        (qkv,) = _dispatch.autocast(qkv)
        untraced(check_packed, qkv, num_heads, window, shifts, overlap, bias_table, scale)
        if scale is None:
            scale = untraced(default_scale, qkv, 3 * num_heads)
        reason = untraced(why_not_packed, qkv, num_heads, bias_table)
        shape = (*qkv.shape[:3], qkv.shape[3] // 3)
        triton = _dispatch.use_triton(
            "window_attention_packed", backend, (qkv, bias_table), reason, operations(shape, window, overlap)
        )
        if not leaves_sizes_free() and qkv.numel() == 0:
            return _derivatives.nothing(shape, qkv, bias_table)
        if triton:
            return attention_packed(qkv, bias_table, num_heads, list(window), list(shifts), overlap, scale)[0]
    q, k, v = qkv.chunk(3, dim=-1)
    return _attend(q, k, v, num_heads, window, shifts, overlap, bias_table, scale)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    window: tuple[int, int],
    shifts: tuple[int, int],
    overlap: int,
    bias_table: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """In plain PyTorch, of arguments that fit each other."""
    bias: torch.Tensor | None = None
    if bias_table is not None:
        # In float32 at least: many a pair of query and key adds to the gradient of one entry.
        precise = torch.promote_types(q.dtype, torch.float32)
        bias = position_bias(bias_table.to(precise), window, (window[0] + overlap, window[1] + overlap))
    if not torch.jit.is_scripting():
        if leaves_sizes_free():
            return attend_in_one(q, k, v, bias, num_heads, window, shifts, overlap, scale, -100.0)
        if _derivatives.is_transformed():
            return attend_in_one(q, k, v, bias, num_heads, window, shifts, overlap, scale)
        learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, bias))
        if learns or torch.compiler.is_compiling():
            return attend_with_gradients(q, k, v, bias, num_heads, window, shifts, overlap, scale)
        if is_small(q, num_heads, window, shifts, overlap):
            return attend_rolled(q, k, v, bias, num_heads, window, shifts, scale)
    return attend(q, k, v, bias, num_heads, window, shifts, overlap, scale)


_dispatch.register("window_attention", window_attention, _check, _why_not)
_dispatch.register("window_attention_packed", window_attention_packed, _check_packed, _why_not_packed)
