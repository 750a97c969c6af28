"""Deformable attention in plain PyTorch: level by level in two dimensions, and by gathers, in two and in three.

The gathers fit every size and every derivative.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _derivatives
from .._precision import own_precision
from ..tracing import untraced
from . import naive
from .levels import on_device


def attend(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    level_start_index: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """`deformable_attention` of tensors of one dtype, and of any locations; it can be differentiated in any way.

    Levels are summed one by one, so that no more than one level's samples is alive at a time in inference.
    """
    given = value, sampling_locations, attention_weights
    places = _within_reach(sampling_locations, spatial_shapes)
    output = naive.deformable_attention(value, spatial_shapes, level_start_index, places, attention_weights)
    if output.requires_grad and not torch.compiler.is_compiling():

        def definition(value, locations, weights):
            sizes, starts = on_device(spatial_shapes, value), on_device(level_start_index, value)
            return attend_gathered(value, None, sizes, starts, locations, weights)

        output = _derivatives.twice(output, definition, *given)
    return output.clone(memory_format=torch.contiguous_format)


def _within_reach(sampling_locations: Tensor, spatial_shapes: Sequence[Sequence[int]]) -> Tensor:
    """The same locations, but those far beyond the map, or no numbers, just beyond it and without a gradient.

    Of such, grid_sample makes NaN. Nor get those a gradient that are exactly one pixel before the map, where samples
    begin to be zero: the derivative has a step there, of which mmcv takes the outer value, 0, grid_sample the inner.
    """
    fixed = sampling_locations.detach().nan_to_num(nan=-1.0).clamp_(-1, 2)
    if not (torch.is_grad_enabled() and sampling_locations.requires_grad):
        return fixed
    sizes = on_device([(width, height) for height, width in spatial_shapes], fixed)
    still = ((fixed != sampling_locations) | (fixed * sizes[:, None] - 0.5 == -1)).any(-1, keepdim=True)
    return torch.where(still, fixed, sampling_locations)


def attend_gathered(
    value: Tensor, depth: Tensor | None, sizes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """`deformable_attention_3d`, or in two dimensions without `depth`; levels are tensors of integers.

    All levels at once, and nothing is asked of a size: a graph leaves them free. Each step can be differentiated in
    every mode as often as one likes, which is not true of `grid_sample`. Slower than that, and all samples are in
    memory at a time.
    """
    dtype = torch.promote_types(value.dtype, torch.float32)
    batch, positions, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    # (L, 1) against samples (B, Q, M, L, P); of a graph that is traced these are inputs.
    height, width, start = sizes[:, 0, None], sizes[:, 1, None], starts[:, None]
    x, y, *rest = locations.to(dtype).unbind(-1)
    x, y = x * width - 0.5, y * height - 0.5
    inside = (x > -1) & (x < width) & (y > -1) & (y < height)
    if depth is not None:
        bins = depth.shape[3]
        z = rest[0] * bins - 0.5
        inside = inside & (z > -1) & (z < bins)
    # Corners: (B, Q, M, L, P, 4). A sample beyond the map weighs nothing, whatever its place.
    x, y = torch.where(inside, x, 0)[..., None], torch.where(inside, y, 0)[..., None]
    corner = torch.arange(4, device=value.device)
    left, top = x.detach().floor(), y.detach().floor()
    column, row = left + corner % 2, top + corner // 2
    # No distances by `abs`: at the centre of a pixel the derivative of theirs is 0.
    share_x = torch.where(corner % 2 == 0, 1 - (x - left), x - left)
    share_y = torch.where(corner // 2 == 0, 1 - (y - top), y - top)
    share = share_x * share_y * weights.to(dtype)[..., None]
    width, height, start = width[..., None], height[..., None], start[..., None]
    there = inside[..., None] & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    share = share.where(there, share.new_zeros(()))
    column = torch.minimum(column.clamp(min=0), (width - 1).to(dtype))
    row = torch.minimum(row.clamp(min=0), (height - 1).to(dtype))
    # A graph that runs elsewhere may be given levels that do not fit the value.
    pixel = (start + row * width + column).long().clamp(min=0, max=positions - 1)
    image = torch.arange(batch, device=value.device)[:, None, None, None, None, None] * positions
    head = torch.arange(heads, device=value.device)[:, None, None, None]
    if depth is not None:
        groups, bins = depth.shape[2], depth.shape[3]
        curve = ((image + pixel) * groups + head % groups) * bins
        scores = depth.to(dtype).reshape(-1)
        z = torch.where(inside, z, 0)[..., None]
        lower = z.detach().floor()
        total = torch.zeros_like(share)
        for bin, share_z in ((lower, 1 - (z - lower)), (lower + 1, z - lower)):
            score = scores[curve + bin.clamp(0, bins - 1).long()] * share_z
            total = total + score.where((bin >= 0) & (bin < bins), score.new_zeros(()))
        share = share * total
    chosen = value.to(dtype).reshape(-1, channels).index_select(0, ((image + pixel) * heads + head).reshape(-1))
    samples = levels * points * 4
    with own_precision(value):
        out = share.reshape(batch * queries * heads, 1, samples) @ chosen.view(
            batch * queries * heads, samples, channels
        )
    return out.view(batch, queries, heads * channels).to(value.dtype)


def locations_and_weights(sizes: Tensor, references: Tensor, offsets: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """Of `deformable_attention`, from the arguments of `deformable_attention_from_offsets` and sizes (L, 2)."""
    are_points = untraced(lambda: references.shape[-1] == 2)
    references = references[:, :, None, :, None]
    if are_points:
        offsets = offsets / sizes.flip(1)[:, None]
    else:
        offsets = offsets / offsets.shape[4] * references[..., 2:] * 0.5
    return references[..., :2] + offsets, logits.flatten(3).softmax(-1).view(logits.shape)
