"""Triton kernels of deformable attention in two and in three dimensions.

A row is one head of one query: its samples lie together in memory, and so do its output channels. A tile is some rows
by a head's channels. With BINS > 0 each corner of a sample is scaled by its pixel's depth distribution.
"""

import torch
import triton
import triton.language as tl

from .. import _dispatch


@triton.jit
def _place(locations, weights, at, valid, height, width, BINS: tl.constexpr):
    """Pixel coordinates (x, y), depth z in bins and weight of samples, and which of them lie within reach."""
    DIMS: tl.constexpr = 2 if BINS == 0 else 3
    x = tl.load(locations + at * DIMS, mask=valid, other=0.0).to(tl.float32) * width - 0.5
    y = tl.load(locations + at * DIMS + 1, mask=valid, other=0.0).to(tl.float32) * height - 0.5
    weight = tl.load(weights + at, mask=valid, other=0.0).to(tl.float32)
    valid = valid & (x > -1) & (x < width) & (y > -1) & (y < height)
    if BINS == 0:
        z = x
    else:
        z = tl.load(locations + at * DIMS + 2, mask=valid, other=0.0).to(tl.float32) * BINS - 0.5
        valid = valid & (z > -1) & (z < BINS)
    return tl.where(valid, x, 0.0), tl.where(valid, y, 0.0), tl.where(valid, z, 0.0), weight, valid


@triton.jit
def _scores(depth, at, z, valid, BINS: tl.constexpr):
    """The two bins around z of the distributions that begin at `at`."""
    low = tl.floor(z).to(tl.int32)
    below = tl.load(depth + at + low, mask=valid & (low >= 0), other=0.0).to(tl.float32)
    above = tl.load(depth + at + low + 1, mask=valid & (low + 1 < BINS), other=0.0).to(tl.float32)
    return below, above


