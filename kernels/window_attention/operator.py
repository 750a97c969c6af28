"""The kernels as an operator of PyTorch: one node in a compiled graph, with its gradient.

Triton is imported when the operator runs.
"""

from typing import Any

import torch


@torch.library.custom_op("attnzoo::window_attention_triton", mutates_args=())
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias_table: torch.Tensor | None,
    num_heads: int,
    window: list[int],
    shift: list[int],
    overlap: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`window_attention` by Triton.

    Returns:
        The attended values, (B, H, W, C), and the base-2 logarithm of each softmax's denominator,
        (B, H, W, num_heads), float32.
    """
    from .triton import window_attention_forward

    windows, shifts = (window[0], window[1]), (shift[0], shift[1])
    return window_attention_forward(q, k, v, bias_table, num_heads, windows, shifts, overlap, scale)


@attention.register_fake
def _(q, k, v, bias_table, num_heads, window, shift, overlap, scale):
    return q.new_empty(q.shape), q.new_empty((*q.shape[:3], num_heads), dtype=torch.float32)


@torch.library.custom_op("attnzoo::window_attention_triton_backward", mutates_args=())
def attention_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias_table: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    num_heads: int,
    window: list[int],
    shift: list[int],
    overlap: int,
    scale: float,
    learns: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v, and of `bias_table` where it `learns`: else (0,)."""
    from .triton import window_attention_backward

    windows, shifts = (window[0], window[1]), (shift[0], shift[1])
    return window_attention_backward(
        grad, q, k, v, bias_table, out, lse, num_heads, windows, shifts, overlap, scale, learns
    )


@attention_backward.register_fake
def _(grad, q, k, v, bias_table, out, lse, num_heads, window, shift, overlap, scale, learns):
    grad_bias = bias_table.new_empty(bias_table.shape) if learns else q.new_empty(0)
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape), grad_bias


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    q, k, v, bias_table, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, bias_table, *output)
    ctx.mark_non_differentiable(output[1])


def _gradients(ctx: Any, grad: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    learns = ctx.needs_input_grad[3]
    *grads, grad_bias = attention_backward(grad, *ctx.saved_tensors, *ctx.settings, learns)
    return *grads, grad_bias if learns else None, None, None, None, None, None


attention.register_autograd(_gradients, setup_context=_save)
