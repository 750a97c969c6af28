"""Multi-scale deformable attention as it is published: every level sampled by `grid_sample`, the samples summed."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def deformable_attention(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    level_start_index: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """As the public function, for levels in plain numbers, tensors of one dtype and finite locations.

    The gradient of a sample exactly one pixel before the map is `grid_sample`'s; the operator has 0 there.
    """
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    # grid_sample counts from -1 to 1 between the outer edges of the outer pixels.
    grids = (2 * sampling_locations - 1).transpose(1, 2).flatten(0, 1)
    weights = attention_weights.transpose(1, 2).flatten(0, 1)
    output = value.new_zeros(batch * heads, channels, queries)
    for level, ((height, width), start) in enumerate(zip(spatial_shapes, level_start_index, strict=True)):
        planes = value[:, start : start + height * width].permute(0, 2, 3, 1)
        planes = planes.reshape(batch * heads, channels, height, width)
        samples = F.grid_sample(planes, grids[:, :, level], mode="bilinear", padding_mode="zeros", align_corners=False)
        # Not einsum: autocast would run it in 16 bits.
        output = output + (samples * weights[:, None, :, level]).sum(-1)
    return output.view(batch, heads * channels, queries).transpose(1, 2)


def deformable_attention_from_offsets(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    level_start_index: Sequence[int],
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
) -> Tensor:
    """As the public function, for levels in plain numbers, tensors of one dtype and finite locations."""
    references, points = reference_points[:, :, None, :, None], sampling_offsets.shape[4]
    if references.shape[-1] == 2:
        sizes = value.new_tensor([(width, height) for height, width in spatial_shapes])
        locations = references + sampling_offsets / sizes[:, None]
    else:
        locations = references[..., :2] + sampling_offsets / points * references[..., 2:] * 0.5
    weights = attention_logits.flatten(3).softmax(-1).view(attention_logits.shape)
    return deformable_attention(value, spatial_shapes, level_start_index, locations, weights)
