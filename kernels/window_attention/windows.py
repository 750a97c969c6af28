"""Windows of maps: cut, laid out with their bias and what is hidden in them, and joined again."""

import functools

import torch
import torch.nn.functional as F

from .. import _derivatives
from ..tracing import are_sizes_free

# torch works without it.
try:
    import numpy as np
except ModuleNotFoundError:
    HAS_NUMPY = False
else:
    HAS_NUMPY = True


def check_sizes(q: torch.Tensor, window: tuple[int, int]) -> None:
    """Raises ValueError for a map (B, H, W, C) that windows of these sides do not fill."""
    free = False
    if not torch.jit.is_scripting():
        free = are_sizes_free()
    if not free and (q.shape[1] % window[0] != 0 or q.shape[2] % window[1] != 0):
        raise ValueError(f"H and W must be multiples of window_size {window}, got {(q.shape[1], q.shape[2])}")


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


@functools.lru_cache(maxsize=64)
def hidden_by_kind(window: tuple[int, int], shift: tuple[int, int]) -> "np.ndarray":
    """What is unseen in windows inside, at the right border, at the lower one, at both: (4, 1, queries, keys) of bool.

    Needs NumPy. No tensor is cached: each belongs to a mode, such as inference, or a compiler's fake ones.
    """
    # Pixels that came from the other end of the map.
    rows, cols = (np.arange(side) >= side - moved for side, moved in zip(window, shift, strict=True))
    labels = [
        (down * rows[:, None] * 2 + right * cols).reshape(-1) for down in (False, True) for right in (False, True)
    ]
    return np.stack([x[:, None] != x for x in labels])[:, None]


def to_windows(x: torch.Tensor, num_heads: int, window: tuple[int, int], shift: tuple[int, int]) -> torch.Tensor:
    """(B, H, W, C), rolled, -> (windows * heads, pixels, C / heads)."""
    if not _is_transformed(x):
        return _ToWindows.apply(x, num_heads, window, shift)
    b, height, width, c = x.shape
    x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
    x = x.reshape(b, height // window[0], window[0], width // window[1], window[1], num_heads, c // num_heads)
    return x.permute(0, 1, 3, 5, 2, 4, 6).reshape(-1, window[0] * window[1], c // num_heads)


def from_windows(
    x: torch.Tensor, shape: torch.Size, num_heads: int, window: tuple[int, int], shift: tuple[int, int]
) -> torch.Tensor:
    """The inverse of `to_windows`."""
    if not _is_transformed(x):
        return _FromWindows.apply(x, shape, num_heads, window, shift)
    return torch.roll(_map_of(x, shape, num_heads, window), shift, (1, 2))


def _is_transformed(x: torch.Tensor) -> bool:
    return _derivatives.is_transformed() or torch._C._functorch.is_legacy_batchedtensor(x)


class _ToWindows(torch.autograd.Function):
    """In few steps of autograd and few passes over memory."""

    @staticmethod
    def forward(ctx, x, num_heads, window, shift):
        ctx.settings = x.shape, num_heads, window, shift
        return windows_of(_rolled(x, -shift[0], -shift[1]), num_heads, window, window).flatten(0, 1)

    @staticmethod
    def backward(ctx, grad):
        return from_windows(grad, *ctx.settings), None, None, None


class _FromWindows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, shape, num_heads, window, shift):
        ctx.settings = num_heads, window, shift
        out = _rolled(_map_of(x, shape, num_heads, window), *shift)
        # A map of one window and one head is a view of it, which autograd would not let a user change in place.
        return out.clone() if out._is_view() else out

    @staticmethod
    def backward(ctx, grad):
        return to_windows(grad, *ctx.settings), None, None, None, None


def _map_of(x: torch.Tensor, shape: torch.Size, num_heads: int, window: tuple[int, int]) -> torch.Tensor:
    b, height, width, c = shape
    x = x.reshape(b, height // window[0], width // window[1], num_heads, *window, c // num_heads)
    return x.permute(0, 1, 4, 2, 5, 3, 6).reshape(shape)


def _rolled(x: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """`torch.roll` of (B, H, W, C), which takes a pass for each axis, in one."""
    if down == 0 and right == 0:
        return x
    down, right = down % x.shape[1], right % x.shape[2]
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    top, left = x.shape[1] - down, x.shape[2] - right
    out[:, down:, right:], out[:, down:, :right] = x[:, :top, :left], x[:, :top, left:]
    out[:, :down, right:], out[:, :down, :right] = x[:, top:, :left], x[:, top:, left:]
    return out


def add_windows(x: torch.Tensor, windows: torch.Tensor, size: tuple[int, int], step: tuple[int, int]) -> None:
    """The transpose of `windows_of`: adds windows to the map `x` from which they are taken."""
    b = x.shape[0]
    rows, cols = (x.shape[1] - size[0]) // step[0] + 1, (x.shape[2] - size[1]) // step[1] + 1
    windows = windows.view(b, rows, cols, -1, *size, windows.shape[-1]).permute(0, 1, 2, 3, 6, 4, 5).flatten(3, 4)
    # Windows this many apart do not overlap, so that they can be added in place at once.
    apart_h, apart_w = -(-size[0] // step[0]), -(-size[1] // step[1])
    for i in range(min(apart_h, rows)):
        for j in range(min(apart_w, cols)):
            places = x[:, i * step[0] :, j * step[1] :]
            places = places.unfold(1, size[0], apart_h * step[0]).unfold(2, size[1], apart_w * step[1])
            places += windows[:, i::apart_h, j::apart_w]
