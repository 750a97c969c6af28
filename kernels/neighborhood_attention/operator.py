"""The kernels as an operator of PyTorch: one node in a compiled graph, with its gradient."""

from typing import Any

import torch


@torch.library.custom_op("attnzoo::neighborhood_attention", mutates_args=())
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias_table: torch.Tensor | None,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`neighborhood_attention` by Triton.

    Returns:
        The attended values, (B, H, W, C), and the base-2 logarithm of each softmax's denominator,
        (B, num_heads, H, W), float32.
    """
    from .triton import neighborhood_attention_forward

    return neighborhood_attention_forward(q, k, v, bias_table, num_heads, kernel_size, dilation, scale)


@attention.register_fake
def _(q, k, v, bias_table, num_heads, kernel_size, dilation, scale):
    b, height, width, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((b, num_heads, height, width), dtype=torch.float32)


@torch.library.custom_op("attnzoo::neighborhood_attention_backward", mutates_args=())
def attention_backward(
    grad_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias_table: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    scale: float | None,
    learns: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v, and of `bias_table` where it `learns`: else (0,)."""
    from .triton import neighborhood_attention_backward

    return neighborhood_attention_backward(
        grad_out, q, k, v, bias_table, out, lse, num_heads, kernel_size, dilation, scale, learns
    )


@attention_backward.register_fake
def _(grad_out, q, k, v, bias_table, out, lse, num_heads, kernel_size, dilation, scale, learns):
    grad_bias = bias_table.new_empty(bias_table.shape) if learns else q.new_empty(0)
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape), grad_bias


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    q, k, v, bias_table, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, bias_table, *output)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad_out: torch.Tensor, _: Any) -> tuple[Any, ...]:
    learns = ctx.needs_input_grad[3]
    grad_q, grad_k, grad_v, grad_bias = attention_backward(grad_out, *ctx.saved_tensors, *ctx.settings, learns)
    return grad_q, grad_k, grad_v, grad_bias if learns else None, None, None, None, None


attention.register_autograd(_gradients, setup_context=_keep)
