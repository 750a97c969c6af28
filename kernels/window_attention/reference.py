"""The definition of window attention in plain PyTorch, without gradients of its own."""

import torch
import torch.nn.functional as F

from .._derivatives import written_out
from ..tracing import leaves_sizes_free


def windows_of(x: torch.Tensor, num_heads: int, size: tuple[int, int], step: tuple[int, int]) -> torch.Tensor:
    """Windows of `size`, each `step` pixels, of (B, H, W, C) -> (windows, heads, pixels, C / heads), one copy."""
    x = x.unflatten(3, (num_heads, -1))
    if size == step:
        # First all cuts, then one permutation: in the backward pass that is one copy.
        x = x.unflatten(2, (x.shape[2] // size[1], size[1])).unflatten(1, (x.shape[1] // size[0], size[0]))
        x = x.permute(0, 1, 3, 5, 2, 4, 6)
    else:
        x = x.unfold(1, size[0], step[0]).unfold(2, size[1], step[1]).permute(0, 1, 2, 3, 5, 6, 4)
    b, rows, cols, dim = x.shape[0], x.shape[1], x.shape[2], x.shape[6]
    # An explicit copy: `reshape` would ask whether one is needed, which binds symbolic sizes to the example's.
    x = x.clone(memory_format=torch.contiguous_format)
    return x.view(b * rows * cols, num_heads, size[0] * size[1], dim)


def position_bias(table: torch.Tensor, query: tuple[int, int], key: tuple[int, int]) -> torch.Tensor:
    """A bias table (R * S, heads) laid out as (heads, query rows, query columns, key rows, key columns)."""
    cols = query[1] + key[1] - 1
    last = cols * (key[0] - 1) + key[1] - 1
    index = _places(query, cols, table.device)[:, None] + last - _places(key, cols, table.device)
    return table.t().index_select(1, index.flatten()).view(-1, query[0], query[1], key[0], key[1])


def _places(size: tuple[int, int], cols: int, device: torch.device) -> torch.Tensor:
    """Index of each pixel of a window in a table with so many columns."""
    rows = torch.arange(0, size[0] * cols, cols, device=device)
    return (rows[:, None] + torch.arange(size[1], device=device)).flatten()


def bias_of(bias: torch.Tensor | None, query: tuple[int, int], key: tuple[int, int]) -> torch.Tensor | None:
    """The bias of windows of these sides as (1, heads, queries, keys); a smaller window's is a part of a larger's."""
    if bias is None:
        return None
    bias = bias[:, : query[0], : query[1], : key[0], : key[1]]
    return bias.reshape(1, bias.shape[0], query[0] * query[1], key[0] * key[1])


def _spans(size: int, window: int, shift: int) -> list[tuple[int, int, int]]:
    """Start, stop and window side of the parts of an axis whose windows do not wrap round its end."""
    if shift == 0:
        return [(0, size, window)]
    # The window that wraps falls into two, which must not see each other.
    return [(0, shift, shift), (shift, size - window + shift, window), (size - window + shift, size, window - shift)]


def parts_of(
    x: torch.Tensor, window: tuple[int, int], shift: tuple[int, int], overlap: int
) -> list[tuple[int, int, int, int, int, int]]:
    """Rectangles that windows of one size fill: top, bottom, left, right, and the sides of the windows in it.

    Large ones fall into strips, which bounds what is copied at a time.
    """
    # Elements of the windows of keys: what a processor's cache holds, or what a GPU can spare, so that one call does.
    limit = 1 << 20 if x.device.type == "cpu" else 1 << 27
    parts: list[tuple[int, int, int, int, int, int]] = []
    for top, bottom, height in _spans(x.shape[1], window[0], shift[0]):
        for left, right, width in _spans(x.shape[2], window[1], shift[1]):
            if bottom > top and right > left:
                row = x.shape[0] * x.shape[3] * (right - left) // width * (height + overlap) * (width + overlap)
                step = max(limit // max(row, 1), 1) * height
                for start in range(top, bottom, step):
                    parts.append((start, min(start + step, bottom), left, right, height, width))
    return parts


def with_margin(x: torch.Tensor, top: int, bottom: int, left: int, right: int, margin: int) -> torch.Tensor:
    """A rectangle of (B, H, W, C) and `margin` pixels around it, zero beyond the border."""
    if margin == 0:
        return x[:, top:bottom, left:right]
    # It is as wide as the map: an overlap excludes a shift.
    first, last = max(top - margin, 0), min(bottom + margin, x.shape[1])
    return F.pad(x[:, first:last], (0, 0, margin, margin, first - top + margin, bottom + margin - last))


def _attend_rectangle(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    num_heads: int,
    window: tuple[int, int],
    overlap: int,
    scale: float,
) -> torch.Tensor:
    """Unshifted windows that fill q (B, H, W, C), with the margin around k and v -> (B, I, h, J, w, C)."""
    key = (window[0] + overlap, window[1] + overlap)
    out = F.scaled_dot_product_attention(
        windows_of(q, num_heads, window, window),
        windows_of(k, num_heads, key, window),
        windows_of(v, num_heads, key, window),
        bias_of(bias, window, key),
        scale=scale,
    )
    rows, cols = q.shape[1] // window[0], q.shape[2] // window[1]
    return out.transpose(1, 2).reshape(q.shape[0], rows, cols, window[0], window[1], q.shape[3]).transpose(2, 3)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    overlap: int,
    scale: float,
) -> torch.Tensor:
    margin = overlap // 2
    # A bias in another precision would take the attention off its fast path.
    bias = None if bias is None else bias.to(q.dtype)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for top, bottom, left, right, h, w in parts_of(q, window, shift, overlap):
        part_q = q[:, top:bottom, left:right]
        part_k = with_margin(k, top, bottom, left, right, margin)
        part_v = with_margin(v, top, bottom, left, right, margin)
        part = _attend_rectangle(part_q, part_k, part_v, bias, num_heads, (h, w), overlap, scale)
        out[:, top:bottom, left:right].unflatten(2, (-1, w)).unflatten(1, (-1, h)).copy_(part)
    return out


def attend_in_one(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    overlap: int,
    scale: float,
    hidden: float = -torch.inf,
) -> torch.Tensor:
    """`attend` in a graph whose sizes are free or that is differentiated in any way: Swin's own form, without strips.

    Cut at the border, a map that is a single window leaves no whole window, and graphs must not be empty anywhere.
    `hidden` is added to the scores that a window which wraps round the border must not see.
    """
    margin = overlap // 2
    if margin > 0:
        k, v = (F.pad(x, (0, 0, margin, margin, margin, margin)) for x in (k, v))
    mask = bias_of(None if bias is None else bias.to(q.dtype), window, (window[0] + overlap, window[1] + overlap))
    if shift != (0, 0):
        border = torch.where(unseen((q.shape[1], q.shape[2]), window, shift, q.device), hidden, 0.0).to(q.dtype)
        mask = (border if mask is None else border + mask).repeat(q.shape[0], 1, 1, 1)
        q, k, v = (torch.roll(x, (-shift[0], -shift[1]), (1, 2)) for x in (q, k, v))
    key = (window[0] + overlap, window[1] + overlap)
    queries = windows_of(q, num_heads, window, window)
    keys, values = windows_of(k, num_heads, key, window), windows_of(v, num_heads, key, window)
    if leaves_sizes_free():
        out = F.scaled_dot_product_attention(queries, keys, values, mask, scale=scale)
    else:
        out = written_out(queries, keys, values, mask, scale)
    rows, cols = q.shape[1] // window[0], q.shape[2] // window[1]
    out = out.transpose(1, 2).reshape(q.shape[0], rows, cols, window[0], window[1], q.shape[3]).transpose(2, 3)
    out = out.clone(memory_format=torch.contiguous_format).view(q.shape)
    return out if shift == (0, 0) else torch.roll(out, shift, (1, 2))


def unseen(
    size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: torch.device
) -> torch.Tensor:
    """Which keys a query may not see in the windows of a rolled map: (windows, 1, queries, keys) of bool."""
    labels = _labels(size[0], window[0], shift[0], device)[:, None] * 3 + _labels(size[1], window[1], shift[1], device)
    labels = windows_of(labels[None, :, :, None], 1, window, window)
    return labels != labels.transpose(2, 3)


def _labels(size: int, window: int, shift: int, device: torch.device) -> torch.Tensor:
    """Of each place on a rolled axis, which part of the axis its window may see there."""
    place = torch.arange(size, device=device)
    return (place >= size - window).long() + (place >= size - shift).long()
