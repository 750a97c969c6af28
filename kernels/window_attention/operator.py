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
    _check_windows("q", q, num_heads, window, shift, overlap, bias_table, scale)


def check_packed(
    qkv: torch.Tensor,
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    overlap: int,
    bias_table: torch.Tensor | None,
    scale: float | None,
) -> None:
    """The same for `window_attention_packed`."""
    _checks.check_packed(qkv, num_heads)
    _check_windows("qkv", qkv, num_heads, window, shift, overlap, bias_table, scale)


def _check_windows(
    name: str,
    x: torch.Tensor,
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    overlap: int,
    bias_table: torch.Tensor | None,
    scale: float | None,
) -> None:
    if not torch.jit.is_scripting():
        _checks.check_pair("window_size", window)
        _checks.check_pair("shift", shift)
        _checks.check_integer("overlap", overlap)
        _checks.check_tensors((name, "bias_table"), (x, bias_table), ("bias_table",), one_dtype=False)
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
    check_sizes(x, window)


def why_not(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, bias_table: torch.Tensor | None
) -> str | None:
    """What keeps Triton from running on arguments that passed `check`, None if nothing does."""
    return _dispatch.why_not(q, k, v) or _why_not_heads(q, q.shape[3] // num_heads, bias_table)


def why_not_packed(qkv: torch.Tensor, num_heads: int, bias_table: torch.Tensor | None) -> str | None:
    """The same for `window_attention_packed`."""
    return _dispatch.why_not(qkv) or _why_not_heads(qkv, qkv.shape[3] // 3 // num_heads, bias_table)


def _why_not_heads(x: torch.Tensor, dim: int, bias_table: torch.Tensor | None) -> str | None:
    # Of its own dtype: under autocast a parameter keeps float32.
    reason = None if bias_table is None else _dispatch.why_not(bias_table)
    if reason is None and dim > max_head_dim(x.dtype):
        reason = f"a head has {dim} channels, in {x.dtype} it takes up to {max_head_dim(x.dtype)}"
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


def _attend(
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
    from .triton import window_attention_forward

    windows, shifts = (window[0], window[1]), (shift[0], shift[1])
    # A compiled graph leaves sizes free, which nobody checked yet.
    check(q, k, v, num_heads, windows, shifts, overlap, bias_table, scale)
    return window_attention_forward(q, k, v, bias_table, num_heads, windows, shifts, overlap, scale)


def _definition(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor | None,
    num_heads: int,
    window: list[int],
    shift: list[int],
    overlap: int,
    scale: float,
) -> torch.Tensor:
    """`window_attention` in operators that can be differentiated as often as one likes."""
    windows, key = (window[0], window[1]), (window[0] + overlap, window[1] + overlap)
    bias = None
    if table is not None:
        bias = position_bias(table.to(torch.promote_types(q.dtype, torch.float32)), windows, key)
    return attend_in_one(q, k, v, bias, num_heads, windows, (shift[0], shift[1]), overlap, scale)


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
    return _attend(q, k, v, bias_table, num_heads, window, shift, overlap, scale)


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
    grad_q, grad_k, grad_v = grads = q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape)
    grad_bias = window_attention_backward(
        grad, q, k, v, bias_table, out, lse, grads, num_heads, windows, shifts, overlap, scale, learns
    )
    return grad_q, grad_k, grad_v, grad_bias


@attention_backward.register_fake
def _(grad, q, k, v, bias_table, out, lse, num_heads, window, shift, overlap, scale, learns):
    grad_bias = bias_table.new_empty(bias_table.shape) if learns else q.new_empty(0)
    return q.new_empty(q.shape), q.new_empty(q.shape), q.new_empty(q.shape), grad_bias


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    q, k, v, bias_table, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, bias_table, *output)
    ctx.mark_non_differentiable(output[1])
    # Else each backward pass would make zeros of its size.
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    if _derivatives.backward_is_differentiated(grad):

        def definition(q, k, v, table):
            return _definition(q, k, v, table, *ctx.settings)

        grads = _derivatives.gradients(definition, ctx.saved_tensors[:4], ctx.needs_input_grad[:4], grad)
        return *grads, None, None, None, None, None
    learns = ctx.needs_input_grad[3]
    *grads, grad_bias = attention_backward(grad, *ctx.saved_tensors, *ctx.settings, learns)
    return *grads, grad_bias if learns else None, None, None, None, None, None


attention.register_autograd(_gradients, setup_context=_save)


@torch.library.custom_op("attnzoo::window_attention_triton_packed", mutates_args=())
def attention_packed(
    qkv: torch.Tensor,
    bias_table: torch.Tensor | None,
    num_heads: int,
    window: list[int],
    shift: list[int],
    overlap: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `attention`, of one map (B, H, W, 3 * C)."""
    q, k, v = qkv.chunk(3, -1)
    return _attend(q, k, v, bias_table, num_heads, window, shift, overlap, scale)


@attention_packed.register_fake
def _(qkv, bias_table, num_heads, window, shift, overlap, scale):
    b, height, width, channels = qkv.shape
    lse = qkv.new_empty((b, height, width, num_heads), dtype=torch.float32)
    return qkv.new_empty((b, height, width, channels // 3)), lse


@torch.library.custom_op("attnzoo::window_attention_triton_packed_backward", mutates_args=())
def attention_packed_backward(
    grad: torch.Tensor,
    qkv: torch.Tensor,
    bias_table: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    num_heads: int,
    window: list[int],
    shift: list[int],
    overlap: int,
    scale: float,
    learns: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of `qkv`, in one piece, and of `bias_table` where it `learns`: else (0,)."""
    from .triton import window_attention_backward

    windows, shifts = (window[0], window[1]), (shift[0], shift[1])
    q, k, v = qkv.chunk(3, -1)
    grad_qkv = qkv.new_empty(qkv.shape)
    grad_q, grad_k, grad_v = grad_qkv.chunk(3, -1)
    grads = grad_q, grad_k, grad_v
    grad_bias = window_attention_backward(
        grad, q, k, v, bias_table, out, lse, grads, num_heads, windows, shifts, overlap, scale, learns
    )
    return grad_qkv, grad_bias


@attention_packed_backward.register_fake
def _(grad, qkv, bias_table, out, lse, num_heads, window, shift, overlap, scale, learns):
    return qkv.new_empty(qkv.shape), bias_table.new_empty(bias_table.shape) if learns else qkv.new_empty(0)


def _save_packed(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    qkv, bias_table, *ctx.settings = inputs
    ctx.save_for_backward(qkv, bias_table, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradients_packed(ctx: Any, grad: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    if _derivatives.backward_is_differentiated(grad):

        def definition(qkv, table):
            q, k, v = qkv.chunk(3, -1)
            return _definition(q, k, v, table, *ctx.settings)

        grads = _derivatives.gradients(definition, ctx.saved_tensors[:2], ctx.needs_input_grad[:2], grad)
        return *grads, None, None, None, None, None
    learns = ctx.needs_input_grad[1]
    grad_qkv, grad_bias = attention_packed_backward(grad, *ctx.saved_tensors, *ctx.settings, learns)
    return grad_qkv, grad_bias if learns else None, None, None, None, None, None


attention_packed.register_autograd(_gradients_packed, setup_context=_save_packed)
