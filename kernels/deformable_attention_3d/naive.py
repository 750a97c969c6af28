"""Deformable attention in three dimensions word by word: the volume is built and sampled by `grid_sample`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def deformable_attention_3d(
    value: Tensor,
    depth: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    level_start_index: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """As the public function, for levels in plain numbers, tensors of one dtype and finite locations.

    The gradient of a sample exactly one pixel or bin before the volume is `grid_sample`'s; the operator has 0 there.
    """
    batch, _, heads, channels = value.shape
    queries, bins = sampling_locations.shape[1], depth.shape[3]
    # grid_sample counts from -1 to 1 between the outer edges of the outer pixels.
    grids = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)
    weights = attention_weights.transpose(1, 2).flatten(0, 1)
    output = value.new_zeros(batch * heads, channels, queries)
    for level, ((height, width), start) in enumerate(zip(spatial_shapes, level_start_index, strict=True)):
        pixels = slice(start, start + height * width)
        volume = torch.einsum("bkmc,bkmd->bmcdk", value[:, pixels], depth[:, pixels].expand(-1, -1, heads, -1))
        volume = volume.reshape(batch * heads, channels, bins, height, width)
        samples = F.grid_sample(volume, grids[:, None, :, level], align_corners=False)
        output = output + (samples[:, :, 0] * weights[:, None, :, level]).sum(-1)
    return output.view(batch, heads * channels, queries).transpose(1, 2)
