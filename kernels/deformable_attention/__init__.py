"""Multi-scale deformable attention in two dimensions.

Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection", ICLR 2021
(https://arxiv.org/abs/2010.04159), equation 3, with the tensor layout of mmcv's `ms_deform_attn`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .reference import deformable_attention_reference

__all__ = ["deformable_attention"]


def deformable_attention(
    value: Tensor,
    spatial_shapes: Tensor | Sequence[Sequence[int]],
    level_start_index: Tensor | Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Each query and head sums a few bilinear samples of every level's map, at places of its own.

    Pixel centres lie at halves: pixel `i` of `n` is at `(i + 0.5) / n`. Samples beyond a map fade to zero over one
    pixel. 16-bit floats are computed in float32 and rounded once.

    Args:
        value: `(B, K, M, D)` float, the L maps one after the other, M heads of D channels; K positions in all.
        spatial_shapes: `(L, 2)` int, `(height, width)` of each level.
        level_start_index: `(L,)` int, first position of each level in K.
        sampling_locations: `(B, Q, M, L, P, 2)` float, `(x, y)` from 0 to 1 across the map, P samples per level.
        attention_weights: `(B, Q, M, L, P)` float, usually summing to 1 over `(L, P)`.

    Returns:
        `(B, Q, M * D)`, of `value`'s dtype.

    Raises:
        ValueError: If shapes do not fit each other, or a level lies outside `value`.
    """
    sizes = spatial_shapes.tolist() if isinstance(spatial_shapes, Tensor) else spatial_shapes
    starts = level_start_index.tolist() if isinstance(level_start_index, Tensor) else level_start_index
    _check(value, sizes, starts, sampling_locations, attention_weights)
    dtype = torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype
    output = deformable_attention_reference(
        value.to(dtype), sizes, starts, sampling_locations.to(dtype), attention_weights.to(dtype)
    )
    return output.to(value.dtype)


def _check(
    value: Tensor,
    sizes: Sequence[Sequence[int]],
    starts: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """Raises ValueError where the arguments of `deformable_attention` contradict each other."""
    if value.dim() != 4:
        raise ValueError(f"value must be (B, K, M, D), got shape {tuple(value.shape)}")
    batch, positions, heads, _ = value.shape
    if len(starts) != len(sizes):
        raise ValueError(f"level_start_index has {len(starts)} levels, spatial_shapes has {len(sizes)}")
    for start, (height, width) in zip(starts, sizes, strict=True):
        if start + height * width > positions:
            raise ValueError(
                f"a level of {height} x {width} starting at {start} does not fit the {positions} positions of value"
            )
    shape = tuple(sampling_locations.shape)
    if len(shape) != 6 or (shape[0], *shape[2:4], shape[5]) != (batch, heads, len(sizes), 2):
        raise ValueError(
            f"sampling_locations must be (B={batch}, Q, M={heads}, L={len(sizes)}, P, 2), got shape {shape}"
        )
    if tuple(attention_weights.shape) != shape[:5]:
        raise ValueError(f"attention_weights must have shape {shape[:5]}, got {tuple(attention_weights.shape)}")
