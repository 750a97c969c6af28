# Triton cannot unpack within a tuple, and its tuples grow.
# ruff: noqa: RUF005
# mypy: disable-error-code="assignment"
"""What the kernels of deformable attention share: where samples lie, and the four pixels around each."""

import triton
import triton.language as tl


@triton.jit
def widen(x):
    """In float32. Of two bfloat16 in a register the upper one is a mask away, which the compiler does not see."""
    if x.dtype == tl.bfloat16:
        wide = (x.to(tl.uint16, bitcast=True).to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = x.to(tl.float32)
    return wide


@triton.jit
def rows_of(queries, tiles, HEADS: tl.constexpr, BLOCK_R: tl.constexpr):
    """Image of a program, its rows within it and their heads; rows beyond the last stand for it, and are not there."""
    program = tl.program_id(0)
    row = program % tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    last = queries * HEADS - 1
    there = row <= last
    row = tl.minimum(row, last)
    return (program // tiles).to(tl.int64), row, row % HEADS, there


@triton.jit
def level_of(sizes, starts, level, positions):
    """Height, width and start of a level; one that does not fit the value has no pixels."""
    height = tl.load(sizes + 2 * level).to(tl.int32)
    width = tl.load(sizes + 2 * level + 1).to(tl.int32)
    start = tl.load(starts + level).to(tl.int32)
    fits = (start >= 0) & (height > 0) & (width > 0) & (height.to(tl.int64) * width + start <= positions)
    return tl.where(fits, height, 0), tl.where(fits, width, 0), tl.where(fits, start, 0)


@triton.jit
def frame_of(references, at, height, width, POINTS: tl.constexpr, REFERENCE: tl.constexpr):
    """Scales and origins that make pixel coordinates (x, y) of locations, or of offsets from reference points.

    Args:
        references: None, or points (x, y), or boxes (x, y, width, height), of REFERENCE numbers.
        at: number of the reference in its tensor.
        height: of the level.
        width: likewise.
        POINTS: of a level, of which a box's offsets are fractions.
        REFERENCE: 0, 2 or 4.
    """
    scale_x = width.to(tl.float32)
    scale_y = height.to(tl.float32)
    if REFERENCE == 0:
        origin_x = -0.5
        origin_y = -0.5
    else:
        origin_x = widen(tl.load(references + at * REFERENCE)) * scale_x - 0.5
        origin_y = widen(tl.load(references + at * REFERENCE + 1)) * scale_y - 0.5
        if REFERENCE == 2:
            scale_x = 1.0
            scale_y = 1.0
        else:
            scale_x = widen(tl.load(references + at * REFERENCE + 2)) * scale_x * (0.5 / POINTS)
            scale_y = widen(tl.load(references + at * REFERENCE + 3)) * scale_y * (0.5 / POINTS)
    return scale_x, scale_y, origin_x, origin_y


@triton.jit
def norm_of(logits, first, count, REFERENCE: tl.constexpr, UNROLL: tl.constexpr, BLOCK_R: tl.constexpr):
    """Of the softmax over `count` logits of rows: the largest, and the factor of the exponentials."""
    top = tl.full((BLOCK_R,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_R,), tl.float32)
    if REFERENCE > 0:
        for block in range(0, count, UNROLL):
            for i in tl.static_range(UNROLL):
                top = tl.maximum(top, widen(tl.load(logits + first + block + i)))
        for block in range(0, count, UNROLL):
            for i in tl.static_range(UNROLL):
                total += tl.exp(widen(tl.load(logits + first + block + i)) - top)
        total = 1 / total
    return top, total


@triton.jit
def place(locations, weights, at, frame, norm, height, width, BINS: tl.constexpr, REFERENCE: tl.constexpr):
    """Pixel coordinates (x, y), depth z in bins and weight of samples, and which of them lie within reach."""
    DIMS: tl.constexpr = 2 if BINS == 0 else 3
    scale_x, scale_y, origin_x, origin_y = frame
    x = widen(tl.load(locations + at * DIMS)) * scale_x + origin_x
    y = widen(tl.load(locations + at * DIMS + 1)) * scale_y + origin_y
    inside = (x > -1) & (x < width) & (y > -1) & (y < height)
    if BINS == 0:
        z = x
    else:
        z = widen(tl.load(locations + at * DIMS + 2)) * BINS - 0.5
        inside = inside & (z > -1) & (z < BINS)
    weight = widen(tl.load(weights + at))
    if REFERENCE > 0:
        weight = tl.exp(weight - norm[0]) * norm[1]
    return tl.where(inside, x, 0.0), tl.where(inside, y, 0.0), tl.where(inside, z, 0.0), weight, inside


@triton.jit
def corner_of(x, y, inside, height, width, corner: tl.constexpr):
    """Of one of the four pixels around a sample: whether it exists, and its share along x and y."""
    left, top = tl.floor(x), tl.floor(y)
    column, line = left.to(tl.int32), top.to(tl.int32)
    if corner % 2 == 0:
        valid, across = inside & (column >= 0), 1 - (x - left)
    else:
        valid, across = inside & (column + 1 < width), x - left
    if corner // 2 == 0:
        valid, down = valid & (line >= 0), 1 - (y - top)
    else:
        valid, down = valid & (line + 1 < height), y - top
    return valid, across, down


@triton.jit
def scores_of(curve, z, valid, BINS: tl.constexpr):
    """The two bins around z of the distributions that begin at `curve`."""
    low = tl.floor(z).to(tl.int32)
    below = widen(tl.load(curve + low, mask=valid & (low >= 0), other=0.0))
    above = widen(tl.load(curve + low + 1, mask=valid & (low + 1 < BINS), other=0.0))
    return below, above


@triton.jit
def samples_of(
    locations,
    weights,
    first,
    there,
    frame,
    norm,
    height,
    width,
    BINS: tl.constexpr,
    REFERENCE: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """Some samples of a level, and whether any of them lies within reach; in two dimensions that is not asked."""
    samples = ()
    some = there & False
    for i in tl.static_range(UNROLL):
        x, y, z, weight, inside = place(locations, weights, first + i, frame, norm, height, width, BINS, REFERENCE)
        inside = inside & there
        samples = samples + ((x, y, z, weight, inside),)
        some = some | inside
    return samples, BINS == 0 or tl.max(some.to(tl.int32), axis=0) > 0


@triton.jit
def first_pixel(x, y, start, width):
    """The upper left of the four pixels around samples."""
    return (start + tl.floor(y).to(tl.int32) * width + tl.floor(x).to(tl.int32)).to(tl.int64)


@triton.jit
def offset_of(pixel, width, corner: tl.constexpr, STRIDE: tl.constexpr):
    """Of one of the four pixels around samples, of which `pixel` is the first, from the first pixel of an image."""
    return pixel * STRIDE + (corner // 2) * (width.to(tl.int64) * STRIDE) + (corner % 2) * STRIDE


@triton.jit
def mask_of(valid, part: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Of a part of the channels of rows that are valid."""
    mask = valid[:, None]
    if (part + 1) * BLOCK_C > CHANNELS:
        mask = mask & (part * BLOCK_C + tl.arange(0, BLOCK_C) < CHANNELS)[None, :]
    return mask


@triton.jit
def load_channels(at, valid, part: tl.constexpr, CHANNELS: tl.constexpr, BLOCK_C: tl.constexpr):
    """A part of the channels of rows that begin at `at`, zeros where they are not valid."""
    return widen(tl.load(at + part * BLOCK_C, mask=mask_of(valid, part, CHANNELS, BLOCK_C), other=0.0))


@triton.jit
def add_samples(
    totals,
    samples,
    values,
    curves,
    start,
    height,
    width,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BINS: tl.constexpr,
    DEPTH_HEADS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Adds samples of a level to the parts of a tile: the loads of all of them may be under way at once."""
    for i in tl.static_range(len(samples)):
        x, y, z, weight, inside = samples[i]
        pixel = first_pixel(x, y, start, width)
        for corner in tl.static_range(4):
            valid, across, down = corner_of(x, y, inside, height, width, corner)
            share = weight * across * down
            if BINS > 0:
                below, above = scores_of(curves + offset_of(pixel, width, corner, DEPTH_HEADS * BINS), z, valid, BINS)
                share *= below + (z - tl.floor(z)) * (above - below)
            at = values + offset_of(pixel, width, corner, HEADS * CHANNELS)[:, None]
            sums = ()
            for part in tl.static_range(PARTS):
                sums = sums + (totals[part] + share[:, None] * load_channels(at, valid, part, CHANNELS, BLOCK_C),)
            totals = sums
    return totals


@triton.jit
def gradients(
    samples,
    grads,
    values,
    curves,
    grad_values,
    grad_curves,
    start,
    height,
    width,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BINS: tl.constexpr,
    DEPTH_HEADS: tl.constexpr,
    ATOMIC: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Of samples of a level: gradients of weight, x, y and z of each; with ATOMIC adds those of value and depth.

    All loads come before the additions, past which the compiler may not move them.
    """
    loaded = ()
    for i in tl.static_range(len(samples)):
        x, y, z, weight, inside = samples[i]
        pixel = first_pixel(x, y, start, width)
        for corner in tl.static_range(4):
            valid, _, _ = corner_of(x, y, inside, height, width, corner)
            at = values + offset_of(pixel, width, corner, HEADS * CHANNELS)[:, None]
            products = grads[0] * load_channels(at, valid, 0, CHANNELS, BLOCK_C)
            for part in tl.static_range(1, PARTS):
                products += grads[part] * load_channels(at, valid, part, CHANNELS, BLOCK_C)
            below, above = x, x
            if BINS > 0:
                curve = curves + offset_of(pixel, width, corner, DEPTH_HEADS * BINS)
                below, above = scores_of(curve, z, valid, BINS)
            loaded = loaded + ((products, below, above),)
    found = ()
    for i in tl.static_range(len(samples)):
        x, y, z, weight, inside = samples[i]
        pixel = first_pixel(x, y, start, width)
        grad_weight = tl.zeros_like(x)
        grad_x = tl.zeros_like(x)
        grad_y = tl.zeros_like(x)
        grad_z = tl.zeros_like(x)
        for corner in tl.static_range(4):
            valid, across, down = corner_of(x, y, inside, height, width, corner)
            products, below, above = loaded[4 * i + corner]
            product = tl.sum(products, axis=1)
            scale = weight * across * down
            if BINS > 0:
                low = tl.floor(z)
                deep = z - low
                grad_z += across * down * product * (above - below)
                if ATOMIC:
                    curve = grad_curves + offset_of(pixel, width, corner, DEPTH_HEADS * BINS) + low.to(tl.int32)
                    part_of = scale * product
                    tl.atomic_add(curve, part_of * (1 - deep), mask=valid & (low >= 0), sem="relaxed")
                    tl.atomic_add(curve + 1, part_of * deep, mask=valid & (low + 1 < BINS), sem="relaxed")
                score = below + deep * (above - below)
                product *= score
                scale *= score
            grad_weight += across * down * product
            grad_x += (2 * (corner % 2) - 1) * down * product
            grad_y += (2 * (corner // 2) - 1) * across * product
            if ATOMIC:
                at = grad_values + offset_of(pixel, width, corner, HEADS * CHANNELS)[:, None]
                for part in tl.static_range(PARTS):
                    mask = mask_of(valid, part, CHANNELS, BLOCK_C)
                    tl.atomic_add(at + part * BLOCK_C, scale[:, None] * grads[part], mask=mask, sem="relaxed")
        found = found + ((grad_weight, grad_x, grad_y, grad_z),)
    return found


@triton.jit
def no_gradients(samples):
    """As `gradients`, of samples that are all out of reach."""
    found = ()
    for i in tl.static_range(len(samples)):
        none = tl.zeros_like(samples[i][0])
        found = found + ((none, none, none, none),)
    return found
