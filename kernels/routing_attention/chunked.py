"""Bi-level routing attention on the CPU in bounded memory: keys and values are gathered for a few regions at a time.

The backward pass gathers them again, so that nothing of the size of topk * map outlives a step of the loop.
"""

from collections.abc import Iterator

import torch

from .. import _derivatives
from .reference import from_regions, route, to_regions, tokens_inside

# Elements of the keys and values gathered at a time: what a processor's cache holds.
_BUDGET = 2**20


def routing_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
) -> torch.Tensor:
    """As the public function."""
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
