"""Deformable attention in three dimensions in plain PyTorch, without the volume."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .._precision import own_precision


def attend(
    value: Tensor,
    depth: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    level_start_index: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Gathers the four pixels around every sample and scales them; arguments as `deformable_attention_3d`.

    Levels are summed one by one, so that no more than one level's samples is alive at a time in inference.
    """
    batch, positions, heads, channels = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    groups, bins = depth.shape[2:]
    rows, scores = value.flatten(0, 2), depth.flatten()
    head = torch.arange(heads, device=value.device)[:, None]
    first = torch.arange(batch, device=value.device)[:, None, None, None, None] * positions
    output = value.new_zeros(batch * queries * heads, 1, channels)
    for level, ((height, width), start) in enumerate(zip(spatial_shapes, level_start_index, strict=True)):
        # From here on shapes are (B, Q, M, P), and (B, Q, M, P, 4 corners).
        x, y, z = (
            place * size - 0.5
            for place, size in zip(sampling_locations[:, :, :, level].unbind(-1), (width, height, bins), strict=True)
        )
        inside = (x > -1) & (x < width) & (y > -1) & (y < height) & (z > -1) & (z < bins)
        x, y, z = (torch.where(inside, place, 0)[..., None] for place in (x, y, z))
        corner = torch.arange(4, device=value.device)
        column, row, lower = x.detach().floor() + corner % 2, y.detach().floor() + corner // 2, z.detach().floor()
        share = (1 - (x - column).abs()) * (1 - (y - row).abs()) * attention_weights[:, :, :, level, :, None]
        share = share.where(
            inside[..., None] & (column >= 0) & (column < width) & (row >= 0) & (row < height), share.new_zeros(())
        )
        pixel = (first + start + row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
        curve = (pixel * groups + head[..., None] % groups) * bins
        score = torch.zeros_like(share)
        for bin in (lower, lower + 1):
            part = (1 - (z - bin).abs()) * scores[curve + bin.clamp(0, bins - 1).long()]
            score = score + part.where((bin >= 0) & (bin < bins), part.new_zeros(()))
        chosen = rows.index_select(0, (pixel * heads + head[..., None]).flatten()).view(-1, 4 * points, channels)
        with own_precision(value):
            output = output + (share * score).reshape(-1, 1, 4 * points) @ chosen
    return output.view(batch, queries, heads * channels)
