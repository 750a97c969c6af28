"""Generalized neighborhood attention: windows that several queries share, and axes without keys behind the query."""

import torch

from .. import _checks, _derivatives, _dispatch
from ..tracing import are_sizes_free, leaves_sizes_free, untraced
from .cpu import attend_along


def generalized_neighborhood_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] = 1,
    dilation: int | tuple[int, int] = 1,
    is_causal: bool | tuple[bool, bool] = False,
    bias_table: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Attention of each pixel to the window of its group, which `stride` neighbouring pixels of an axis share.

    Along an axis of n pixels, pixel i is number p = i // dilation of the m pixels in its residue class r =
    i % dilation. Numbers g = p // stride * stride ... g + stride - 1 are one group. Its leader is number
    min(g + stride // 2, m - 1), the later one of the two in the middle where `stride` is even, and all of the group
    attend to the pixels s * dilation + r ... (s + kernel_size - 1) * dilation + r of the class, where
    s = clamp(leader - kernel_size // 2, 0, m - kernel_size): an even window reaches one pixel further to the left.

    On a causal axis the leader is the last of the group, min(g + stride - 1, m - 1), and pixel p attends to numbers
    max(leader - kernel_size + 1, 0) ... p: the first pixels of a group see fewer.

    With stride 1 and no causal axis this is `neighborhood_attention`, which has Triton's kernels; with a stride of
    `kernel_size` it is attention in windows, the last of which is moved inside the map where they do not fill it. A
    class that is shorter than the window is all of it, which extends NATTEN, as the bias and its strides do.

    In plain PyTorch. In a graph that is compiled or exported, indices stand for the tiles of eager mode: slower, but
    one graph serves every size.

    Source: Hassani et al., Generalized Neighborhood Attention, https://arxiv.org/abs/2504.16922; the rules as in NATTEN
    0.20.

    Args:
        q: (B, H, W, C), floating point, any strides; B may be 0.
        k: like `q`.
        v: like `q`.
        num_heads: divides C.
        kernel_size: of both axes, or of rows and columns; at least 1.
        stride: likewise; 1 to `kernel_size`.
        dilation: likewise; at least 1.
        is_causal: likewise.
        bias_table: (num_heads, 2 * K - 1, 2 * L - 1) for windows of K x L, added to the scaled dot products: row and
            column are the key's position minus the query's in units of `dilation`, plus K - 1 and L - 1. Rounded to the
            dtype of `q`, its gradient summed in float32 at least.
        scale: factor of the dot products, finite, by default (C / num_heads) ** -0.5.

    Returns:
        (B, H, W, C), dtype of `q`; under autocast q, k and v are taken in its dtype first.

    Raises:
        TypeError: for what is no tensor of floating-point numbers, no integer, no number or neither True nor False.
        ValueError: where shapes, dtypes, devices, `num_heads`, `kernel_size`, `stride` or `dilation` do not fit each
            other.
    """
    q, k, v = _dispatch.autocast(q, k, v)
    window, steps, apart, causal = untraced(
        _checked, q, k, v, num_heads, kernel_size, stride, dilation, is_causal, bias_table, scale
    )
    if scale is None:
        scale = untraced(_checks.default_scale, q, num_heads)
    if not leaves_sizes_free() and q.numel() == 0:
        return _derivatives.nothing(q.shape, q, k, v, bias_table)
    rows, cols = zip(window, steps, causal, strict=True)
    return attend_along(q, k, v, num_heads, rows, cols, apart, bias_table, scale)


def _checked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int],
    dilation: int | tuple[int, int],
    is_causal: bool | tuple[bool, bool],
    bias_table: torch.Tensor | None,
    scale: float | None,
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[bool, bool]]:
    """Windows, strides, dilations and what is causal, each of rows and columns."""
    _checks.check_heads(q, k, v, num_heads)
    _checks.check_tensors(("q", "bias_table"), (q, bias_table), ("bias_table",), one_dtype=False)
    _checks.check_scale(scale)
    window, steps, apart = (
        _checks.both(name, value)
        for name, value in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation))
    )
    if min(window) < 1:
        raise ValueError(f"kernel_size must be at least 1, got {kernel_size}")
    for size, step in zip(window, steps, strict=True):
        if not 1 <= step <= size:
            raise ValueError(f"stride must be 1 to kernel_size {window}, got {steps}")
    if min(apart) < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation}")
    causal = (is_causal, is_causal) if isinstance(is_causal, bool) else is_causal
    if not isinstance(causal, (tuple, list)) or len(causal) != 2 or not all(isinstance(x, bool) for x in causal):
        raise TypeError(f"is_causal must be True or False, or two of these, got {_checks.said(is_causal)}")
    sides = (num_heads, 2 * window[0] - 1, 2 * window[1] - 1)
    if bias_table is not None and tuple(bias_table.shape) != sides:
        raise ValueError(f"bias_table must be {sides}, got {_checks.shape(bias_table)}")
    if not are_sizes_free() and 0 in q.shape[1:]:
        raise ValueError(f"H, W and C must be at least 1, got {tuple(q.shape[1:])}")
    return window, steps, apart, (causal[0], causal[1])
