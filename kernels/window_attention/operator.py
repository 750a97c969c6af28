"""The kernels as an operator of PyTorch: one node in a compiled graph, with its gradient; and what they ask for.

Triton is imported when the operator runs.
"""

from collections.abc import Sequence
from typing import Any

import torch

from .. import _checks, _derivatives, _dispatch
from .cpu import attend_in_one
from .windows import check_sizes, position_bias


def max_head_dim(dtype: torch.dtype) -> int:
    """Channels of a head that Triton's kernels take: wider ones of float32 do not fit a GPU's registers."""
    return 64 if dtype == torch.float32 else 128


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """Two of the same for one integer; anything but integers is left to `check`."""
    if isinstance(value, int):
        return value, value
    if not torch.jit.is_scripting() and isinstance(value, list):
        return tuple(value)
    return value


def check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    overlap: int,
    bias_table: torch.Tensor | None,
    scale: float | None,
) -> None:
    """Raises TypeError and ValueError for what no backend takes; arguments as of `window_attention`."""
    _checks.check_heads(q, k, v, num_heads)
    if not torch.jit.is_scripting():
        _checks.check_pair("window_size", window)
        _checks.check_pair("shift", shift)
        _checks.check_integer("overlap", overlap)
        _checks.check_tensors(("q", "bias_table"), (q, bias_table), ("bias_table",), one_dtype=False)
        _checks.check_scale(scale)
    if window[0] < 1 or window[1] < 1:
        raise ValueError(f"window_size must be at least 1, got {window}")
    if not (0 <= shift[0] < window[0] and 0 <= shift[1] < window[1]):
        raise ValueError(f"shift must be at least 0 and less than window_size {window}, got {shift}")
    if overlap < 0 or overlap % 2 != 0:
        raise ValueError(f"overlap must be even and at least 0, got {overlap}")
    if overlap > 0 and (shift[0] > 0 or shift[1] > 0):
        raise ValueError(f"shift must be 0 where windows overlap, got {shift}")
    if bias_table is not None:
        rows = (2 * window[0] - 1 + overlap) * (2 * window[1] - 1 + overlap)
        if bias_table.dim() != 2 or bias_table.shape[0] != rows or bias_table.shape[1] != num_heads:
            raise ValueError(
                f"bias_table must be {(rows, num_heads)} for these windows, got {_checks.shape(bias_table)}"
            )
    check_sizes(q, window)


def why_not(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, bias_table: torch.Tensor | None
) -> str | None:
    """What keeps Triton from running on arguments that passed `check`, None if nothing does."""
    reason = _dispatch.why_not(q, k, v)
    if reason is None and bias_table is not None:
        # Of its own dtype: under autocast a parameter keeps float32.
        reason = _dispatch.why_not(bias_table)
    if reason is None and q.shape[3] > max_head_dim(q.dtype) * num_heads:
        reason = f"a head has {q.shape[3] // num_heads} channels, in {q.dtype} it takes up to {max_head_dim(q.dtype)}"
    return reason


def operations(shape: Sequence[int], window: tuple[int, int], overlap: int) -> int:
    """Of the forward pass, as if no border cut any window: the size by which `measured.json` counts.

    Args:
        shape: of q, (B, H, W, C).
        window: sides of the windows of queries, pixels.
        overlap: pixels by which windows of keys are larger.
    """
    b, height, width, c = shape
    return 4 * b * height * width * c * (window[0] + overlap) * (window[1] + overlap)


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
    # A compiled graph leaves sizes free, which nobody checked yet.
    check(q, k, v, num_heads, windows, shifts, overlap, bias_table, scale)
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
    if _derivatives.backward_is_differentiated(grad):
        num_heads, window, shift, overlap, scale = ctx.settings

        def definition(q, k, v, table):
            windows, key = (window[0], window[1]), (window[0] + overlap, window[1] + overlap)
            bias = None
            if table is not None:
                bias = position_bias(table.to(torch.promote_types(q.dtype, torch.float32)), windows, key)
            return attend_in_one(q, k, v, bias, num_heads, windows, (shift[0], shift[1]), overlap, scale)

        grads = _derivatives.gradients(definition, ctx.saved_tensors[:4], ctx.needs_input_grad[:4], grad)
        return *grads, None, None, None, None, None
    learns = ctx.needs_input_grad[3]
    *grads, grad_bias = attention_backward(grad, *ctx.saved_tensors, *ctx.settings, learns)
    return *grads, grad_bias if learns else None, None, None, None, None, None


attention.register_autograd(_gradients, setup_context=_save)
