"""Softmax attention that PyTorch computes in one piece, and that can be differentiated in any way on the CPU."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import register_notrace_function

from ...kernels._derivatives import (
    attend_transformed,
    backward_is_differentiated,
    gradients,
    is_transformed,
    written_out,
)

__all__ = ["softmax_attention"]

# PyTorch's number of the fused kernel in its choice between them.
_FLASH = 1


@register_notrace_function
def softmax_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """`softmax(q k^T / sqrt(D) + bias) v`.

    Args:
        q: (B, heads, N, D).
        k: (B, heads, M, D).
        v: (B, heads, M, D).
        bias: broadcast to (B, heads, N, M).

    Returns:
        (B, heads, N, D).
    """
    if torch.jit.is_scripting():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    else:
        if is_transformed():
            # The fused kernel knows no forward mode, and `torch.func.grad` differentiates every argument.
            return attend_transformed(q, k, v, bias, q.shape[-1] ** -0.5)
        if not _is_eager_training(q, k, v, bias):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        if bias is not None and bias.requires_grad:
            # The fused kernel gives masks no gradient.
            return _written_out(q, k, v, bias)
        if torch._fused_sdp_choice(q, k, v, bias) != _FLASH:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return _Fused.apply(q, k, v, bias)


def _is_eager_training(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> bool:
    """On the CPU, with gradients, and seen by no tracer or autocast that knows PyTorch's function alone."""
    return (
        q.device.type == "cpu"
        and torch.is_grad_enabled()
        and any(x is not None and x.requires_grad for x in (q, k, v, bias))
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch.is_autocast_enabled("cpu")
    )


def _written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return written_out(q, k, v, bias, q.shape[-1] ** -0.5)


class _Fused(torch.autograd.Function):
    """PyTorch's fused kernel; where its gradient shall have one too, the gradient of the plain formula."""

    @staticmethod
    def forward(ctx: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=bias)
        ctx.save_for_backward(q, k, v, bias, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        q, k, v, bias, out, sums = ctx.saved_tensors
        if backward_is_differentiated(grad):
            needed = (*ctx.needs_input_grad[:3], False)
            return *gradients(_written_out, (q, k, v, bias), needed, grad)[:3], None
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        return *fused(grad, q, k, v, out, sums, 0.0, False, attn_mask=bias), None
