"""Derivatives beyond the first backward pass, which fast forms of the operators lack.

Custom operators and PyTorch's fused attention have one backward pass, and of forward-mode differentiation they know
nothing: a custom operator would drop tangents without a word. Where more is asked for, the operators' forms in plain
PyTorch stand in: from the start where a transform of `torch.func` or forward mode is at work, and in the backward pass
where that is itself to be differentiated.
"""

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch.autograd import forward_ad

from ._precision import own_precision
from .tracing import leaves_sizes_free

Definition = Callable[..., torch.Tensor]


def is_transformed() -> bool:
    """Whether a transform of `torch.func` or forward-mode differentiation is at work."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def backward_is_differentiated(grad: torch.Tensor) -> bool:
    """Asked in a backward pass: whether its result must be differentiable, or is made under a transform.

    Args:
        grad: of the result; `torch.autograd.grad(is_grads_batched=True)` makes it many in a way of its own.
    """
    return torch.is_grad_enabled() or is_transformed() or torch._C._functorch.is_legacy_batchedtensor(grad)


def gradients(
    definition: Definition, inputs: Sequence[torch.Tensor | None], needed: Sequence[bool], grad: torch.Tensor
) -> list[torch.Tensor | None]:
    """Gradients of `definition(*inputs)` that are themselves differentiable, None where they are not needed.

    Args:
        definition: in operators that can be differentiated as often as one likes.
        inputs: as an autograd function saved them; None passes through.
        needed: for each of the inputs.
        grad: of the definition's result.
    """
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views: one tensor may be several of the inputs.
        leaves = [x.view_as(x) if wanted and x is not None else None for x, wanted in zip(inputs, needed, strict=True)]
        out = definition(*(x if leaf is None else leaf for x, leaf in zip(inputs, leaves, strict=True)))
        found = iter(torch.autograd.grad(out, [x for x in leaves if x is not None], grad, create_graph=keep))
    return [None if leaf is None else next(found) for leaf in leaves]


def twice(out: torch.Tensor, definition: Definition, *inputs: torch.Tensor | None) -> torch.Tensor:
    """`out`, which is `definition(*inputs)` by a faster way that can be differentiated once: as often as one likes.

    The result shares memory with `out` and must not leave an operator: autograd forbids to change it in place.
    """
    return _Twice.apply(definition, out, *inputs)


class _Twice(torch.autograd.Function):
    """Gradients go to `out` and its own graph, or, where they are to be differentiated, to the inputs by definition."""

    @staticmethod
    def forward(ctx, definition, out, *inputs):
        ctx.definition = definition
        ctx.save_for_backward(*inputs)
        return out

    @staticmethod
    def backward(ctx, grad):
        needed = ctx.needs_input_grad[2:]
        if not backward_is_differentiated(grad):
            return None, grad, *(None for _ in needed)
        return None, None, *gradients(ctx.definition, ctx.saved_tensors, needed, grad)


def attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float,
) -> torch.Tensor:
    """`scaled_dot_product_attention` that can be differentiated in any way; the result must not leave an operator."""
    if torch.jit.is_scripting():
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    else:
        if is_transformed():
            return attend_transformed(q, k, v, mask, scale)
        out = F.scaled_dot_product_attention(q, k, v, mask, scale=scale)
        if torch.compiler.is_compiling() or leaves_sizes_free() or not out.requires_grad:
            return out
        return twice(out, functools.partial(written_out, scale=scale), q, k, v, mask)


def attend_transformed(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """`scaled_dot_product_attention` under a transform: PyTorch's where nothing is differentiated, as by `vmap` alone.

    Args:
        q: (B, heads, N, D).
        k: (B, heads, M, D).
        v: (B, heads, M, D).
        mask: (1 or B, 1 or heads, N, M).
        scale: of the products.
    """
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or forward_ad._current_level >= 0:
        return written_out(q, k, v, mask, scale)
    return _Folded.apply(q, k, v, mask, scale)


class _Folded(torch.autograd.Function):
    """PyTorch's fused attention, in which `vmap` makes one batch of many; by itself it calls the kernel for each."""

    @staticmethod
    def forward(q, k, v, mask, scale):
        return F.scaled_dot_product_attention(q, k, v, mask, scale=scale)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def vmap(info, in_dims, q, k, v, mask, scale):
        many = info.batch_size

        def fold(x: torch.Tensor, dim: int | None) -> torch.Tensor:
            x = x.expand(many, *x.shape) if dim is None else x.movedim(dim, 0)
            return x.flatten(0, 1)

        q, k, v = (fold(x, dim) for x, dim in zip((q, k, v), in_dims, strict=False))
        if mask is not None and (in_dims[3] is not None or mask.shape[0] > 1):
            one = mask if in_dims[3] is None else mask.movedim(in_dims[3], 1)
            mask = fold(one.expand(q.shape[0] // many, *one.shape[1:]), None if in_dims[3] is None else 1)
        return _Folded.apply(q, k, v, mask, scale).unflatten(0, (many, -1)), 0


def written_out(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    """Attention in products and a softmax, 16-bit numbers in float32, rounded once."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    with own_precision(q):
        scores = torch.matmul(q.to(dtype) * scale, k.to(dtype).transpose(-2, -1))
        if mask is not None:
            scores = scores + mask if mask.is_floating_point() else scores.masked_fill(~mask, -torch.inf)
        return torch.matmul(scores.softmax(-1), v.to(dtype)).to(q.dtype)


def nothing(shape: Sequence[int], *tensors: torch.Tensor | None) -> torch.Tensor:
    """Zeros in the dtype of the first of the tensors, to all of which they give zero gradients."""
    first, *_ = given = [x for x in tensors if x is not None]
    out = first.new_zeros(shape)
    for x in given:
        # A sum of no numbers.
        out = out + x[:0].sum().to(out.dtype)
    return out
