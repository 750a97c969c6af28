"""Window attention that is trained in plain PyTorch: with its attention kept, or computed anew in the backward pass."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.autograd.function import once_differentiable

from .reference import attend, bias_of, parts_of, unseen, windows_of, with_margin

# Bytes of attention that one call may keep for its backward pass.
KEPT_BYTES = 32 << 20


def attend_with_gradients(
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
    """`attend`, which keeps the attention where it is no larger than q, k and v together, nor than `KEPT_BYTES`.

    That saves time wherever windows are small, as Swin's. Elsewhere only q, k and v are kept.
    """
    keys = window[0] * window[1]
    attention = num_heads * keys * (q.numel() // q.shape[3])
    # A compiled graph holds one operator instead of hundreds, and no guard on the sizes.
    compiling = torch.compiler.is_compiling()
    if not compiling and overlap == 0 and attention <= min(3 * q.numel(), KEPT_BYTES // q.element_size()):
        return _Keeping.apply(q, k, v, bias_of(bias, window, window), num_heads, window, shift, scale)
    return recomputing(q, k, v, bias, num_heads, list(window), list(shift), overlap, scale)


class _Keeping(torch.autograd.Function):
    """Swin's own form: the map is rolled, and what a wrapped window must not see is masked."""

    @staticmethod
    def forward(ctx, q, k, v, bias, num_heads, window, shift, scale):
        ctx.settings = q.shape, num_heads, window, shift, scale
        kinds, kind = _kinds(q, bias, num_heads, window, shift)
        q, k, v = (_rolled_windows(x, num_heads, window, shift) for x in (q, k, v))
        attention = q.new_empty(q.shape[0], q.shape[1], k.shape[1])
        out = torch.empty_like(q)
        for windows, some in _chunks(attention, num_heads):
            some_bias = kinds if kinds is None or kind is None else kinds.index_select(0, kind[windows])
            torch.softmax(_scores(q[some], k[some], some_bias, num_heads, scale), -1, out=attention[some])
            torch.bmm(attention[some], v[some], out=out[some])
        ctx.save_for_backward(q, k, v, bias, attention)
        return _from_rolled_windows(out, *ctx.settings[:4])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        shape, num_heads, window, shift, scale = ctx.settings
        q, k, v, bias, attention = ctx.saved_tensors
        grad = _rolled_windows(grad, num_heads, window, shift)
        *grads, grad_bias = _gradients_of_windows(grad, q, k, v, bias, num_heads, scale, attention)
        grads = [_from_rolled_windows(x, shape, num_heads, window, shift) for x in grads]
        return *grads, None if bias is None else grad_bias[None], None, None, None, None


