"""Deformable attention in two and in three dimensions as one PyTorch operator, and the checks of its arguments."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _dispatch

# A program of the kernels holds a head's channels, and a pixel's depth bins, in registers.
MAX_CHANNELS = 256
MAX_BINS = 256


@torch.library.custom_op("attnzoo::deformable_attention", mutates_args=())
def deformable_attention(
    value: Tensor, depth: Tensor | None, sizes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """By Triton; as `deformable_attention_3d`, in two dimensions without `depth`. Levels are int32 on the device."""
    from .triton import deformable_attention_forward

    return deformable_attention_forward(value, depth, sizes, starts, locations, weights)


@deformable_attention.register_fake
def _(value, depth, sizes, starts, locations, weights):
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.custom_op("attnzoo::deformable_attention_backward", mutates_args=())
def _backward(
    grad: Tensor,
    value: Tensor,
    depth: Tensor | None,
    sizes: Tensor,
    starts: Tensor,
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of value, depth (empty without it), locations and weights."""
    from .triton import deformable_attention_backward

    return deformable_attention_backward(grad, value, depth, sizes, starts, locations, weights)


@_backward.register_fake
def _(grad, value, depth, sizes, starts, locations, weights):
    spread = value.new_empty(0) if depth is None else torch.empty_like(depth, memory_format=torch.contiguous_format)
    rest = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (value, locations, weights)]
    return rest[0], spread, rest[1], rest[2]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    value, depth, locations, weights = _backward(grad, *ctx.saved_tensors)
    return value, depth if ctx.needs_input_grad[1] else None, None, None, locations, weights


deformable_attention.register_autograd(_gradients, setup_context=_save)


def levels_on(
    spatial_shapes: Tensor | Sequence[Sequence[int]], level_start_index: Tensor | Sequence[int], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Sizes (L, 2) and starts (L,) as the operator takes them."""
    sizes, starts = (torch.as_tensor(x, device=device).int() for x in (spatial_shapes, level_start_index))
    return sizes, starts


def why_not(value: Tensor, locations: Tensor, weights: Tensor, depth: Tensor | None) -> str | None:
    """What keeps Triton from running, None if nothing does; value and depth may be of another dtype than the rest."""
    reason = _dispatch.why_not(value, depth) or _dispatch.why_not(locations, weights)
    if reason is None and locations.device != value.device:
        reason = f"tensors differ: value is on {value.device}, sampling_locations on {locations.device}"
    if reason is None and value.shape[3] > MAX_CHANNELS:
        reason = f"a head has {value.shape[3]} channels, it needs {MAX_CHANNELS} at most"
    if reason is None and depth is not None and depth.shape[3] > MAX_BINS:
        reason = f"depth has {depth.shape[3]} bins, it needs {MAX_BINS} at most"
    return reason


def check(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    locations: Tensor,
    weights: Tensor,
    depth: Tensor | None = None,
) -> None:
    """Raises ValueError where the arguments of `deformable_attention`, or `_3d` with `depth`, contradict each other."""
    if value.dim() != 4:
        raise ValueError(f"value must be (B, K, M, C), got shape {tuple(value.shape)}")
    batch, positions, heads, _ = value.shape
    if len(level_start_index) != len(spatial_shapes):
        raise ValueError(
            f"level_start_index has {len(level_start_index)} levels, spatial_shapes has {len(spatial_shapes)}"
        )
    if depth is not None and (
        depth.dim() != 4 or depth.shape[:2] != value.shape[:2] or depth.shape[2] not in (1, heads)
    ):
        raise ValueError(f"depth must be (B={batch}, K={positions}, M={heads} or 1, D), got shape {tuple(depth.shape)}")
    shape, axes = tuple(locations.shape), 2 if depth is None else 3
    if len(shape) != 6 or (shape[0], *shape[2:4], shape[5]) != (batch, heads, len(spatial_shapes), axes):
        raise ValueError(
            f"sampling_locations must be (B={batch}, Q, M={heads}, L={len(spatial_shapes)}, P, {axes}), "
            f"got shape {shape}"
        )
    if tuple(weights.shape) != shape[:5]:
        raise ValueError(f"attention_weights must have shape {shape[:5]}, got {tuple(weights.shape)}")
    # To read a GPU's tensors would be to wait for it; the kernels never read beyond `value` all the same.
    given = [x for x in (spatial_shapes, level_start_index) if isinstance(x, Tensor)]
    if not torch.compiler.is_compiling() and all(x.device.type == "cpu" for x in given):
        _check_levels(*as_lists(spatial_shapes, level_start_index), positions)


def as_lists(
    spatial_shapes: Tensor | Sequence[Sequence[int]], level_start_index: Tensor | Sequence[int]
) -> tuple[Sequence[Sequence[int]], Sequence[int]]:
    """The levels in plain numbers."""
    sizes = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    starts = level_start_index.tolist() if isinstance(level_start_index, Tensor) else level_start_index
    return sizes, starts


def _check_levels(sizes: Sequence[Sequence[int]], starts: Sequence[int], positions: int) -> None:
    end = 0
    for start, (height, width) in sorted(zip(starts, sizes, strict=True)):
        if height < 1 or width < 1:
            raise ValueError(f"levels must have a pixel, got {height} x {width}")
        if start < end:
            raise ValueError(f"level_start_index {list(starts)}: levels of {[tuple(x) for x in sizes]} overlap")
        end = start + height * width
        if end > positions:
            raise ValueError(
                f"a level of {height} x {width} starting at {start} does not fit the {positions} positions of value"
            )
