# Triton cannot unpack within a tuple, and its tuples grow.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment"
"""Triton kernels of deformable attention in two and in three dimensions.

A row is one head of one query: its samples lie together in memory, and so do its output channels. A tile is some rows
of one image by a head's channels, which PARTS loads of BLOCK_C channels bring. With BINS > 0 each corner of a sample is
scaled by its pixel's depth distribution. With REFERENCE numbers a reference, places are offsets from reference points
and weights are logits.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from .. import _dispatch
from .triton_samples import (
    add_samples,
    frame_of,
    gradients,
    level_of,
    load_channels,
    mask_of,
    no_gradients,
    norm_of,
    place,
    rows_of,
    samples_of,
    widen,
)


@triton.jit
def _forward_kernel(
    value,
    depth,
    sizes,
    starts,
    locations,
    weights,
    references,
    out,
    queries,
    positions,
    levels,
    tiles,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POINTS: tl.constexpr,
    BINS: tl.constexpr,
    DEPTH_HEADS: tl.constexpr,
    REFERENCE: tl.constexpr,
    UNROLL: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    image, row, head, there = rows_of(queries, tiles, HEADS, BLOCK_R)
    row += image * queries * HEADS
    norm = norm_of(weights, row * levels * POINTS, levels * POINTS, REFERENCE, UNROLL, BLOCK_R)
    channel = tl.arange(0, BLOCK_C)
    values = value + ((image * positions * HEADS + head) * CHANNELS)[:, None] + channel[None, :]
    curves = depth
    if BINS > 0:
        curves = depth + (image * positions * DEPTH_HEADS + head % DEPTH_HEADS) * BINS
    totals = ()
    for _ in tl.static_range(PARTS):
        totals = totals + (tl.zeros((BLOCK_R, BLOCK_C), tl.float32),)
    for level in range(levels):
        height, width, start = level_of(sizes, starts, level, positions)
        first = (row * levels + level) * POINTS
        frame = frame_of(references, row // HEADS * levels + level, height, width, POINTS, REFERENCE)
        for block in range(0, POINTS, UNROLL):
            samples, some = samples_of(
                locations, weights, first + block, there, frame, norm, height, width, BINS, REFERENCE, UNROLL
            )
            if some:
                totals = add_samples(
                    totals,
                    samples,
                    values,
                    curves,
                    start,
                    height,
                    width,
                    HEADS,
                    CHANNELS,
                    BINS,
                    DEPTH_HEADS,
                    PARTS,
                    BLOCK_C,
                )
    at = out + (row * CHANNELS)[:, None] + channel[None, :]
    for part in tl.static_range(PARTS):
        mask = mask_of(there, part, CHANNELS, BLOCK_C)
        tl.store(at + part * BLOCK_C, totals[part].to(out.dtype.element_ty), mask=mask)


@triton.jit
def _backward_kernel(
    grad,
    value,
    depth,
    sizes,
    starts,
    locations,
    weights,
    references,
    out,
    grad_value,
    grad_depth,
    grad_locations,
    grad_weights,
    grad_references,
    queries,
    positions,
    levels,
    tiles,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    POINTS: tl.constexpr,
    BINS: tl.constexpr,
    DEPTH_HEADS: tl.constexpr,
    REFERENCE: tl.constexpr,
    REFERENCES_LEARN: tl.constexpr,
    ATOMIC: tl.constexpr,
    UNROLL: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Gradients of locations and weights; with ATOMIC those of value and depth as well.

    With REFERENCES_LEARN those of reference points too, in the share of each head.
    """
    DIMS: tl.constexpr = 2 if BINS == 0 else 3
    image, row, head, there = rows_of(queries, tiles, HEADS, BLOCK_R)
    row += image * queries * HEADS
    norm = norm_of(weights, row * levels * POINTS, levels * POINTS, REFERENCE, UNROLL, BLOCK_R)
    channel = tl.arange(0, BLOCK_C)
    at = ((image * positions * HEADS + head) * CHANNELS)[:, None] + channel[None, :]
    values, grad_values = value + at, grad_value + at
    curves, grad_curves = depth, grad_depth
    if BINS > 0:
        at = (image * positions * DEPTH_HEADS + head % DEPTH_HEADS) * BINS
        curves, grad_curves = depth + at, grad_depth + at
    grads = ()
    at = (row * CHANNELS)[:, None] + channel[None, :]
    # Of the sum that the gradient of a softmax takes away.
    products = tl.zeros((BLOCK_R, BLOCK_C), tl.float32)
    for part in tl.static_range(PARTS):
        grads = grads + (load_channels(grad + at, there, part, CHANNELS, BLOCK_C),)
        if REFERENCE > 0:
            products += grads[part] * load_channels(out + at, there, part, CHANNELS, BLOCK_C)
    mean = tl.sum(products, axis=1)
    for level in range(levels):
        height, width, start = level_of(sizes, starts, level, positions)
        first = (row * levels + level) * POINTS
        frame = frame_of(references, row // HEADS * levels + level, height, width, POINTS, REFERENCE)
        sum_x = tl.zeros((BLOCK_R,), tl.float32)
        sum_y = tl.zeros((BLOCK_R,), tl.float32)
        sum_width = tl.zeros((BLOCK_R,), tl.float32)
        sum_height = tl.zeros((BLOCK_R,), tl.float32)
        for block in range(0, POINTS, UNROLL):
            samples, some = samples_of(
                locations, weights, first + block, there, frame, norm, height, width, BINS, REFERENCE, UNROLL
            )
            found = no_gradients(samples)
            if some:
                found = gradients(
                    samples,
                    grads,
                    values,
                    curves,
                    grad_values,
                    grad_curves,
                    start,
                    height,
                    width,
                    HEADS,
                    CHANNELS,
                    BINS,
                    DEPTH_HEADS,
                    ATOMIC,
                    PARTS,
                    BLOCK_C,
                )
            for i in tl.static_range(UNROLL):
                sample = first + block + i
                grad_weight, grad_x, grad_y, grad_z = found[i]
                weight = samples[i][3]
                grad_x *= weight
                grad_y *= weight
                element = grad_locations.dtype.element_ty
                tl.store(grad_locations + sample * DIMS, (frame[0] * grad_x).to(element), mask=there)
                tl.store(grad_locations + sample * DIMS + 1, (frame[1] * grad_y).to(element), mask=there)
                if BINS > 0:
                    tl.store(grad_locations + sample * DIMS + 2, (weight * BINS * grad_z).to(element), mask=there)
                if REFERENCE > 0:
                    grad_weight = weight * (grad_weight - mean)
                tl.store(grad_weights + sample, grad_weight.to(grad_weights.dtype.element_ty), mask=there)
                if REFERENCES_LEARN:
                    sum_x += grad_x
                    sum_y += grad_y
                    if REFERENCE == 4:
                        sum_width += grad_x * widen(tl.load(locations + sample * 2))
                        sum_height += grad_y * widen(tl.load(locations + sample * 2 + 1))
        if REFERENCES_LEARN:
            learnt = grad_references + (row * levels + level) * REFERENCE
            tl.store(learnt, sum_x * width, mask=there)
            tl.store(learnt + 1, sum_y * height, mask=there)
            if REFERENCE == 4:
                tl.store(learnt + 2, sum_width * width * (0.5 / POINTS), mask=there)
                tl.store(learnt + 3, sum_height * height * (0.5 / POINTS), mask=there)


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
    PER_GROUP: tl.constexpr = HEADS if BINS > 0 and DEPTH_HEADS == 1 else 1
    GROUPS: tl.constexpr = HEADS // PER_GROUP
    pixel = tl.program_id(0) % positions
    group = tl.program_id(0) // positions % GROUPS
    image = (tl.program_id(0) // positions // GROUPS).to(tl.int64)
    channel = tl.arange(0, BLOCK_C)
    bin = tl.arange(0, BLOCK_D)
    at_depth = ((image * positions + pixel) * DEPTH_HEADS + group) * BINS + bin
    depth_total = tl.zeros((BLOCK_D,), tl.float32)
    if BINS > 0:
        scores = widen(tl.load(depth + at_depth, mask=bin < BINS, other=0.0))
    for h in range(PER_GROUP):
        head = group * PER_GROUP + h
        at = ((image * positions + pixel) * HEADS + head) * CHANNELS + channel
        if BINS > 0:
            own = widen(tl.load(value + at, mask=channel < CHANNELS, other=0.0))
        total = tl.zeros((BLOCK_C,), tl.float32)
        for level in range(levels):
            height, width, start = level_of(sizes, starts, level, positions)
            frame = frame_of(None, 0, height, width, POINTS, 0)
            line = (pixel - start) // tl.maximum(width, 1)
            column = (pixel - start) % tl.maximum(width, 1)
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
                    x, y, z, weight, inside = place(
                        locations, weights, sample, frame, (0.0, 1.0), height, width, BINS, 0
                    )
                    scale = weight * tl.maximum(1 - tl.abs(x - column), 0.0) * tl.maximum(1 - tl.abs(y - line), 0.0)
                    scale = tl.where(inside & there, scale, 0.0)
                    row = sample // (levels * POINTS)
                    tile = there[:, None] & (channel < CHANNELS)[None, :]
                    at_grad = grad + (row * CHANNELS)[:, None] + channel[None, :]
                    above_grad = widen(tl.load(at_grad, mask=tile, other=0.0))
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


def _unroll(points: int, most: int) -> int:
    """The largest divisor of the points of a level that is no larger than `most`."""
    return max(x for x in range(1, most + 1) if points % x == 0)


def _forward_options(channels: int, itemsize: int, bins: int, points: int) -> dict[str, int]:
    """A thread has eight channels of a row, in loads of 16 bytes; one warp, where samples may all be off the map."""
    block = triton.next_power_of_2(channels)
    parts = min(itemsize // 2, max(block // 8, 1))
    warps = 4 if bins == 0 else 1
    return dict(
        UNROLL=_unroll(points, 4),
        PARTS=parts,
        BLOCK_R=max(warps * 32 * 8 // block, 1),
        BLOCK_C=block // parts,
        num_warps=warps,
        num_stages=1,
    )


def _backward_options(channels: int, itemsize: int, bins: int, points: int, atomic: bool) -> dict[str, int]:
    block = triton.next_power_of_2(channels)
    parts = min(itemsize // 2, max(block // 8, 1)) if not atomic else min(2, max(block // 4, 1))
    warps = 1
    return dict(
        UNROLL=_unroll(points, 2 if bins == 0 else 1),
        PARTS=parts,
        BLOCK_R=max(warps * 32 * 8 // block, 1),
        BLOCK_C=block // parts,
        num_warps=warps,
        num_stages=1,
    )


def _pixel_options(channels: int, bins: int) -> dict[str, int]:
    block, depths = triton.next_power_of_2(channels), triton.next_power_of_2(max(bins, 1))
    # In more numbers a thread than these Triton 3.7 spills some.
    samples = 2048 // block if bins == 0 else 1536 // (block + depths)
    return dict(
        BLOCK_S=min(16, 1 << (samples.bit_length() - 1)),
        BLOCK_C=block,
        BLOCK_D=depths,
        num_warps=1,
        num_stages=1,
    )


def deformable_attention_forward(
    value: torch.Tensor,
    depth: torch.Tensor | None,
    sizes: torch.Tensor,
    starts: torch.Tensor,
    locations: torch.Tensor,
    weights: torch.Tensor,
    references: torch.Tensor | None = None,
) -> torch.Tensor:
    """As the operators, which give locations and weights, or offsets, logits and references.

    It copies what is not contiguous, which mmdet's tensors are.
    """
    batch, positions, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    out = value.new_empty(batch, queries, heads * channels)
    if out.numel() == 0 or locations.numel() == 0:
        return out.zero_()
    shape = _shape(value, depth, points)
    options = _forward_options(channels, value.itemsize, shape["BINS"], points)
    tiles = triton.cdiv(queries * heads, options["BLOCK_R"])
    with _dispatch.device_of(value):
        _forward_kernel[(batch * tiles,)](
            *_contiguous(value, depth, sizes, starts, locations, weights, references),
            out,
            queries,
            positions,
            levels,
            tiles,
            **shape,
            REFERENCE=0 if references is None else references.shape[3],
            **options,
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
    given = _contiguous(grad, value, depth, sizes, starts, locations, weights)
    atomic = not torch.are_deterministic_algorithms_enabled()
    maps = value, value.new_empty(0) if depth is None else depth
    if atomic or locations.numel() == 0:
        of_value, of_depth = (torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in maps)
    else:
        of_value, of_depth = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in maps)
    of_locations, of_weights = (
        torch.empty_like(x, memory_format=torch.contiguous_format) for x in (locations, weights)
    )
    if locations.numel() > 0:
        made = of_value, of_depth, of_locations, of_weights
        _launch_backward((*given, None, None), (*made, None), atomic)
        if not atomic:
            shape = _shape(value, depth, locations.shape[4])
            order, first = _cells(sizes, starts, locations, shape["BINS"], positions)
            with _dispatch.device_of(value):
                _by_pixel_kernel[(positions * (heads if depth is None else depth.shape[2]) * batch,)](
                    *given,
                    order,
                    first,
                    of_value,
                    of_depth,
                    positions,
                    locations.shape[3],
                    **shape,
                    **_pixel_options(channels, shape["BINS"]),
                )
    return of_value.to(value.dtype), of_depth.to(maps[1].dtype), of_locations, of_weights


def offsets_backward(
    grad: torch.Tensor,
    out: torch.Tensor,
    value: torch.Tensor,
    sizes: torch.Tensor,
    starts: torch.Tensor,
    references: torch.Tensor,
    offsets: torch.Tensor,
    logits: torch.Tensor,
    references_learn: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of value, references (empty if they do not learn), offsets and logits, by atomic additions."""
    given = _contiguous(grad, value, None, sizes, starts, offsets, logits, references, out)
    of_value = torch.zeros(value.shape, dtype=torch.float32, device=value.device)
    of_offsets, of_logits = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (offsets, logits))
    of_references = None
    if references_learn:
        # Of each head by itself.
        shape = (*logits.shape[:4], references.shape[3])
        of_references = torch.zeros(shape, dtype=torch.float32, device=value.device)
    # A graph that was compiled of another size meets empty tensors.
    if logits.numel() > 0:
        _launch_backward(given, (of_value, None, of_offsets, of_logits, of_references), True)
    found = references.new_empty(0) if of_references is None else of_references.sum(2).to(references.dtype)
    return of_value.to(value.dtype), found, of_offsets, of_logits


def _launch_backward(given: Sequence[torch.Tensor | None], made: Sequence[torch.Tensor | None], atomic: bool) -> None:
    """Runs `_backward_kernel` on its first tensors."""
    value, depth, locations, references = given[1], given[2], given[5], given[7]
    assert value is not None and locations is not None
    batch, positions, heads, channels = value.shape
    queries, levels, points = locations.shape[1], locations.shape[3], locations.shape[4]
    shape = _shape(value, depth, points)
    options = _backward_options(channels, value.itemsize, shape["BINS"], points, atomic)
    tiles = triton.cdiv(queries * heads, options["BLOCK_R"])
    with _dispatch.device_of(value):
        _backward_kernel[(batch * tiles,)](
            *given,
            *made,
            queries,
            positions,
            levels,
            tiles,
            **shape,
            REFERENCE=0 if references is None else references.shape[3],
            REFERENCES_LEARN=made[-1] is not None,
            ATOMIC=atomic,
            **options,
        )


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
