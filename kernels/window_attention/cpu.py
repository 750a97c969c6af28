"""Window attention in plain PyTorch: in strips, in one graph, and trained, with its attention kept or computed anew."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

from .. import _derivatives
from .._precision import own_precision
from ..tracing import leaves_sizes_free
from .windows import (
    HAS_NUMPY,
    add_windows,
    bias_of,
    check_sizes,
    from_windows,
    hidden_by_kind,
    parts_of,
    to_windows,
    unseen,
    windows_of,
    with_margin,
)

# Bytes of attention that one call may keep for its backward pass.
KEPT_BYTES = 32 << 20
# Elements of attention that are computed at a time: what a processor's cache holds, and elsewhere what a GPU can spare.
_CACHED = 1 << 19
_SPARED = 1 << 27
# Elements of attention up to which masks cost less than the calls for nine parts of a shifted map, on a CPU in float32
# and bfloat16.
_SMALL = 1 << 17


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
    """`window_attention` of arguments that fit each other, part by part; the bias as `position_bias` lays it out."""
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
        out = _derivatives.written_out(queries, keys, values, mask, scale)
    rows, cols = q.shape[1] // window[0], q.shape[2] // window[1]
    out = out.transpose(1, 2).reshape(q.shape[0], rows, cols, window[0], window[1], q.shape[3]).transpose(2, 3)
    out = out.clone(memory_format=torch.contiguous_format).view(q.shape)
    return out if shift == (0, 0) else torch.roll(out, shift, (1, 2))


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
        return attend_rolled(q, k, v, bias, num_heads, window, shift, scale)
    return recomputing(q, k, v, bias, num_heads, list(window), list(shift), overlap, scale)


def is_small(q: torch.Tensor, num_heads: int, window: tuple[int, int], shift: tuple[int, int], overlap: int) -> bool:
    """Whether `attend_rolled` takes less time than `attend`, where neither is differentiated."""
    attention = num_heads * window[0] * window[1] * (q.numel() // max(q.shape[3], 1))
    fast = q.device.type == "cpu" and q.dtype in (torch.float32, torch.bfloat16)
    return fast and shift != (0, 0) and overlap == 0 and attention <= _SMALL


def attend_rolled(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias: torch.Tensor | None,
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    scale: float,
) -> torch.Tensor:
    """Swin's own form: the map is rolled, and what a wrapped window must not see is masked."""
    b, height, width, _ = q.shape
    hidden: torch.Tensor | None = None
    kind: torch.Tensor | None = None
    if shift != (0, 0):
        if q.device.type == "cpu" and HAS_NUMPY:
            hidden = torch.tensor(hidden_by_kind(window, shift))
        else:  # a copy from the host would wait; a map of 2 x 2 windows has all four kinds
            hidden = unseen((2 * window[0], 2 * window[1]), window, shift, q.device)
        kinds = torch.zeros((b, height // window[0], width // window[1]), dtype=torch.long, device=q.device)
        kinds[:, -1] += 2
        kinds[:, :, -1] += 1
        kind = kinds.flatten()
    windows = (to_windows(x, num_heads, window, shift) for x in (q, k, v))
    out = _Keeping.apply(*windows, bias_of(bias, window, window), hidden, kind, num_heads, scale)
    return from_windows(out, q.shape, num_heads, window, shift)


def attend_with_bias(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor, num_heads: int, scale: float
) -> torch.Tensor:
    """Attention of (N, heads, queries, D) over (N, heads, keys, D), kept; the bias is (heads, queries, keys)."""
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    return _Keeping.apply(q, k, v, bias[None], None, None, num_heads, scale).unflatten(0, (-1, num_heads))


class _Keeping(torch.autograd.Function):
    """Attention of windows that is kept for the backward pass.

    q, k and v are (windows * heads, pixels, C / heads), the bias is (1, heads, queries, keys), `hidden` what is unseen
    in each kind of window, (kinds, 1, queries, keys), and `kind` that of each window.
    """

    @staticmethod
    def forward(ctx, q, k, v, bias, hidden, kind, num_heads, scale):
        kinds = _bias_by_kind(q, bias, hidden, num_heads)
        attention = q.new_empty(q.shape[0], q.shape[1], k.shape[1])
        out = torch.empty_like(q)
        with own_precision(q):
            for windows, some in _chunks(attention, num_heads):
                some_bias = kinds if kinds is None or kind is None else kinds.index_select(0, kind[windows])
                _softmax(_scores(q[some], k[some], some_bias, num_heads, scale), attention[some])
                torch.bmm(attention[some], v[some], out=out[some])
        ctx.save_for_backward(q, k, v, bias, hidden, kind, attention)
        ctx.num_heads, ctx.scale = num_heads, scale
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, bias, hidden, kind, attention = ctx.saved_tensors
        if _derivatives.backward_is_differentiated(grad):

            def definition(q, k, v, bias):
                bias = _bias_by_kind(q, bias, hidden, ctx.num_heads)
                if bias is not None and kind is not None:
                    bias = bias.index_select(0, kind)
                q, k, v = (x.unflatten(0, (-1, ctx.num_heads)) for x in (q, k, v))
                return _derivatives.written_out(q, k, v, bias, ctx.scale).flatten(0, 1)

            grads = _derivatives.gradients(definition, (q, k, v, bias), ctx.needs_input_grad[:4], grad)
        else:
            *grads, grad_bias = _gradients_of_windows(grad, q, k, v, bias, ctx.num_heads, ctx.scale, attention)
            grads.append(None if bias is None else grad_bias[None])
        return *grads, None, None, None, None


def _bias_by_kind(
    q: torch.Tensor, bias: torch.Tensor | None, hidden: torch.Tensor | None, num_heads: int
) -> torch.Tensor | None:
    """What is added to the scores of each kind of window, (kinds, heads, queries, keys): in their dtype, rounded."""
    bias = _rounded(bias, q)
    if hidden is None:
        return bias
    bias = q.new_zeros(1, num_heads, 1, 1, dtype=_precise(q)) if bias is None else bias
    return bias.masked_fill(hidden, -torch.inf)


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
    # A compiled graph leaves sizes free, which nobody checked yet.
    check_sizes(q, (window[0], window[1]))
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
        add_windows(grad_q[inside], part_q, query, query)
        add_windows(grad_k[around], part_k, key, query)
        add_windows(grad_v[around], part_v, key, query)
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
    if _derivatives.backward_is_differentiated(grad):
        num_heads, window, shift, overlap, scale = ctx.settings

        def definition(q, k, v, bias):
            windows, shifts = (window[0], window[1]), (shift[0], shift[1])
            return attend_in_one(q, k, v, bias, num_heads, windows, shifts, overlap, scale)

        grads = _derivatives.gradients(definition, saved, ctx.needs_input_grad[:4], grad)
        return *grads, None, None, None, None, None
    *grads, grad_bias = _backward(grad, *saved, *ctx.settings)
    return *grads, None if saved[3] is None else grad_bias, None, None, None, None, None


recomputing.register_autograd(_gradients, setup_context=_save)


def _chunks(attention: torch.Tensor, num_heads: int) -> Iterator[tuple[slice, slice]]:
    """As many windows at a time as keep their attention (windows * heads, queries, keys) within bounds.

    Yields:
        Which windows, and which places of the attention these are.
    """
    count = attention.shape[0] // num_heads
    limit = _CACHED if attention.device.type == "cpu" else _SPARED
    step = max(limit // (num_heads * attention.shape[1] * attention.shape[2]), 1)
    for start in range(0, count, step):
        stop = min(start + step, count)
        yield slice(start, stop), slice(start * num_heads, stop * num_heads)


def _precise(q: torch.Tensor) -> torch.dtype:
    """The dtype of scores: in 16 bits they would overflow, or be rounded by as much as the softmax tells apart."""
    return torch.promote_types(q.dtype, torch.float32)


def _rounded(bias: torch.Tensor | None, q: torch.Tensor) -> torch.Tensor | None:
    """The bias rounded to the dtype of `q`, in that of its scores."""
    return None if bias is None else bias.to(q.dtype).to(_precise(q))


def _scores(q: torch.Tensor, k: torch.Tensor, bias: torch.Tensor | None, num_heads: int, scale: float) -> torch.Tensor:
    """(windows * heads, queries, keys) in float32 at least, with a bias (windows or 1, heads, queries, keys)."""
    # Products of 16-bit tensors are 16-bit tensors.
    q, k = q.to(_precise(q)), k.to(_precise(q))
    if bias is None:
        return torch.bmm(q, k.transpose(1, 2)).mul_(scale)
    scores = bias.expand(q.shape[0] // num_heads, -1, -1, -1).clone(memory_format=torch.contiguous_format)
    return scores.flatten(0, 1).baddbmm_(q, k.transpose(1, 2), alpha=scale)


def _softmax(scores: torch.Tensor, out: torch.Tensor) -> None:
    """Rounded once where `out` is of 16 bits."""
    if out.dtype == scores.dtype:
        torch.softmax(scores, -1, out=out)
    else:
        out.copy_(scores.softmax(-1))


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
    # A product that is scaled by 0 is not written in every dtype.
    new = torch.zeros_like if scale == 0 else torch.empty_like
    grad_q, grad_k, grad_v = new(q), new(k), torch.empty_like(v)
    shape = q.shape[0], q.shape[1], k.shape[1]
    # 16-bit sums over all windows would round each addition.
    sums = torch.promote_types(q.dtype, torch.float32)
    grad_bias = q.new_zeros((num_heads, *shape[1:]), dtype=sums)
    rounded = _rounded(bias, q)
    with own_precision(q):
        for _, some in _chunks(q.new_empty(1).expand(shape), num_heads):
            some_grad, some_q, some_k, some_v = grad[some], q[some], k[some], v[some]
            if attention is None:
                some_attention = _scores(some_q, some_k, rounded, num_heads, scale).softmax(-1).to(q.dtype)
            else:
                some_attention = attention[some]
            torch.bmm(some_attention.transpose(1, 2), some_grad, out=grad_v[some])
            scores = torch.bmm(some_grad, some_v.transpose(1, 2))
            scores = torch._softmax_backward_data(scores, some_attention, -1, q.dtype)
            if bias is not None:
                grad_bias += scores.view(-1, *grad_bias.shape).sum(0, dtype=sums)
            grad_q[some].baddbmm_(scores, some_k, beta=0, alpha=scale)
            grad_k[some].baddbmm_(scores.transpose(1, 2), some_q, beta=0, alpha=scale)
    return grad_q, grad_k, grad_v, grad_bias
