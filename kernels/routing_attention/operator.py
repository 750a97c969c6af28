"""Triton's bi-level routing attention as an operator of PyTorch, one node of a compiled graph; and what it asks for.

Triton is imported when the operator runs.
"""

from collections.abc import Sequence
from typing import Any

import torch

from .. import _checks, _derivatives, _dispatch
from ..large_kernel_attention.naive import depthwise_conv
from ..large_kernel_attention.operator import check_depthwise, why_not_depthwise
from .cpu import attend_to_chosen

# Beyond it no tiles were found that keep all sums of float32 in registers.
_MAX_HEAD_DIM = 64


def check(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
) -> None:
    """Raises TypeError and ValueError for what no backend takes; arguments as of `routing_attention`."""
    _checks.check_heads(q, k, v, num_heads)
    _check_choice(regions, topk, scale)


def check_packed(
    qkv: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
    local_weight: torch.Tensor | None,
    local_bias: torch.Tensor | None,
) -> None:
    """The same for `routing_attention_packed`."""
    _checks.check_packed(qkv, num_heads)
    _check_choice(regions, topk, scale)
    if local_weight is not None:
        names = ("local_weight", "local_bias")
        if not torch.jit.is_scripting():
            _checks.check_tensors(("qkv", *names), (qkv, local_weight, local_bias), ("local_bias",))
        check_depthwise(values(qkv), local_weight, local_bias, 1, names)
    elif local_bias is not None:
        raise ValueError(f"local_bias must be None where local_weight is, got {_checks.shape(local_bias)}")


def _check_choice(regions: tuple[int, int], topk: int, scale: float) -> None:
    if not torch.jit.is_scripting():
        _checks.check_pair("regions", regions)
        _checks.check_integer("topk", topk)
        if scale is None:
            raise TypeError("scale must be a number, got None")
        _checks.check_scale(scale)
    rows, cols = regions
    if rows < 1 or cols < 1:
        raise ValueError(f"regions must be at least 1 either way, got {(rows, cols)}")
    if not 1 <= topk <= rows * cols:
        raise ValueError(f"topk must be 1 to {rows * cols} for regions {(rows, cols)}, got {topk}")


