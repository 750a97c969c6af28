"""Triton's bi-level routing attention as an operator of PyTorch, one node of a compiled graph.

Triton is imported when the operator runs.
"""

from typing import Any

import torch


@torch.library.custom_op("attnzoo::routing_attention", mutates_args=())
def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, regions: list[int], topk: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As the public function; also the log-sum-exp (B, heads, H, W) and the regions chosen (B, R, topk)."""
    from . import triton

    grid = (regions[0], regions[1])
    index = triton.route(q, k, grid, topk)
    return *triton.attention_forward(q, k, v, index, num_heads, grid, scale), index


@forward.register_fake
def _(q, k, v, num_heads, regions, topk, scale):
    b, height, width, _ = q.shape
    return (
        torch.empty_like(q, memory_format=torch.contiguous_format),
        q.new_empty(b, num_heads, height, width, dtype=torch.float32),
        q.new_empty(b, regions[0] * regions[1], topk, dtype=torch.int32),
    )


@torch.library.custom_op("attnzoo::routing_attention_backward", mutates_args=())
def backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    index: torch.Tensor,
    out: torch.Tensor,
    logsumexp: torch.Tensor,
    num_heads: int,
    regions: list[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v."""
    from . import triton

    return triton.attention_backward(grad, q, k, v, index, out, logsumexp, num_heads, (regions[0], regions[1]), scale)


@backward.register_fake
def _(grad, q, k, v, index, out, logsumexp, num_heads, regions, scale):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    q, k, v, ctx.num_heads, ctx.regions, _, ctx.scale = inputs
    out, logsumexp, index = output
    ctx.mark_non_differentiable(logsumexp, index)
    ctx.save_for_backward(q, k, v, index, out, logsumexp)


def _gradients(ctx: Any, grad: torch.Tensor, *_: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    grads = backward(grad, *ctx.saved_tensors, ctx.num_heads, ctx.regions, ctx.scale)
    return *grads, None, None, None, None


forward.register_autograd(_gradients, setup_context=_save)
