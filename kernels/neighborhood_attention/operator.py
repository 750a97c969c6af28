"""The kernels as an operator of PyTorch: one node in a compiled graph, with its gradient; and what they ask for."""

from collections.abc import Sequence
from typing import Any

import torch

from .. import _checks, _derivatives, _dispatch
from ..tracing import are_sizes_free
from .cpu import attend_tiled

MAX_HEAD_DIM = 128


def check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    bias_table: torch.Tensor | None,
    scale: float | None,
) -> None:
    """Raises TypeError and ValueError for what no backend takes; arguments as of `neighborhood_attention`."""
    _checks.check_heads(q, k, v, num_heads)
    free = False
    if not torch.jit.is_scripting():
        _checks.check_integer("kernel_size", kernel_size)
        _checks.check_integer("dilation", dilation)
        _checks.check_tensors(("q", "bias_table"), (q, bias_table), ("bias_table",), one_dtype=False)
        _checks.check_scale(scale)
        free = are_sizes_free()
    if not 3 <= kernel_size <= 15 or kernel_size % 2 == 0:
        raise ValueError(f"kernel_size must be odd and 3 to 15, got {kernel_size}")
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, got {dilation}")
    side = 2 * kernel_size - 1
    if bias_table is not None:
        table = bias_table.shape
        if len(table) != 3 or table[0] != num_heads or table[1] != side or table[2] != side:
            raise ValueError(f"bias_table must be {(num_heads, side, side)}, got {_checks.shape(bias_table)}")
    if not free and (q.shape[1] == 0 or q.shape[2] == 0):
        raise ValueError(f"H, W and C must be at least 1, got {(q.shape[1], q.shape[2], q.shape[3])}")


def why_not(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, bias_table: torch.Tensor | None
) -> str | None:
    """What keeps Triton from running on arguments that passed `check`, None if nothing does."""
    reason = _dispatch.why_not(q, k, v)
    if reason is None and bias_table is not None:
        # Of its own dtype: under autocast a parameter keeps float32.
        reason = _dispatch.why_not(bias_table)
    if reason is None and q.shape[3] > MAX_HEAD_DIM * num_heads:
        reason = f"a head has {q.shape[3] // num_heads} channels, it takes up to {MAX_HEAD_DIM}"
    return reason


def operations(shape: Sequence[int], kernel_size: int) -> int:
    """Of the forward pass, as if every window were whole: the size by which `measured.json` counts.

    Args:
        shape: of q, (B, H, W, C).
        kernel_size: odd, 3 to 15.
    """
    b, height, width, c = shape
    return 4 * b * height * width * c * kernel_size**2


@torch.library.custom_op("attnzoo::neighborhood_attention", mutates_args=())
def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias_table: torch.Tensor | None,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`neighborhood_attention` by Triton.

    Returns:
        The attended values, (B, H, W, C), and the base-2 logarithm of each softmax's denominator,
        (B, num_heads, H, W), float32.
    """
    from .triton import neighborhood_attention_forward

    # A compiled graph leaves sizes free, which nobody checked yet.
    check(q, k, v, num_heads, kernel_size, dilation, bias_table, scale)
    # As in plain PyTorch: beyond the map's sides every pixel is a class of its own.
    dilation = min(dilation, max(q.shape[1], q.shape[2]))
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
    scale: float,
    learns: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v, and of `bias_table` where it `learns`: else (0,)."""
    from .triton import neighborhood_attention_backward

    dilation = min(dilation, max(q.shape[1], q.shape[2]))
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
    if _derivatives.backward_is_differentiated(grad_out):

        def definition(q, k, v, table):
            num_heads, kernel_size, dilation, scale = ctx.settings
            return attend_tiled(q, k, v, num_heads, kernel_size, dilation, table, scale)

        grads = _derivatives.gradients(definition, ctx.saved_tensors[:4], ctx.needs_input_grad[:4], grad_out)
        return *grads, None, None, None, None
    learns = ctx.needs_input_grad[3]
    grad_q, grad_k, grad_v, grad_bias = attention_backward(grad_out, *ctx.saved_tensors, *ctx.settings, learns)
    return grad_q, grad_k, grad_v, grad_bias if learns else None, None, None, None, None


attention.register_autograd(_gradients, setup_context=_keep)
