"""Window attention: plain, shifted (Swin) or with key windows that overlap (HAT), with a relative position bias."""

import torch

from .. import _dispatch
from ..tracing import is_exporting
from .operator import attention
from .reference import attend, attend_exported, position_bias
from .training import attend_with_gradients

__all__ = ["window_attention"]


def max_head_dim(dtype: torch.dtype) -> int:
    """Channels of a head that Triton's kernels take: wider ones of float32 do not fit a GPU's registers."""
    return 64 if dtype == torch.float32 else 128


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return value


def _check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    overlap: int,
    bias_table: torch.Tensor | None,
) -> None:
    if q.dim() != 4 or q.shape != k.shape or q.shape != v.shape:
        raise ValueError(f"q, k and v must be (B, H, W, C) alike, got {q.shape}, {k.shape} and {v.shape}")
    if num_heads < 1 or q.shape[3] % num_heads != 0:
        raise ValueError(f"num_heads must divide C = {q.shape[3]}, got {num_heads}")
    if min(window) < 1:
        raise ValueError(f"window_size must be at least 1, got {window}")
    if not (0 <= shift[0] < window[0] and 0 <= shift[1] < window[1]):
        raise ValueError(f"shift must be at least 0 and less than window_size {window}, got {shift}")
    if overlap < 0 or overlap % 2 != 0:
        raise ValueError(f"overlap must be even and at least 0, got {overlap}")
    if overlap > 0 and shift != (0, 0):
        raise ValueError(f"shift must be 0 where windows overlap, got {shift}")
    if bias_table is not None:
        rows = (2 * window[0] - 1 + overlap) * (2 * window[1] - 1 + overlap)
        if bias_table.shape != (rows, num_heads):
            raise ValueError(f"bias_table must be {(rows, num_heads)} for these windows, got {tuple(bias_table.shape)}")
    # Sizes of a graph that is being traced must stay symbolic: a check would bind them to the example's.
    if not torch.compiler.is_compiling() and (q.shape[1] % window[0] != 0 or q.shape[2] % window[1] != 0):
        raise ValueError(f"H and W must be multiples of window_size {window}, got {(q.shape[1], q.shape[2])}")


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
    reason = _dispatch.why_not(q, k, v)
    if reason is None and bias_table is not None:
        # Of its own dtype: under autocast a parameter keeps float32.
        reason = _dispatch.why_not(bias_table)
        if reason is None and bias_table.device != q.device:
            reason = f"tensors differ: q on {q.device} and bias_table on {bias_table.device}"
    if reason is None and q.shape[3] > max_head_dim(q.dtype) * num_heads:
        reason = f"a head has {q.shape[3] // num_heads} channels, in {q.dtype} it takes up to {max_head_dim(q.dtype)}"
    return reason


_dispatch.register("window_attention", _why_not)


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
        q: (B, H, W, C), floating point, any strides; H and W multiples of the window's sides.
        k: like `q`.
        v: like `q`.
        num_heads: divides C.
        window_size: sides of the windows in pixels, (height, width) or one for both.
        shift: pixels by which the windows are moved down and right, less than a window.
        overlap: pixels by which the windows of keys and values are larger than those of queries, half on either side;
            even. Beyond the border they are zero, and those zeros take part in the softmax.
        bias_table: (R * S, heads) with R = 2 * height - 1 + overlap, S likewise: a bias for each distance of query
            minus key, smallest first, row by row. None for none.
        scale: factor of the dot products, `(C / heads) ** -0.5` if None.
        backend: "auto", "triton" or "torch"; see `attnzoo.kernels.can_run`.

    Returns:
        (B, H, W, C), dtype of `q`.

    Raises:
        ValueError: where shapes, heads, windows, shift, overlap and table do not fit each other, or for an unknown
            `backend`.
        RuntimeError: where `backend` is "triton" and that cannot run.
    """
    window, shifts = _pair(window_size), _pair(shift)
    if not torch.jit.is_scripting():
        _check(q, k, v, num_heads, window, shifts, overlap, bias_table)
    if scale is None:
        scale = float(q.shape[3] // num_heads) ** -0.5
    if not torch.jit.is_scripting():
        reason = _why_not(q, k, v, num_heads, window, shifts, overlap, bias_table, scale)
        if _dispatch.use_triton("window_attention", backend, q.device, reason):
            return attention(q, k, v, bias_table, num_heads, list(window), list(shifts), overlap, scale)[0]
    bias: torch.Tensor | None = None
    if bias_table is not None:
        # A bias in another precision would take the attention off its fast path.
        bias = position_bias(bias_table.to(q.dtype), window, (window[0] + overlap, window[1] + overlap))
    if not torch.jit.is_scripting():
        if is_exporting():
            return attend_exported(q, k, v, bias, num_heads, window, shifts, overlap, scale)
        learns = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in (q, k, v, bias))
        if learns or torch.compiler.is_compiling():
            return attend_with_gradients(q, k, v, bias, num_heads, window, shifts, overlap, scale)
    return attend(q, k, v, bias, num_heads, window, shifts, overlap, scale)
