"""Bi-level routing attention in plain PyTorch.

In one gather, which is what compilers, exporters and other devices get; on the CPU for a few regions at a time, and
again in the backward pass, so that nothing of the size of topk * map outlives a step of the loop.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch.fx.experimental.symbolic_shapes import statically_known_true

from .. import _derivatives
from .._precision import own_precision
from ..tracing import is_exporting

# Elements of the keys and values gathered at a time: what a processor's cache holds.
_BUDGET = 2**20


def _is_traced() -> bool:
    """Whether `torch.jit.trace` is at work: there a branch on a size would bind the graph to the example's."""
    return False if torch.jit.is_scripting() else torch.jit.is_tracing()


def _padded(size: int, parts: int) -> int:
    """The side of a map whose parts are all whole.

    Of an exported graph, a side that is free must be a multiple: a branch on it would bind the graph to the example's.
    """
    if _is_traced():
        return (size + parts - 1) // parts * parts
    if not torch.jit.is_scripting():
        free = is_exporting() and not statically_known_true(size % parts != 0)
        if free:
            return size
    rest = size % parts
    return size if rest == 0 else size + parts - rest


def to_regions(x: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """(B, H, W, C) -> (B, rows * cols, ceil(H / rows) * ceil(W / cols), C), regions and tokens in raster order.

    What the last regions lack is zero.
    """
    b, c = x.shape[0], x.shape[3]
    h, w = _padded(x.shape[1], rows), _padded(x.shape[2], cols)
    if _is_traced() or h != x.shape[1] or w != x.shape[2]:
        x = F.pad(x, (0, 0, 0, w - x.shape[2], 0, h - x.shape[1]))
    x = x.reshape(b, rows, h // rows, cols, w // cols, c).transpose(2, 3)
    # An explicit copy: `reshape` would ask whether one is needed, which binds symbolic sizes to the example's.
    return x.clone(memory_format=torch.contiguous_format).view(b, rows * cols, (h // rows) * (w // cols), c)


def from_regions(x: torch.Tensor, regions: tuple[int, int], height: int, width: int) -> torch.Tensor:
    """The inverse of `to_regions`."""
    rows, cols = regions
    b, c = x.shape[0], x.shape[3]
    h, w = _padded(height, rows), _padded(width, cols)
    x = x.reshape(b, rows, cols, h // rows, w // cols, c).transpose(2, 3)
    x = x.clone(memory_format=torch.contiguous_format).view(b, h, w, c)
    if _is_traced() or h != height or w != width:
        x = x[:, :height, :width]
    return x


def tokens_inside(x: torch.Tensor, rows: int, cols: int) -> torch.Tensor | None:
    """Which tokens of the regions lie on the map (B, H, W, C): (R, T) bool, or None where all do."""
    h, w = x.shape[1], x.shape[2]
    if not _is_traced() and h == _padded(h, rows) and w == _padded(w, cols):
        return None
    return to_regions(torch.ones(1, h, w, 1, dtype=torch.bool, device=x.device), rows, cols)[0, :, :, 0]


def route(q: torch.Tensor, k: torch.Tensor, topk: int, inside: torch.Tensor | None = None) -> torch.Tensor:
    """Chooses for each query region the `topk` key regions whose means match its own mean best.

    Source: Zhu et al., BiFormer, https://arxiv.org/abs/2303.08810, equations 4 and 5. The choice carries no gradient.

    Args:
        q: (B, R, T, C), tokens by region.
        k: (B, R, T, C), tokens by region.
        topk: at most R.
        inside: (R, T) bool, the tokens that count; the others are zero. A key region without any comes last.

    Returns:
        (B, R, topk) int64, indices of key regions, best first.
    """
    q, k = q.detach(), k.detach()
    # In float32 at least: rounded to 16 bits, means and scores would choose other regions.
    dtype = torch.promote_types(q.dtype, torch.float32)
    if inside is None:
        return torch.topk(match(q.mean(2, dtype=dtype), k.mean(2, dtype=dtype)), topk, dim=-1)[1]
    count = inside.sum(1)
    mean_q, mean_k = [x.sum(2, dtype=dtype) / count.clamp(min=1)[:, None] for x in (q, k)]
    scores = match(mean_q, mean_k).masked_fill(count == 0, -float("inf"))
    return torch.topk(scores, topk, dim=-1)[1]


def match(mean_q: torch.Tensor, mean_k: torch.Tensor) -> torch.Tensor:
    """How well the means (B, R, C) of query and key regions match, (B, R, R), in their own precision."""
    if torch.jit.is_scripting():
        return mean_q @ mean_k.transpose(-2, -1)
    else:
        with own_precision(mean_q):
            return mean_q @ mean_k.transpose(-2, -1)


def attend_in_one(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
) -> torch.Tensor:
    """As the public function, keys and values gathered at once."""
    rows, cols = regions
    inside = tokens_inside(q, rows, cols)
    height, width = q.shape[1], q.shape[2]
    q, k, v = to_regions(q, rows, cols), to_regions(k, rows, cols), to_regions(v, rows, cols)
    index = route(q, k, topk, inside)
    return from_regions(_attend(q, k, v, index, inside, num_heads, scale), regions, height, width)


def attend_to_chosen(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    index: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    scale: float,
) -> torch.Tensor:
    """`attend_in_one` over the key regions of an index (B, R, topk)."""
    rows, cols = regions
    inside = tokens_inside(q, rows, cols)
    height, width = q.shape[1], q.shape[2]
    q, k, v = to_regions(q, rows, cols), to_regions(k, rows, cols), to_regions(v, rows, cols)
    return from_regions(_attend(q, k, v, index, inside, num_heads, scale), regions, height, width)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    index: torch.Tensor,
    inside: torch.Tensor | None,
    num_heads: int,
    scale: float,
) -> torch.Tensor:
    """Of regions, (B, R, T, C) -> the same, over those of an index (B, R, topk)."""
    b, count, tokens, c = q.shape
    topk = index.shape[2]
    mask: torch.Tensor | None = None
    if inside is not None:
        mask = inside.index_select(0, index.flatten()).view(b * count, 1, 1, topk * tokens)
    # One row a region, so that a gather moves whole contiguous rows and its gradient is one index_add.
    first = torch.arange(b, device=q.device) * count
    index = (index + first[:, None, None]).flatten()
    k = k.reshape(b * count, tokens * c).index_select(0, index)
    v = v.reshape(b * count, tokens * c).index_select(0, index)
    head_dim = c // num_heads
    out = _derivatives.attend(
        q.reshape(b * count, tokens, num_heads, head_dim).transpose(1, 2),
        k.reshape(b * count, topk * tokens, num_heads, head_dim).transpose(1, 2),
        v.reshape(b * count, topk * tokens, num_heads, head_dim).transpose(1, 2),
        mask,
        scale,
    )
    return out.transpose(1, 2).reshape(b, count, tokens, c)


def attend_in_chunks(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
) -> torch.Tensor:
    """As `attend_in_one`, with few keys and values gathered at a time, here and again in the backward pass."""
    b, h, w, _ = q.shape
    inside = tokens_inside(q, *regions)
    q, k, v = to_regions(q, *regions), to_regions(k, *regions), to_regions(v, *regions)
    index = route(q, k, topk, inside)
    first = torch.arange(b, device=q.device) * q.shape[1]
    index = (index + first[:, None, None]).flatten(0, 1)
    out = _Attention.apply(q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1), index, inside, num_heads, scale)
    return from_regions(out.unflatten(0, (b, -1)), regions, h, w)


class _Attention(torch.autograd.Function):
    """(B * R, T, C) queries, keys and values by region, (B * R, topk) indices of key regions; -> (B * R, T, C).

    Of the keys only those count that (R, T) says are `inside` the map; None for all.
    """

    @staticmethod
    def forward(ctx, q, k, v, index, inside, num_heads, scale):
        out = torch.empty_like(q)
        logsumexp = []
        for part, chosen in _chunks(index, k):
            o, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                _heads(q[part], num_heads),
                _heads(_gather(k, chosen), num_heads),
                _heads(_gather(v, chosen), num_heads),
                attn_mask=_mask(inside, chosen, q.dtype),
                scale=scale,
            )
            _heads(out[part], num_heads).copy_(o)
            logsumexp.append(lse)
        ctx.save_for_backward(q, k, v, index, inside, out, *logsumexp)
        ctx.num_heads, ctx.scale = num_heads, scale
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, index, inside, out, *logsumexp = ctx.saved_tensors
        if _derivatives.backward_is_differentiated(grad):

            def definition(q, k, v):
                q, k, v = (_heads(x, ctx.num_heads) for x in (q, _gather(k, index), _gather(v, index)))
                out = _derivatives.written_out(q, k, v, _mask(inside, index, q.dtype), ctx.scale)
                return out.transpose(1, 2).flatten(2)

            grads = _derivatives.gradients(definition, (q, k, v), ctx.needs_input_grad[:3], grad)
            return *grads, None, None, None, None
        # Keys chosen by many regions gather many gradients: half precision would round each addition.
        sums = torch.promote_types(k.dtype, torch.float32)
        grad_q = torch.empty_like(q)
        grad_k, grad_v = torch.zeros_like(k, dtype=sums), torch.zeros_like(v, dtype=sums)
        for (part, chosen), lse in zip(_chunks(index, k), logsumexp, strict=True):
            part_q, part_k, part_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                _heads(grad[part], ctx.num_heads),
                _heads(q[part], ctx.num_heads),
                _heads(_gather(k, chosen), ctx.num_heads),
                _heads(_gather(v, chosen), ctx.num_heads),
                _heads(out[part], ctx.num_heads),
                lse,
                0.0,
                False,
                attn_mask=_mask(inside, chosen, q.dtype),
                scale=ctx.scale,
            )
            _heads(grad_q[part], ctx.num_heads).copy_(part_q)
            for total, piece in ((grad_k, part_k), (grad_v, part_v)):
                piece = piece.transpose(1, 2).reshape(chosen.numel(), *k.shape[1:])
                total.index_add_(0, chosen.flatten(), piece.to(sums))
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None, None, None


def _chunks(index: torch.Tensor, keys: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """Query regions at a time, with their rows of the index."""
    size = max(1, _BUDGET // (2 * index.shape[1] * keys[0].numel()))
    for start in range(0, index.shape[0], size):
        part = slice(start, start + size)
        yield part, index[part]


def _gather(x: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """(R, T, C) by (n, topk) -> (n, topk * T, C)."""
    return x.index_select(0, chosen.flatten()).view(chosen.shape[0], -1, x.shape[2])


def _mask(inside: torch.Tensor | None, chosen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor | None:
    """What is added to the scores of the gathered keys (n, 1, 1, topk * T): minus infinity for those off the map."""
    if inside is None:
        return None
    keys = inside[chosen % inside.shape[0]].flatten(1)[:, None, None]
    return torch.zeros(keys.shape, dtype=dtype, device=keys.device).masked_fill_(~keys, -float("inf"))


def _heads(x: torch.Tensor, num_heads: int) -> torch.Tensor:
    """(n, T, C) -> (n, heads, T, C / heads), a view."""
    return x.unflatten(2, (num_heads, -1)).transpose(1, 2)
