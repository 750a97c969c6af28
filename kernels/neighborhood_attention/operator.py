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
    _check_rest("q", q, q.shape[3], num_heads, kernel_size, dilation, bias_table, scale)


def check_packed(
    qkv: torch.Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    bias_table: torch.Tensor | None,
    scale: float | None,
) -> None:
    """`check` of q, k and v in one tensor."""
    _checks.check_packed(qkv, num_heads)
    _check_rest("qkv", qkv, qkv.shape[3] // 3, num_heads, kernel_size, dilation, bias_table, scale)


def _check_rest(
    name: str,
    x: torch.Tensor,
    channels: int,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    bias_table: torch.Tensor | None,
    scale: float | None,
) -> None:
    """What is asked beside heads, of the map by this name and of the settings."""
    free = False
    if not torch.jit.is_scripting():
        _checks.check_integer("kernel_size", kernel_size)
        _checks.check_integer("dilation", dilation)
        _checks.check_tensors((name, "bias_table"), (x, bias_table), ("bias_table",), one_dtype=False)
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
    if not free and (x.shape[1] == 0 or x.shape[2] == 0):
        raise ValueError(f"H, W and C must be at least 1, got {(x.shape[1], x.shape[2], channels)}")


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


def _attended(
    maps: Sequence[torch.Tensor],
    bias_table: torch.Tensor | None,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The forward pass by Triton, of q, k and v."""
    from .triton import neighborhood_attention_forward

    q, k, v = maps
    # As in plain PyTorch: beyond the map's sides every pixel is a class of its own.
    dilation = min(dilation, max(q.shape[1], q.shape[2]))
    return neighborhood_attention_forward(q, k, v, bias_table, num_heads, kernel_size, dilation, scale)


def _differentiated(
    grad_out: torch.Tensor,
    maps: Sequence[torch.Tensor],
    bias_table: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    grads: Sequence[torch.Tensor],
    num_heads: int,
    kernel_size: int,
    dilation: int,
    scale: float,
    learns: bool,
) -> torch.Tensor:
    """The backward pass by Triton, which writes into `grads`, of q, k and v, and returns that of the bias table."""
    from .triton_backward import neighborhood_attention_backward

    dilation = min(dilation, max(grad_out.shape[1], grad_out.shape[2]))
    return neighborhood_attention_backward(
        grad_out, maps, bias_table, out, lse, grads, num_heads, kernel_size, dilation, scale, learns
    )


def _fake_attended(qkv: torch.Tensor, channels: int, num_heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    b, height, width, _ = qkv.shape
    return qkv.new_empty((b, height, width, channels)), qkv.new_empty(
        (b, num_heads, height, width), dtype=torch.float32
    )


def _fake_grad(x: torch.Tensor, bias_table: torch.Tensor | None, learns: bool) -> torch.Tensor:
    return bias_table.new_empty(bias_table.shape) if bias_table is not None and learns else x.new_empty(0)


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
    # A compiled graph leaves sizes free, which nobody checked yet.
    check(q, k, v, num_heads, kernel_size, dilation, bias_table, scale)
    return _attended((q, k, v), bias_table, num_heads, kernel_size, dilation, scale)


@attention.register_fake
def _(q, k, v, bias_table, num_heads, kernel_size, dilation, scale):
    return _fake_attended(q, q.shape[3], num_heads)


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
    grad_q, grad_k, grad_v = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    grads, settings = (grad_q, grad_k, grad_v), (num_heads, kernel_size, dilation, scale)
    return *grads, _differentiated(grad_out, (q, k, v), bias_table, out, lse, grads, *settings, learns)


@attention_backward.register_fake
def _(grad_out, q, k, v, bias_table, out, lse, num_heads, kernel_size, dilation, scale, learns):
    return *(q.new_empty(q.shape) for _ in range(3)), _fake_grad(q, bias_table, learns)


@torch.library.custom_op("attnzoo::neighborhood_attention_packed", mutates_args=())
def attention_packed(
    qkv: torch.Tensor,
    bias_table: torch.Tensor | None,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`attention` of the three parts of `qkv`, (B, H, W, 3 * C)."""
    check_packed(qkv, num_heads, kernel_size, dilation, bias_table, scale)
    return _attended(qkv.chunk(3, -1), bias_table, num_heads, kernel_size, dilation, scale)


@attention_packed.register_fake
def _(qkv, bias_table, num_heads, kernel_size, dilation, scale):
    return _fake_attended(qkv, qkv.shape[3] // 3, num_heads)


@torch.library.custom_op("attnzoo::neighborhood_attention_packed_backward", mutates_args=())
def attention_packed_backward(
    grad_out: torch.Tensor,
    qkv: torch.Tensor,
    bias_table: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    scale: float,
    learns: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of `qkv`, into whose parts the kernels write, and of `bias_table` where it `learns`: else (0,)."""
    grad = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    settings = (num_heads, kernel_size, dilation, scale)
    parts = grad.chunk(3, -1)
    return grad, _differentiated(grad_out, qkv.chunk(3, -1), bias_table, out, lse, parts, *settings, learns)


@attention_packed_backward.register_fake
def _(grad_out, qkv, bias_table, out, lse, num_heads, kernel_size, dilation, scale, learns):
    return qkv.new_empty(qkv.shape), _fake_grad(qkv, bias_table, learns)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    *tensors, ctx.num_heads, ctx.kernel_size, ctx.dilation, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    # Else each backward pass would make zeros of the second's size.
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, grad_out: torch.Tensor, _: Any) -> tuple[Any, ...]:
    settings = (ctx.num_heads, ctx.kernel_size, ctx.dilation, ctx.scale)
    *inputs, out, lse = ctx.saved_tensors
    packed, needed = len(inputs) == 2, ctx.needs_input_grad[: len(inputs)]
    if _derivatives.backward_is_differentiated(grad_out):

        def definition(*tensors):
            *maps, table = tensors
            q, k, v = maps[0].chunk(3, -1) if packed else maps
            return attend_tiled(q, k, v, *settings[:3], table, settings[3])

        return *_derivatives.gradients(definition, inputs, needed, grad_out), None, None, None, None
    backward = attention_packed_backward if packed else attention_backward
    *grads, grad_bias = backward(grad_out, *inputs, out, lse, *settings, needed[-1])
    return *grads, grad_bias if needed[-1] else None, None, None, None, None


attention.register_autograd(_gradients, setup_context=_keep)
attention_packed.register_autograd(_gradients, setup_context=_keep)