def why_not(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
) -> str | None:
    """What keeps Triton from running on arguments that passed `check`, None if nothing does."""
    return _why_not_heads(q.shape[3] // num_heads) or _dispatch.why_not(q, k, v)


def why_not_packed(
    qkv: torch.Tensor,
    num_heads: int,
    regions: tuple[int, int],
    topk: int,
    scale: float,
    local_weight: torch.Tensor | None,
    local_bias: torch.Tensor | None,
) -> str | None:
    """The same for `routing_attention_packed`."""
    reason = _why_not_heads(qkv.shape[3] // 3 // num_heads) or _dispatch.why_not(qkv)
    if reason is None and local_weight is not None:
        reason = why_not_depthwise(values(qkv), local_weight, local_bias)
    return reason


def values(qkv: torch.Tensor) -> torch.Tensor:
    """Those of a map (B, H, W, 3 * C) as convolutions take them, (B, C, H, W)."""
    return qkv.chunk(3, dim=-1)[2].permute(0, 3, 1, 2)


def _why_not_heads(dim: int) -> str | None:
    return f"head dimension is {dim}, it takes up to {_MAX_HEAD_DIM}" if dim > _MAX_HEAD_DIM else None


def operations(shape: Sequence[int], regions: tuple[int, int], topk: int) -> int:
    """Of the forward pass without the routing: the size by which `measured.json` counts.

    Args:
        shape: of q, (B, H, W, C).
        regions: (rows, columns).
        topk: regions chosen by each.
    """
    b, h, w, c = shape
    keys = topk * -(-h // regions[0]) * -(-w // regions[1])
    return 4 * b * h * w * c * keys


def _attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, regions: list[int], topk: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result, the log-sum-exp (B, heads, H, W) and the regions chosen (B, R, topk)."""
    from .triton import attention_forward
    from .triton_routing import route

    grid = (regions[0], regions[1])
    index = route(q, k, grid, topk)
    return *attention_forward(q, k, v, index, num_heads, grid, scale), index


def _empty_results(
    q: torch.Tensor, num_heads: int, regions: list[int], topk: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What `_attend` returns, of tensors without memory."""
    b, height, width, _ = q.shape
    return (
        torch.empty_like(q, memory_format=torch.contiguous_format),
        q.new_empty(b, num_heads, height, width, dtype=torch.float32),
        q.new_empty(b, regions[0] * regions[1], topk, dtype=torch.int32),
    )


@torch.library.custom_op("attnzoo::routing_attention", mutates_args=())
def forward(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, num_heads: int, regions: list[int], topk: int, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """As the public function; also what `_attend` gives for the backward pass."""
    # A compiled graph leaves sizes free, which nobody checked yet.
    check(q, k, v, num_heads, (regions[0], regions[1]), topk, scale)
    return _attend(q, k, v, num_heads, regions, topk, scale)


@forward.register_fake
def _(q, k, v, num_heads, regions, topk, scale):
    return _empty_results(q, num_heads, regions, topk)


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
    from .triton import attention_backward

    grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
    grads, grid = (grad_q, grad_k, grad_v), (regions[0], regions[1])
    attention_backward(grad, q, k, v, index, out, logsumexp, num_heads, grid, scale, grads)
    return grads


@backward.register_fake
def _(grad, q, k, v, index, out, logsumexp, num_heads, regions, scale):
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    q, k, v, ctx.num_heads, ctx.regions, _, ctx.scale = inputs
    out, logsumexp, index = output
    ctx.mark_non_differentiable(logsumexp, index)
    # Else each backward pass would make zeros of their size.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, index, out, logsumexp)


def _gradients(ctx: Any, grad: torch.Tensor, *_: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    if _derivatives.backward_is_differentiated(grad):
        q, k, v, index = ctx.saved_tensors[:4]

        def definition(q, k, v):
            return attend_to_chosen(q, k, v, index, ctx.num_heads, (ctx.regions[0], ctx.regions[1]), ctx.scale)

        grads = _derivatives.gradients(definition, (q, k, v), ctx.needs_input_grad[:3], grad)
        return *grads, None, None, None, None
    grads = backward(grad, *ctx.saved_tensors, ctx.num_heads, ctx.regions, ctx.scale)
    return *grads, None, None, None, None


forward.register_autograd(_gradients, setup_context=_save)


@torch.library.custom_op("attnzoo::routing_attention_packed", mutates_args=())
def packed_forward(
    qkv: torch.Tensor,
    local_weight: torch.Tensor | None,
    local_bias: torch.Tensor | None,
    num_heads: int,
    regions: list[int],
    topk: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """As the public function; also attention's part of the result, and what `_attend` gives for the backward pass.

    Without a local term attention is the result, and its part empty.
    """
    check_packed(qkv, num_heads, (regions[0], regions[1]), topk, scale, local_weight, local_bias)
    q, k, v = qkv.chunk(3, -1)
    attended, logsumexp, index = _attend(q, k, v, num_heads, regions, topk, scale)
    if local_weight is None:
        return attended, attended.new_empty(0), logsumexp, index
    from ..large_kernel_attention.triton import depthwise_forward

    out = depthwise_forward(values(qkv), local_weight, local_bias, 1, added=attended.permute(0, 3, 1, 2))
    return out.permute(0, 2, 3, 1), attended, logsumexp, index


@packed_forward.register_fake
def _(qkv, local_weight, local_bias, num_heads, regions, topk, scale):
    out, logsumexp, index = _empty_results(qkv[..., : qkv.shape[3] // 3], num_heads, regions, topk)
    return out, out.new_empty(0) if local_weight is None else torch.empty_like(out), logsumexp, index


@torch.library.custom_op("attnzoo::routing_attention_packed_backward", mutates_args=())
def packed_backward(
    grad: torch.Tensor,
    qkv: torch.Tensor,
    local_weight: torch.Tensor | None,
    attended: torch.Tensor,
    logsumexp: torch.Tensor,
    index: torch.Tensor,
    num_heads: int,
    regions: list[int],
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the map, written in place of a concatenation of three, and of the local weight, empty without it."""
    from .triton import attention_backward

    grad_qkv = torch.empty_like(qkv, memory_format=torch.contiguous_format)
    q, k, v = qkv.chunk(3, -1)
    grads, grid = grad_qkv.chunk(3, -1), (regions[0], regions[1])
    attention_backward(grad, q, k, v, index, attended, logsumexp, num_heads, grid, scale, grads)
    if local_weight is None:
        return grad_qkv, grad.new_empty(0)
    from ..large_kernel_attention.triton import depthwise_backward

    above = grad.permute(0, 3, 1, 2)
    _, grad_weight = depthwise_backward(above, values(qkv), local_weight, 1, total=values(grad_qkv))
    return grad_qkv, grad_weight


@packed_backward.register_fake
def _(grad, qkv, local_weight, attended, logsumexp, index, num_heads, regions, scale):
    weight = grad.new_empty(0) if local_weight is None else local_weight
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (qkv, weight))


def _save_packed(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
    qkv, local_weight, local_bias, ctx.num_heads, ctx.regions, _, ctx.scale = inputs
    out, attended, logsumexp, index = output
    ctx.mark_non_differentiable(attended, logsumexp, index)
    ctx.set_materialize_grads(False)
    attended = out if local_weight is None else attended
    ctx.save_for_backward(qkv, local_weight, local_bias, attended, logsumexp, index)


def _packed_gradients(ctx: Any, grad: torch.Tensor, *_: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
    qkv, local_weight, local_bias, attended, logsumexp, index = ctx.saved_tensors
    if _derivatives.backward_is_differentiated(grad):

        def definition(qkv, local_weight, local_bias):
            q, k, v = qkv.chunk(3, -1)
            grid = (ctx.regions[0], ctx.regions[1])
            out = attend_to_chosen(q, k, v, index, ctx.num_heads, grid, ctx.scale)
            if local_weight is None:
                return out
            return out + depthwise_conv(values(qkv), local_weight, local_bias).permute(0, 2, 3, 1)

        inputs = qkv, local_weight, local_bias
        return *_derivatives.gradients(definition, inputs, ctx.needs_input_grad[:3], grad), None, None, None, None
    grad_qkv, grad_weight = packed_backward(
        grad, qkv, local_weight, attended, logsumexp, index, ctx.num_heads, ctx.regions, ctx.scale
    )
    grad_bias = None
    if ctx.needs_input_grad[2]:
        grad_bias = grad.sum((0, 1, 2), dtype=torch.float32).to(grad.dtype)
    return grad_qkv, None if local_weight is None else grad_weight, grad_bias, None, None, None, None


packed_forward.register_autograd(_packed_gradients, setup_context=_save_packed)
