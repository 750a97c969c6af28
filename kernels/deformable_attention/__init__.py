"""Multi-scale deformable attention in two dimensions.

Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR 2021
(https://arxiv.org/abs/2010.04159), equation 3, with the tensor layout of mmcv's `ms_deform_attn`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _derivatives, _dispatch
from ..tracing import untraced
from . import operator
from .cpu import attend, attend_gathered, locations_and_weights
from .levels import on_device

__all__ = ["deformable_attention", "deformable_attention_from_offsets"]


def deformable_attention(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Each query and head sums a few bilinear samples of every level's map, at places of its own.

    Pixel centres lie at halves: pixel `i` of `n` is at `(i + 0.5) / n`. Samples beyond a map fade to zero over one
    pixel. 16-bit floats are computed in float32 and rounded once.

    On a GPU the gradient of `value` is summed by atomic additions, whose order changes from run to run, or, under
    `torch.use_deterministic_algorithms(True)`, pixel by pixel over sorted samples. Under `torch.compile` and on a GPU
    the levels go unchecked if they are tensors, and are read where they are.

    Args:
        value: `(B, K, M, C)` float, the L maps one after the other, M heads of C channels; K positions in all. Any of
            B, M, C and Q may be 0.
        spatial_shapes: `(L, 2)` int, `(height, width)` of each level.
        level_start_index: `(L,)` int, first position of each level in K; levels do not overlap.
        sampling_locations: `(B, Q, M, L, P, 2)` float, `(x, y)` from 0 to 1 across the map, P samples per level.
        attention_weights: `(B, Q, M, L, P)` float, usually summing to 1 over `(L, P)`.
        backend: "auto", "triton" or "torch"; see `attnzoo.kernels.use_backend`.

    Returns:
        `(B, Q, M * C)`, of `value`'s dtype, whatever the dtypes of the rest.

    Raises:
        TypeError: If a tensor is none, or holds other than floating-point numbers, or levels are no integers.
        ValueError: If shapes or devices do not fit each other, or a level is empty, lies outside `value` or overlaps
            another, or for an unknown backend.
        RuntimeError: If Triton is asked for and cannot run.
    """
    untraced(_check, value, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    reason = untraced(operator.why_not, value, sampling_locations, attention_weights)
    triton = _dispatch.use_triton(
        "deformable_attention",
        backend,
        (value, sampling_locations, attention_weights),
        reason,
        operator.operations(value.shape, sampling_locations.shape),
    )
    if operator.is_empty(value, sampling_locations):
        shape = [value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3]]
        return _derivatives.nothing(shape, value, sampling_locations, attention_weights)
    if triton:
        levels = operator.levels_of(spatial_shapes, level_start_index, value)
        return operator.deformable_attention(value, None, *levels, sampling_locations, attention_weights)
    if operator.must_gather(value, spatial_shapes, level_start_index):
        sizes, starts = on_device(spatial_shapes, value), on_device(level_start_index, value)
        return attend_gathered(value, None, sizes, starts, sampling_locations, attention_weights)
    dtype = torch.promote_types(value.dtype, torch.float32)
    plain = operator.as_lists(spatial_shapes, level_start_index)
    output = attend(value.to(dtype), *plain, sampling_locations.to(dtype), attention_weights.to(dtype))
    return output.to(value.dtype)


def deformable_attention_from_offsets(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    backend: str = "auto",
) -> Tensor:
    """`deformable_attention` from what a module's layers give: reference points, offsets from them, and logits.

    Weights are the softmax of the logits over `(L, P)`. Offsets are in pixels of their level from reference points
    `(x, y)`, so that the location is `reference + offset / (width, height)`; of reference boxes `(x, y, width, height)`
    it is `(x, y) + offset / P * (width, height) / 2`. On a GPU Triton makes neither weights nor locations in memory.

    Args:
        value: `(B, K, M, C)` float, as in `deformable_attention`, whose remarks on GPUs and levels hold here too.
        spatial_shapes: `(L, 2)` int, `(height, width)` of each level.
        level_start_index: `(L,)` int, first position of each level in K; levels do not overlap.
        reference_points: `(B, Q, L, 2)` float, `(x, y)` from 0 to 1 across the map, or `(B, Q, L, 4)` with the sides
            of a box.
        sampling_offsets: `(B, Q, M, L, P, 2)` float, P samples per level.
        attention_logits: `(B, Q, M, L, P)` float.
        backend: "auto", "triton" or "torch"; see `attnzoo.kernels.use_backend`. Measurements of
            `deformable_attention` hold here.

    Returns:
        `(B, Q, M * C)`, of `value`'s dtype, whatever the dtypes of the rest.

    Raises:
        TypeError: If a tensor is none, or holds other than floating-point numbers, or levels are no integers.
        ValueError: If shapes or devices do not fit each other, or a level is empty, lies outside `value` or overlaps
            another, or for an unknown backend.
        RuntimeError: If Triton is asked for and cannot run.
    """
    tensors = reference_points, sampling_offsets, attention_logits
    untraced(operator.check_offsets, value, spatial_shapes, level_start_index, *tensors)
    triton = _dispatch.use_triton(
        "deformable_attention_from_offsets",
        backend,
        (value, *tensors),
        untraced(operator.why_not, value, *tensors),
        operator.operations(value.shape, sampling_offsets.shape),
    )
    if operator.is_empty(value, sampling_offsets):
        shape = [value.shape[0], sampling_offsets.shape[1], value.shape[2] * value.shape[3]]
        return _derivatives.nothing(shape, value, *tensors)
    if triton:
        levels = operator.levels_of(spatial_shapes, level_start_index, value)
        return operator.deformable_attention_from_offsets(value, *levels, *tensors)
    dtype = torch.promote_types(value.dtype, torch.float32)
    places = locations_and_weights(on_device(spatial_shapes, value), *(x.to(dtype) for x in tensors))
    return deformable_attention(value, spatial_shapes, level_start_index, *places, backend="torch")


def _why_not_from_offsets(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> str | None:
    return operator.why_not(value, reference_points, sampling_offsets, attention_logits)


def _check_from_offsets(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> None:
    operator.check_offsets(
        value, spatial_shapes, level_start_index, reference_points, sampling_offsets, attention_logits
    )


def _why_not(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> str | None:
    return operator.why_not(value, sampling_locations, attention_weights)


def _check(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    operator.check(value, spatial_shapes, level_start_index, sampling_locations, attention_weights)


_dispatch.register("deformable_attention", deformable_attention, _check, _why_not)
_dispatch.register(
    "deformable_attention_from_offsets", deformable_attention_from_offsets, _check_from_offsets, _why_not_from_offsets
)
