"""The definition of window attention in plain PyTorch."""

from typing import Any

import torch
import torch.nn.functional as F


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return value


def _windows(x: torch.Tensor, num_heads: int, size: tuple[int, int], step: tuple[int, int]) -> torch.Tensor:
    """Windows of `size`, each `step` pixels, of (B, H, W, C) -> (windows, heads, pixels, C / heads), one copy."""
    if size == step:
        x = x.unflatten(2, (x.shape[2] // size[1], size[1])).unflatten(1, (x.shape[1] // size[0], size[0]))
        x = x.permute(0, 1, 3, 5, 2, 4)
    else:
        x = x.unfold(1, size[0], step[0]).unfold(2, size[1], step[1])
    x = x.unflatten(3, (num_heads, -1))
    b, rows, cols, dim = x.shape[0], x.shape[1], x.shape[2], x.shape[4]
    # An explicit copy: `reshape` would ask whether one is needed, which binds symbolic sizes to the example's.
    x = x.permute(0, 1, 2, 3, 5, 6, 4).clone(memory_format=torch.contiguous_format)
    return x.view(b * rows * cols, num_heads, size[0] * size[1], dim)


def _add_windows(x: torch.Tensor, windows: torch.Tensor, size: tuple[int, int], step: tuple[int, int]) -> None:
    """The transpose of `_windows`: adds windows to the map `x` from which they are taken."""
    b = x.shape[0]
    rows, cols = (x.shape[1] - size[0]) // step[0] + 1, (x.shape[2] - size[1]) // step[1] + 1
    windows = windows.view(b, rows, cols, -1, *size, windows.shape[3]).permute(0, 1, 2, 3, 6, 4, 5).flatten(3, 4)
    # Windows this many apart do not overlap, so that they can be added in place at once.
    apart_h, apart_w = -(-size[0] // step[0]), -(-size[1] // step[1])
    for i in range(min(apart_h, rows)):
        for j in range(min(apart_w, cols)):
            places = x[:, i * step[0] :, j * step[1] :]
            places = places.unfold(1, size[0], apart_h * step[0]).unfold(2, size[1], apart_w * step[1])
            places += windows[:, i::apart_h, j::apart_w]


def _position_bias(table: torch.Tensor, query: tuple[int, int], key: tuple[int, int]) -> torch.Tensor:
    """A bias table (R * S, heads) laid out as (heads, query rows, query columns, key rows, key columns)."""
    table = table.unflatten(0, (query[0] + key[0] - 1, query[1] + key[1] - 1))
    # A row of the flipped table holds the biases of one query over the keys from left to right.
    bias = table.permute(2, 0, 1).flip(1, 2).unfold(1, key[0], 1).unfold(2, key[1], 1).flip(1, 2)
    return bias.clone(memory_format=torch.contiguous_format)


def _bias_of(bias: torch.Tensor | None, query: tuple[int, int], key: tuple[int, int]) -> torch.Tensor | None:
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


def _parts(
    x: torch.Tensor, window: tuple[int, int], shift: tuple[int, int], overlap: int
) -> list[tuple[int, int, int, int, int, int]]:
    """Rectangles that windows of one size fill: top, bottom, left, right, and the sides of the windows in it.

    Large ones fall into strips, which bounds what is copied at a time.
    """
    limit = 1 << 20
    parts: list[tuple[int, int, int, int, int, int]] = []
    for top, bottom, height in _spans(x.shape[1], window[0], shift[0]):
        for left, right, width in _spans(x.shape[2], window[1], shift[1]):
            if bottom > top and right > left:
                row = x.shape[0] * x.shape[3] * (right - left) // width * (height + overlap) * (width + overlap)
                step = max(limit // row, 1) * height
                for start in range(top, bottom, step):
                    parts.append((start, min(start + step, bottom), left, right, height, width))
    return parts


def _with_margin(x: torch.Tensor, top: int, bottom: int, left: int, right: int, margin: int) -> torch.Tensor:
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
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Unshifted windows that fill q (B, H, W, C), with the margin around k and v -> (B, I, h, J, w, C).

    A `mask` (windows, heads or 1, queries, keys) stands in for the bias.
    """
    key = (window[0] + overlap, window[1] + overlap)
    out = F.scaled_dot_product_attention(
        _windows(q, num_heads, window, window),
        _windows(k, num_heads, key, window),
        _windows(v, num_heads, key, window),
        _bias_of(bias, window, key) if mask is None else mask,
        scale=scale,
    )
    rows, cols = q.shape[1] // window[0], q.shape[2] // window[1]
    return out.transpose(1, 2).reshape(q.shape[0], rows, cols, window[0], window[1], q.shape[3]).transpose(2, 3)


def _attend(
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
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    for top, bottom, left, right, h, w in _parts(q, window, shift, overlap):
        part_q = q[:, top:bottom, left:right]
        part_k = _with_margin(k, top, bottom, left, right, margin)
        part_v = _with_margin(v, top, bottom, left, right, margin)
        part = _attend_rectangle(part_q, part_k, part_v, bias, num_heads, (h, w), overlap, scale)
        out[:, top:bottom, left:right].unflatten(2, (-1, w)).unflatten(1, (-1, h)).copy_(part)
    return out


def _attend_exported(
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
    """`_attend` in a graph whose sizes are free: no strips, and Swin's own form of a shift.

    Cut at the border, a map that is a single window leaves no whole window, and graphs must not be empty anywhere.
    """
    margin = overlap // 2
    if margin > 0:
        k, v = (F.pad(x, (0, 0, margin, margin, margin, margin)) for x in (k, v))
    if shift == (0, 0):
        out = _attend_rectangle(q, k, v, bias, num_heads, window, overlap, scale)
        return out.clone(memory_format=torch.contiguous_format).view(q.shape)
    labels = _labels(q.shape[1], window[0], shift[0], q.device)[:, None] * 3
    labels = _windows(
        (labels + _labels(q.shape[2], window[1], shift[1], q.device))[None, :, :, None], 1, window, window
    )
    mask = torch.where(labels == labels.transpose(2, 3), 0.0, -100.0).to(q.dtype)
    bias = _bias_of(bias, window, window)
    mask = mask if bias is None else mask + bias
    mask = mask.repeat(q.shape[0], 1, 1, 1)
    q, k, v = (torch.roll(x, (-shift[0], -shift[1]), (1, 2)) for x in (q, k, v))
    out = _attend_rectangle(q, k, v, None, num_heads, window, 0, scale, mask)
    out = out.clone(memory_format=torch.contiguous_format).view(q.shape)
    return torch.roll(out, shift, (1, 2))


def _labels(size: int, window: int, shift: int, device: torch.device) -> torch.Tensor:
    """Of each place on a rolled axis, which part of the axis its window may see there."""
    place = torch.arange(size, device=device)
    return (place >= size - window).long() + (place >= size - shift).long()


@torch.library.custom_op("attnzoo::window_attention", mutates_args=())
def _forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    num_heads: int,
    window: list[int],
    shift: list[int],
    overlap: int,
    scale: float,
) -> torch.Tensor:
    """`_attend` as one operator, which keeps neither windows nor attention for the backward pass.

    PyTorch's fast attention on the CPU has no gradient of a bias; without one it would fall back to a path that keeps
    the attention of all windows. A compiled graph holds one node instead of hundreds.
    """
    # A bias that asks for a gradient would take the attention off its fast path even here.
    bias = None if bias is None else bias.detach()
    return _attend(q, k, v, bias, num_heads, (window[0], window[1]), (shift[0], shift[1]), overlap, scale)


@_forward.register_fake
def _(q, k, v, bias, num_heads, window, shift, overlap, scale):
    return torch.empty_like(q, memory_format=torch.contiguous_format)


@torch.library.custom_op("attnzoo::window_attention_backward", mutates_args=())
def _backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    num_heads: int,
    window: list[int],
    shift: list[int],
    overlap: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v and the bias (empty without one), computed part by part."""
    margin = overlap // 2
    b, height, width, c = q.shape
    grad_q = q.new_zeros(q.shape)
    grad_k = k.new_zeros((b, height + overlap, width + overlap, c))
    grad_v = torch.zeros_like(grad_k)
    grad_bias = q.new_zeros(0) if bias is None else torch.zeros_like(bias)
    for top, bottom, left, right, h, w in _parts(q, (window[0], window[1]), (shift[0], shift[1]), overlap):
        query, key = (h, w), (h + overlap, w + overlap)
        inside = slice(None), slice(top, bottom), slice(left, right)
        around = slice(None), slice(top, bottom + overlap), slice(left, right + overlap)
        part_q, part_k, part_v, part_bias = _windows_backward(
            _windows(grad[inside], num_heads, query, query),
            _windows(q[inside], num_heads, query, query),
            _windows(_with_margin(k, top, bottom, left, right, margin), num_heads, key, query),
            _windows(_with_margin(v, top, bottom, left, right, margin), num_heads, key, query),
            _bias_of(bias, query, key),
            scale,
        )
        _add_windows(grad_q[inside], part_q, query, query)
        _add_windows(grad_k[around], part_k, key, query)
        _add_windows(grad_v[around], part_v, key, query)
        if bias is not None:
            grad_bias[:, :h, :w, : key[0], : key[1]] += part_bias.view(-1, *query, *key)
    # The margin's gradient is that of constant zeros.
    inside = slice(None), slice(margin, margin + height), slice(margin, margin + width)
    if margin > 0:
        grad_k, grad_v = grad_k[inside].clone(), grad_v[inside].clone()
    return grad_q, grad_k, grad_v, grad_bias


@_backward.register_fake
def _(grad, q, k, v, bias, num_heads, window, shift, overlap, scale):
    grads = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v)]
    return *grads, q.new_empty(0) if bias is None else torch.empty_like(bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs[:4])
    ctx.settings = inputs[4:]


def _gradients(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
    # Taken once: under gradient checkpointing a second time raises.
    saved = ctx.saved_tensors
    *grads, grad_bias = _backward(grad, *saved, *ctx.settings)
    return *grads, None if saved[3] is None else grad_bias, None, None, None, None, None


_forward.register_autograd(_gradients, setup_context=_save)


def _windows_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v and the bias, from windows (windows, heads, pixels, C / heads)."""
    count, heads, queries, _ = q.shape
    keys = k.shape[2]
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    grad_bias = q.new_zeros(heads, queries, keys)
    # As many windows at a time as keep their attention in the cache.
    step = max((1 << 19) // grad_bias.numel(), 1)
    for start in range(0, count, step):
        some = slice(start, start + step)
        some_grad, some_q, some_k, some_v = (x[some].flatten(0, 1) for x in (grad, q, k, v))
        scores = torch.bmm(some_q, some_k.transpose(1, 2)).mul_(scale)
        if bias is not None:
            scores.view(-1, heads, queries, keys).add_(bias)
        attention = scores.softmax(-1)
        torch.bmm(attention.transpose(1, 2), some_grad, out=grad_v[some].flatten(0, 1))
        scores = torch.bmm(some_grad, some_v.transpose(1, 2))
        scores = torch._softmax_backward_data(scores, attention, -1, q.dtype)
        if bias is not None:
            grad_bias += scores.view(-1, heads, queries, keys).sum(0)
        scores *= scale
        torch.bmm(scores, some_k, out=grad_q[some].flatten(0, 1))
        torch.bmm(scores.transpose(1, 2), some_q, out=grad_k[some].flatten(0, 1))
    return grad_q, grad_k, grad_v, grad_bias


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

    Returns:
        (B, H, W, C), dtype of `q`.

    Raises:
        ValueError: where shapes, heads, windows, shift, overlap and table do not fit each other.
    """
    window, shifts = _pair(window_size), _pair(shift)
    if not torch.jit.is_scripting():
        _check(q, k, v, num_heads, window, shifts, overlap, bias_table)
    if scale is None:
        scale = float(q.shape[3] // num_heads) ** -0.5
    bias: torch.Tensor | None = None
    if bias_table is not None:
        # A bias in another precision would take the attention off its fast path.
        bias = _position_bias(bias_table.to(q.dtype), window, (window[0] + overlap, window[1] + overlap))
    if not torch.jit.is_scripting():
        if torch.compiler.is_exporting():
            return _attend_exported(q, k, v, bias, num_heads, window, shifts, overlap, scale)
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return _forward(q, k, v, bias, num_heads, list(window), list(shifts), overlap, scale)
    return _attend(q, k, v, bias, num_heads, window, shifts, overlap, scale)
