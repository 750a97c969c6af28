"""Pooling of regions of interest on torchvision's operators, with mmcv's bins and its max mode of RoIAlign."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from ....kernels.tracing import are_sizes_free, is_exporting
from ...arguments import check_choice
from ._checks import (
    check_indices,
    check_numbers,
    check_regions,
    check_samples,
    check_tensors,
    check_whole,
)
from ._dtypes import widen

__all__ = ["OPERATORS", "roi_align_backward", "roi_align_forward", "roi_pool_backward", "roi_pool_forward"]

MAX_POOL, MEAN_POOL = 0, 1
# mmcv starts its running maximum here: what a bin without a sample holds.
MAX_FLOOR = -10000.0


def _check(
    operator: str,
    pixels: tuple[str, Tensor],
    rois: Tensor,
    bins: tuple[int, int],
    spatial_scale: float,
    sampling_ratio: int,
    **pooled: Tensor,
) -> None:
    """Check the map by its name, regions, numbers, and `pooled`, maps with a place for every bin."""
    if is_exporting():
        return
    check_whole(operator, 1, bins_in_a_column=bins[0], bins_in_a_row=bins[1])
    check_numbers(operator, 0, above=True, spatial_scale=spatial_scale)
    named = {pixels[0]: (pixels[1], "B C H W"), "rois": (rois, "R 5")}
    check_tensors(operator, **named, **{key: (tensor, ("R", "C", *bins)) for key, tensor in pooled.items()})
    batch, _, height, width = pixels[1].shape
    if not (height and width) and len(rois):
        raise ValueError(f"{operator}: {pixels[0]} has no pixel, {height} x {width}")
    check_regions(operator, rois, batch)
    check_whole(operator, -1, sampling_ratio=sampling_ratio)
    check_samples(operator, rois, bins, spatial_scale, sampling_ratio)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign: mean or maximum of bilinear samples in each bin (He et al., "Mask R-CNN", ICCV 2017).

    Args:
        input: `(B, C, H, W)` float.
        rois: `(R, 5)`, batch index and `(x1, y1, x2, y2)` in image pixels.
        output: `(R, C, aligned_height, aligned_width)`, overwritten.
        argmax_y: In max mode, as `output`: the row of the chosen sample, in input pixels, or -1; overwritten.
        argmax_x: Likewise its column.
        aligned_height: Bins per column.
        aligned_width: Bins per row.
        spatial_scale: Input pixels per image pixel.
        sampling_ratio: Samples per bin and axis; 0 takes one per input pixel, rounded up.
        pool_mode: 0 maximum, 1 mean.
        aligned: Whether pixel centres lie at halves (shifts regions by -0.5).

    Raises:
        TypeError: If a tensor has another dtype.
        ValueError: If shapes do not fit, a region is not finite, of no image of the batch or too large to be sampled,
            or a number is out of its range.
    """
    name = "roi_align_forward"
    check_choice(f"{name}: pool_mode", pool_mode, (MAX_POOL, MEAN_POOL))
    pooled = {"argmax_y": argmax_y, "argmax_x": argmax_x} if pool_mode == MAX_POOL else {}
    bins = (aligned_height, aligned_width)
    _check(name, ("input", input), rois, bins, spatial_scale, sampling_ratio, output=output, **pooled)
    features, regions = widen(input, rois)
    if pool_mode != MAX_POOL:
        output.copy_(
            torch.ops.torchvision.roi_align(
                features, regions, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
            )
        )
        return
    if not are_sizes_free() and not output.numel():
        return
    output.fill_(MAX_FLOOR)
    argmax_y.fill_(-1)
    argmax_x.fill_(-1)
    start, size = _extent(regions, spatial_scale, aligned)
    if sampling_ratio > 0:
        grids = torch.full_like(size, sampling_ratio)
    else:
        grids = (size / size.new_tensor(bins)).ceil()
    for grid_h, grid_w in grids.unique(dim=0).int().tolist():
        if grid_h <= 0 or grid_w <= 0:
            continue
        chosen = ((grids[:, 0] == grid_h) & (grids[:, 1] == grid_w)).nonzero()[:, 0]
        # With one sample a bin, as many times finer, RoIAlign returns the samples themselves.
        fine_h, fine_w = aligned_height * grid_h, aligned_width * grid_w
        samples = torch.ops.torchvision.roi_align(features, regions[chosen], spatial_scale, fine_h, fine_w, 1, aligned)
        values, places = F.max_pool2d(samples, (grid_h, grid_w), return_indices=True)
        above = values > MAX_FLOOR
        fine = torch.stack((places // fine_w, places % fine_w), -1) + 0.5
        step = size[chosen] / size.new_tensor([fine_h, fine_w])
        y, x = (start[chosen, None, None, None] + fine * step[:, None, None, None]).unbind(-1)
        output[chosen] = values.clamp_min(MAX_FLOOR).to(output.dtype)
        argmax_y[chosen] = torch.where(above, y, -1).to(argmax_y.dtype)
        argmax_x[chosen] = torch.where(above, x, -1).to(argmax_x.dtype)


def _extent(rois: Tensor, spatial_scale: float, aligned: bool) -> tuple[Tensor, Tensor]:
    """Returns where each region starts and how large it is, both `(R, 2)` as `(y, x)` in input pixels."""
    corners = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)
    start, end = corners[:, [1, 0]], corners[:, [3, 2]]
    size = end - start
    return start, size if aligned else size.clamp_min(1)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of `roi_align_forward` with respect to `input`, written to `grad_input`; arguments as there."""
    name = "roi_align_backward"
    check_choice(f"{name}: pool_mode", pool_mode, (MAX_POOL, MEAN_POOL))
    pooled = {"argmax_y": argmax_y, "argmax_x": argmax_x} if pool_mode == MAX_POOL else {}
    bins = (aligned_height, aligned_width)
    _check(
        name, ("grad_input", grad_input), rois, bins, spatial_scale, sampling_ratio, grad_output=grad_output, **pooled
    )
    grad, regions = widen(grad_output, rois)
    batch, channels, height, width = grad_input.shape
    if pool_mode != MAX_POOL:
        grad_input.copy_(
            torch.ops.torchvision._roi_align_backward(
                grad,
                regions,
                spatial_scale,
                aligned_height,
                aligned_width,
                batch,
                channels,
                height,
                width,
                sampling_ratio,
                aligned,
            )
        )
        return
    y, x = widen(argmax_y, argmax_x)
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width) & (y != -1)
    y, x = y.clamp(0, height - 1), x.clamp(0, width - 1)
    top, left = y.long(), x.long()
    dy, dx = y - top, x - left
    planes = regions[:, 0].long()[:, None] * channels + torch.arange(channels, device=regions.device)
    first = planes[..., None, None] * (height * width)
    total = grad.new_zeros(grad_input.numel())
    for row, row_weight in ((top, 1 - dy), ((top + 1).clamp_max(height - 1), dy)):
        for column, column_weight in ((left, 1 - dx), ((left + 1).clamp_max(width - 1), dx)):
            share = torch.where(inside, grad * row_weight * column_weight, 0)
            total.index_add_(0, (first + row * width + column).flatten(), share.flatten())
    grad_input.copy_(total.view_as(grad_input))


def roi_pool_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """RoI pooling: maximum over all pixels that a bin touches (Girshick, "Fast R-CNN", ICCV 2015).

    mmcv takes a region's far corner as `(x2 + 1) * spatial_scale` and rounds bins only; torchvision rounds regions.
    Each bin is therefore given to torchvision as a region of its own, with one output.

    Args:
        input: `(B, C, H, W)` float.
        rois: `(R, 5)`, batch index and `(x1, y1, x2, y2)` in image pixels.
        output: `(R, C, pooled_height, pooled_width)`, overwritten; 0 where a bin has no pixel.
        argmax: int32, as `output`: index into `H * W` of the chosen pixel, or -1; overwritten. For a region without
            area mmcv leaves it untouched, at 0, which sends a gradient to the first pixel; here it is -1.
        pooled_height: Bins per column.
        pooled_width: Bins per row.
        spatial_scale: Input pixels per image pixel.

    Raises:
        TypeError: If a tensor has another dtype.
        ValueError: If shapes do not fit, a region is not finite or of no image of the batch, or a number is out of its
            range.
    """
    name = "roi_pool_forward"
    _check(name, ("input", input), rois, (pooled_height, pooled_width), spatial_scale, 1, output=output)
    check_tensors(name, argmax=(argmax, output.shape, torch.int32))
    if not are_sizes_free() and not output.numel():
        return
    features, regions = widen(input, rois)
    count, channels = len(rois), input.shape[1]
    start = regions[:, 1:3] * spatial_scale
    size = (regions[:, 3:5] + 1) * spatial_scale - start
    limits = {}
    for axis, bins, limit in ((0, pooled_width, input.shape[3]), (1, pooled_height, input.shape[2])):
        edges = torch.arange(bins + 1, device=rois.device) * (size[:, axis, None] / bins) + start[:, axis, None]
        limits[axis] = edges[:, :-1].floor().clamp(0, limit), edges[:, 1:].ceil().clamp(0, limit)
    x1, x2 = (limit[:, None, :].expand(count, pooled_height, pooled_width) for limit in limits[0])
    y1, y2 = (limit[:, :, None].expand(count, pooled_height, pooled_width) for limit in limits[1])
    empty = (x2 <= x1) | (y2 <= y1) | (size <= 0).any(1)[:, None, None]
    # The last pixel is included by torchvision; an empty bin reads the first pixel of its image and is then cleared.
    windows = torch.stack((regions[:, 0, None, None].expand_as(x1), x1, y1, x2 - 1, y2 - 1), -1).flatten(0, 2)
    windows[empty.flatten(), 1:] = 0
    values, places = torch.ops.torchvision.roi_pool(features, windows, 1.0, 1, 1)
    for result, target, nothing in ((values, output, 0), (places, argmax, -1)):
        result = result.view(count, pooled_height, pooled_width, channels).masked_fill(empty[..., None], nothing)
        target.copy_(result.permute(0, 3, 1, 2))


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Gradient of `roi_pool_forward` with respect to `input`, written to `grad_input`; arguments as there."""
    name = "roi_pool_backward"
    bins = (pooled_height, pooled_width)
    _check(name, ("grad_input", grad_input), rois, bins, spatial_scale, 1, grad_output=grad_output)
    check_tensors(name, argmax=(argmax, grad_output.shape, torch.int32))
    check_indices(name, -1, grad_input.shape[2] * grad_input.shape[3], argmax=argmax)
    grad, regions = widen(grad_output, rois)
    grad_input.copy_(
        torch.ops.torchvision._roi_pool_backward(
            grad, regions, argmax, spatial_scale, pooled_height, pooled_width, *grad_input.shape
        )
    )


OPERATORS = (roi_align_forward, roi_align_backward, roi_pool_forward, roi_pool_backward)