def _kinds(
    q: torch.Tensor, bias: torch.Tensor | None, num_heads: int, window: tuple[int, int], shift: tuple[int, int]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """What is added to the scores of each kind of window (kinds, heads, queries, keys), and each window's kind."""
    if shift == (0, 0):
        return bias, None
    hidden = _hidden(window, shift, q.device)
    bias = q.new_zeros(1, num_heads, 1, 1) if bias is None else bias
    rows, cols = q.shape[1] // window[0], q.shape[2] // window[1]
    kind = torch.zeros((q.shape[0], rows, cols), dtype=torch.long, device=q.device)
    kind[:, -1] += 2
    kind[:, :, -1] += 1
    return bias.masked_fill(hidden, -torch.inf), kind.flatten()


@functools.lru_cache(maxsize=64)
def _hidden(window: tuple[int, int], shift: tuple[int, int], device: torch.device) -> torch.Tensor:
    """`unseen` of each kind of window: inside, at the right border, at the lower one, at both."""
    # A map of 2x2 windows has them all.
    return unseen((2 * window[0], 2 * window[1]), window, shift, device)


def _rolled(x: torch.Tensor, down: int, right: int) -> torch.Tensor:
    """`torch.roll` of (B, H, W, C) in one pass."""
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    top, left = x.shape[1] - down, x.shape[2] - right
    out[:, down:, right:], out[:, down:, :right] = x[:, :top, :left], x[:, :top, left:]
    out[:, :down, right:], out[:, :down, :right] = x[:, top:, :left], x[:, top:, left:]
    return out


def _rolled_windows(x: torch.Tensor, num_heads: int, window: tuple[int, int], shift: tuple[int, int]) -> torch.Tensor:
    """(B, H, W, C) -> (windows * heads, pixels, C / heads)."""
    if shift != (0, 0):
        x = _rolled(x, x.shape[1] - shift[0], x.shape[2] - shift[1])
    return windows_of(x, num_heads, window, window).flatten(0, 1)


def _from_rolled_windows(
    x: torch.Tensor, shape: torch.Size, num_heads: int, window: tuple[int, int], shift: tuple[int, int]
) -> torch.Tensor:
    """The inverse of `_rolled_windows`."""
    b, height, width, c = shape
    x = x.view(b, height // window[0], width // window[1], num_heads, *window, c // num_heads)
    x = x.permute(0, 1, 4, 2, 5, 3, 6).reshape(shape)
    return x if shift == (0, 0) else _rolled(x, *shift)


def _add_windows(x: torch.Tensor, windows: torch.Tensor, size: tuple[int, int], step: tuple[int, int]) -> None:
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


@torch.library.custom_op("attnzoo::window_attention", mutates_args=())
def recomputing(
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
    """`attend` as one operator, which keeps neither windows nor attention for the backward pass.

    PyTorch's fast attention on the CPU has no gradient of a bias; without one it would fall back to a path that keeps
    the attention of all windows. A compiled graph holds one node instead of hundreds.
    """
    # A bias that asks for a gradient would take the attention off its fast path even here.
    bias = None if bias is None else bias.detach()
    return attend(q, k, v, bias, num_heads, (window[0], window[1]), (shift[0], shift[1]), overlap, scale)


@recomputing.register_fake
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
    for top, bottom, left, right, h, w in parts_of(q, (window[0], window[1]), (shift[0], shift[1]), overlap):
        query, key = (h, w), (h + overlap, w + overlap)
        inside = slice(None), slice(top, bottom), slice(left, right)
        around = slice(None), slice(top, bottom + overlap), slice(left, right + overlap)
        part_q, part_k, part_v, part_bias = _gradients_of_windows(
            windows_of(grad[inside], num_heads, query, query).flatten(0, 1),
            windows_of(q[inside], num_heads, query, query).flatten(0, 1),
            windows_of(with_margin(k, top, bottom, left, right, margin), num_heads, key, query).flatten(0, 1),
            windows_of(with_margin(v, top, bottom, left, right, margin), num_heads, key, query).flatten(0, 1),
            bias_of(bias, query, key),
            num_heads,
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


recomputing.register_autograd(_gradients, setup_context=_save)


def _chunks(attention: torch.Tensor, num_heads: int) -> Iterator[tuple[slice, slice]]:
    """As many windows at a time as keep their attention (windows * heads, queries, keys) in the cache.

    Yields:
        Which windows, and which places of the attention these are.
    """
    count = attention.shape[0] // num_heads
    step = max((1 << 19) // (num_heads * attention.shape[1] * attention.shape[2]), 1)
    for start in range(0, count, step):
        stop = min(start + step, count)
        yield slice(start, stop), slice(start * num_heads, stop * num_heads)


def _scores(q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor | None, num_heads: int, scale: float) -> torch.Tensor:
    """(windows * heads, queries, keys), with a bias (windows or 1, heads, queries, keys)."""
    if bias is None:
        return torch.bmm(q, k.transpose(1, 2)).mul_(scale)
    scores = bias.expand(q.shape[0] // num_heads, -1, -1, -1).clone(memory_format=torch.contiguous_format)
    return scores.flatten(0, 1).baddbmm_(q, k.transpose(1, 2), alpha=scale)


def _gradients_of_windows(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    num_heads: int,
    scale: float,
    attention: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v (windows * heads, pixels, C / heads) and the bias; the attention is computed if not kept."""
    grad_q, grad_k, grad_v = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    shape = q.shape[0], q.shape[1], k.shape[1]
    grad_bias = q.new_zeros(num_heads, *shape[1:])
    for _, some in _chunks(q.new_empty(1).expand(shape), num_heads):
        some_grad, some_q, some_k, some_v = grad[some], q[some], k[some], v[some]
        if attention is None:
            some_attention = _scores(some_q, some_k, bias, num_heads, scale).softmax(-1)
        else:
            some_attention = attention[some]
        torch.bmm(some_attention.transpose(1, 2), some_grad, out=grad_v[some])
        scores = torch.bmm(some_grad, some_v.transpose(1, 2))
        scores = torch._softmax_backward_data(scores, some_attention, -1, q.dtype)
        if bias is not None:
            grad_bias += scores.view(-1, *grad_bias.shape).sum(0)
        grad_q[some].baddbmm_(scores, some_k, beta=0, alpha=scale)
        grad_k[some].baddbmm_(scores.transpose(1, 2), some_q, beta=0, alpha=scale)
    return grad_q, grad_k, grad_v, grad_bias
