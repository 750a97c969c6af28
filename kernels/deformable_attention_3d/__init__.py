"""Multi-scale deformable attention in three dimensions: a map whose pixels are spread over depth.

Li et al., "DFA3D: 3D Deformable Attention For 2D-to-3D Feature Lifting", ICCV 2023 (https://arxiv.org/abs/2307.12972).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _derivatives, _dispatch
from ..deformable_attention import operator
from ..deformable_attention.cpu import attend_gathered
from ..deformable_attention.levels import on_device
from ..tracing import are_sizes_free, untraced
from .cpu import attend

__all__ = ["deformable_attention_3d"]


def deformable_attention_3d(
    value: Tensor,
    depth: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
    backend: str = "auto",
) -> Tensor:
    """Each query and head sums a few trilinear samples of the volume `value * depth`, which is never built.

    A pixel's value holds at every depth, scaled by the pixel's distribution over D depth bins:
    `volume[y, x, z] = value[y, x] * depth[y, x, z]`. Centres of pixels and bins lie at halves: bin `k` of D is at
    `(k + 0.5) / D`. Samples beyond the volume fade to zero over one pixel or bin; nothing is renormalised. With a
    single bin that holds 1 everywhere and samples at its centre, z = 0.5, this is `deformable_attention`, whose
    remarks on GPUs hold here too.

    Args:
        value: `(B, K, M, C)` float, the L maps one after the other, M heads of C channels; K positions in all. Any of
            B, M, C and Q may be 0.
        depth: `(B, K, M, D)` float, or `(B, K, 1, D)` for all heads alike; usually sums to 1 over D.
        spatial_shapes: `(L, 2)` int, `(height, width)` of each level.
        level_start_index: `(L,)` int, first position of each level in K; levels do not overlap.
        sampling_locations: `(B, Q, M, L, P, 3)` float, `(x, y, z)` from 0 to 1 across the volume, P samples per level.
        attention_weights: `(B, Q, M, L, P)` float, usually summing to 1 over `(L, P)`.
        backend: "auto", "triton" or "torch"; see `attnzoo.kernels.use_backend`.

    Returns:
        `(B, Q, M * C)`, of `value`'s dtype; 16-bit floats are computed in float32 and rounded once.

    Raises:
        TypeError: If a tensor is none, or holds other than floating-point numbers, or levels are no integers.
        ValueError: If shapes or devices do not fit each other, or a level is empty, lies outside `value` or overlaps
            another, or for an unknown backend.
        RuntimeError: If Triton is asked for and cannot run.
    """
    untraced(_check, value, depth, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    reason = untraced(_why_not, value, depth, spatial_shapes, level_start_index, sampling_locations, attention_weights)
    triton = _dispatch.use_triton(
        "deformable_attention_3d",
        backend,
        (value, depth, sampling_locations, attention_weights),
        reason,
        operator.operations(value.shape, sampling_locations.shape),
    )
    if operator.is_empty(value, sampling_locations):
        shape = [value.shape[0], sampling_locations.shape[1], value.shape[2] * value.shape[3]]
        return _derivatives.nothing(shape, value, depth, sampling_locations, attention_weights)
    if triton:
        levels = operator.levels_of(spatial_shapes, level_start_index, value)
        return operator.deformable_attention(value, depth, *levels, sampling_locations, attention_weights)
    if are_sizes_free() or operator.must_gather(value, spatial_shapes, level_start_index):
        sizes, starts = on_device(spatial_shapes, value), on_device(level_start_index, value)
        return attend_gathered(value, depth, sizes, starts, sampling_locations, attention_weights)
    dtype = torch.promote_types(value.dtype, torch.float32)
    plain = operator.as_lists(spatial_shapes, level_start_index)
    output = attend(value.to(dtype), depth.to(dtype), *plain, sampling_locations.to(dtype), attention_weights.to(dtype))
    return output.to(value.dtype)


def _why_not(
    value: Tensor,
    depth: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> str | None:
    return operator.why_not(value, sampling_locations, attention_weights, depth=depth)


def _check(
    value: Tensor,
    depth: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    operator.check(value, spatial_shapes, level_start_index, sampling_locations, attention_weights, depth, three=True)


_dispatch.register("deformable_attention_3d", deformable_attention_3d, _check, _why_not)
