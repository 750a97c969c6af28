"""The definition of multi-scale deformable attention in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _derivatives
from .gathered import attend_gathered


def deformable_attention_reference(
    value: Tensor,
    spatial_shapes: Sequence[Sequence[int]],
    level_start_index: Sequence[int],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Samples every level bilinearly and sums the samples with their weights; arguments as `deformable_attention`.

    Levels are summed one by one, so that no more than one level's samples is alive at a time in inference.
    """
    batch, _, heads, channels = value.shape
    queries = sampling_locations.shape[1]
    given = value, sampling_locations, attention_weights
    # grid_sample counts from -1 to 1 between the outer edges of the outer pixels.
    grids = (2 * _within_reach(sampling_locations, spatial_shapes) - 1).transpose(1, 2).flatten(0, 1)
    weights = attention_weights.transpose(1, 2).flatten(0, 1)
    output = value.new_zeros(batch * heads, channels, queries)
    for level, ((height, width), start) in enumerate(zip(spatial_shapes, level_start_index, strict=True)):
        planes = value[:, start : start + height * width].permute(0, 2, 3, 1)
        planes = planes.reshape(batch * heads, channels, height, width)
        samples = F.grid_sample(planes, grids[:, :, level], mode="bilinear", padding_mode="zeros", align_corners=False)
        # Not einsum: autocast would run it in 16 bits.
        output = output + (samples * weights[:, None, :, level]).sum(-1)
    output = output.view(batch, heads * channels, queries)
    if output.requires_grad and not torch.compiler.is_compiling():
        sizes, starts = (torch.as_tensor(x, device=value.device) for x in (spatial_shapes, level_start_index))

        def definition(value, locations, weights):
            return attend_gathered(value, None, sizes, starts, locations, weights).transpose(1, 2)

        output = _derivatives.twice(output, definition, *given)
    return output.transpose(1, 2).clone(memory_format=torch.contiguous_format)


def _within_reach(sampling_locations: Tensor, spatial_shapes: Sequence[Sequence[int]]) -> Tensor:
    """The same locations, but those far beyond the map, or no numbers, just beyond it and without a gradient.

    Of such, grid_sample makes NaN. Nor get those a gradient that are exactly one pixel before the map, where samples
    begin to be zero: the derivative has a step there, of which mmcv takes the outer value, 0, grid_sample the inner.
    """
    fixed = sampling_locations.detach().nan_to_num(nan=-1.0).clamp_(-1, 2)
    if not (torch.is_grad_enabled() and sampling_locations.requires_grad):
        return fixed
    sizes = torch.tensor([(width, height) for height, width in spatial_shapes], device=fixed.device)
    still = ((fixed != sampling_locations) | (fixed * sizes[:, None] - 0.5 == -1)).any(-1, keepdim=True)
    return torch.where(still, fixed, sampling_locations)