@triton.jit
def _forward_kernel(
    value,
    depth,
    sizes,
    starts,
    locations,
    weights,
    out,
    queries,
    positions,
    levels,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POINTS: tl.constexpr,
    BINS: tl.constexpr,
    DEPTH_HEADS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    rows = queries * HEADS
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    image = tl.program_id(1).to(tl.int64)
    head = row % HEADS
    there = row < rows
    channel = tl.arange(0, BLOCK_C)
    tile = there[:, None] & (channel < CHANNELS)[None, :]
    first = (image * rows + row) * (levels * POINTS)
    total = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for level in range(levels):
        height = tl.load(sizes + 2 * level).to(tl.int32)
        width = tl.load(sizes + 2 * level + 1).to(tl.int32)
        start = tl.load(starts + level).to(tl.int32)
        for point in range(POINTS):
            x, y, z, weight, inside = _place(
                locations, weights, first + level * POINTS + point, there, height, width, BINS
            )
            left = tl.floor(x)
            top = tl.floor(y)
            for corner in tl.static_range(4):
                column = left.to(tl.int32) + corner % 2
                line = top.to(tl.int32) + corner // 2
                pixel = start + line * width + column
                valid = inside & (column >= 0) & (column < width) & (line >= 0) & (line < height) & (pixel < positions)
                share = weight * (1 - tl.abs(x - left - corner % 2)) * (1 - tl.abs(y - top - corner // 2))
                pixel = image * positions + pixel
                if BINS > 0:
                    below, above = _scores(depth, (pixel * DEPTH_HEADS + head % DEPTH_HEADS) * BINS, z, valid, BINS)
                    share *= below + (z - tl.floor(z)) * (above - below)
                at = (pixel * HEADS + head) * CHANNELS
                pixels = tl.load(value + at[:, None] + channel[None, :], mask=tile & valid[:, None], other=0.0)
                total += share[:, None] * pixels.to(tl.float32)
    at = (image * rows + row) * CHANNELS
    tl.store(out + at[:, None] + channel[None, :], total.to(out.dtype.element_ty), mask=tile)


@triton.jit
def _backward_kernel(
    grad,
    value,
    depth,
    sizes,
    starts,
    locations,
    weights,
    grad_value,
    grad_depth,
    grad_locations,
    grad_weights,
    queries,
    positions,
    levels,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POINTS: tl.constexpr,
    BINS: tl.constexpr,
    DEPTH_HEADS: tl.constexpr,
    ATOMIC: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradients of locations and weights; with ATOMIC those of value and depth as well."""
    DIMS: tl.constexpr = 2 if BINS == 0 else 3
    rows = queries * HEADS
    row = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    image = tl.program_id(1).to(tl.int64)
    head = row % HEADS
    there = row < rows
    channel = tl.arange(0, BLOCK_C)
    tile = there[:, None] & (channel < CHANNELS)[None, :]
    first = (image * rows + row) * (levels * POINTS)
    at = (image * rows + row) * CHANNELS
    above_grad = tl.load(grad + at[:, None] + channel[None, :], mask=tile, other=0.0).to(tl.float32)
    for level in range(levels):
        height = tl.load(sizes + 2 * level).to(tl.int32)
        width = tl.load(sizes + 2 * level + 1).to(tl.int32)
        start = tl.load(starts + level).to(tl.int32)
        for point in range(POINTS):
            sample = first + level * POINTS + point
            x, y, z, weight, inside = _place(locations, weights, sample, there, height, width, BINS)
            left = tl.floor(x)
            top = tl.floor(y)
            grad_x = tl.zeros((BLOCK_R,), tl.float32)
            grad_y = tl.zeros((BLOCK_R,), tl.float32)
            grad_z = tl.zeros((BLOCK_R,), tl.float32)
            grad_weight = tl.zeros((BLOCK_R,), tl.float32)
            for corner in tl.static_range(4):
                column = left.to(tl.int32) + corner % 2
                line = top.to(tl.int32) + corner // 2
                pixel = start + line * width + column
                valid = inside & (column >= 0) & (column < width) & (line >= 0) & (line < height) & (pixel < positions)
                share_x = 1 - tl.abs(x - left - corner % 2)
                share_y = 1 - tl.abs(y - top - corner // 2)
                pixel = image * positions + pixel
                places = ((pixel * HEADS + head) * CHANNELS)[:, None] + channel[None, :]
                pixels = tl.load(value + places, mask=tile & valid[:, None], other=0.0).to(tl.float32)
                product = tl.sum(pixels * above_grad, axis=1)
                scale = weight * share_x * share_y
                if BINS > 0:
                    curve = (pixel * DEPTH_HEADS + head % DEPTH_HEADS) * BINS
                    below, above = _scores(depth, curve, z, valid, BINS)
                    low = tl.floor(z)
                    grad_z += share_x * share_y * product * (above - below)
                    if ATOMIC:
                        bin = low.to(tl.int32)
                        part = scale * product
                        tl.atomic_add(
                            grad_depth + curve + bin, part * (1 - (z - low)), mask=valid & (bin >= 0), sem="relaxed"
                        )
                        tl.atomic_add(
                            grad_depth + curve + bin + 1, part * (z - low), mask=valid & (bin + 1 < BINS), sem="relaxed"
                        )
                    score = below + (z - low) * (above - below)
                    product *= score
                    scale *= score
                grad_weight += share_x * share_y * product
                grad_x += (2 * (corner % 2) - 1) * share_y * product
                grad_y += (2 * (corner // 2) - 1) * share_x * product
                if ATOMIC:
                    tl.atomic_add(
                        grad_value + places, scale[:, None] * above_grad, mask=tile & valid[:, None], sem="relaxed"
                    )
            element = grad_locations.dtype.element_ty
            tl.store(grad_locations + sample * DIMS, (weight * width * grad_x).to(element), mask=there)
            tl.store(grad_locations + sample * DIMS + 1, (weight * height * grad_y).to(element), mask=there)
            if BINS > 0:
                tl.store(grad_locations + sample * DIMS + 2, (weight * BINS * grad_z).to(element), mask=there)
            tl.store(grad_weights + sample, grad_weight.to(grad_weights.dtype.element_ty), mask=there)


@triton.jit
def _by_pixel_kernel(
    grad,
    value,
    depth,
    sizes,
    starts,
    locations,
    weights,
    order,
    first,
    grad_value,
    grad_depth,
    positions,
    levels,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POINTS: tl.constexpr,
    BINS: tl.constexpr,
    DEPTH_HEADS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Gradients of value and depth of one pixel, over the sorted samples of the four cells that touch it."""
    pixel = tl.program_id(0)
    group = tl.program_id(1)
    image = tl.program_id(2).to(tl.int64)
    PER_GROUP: tl.constexpr = HEADS if BINS > 0 and DEPTH_HEADS == 1 else 1
    channel = tl.arange(0, BLOCK_C)
    bin = tl.arange(0, BLOCK_D)
    at_depth = ((image * positions + pixel) * DEPTH_HEADS + group) * BINS + bin
    depth_total = tl.zeros((BLOCK_D,), tl.float32)
    if BINS > 0:
        scores = tl.load(depth + at_depth, mask=bin < BINS, other=0.0).to(tl.float32)
    for h in range(PER_GROUP):
        head = group * PER_GROUP + h
        at = ((image * positions + pixel) * HEADS + head) * CHANNELS + channel
        if BINS > 0:
            own = tl.load(value + at, mask=channel < CHANNELS, other=0.0).to(tl.float32)
        total = tl.zeros((BLOCK_C,), tl.float32)
        for level in range(levels):
            height = tl.load(sizes + 2 * level).to(tl.int32)
            width = tl.load(sizes + 2 * level + 1).to(tl.int32)
            start = tl.load(starts + level).to(tl.int32)
            line = (pixel - start) // width
            column = (pixel - start) % width
            here = (pixel >= start) & (pixel < start + height * width)
            cell = ((image * HEADS + head) * positions + start) * 4 + line * (width + 1) + column
            # Neighbouring cells hold neighbouring samples: those to the left and to the right are one range.
            for below in tl.static_range(2):
                begin = tl.load(first + cell + below * (width + 1), mask=here, other=0)
                end = tl.load(first + cell + below * (width + 1) + 2, mask=here, other=0)
                for at_sample in range(begin, end, BLOCK_S):
                    rank = at_sample + tl.arange(0, BLOCK_S)
                    there = rank < end
                    sample = tl.load(order + rank, mask=there, other=0)
                    x, y, z, weight, inside = _place(locations, weights, sample, there, height, width, BINS)
                    scale = weight * tl.maximum(1 - tl.abs(x - column), 0.0) * tl.maximum(1 - tl.abs(y - line), 0.0)
                    scale = tl.where(inside, scale, 0.0)
                    row = sample // (levels * POINTS)
                    tile = there[:, None] & (channel < CHANNELS)[None, :]
                    above_grad = tl.load(grad + (row * CHANNELS)[:, None] + channel[None, :], mask=tile, other=0.0)
                    above_grad = above_grad.to(tl.float32)
                    if BINS > 0:
                        near = tl.maximum(1 - tl.abs(z[:, None] - bin[None, :]), 0.0)
                        product = scale * tl.sum(above_grad * own[None, :], axis=1)
                        depth_total += tl.sum(product[:, None] * near, axis=0)
                        scale *= tl.sum(near * scores[None, :], axis=1)
                    total += tl.sum(scale[:, None] * above_grad, axis=0)
        tl.store(grad_value + at, total.to(grad_value.dtype.element_ty), mask=channel < CHANNELS)
    if BINS > 0:
        tl.store(grad_depth + at_depth, depth_total.to(grad_depth.dtype.element_ty), mask=bin < BINS)


def _shape(value: torch.Tensor, depth: torch.Tensor | None, points: int) -> dict[str, int]:
    """What the kernels are compiled for."""
    bins, depth_heads = (0, 1) if depth is None else (depth.shape[3], depth.shape[2])
    return dict(HEADS=value.shape[2], CHANNELS=value.shape[3], POINTS=points, BINS=bins, DEPTH_HEADS=depth_heads)


def _tile(channels: int, itemsize: int, bins: int, atomic: bool = False) -> dict[str, int]:
    """What 128 threads load at 16 bytes each; less of it where every number needs an address to be added to."""
    block = triton.next_power_of_2(channels)
    numbers = 128 * 16 // itemsize
    if atomic:
        numbers = 512 if bins == 0 else 256
    return dict(BLOCK_R=max(numbers // block, 1), BLOCK_C=block)


def _pixel_tile(channels: int, bins: int) -> dict[str, int]:
    block, depths = triton.next_power_of_2(channels), triton.next_power_of_2(max(bins, 1))
    return dict(BLOCK_S=max(min(16, 2048 // max(block, depths)), 1), BLOCK_C=block, BLOCK_D=depths)


_WARPS = 4
_PIXEL_WARPS = 1


def deformable_attention_forward(
    value: torch.Tensor,
    depth: torch.Tensor | None,
    sizes: torch.Tensor,
    starts: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """As the operator; copies what is not contiguous, which mmdet's tensors are."""
    batch, positions, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    out = value.new_empty(batch, queries, heads * channels)
    if out.numel() == 0:
        return out
    shape = _shape(value, depth, points)
    tile = _tile(channels, value.itemsize, shape["BINS"])
    with _dispatch.device_of(value):
        _forward_kernel[(triton.cdiv(queries * heads, tile["BLOCK_R"]), batch)](
            *_contiguous(value, depth, sizes, starts, locations, weights),
            out,
            queries,
            positions,
            levels,
            **shape,
            **tile,
            num_warps=_WARPS,
        )
    return out


def deformable_attention_backward(
    grad: torch.Tensor,
    value: torch.Tensor,
    depth: torch.Tensor | None,
    sizes: torch.Tensor,
    starts: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of value, depth (empty without it), locations and weights; deterministic where PyTorch is told to be.

    Scattering the gradient of value by atomic additions, in float32, is what every published operator does, and its
    order changes from run to run. The deterministic way sorts the samples instead: each pixel then gathers its own.
    """
    batch, positions, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    given = _contiguous(grad, value, depth, sizes, starts, locations, weights)
    atomic = not torch.are_deterministic_algorithms_enabled()
    make, dtype = (torch.zeros, torch.float32) if atomic or locations.numel() == 0 else (torch.empty, value.dtype)
    grad_value = make(value.shape, dtype=dtype, device=value.device)
    grad_depth = make(0 if depth is None else depth.shape, dtype=dtype, device=value.device)
    grad_locations = torch.empty_like(locations, memory_format=torch.contiguous_format)
    grad_weights = torch.empty_like(weights, memory_format=torch.contiguous_format)
    shape = _shape(value, depth, points)
    tile = _tile(channels, value.itemsize, shape["BINS"], atomic)
    if locations.numel() > 0:
        with _dispatch.device_of(value):
            _backward_kernel[(triton.cdiv(queries * heads, tile["BLOCK_R"]), batch)](
                *given,
                grad_value,
                grad_depth,
                grad_locations,
                grad_weights,
                queries,
                positions,
                levels,
                **shape,
                ATOMIC=atomic,
                **tile,
                num_warps=_WARPS,
            )
            if not atomic:
                order, first = _cells(sizes, starts, locations, shape["BINS"], positions)
                _by_pixel_kernel[(positions, heads if depth is None else depth.shape[2], batch)](
                    *given,
                    order,
                    first,
                    grad_value,
                    grad_depth,
                    positions,
                    levels,
                    **shape,
                    **_pixel_tile(channels, shape["BINS"]),
                    num_warps=_PIXEL_WARPS,
                )
    return grad_value.to(value.dtype), grad_depth.to(value.dtype), grad_locations, grad_weights


def _contiguous(*tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    return [None if x is None else x.contiguous() for x in tensors]


def _cells(
    sizes: torch.Tensor, starts: torch.Tensor, locations: torch.Tensor, bins: int, positions: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Samples sorted by the cell between four pixels in which they lie: the inverted index of the scattered gradient.

    A map of H x W pixels has (H + 1) x (W + 1) cells, those over its border included: never more than 4 * H * W.

    Returns:
        The order of the samples, and where in it each cell begins, 4 * K cells for each image and head.
    """
    batch, _, heads = locations.shape[:3]
    extent = sizes.flip(1)[:, None]
    if bins > 0:
        extent = torch.cat([extent, torch.full_like(extent[..., :1], bins)], -1)
    place = locations.float() * extent - 0.5
    inside = ((place > -1) & (place < extent)).all(-1)
    column, row = (place[..., axis].nan_to_num().floor().long() + 1 for axis in (0, 1))
    cell = 4 * starts[:, None] + row * (sizes[:, 1:] + 1) + column
    own = torch.arange(batch * heads, device=locations.device).view(batch, 1, heads, 1, 1) * (4 * positions)
    count = batch * heads * 4 * positions
    cell = torch.where(inside, cell + own, count)
    # Half the digits, half the passes of the sort.
    cell = cell.to(torch.int32 if count < 2**31 else torch.int64)
    ordered, order = cell.flatten().sort(stable=True)
    first = torch.searchsorted(ordered, torch.arange(count + 1, device=cell.device, dtype=cell.dtype))
    return order, first
