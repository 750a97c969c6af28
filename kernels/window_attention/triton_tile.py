"""Window attention in Triton, of windows that a tile holds and that see no other: forward, and all gradients at once.

A program takes many windows of one head, all of which the border of the map cuts in the same way, so that places,
addresses within a window and the bias are computed once. Softmaxes are in base 2. Windows far smaller than a tile
share one, side by side.
"""

import triton
import triton.language as tl

from .triton_bias import _bias
from .triton_windows import SIZES, _next, _parts, _pixels, _places, _share_of


@triton.jit
def _window_bias(
    bias, heads, head, down, right, row, col, exists, label,
    WH: tl.constexpr, WW: tl.constexpr, BLOCK: tl.constexpr, HAS_BIAS: tl.constexpr, LABELED: tl.constexpr,
):  # fmt: skip
    """What is added to the logits of a program's windows; `bias` as `dense_bias` lays it out."""
    if HAS_BIAS:
        place = tl.arange(0, BLOCK)
        kind = down.to(tl.int32) * 2 + right.to(tl.int32)
        bias += (kind * heads + head) * (BLOCK * BLOCK)
        return tl.load(bias + place[:, None] * BLOCK + place[None, :])
    else:
        return _bias(
            bias, heads, head, row, col, exists, label, row, col, exists, label, WH, WW, WH, WW, False, LABELED
        )


@triton.jit(do_not_specialize=SIZES)
def _tile_forward_kernel(
    q, k, v, bias, out, lse, scale, images, rows, cols, heads, shift_h, shift_w, each, right_from, bottom_from,
    corner_from, stride_b, stride_h, stride_w,
    WH: tl.constexpr, WW: tl.constexpr, HAS_BIAS: tl.constexpr, KEEP_BIAS: tl.constexpr, SHIFTED: tl.constexpr,
    PACKED: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The result and `lse`, the base-2 logarithm of the softmaxes' denominators."""
    PACK: tl.constexpr = BLOCK // (WH * WW)
    program = tl.program_id(0)
    head = program % heads
    down, right, top, bottom, left, end, image, window_row, window_col, count = _share_of(
        program // heads, images, rows, cols, shift_h, shift_w, each, right_from, bottom_from, corner_from,
        PACK, SHIFTED,
    )  # fmt: skip
    row, col, exists, label = _places(tl.arange(0, BLOCK), down, right, shift_h, shift_w, WH, WW, PACK, SHIFTED)
    if KEEP_BIAS:
        added = _window_bias(
            bias, heads, head, down, right, row, col, exists, label, WH, WW, BLOCK, HAS_BIAS, SHIFTED or PACK > 1
        )
    height, width = rows * WH, cols * WW
    slot = label >> 2
    y, x = _pixels(row, col + slot * WW, label, height, width, WIDE)
    channel = tl.arange(0, BLOCK_D)
    mask = exists[:, None] & (channel < HEAD_DIM)[None, :]
    at = (y * stride_h + x * stride_w)[:, None] * UNIT + channel[None, :]
    pixel = y * width + x
    channels = heads * HEAD_DIM
    to = (pixel * channels)[:, None] + channel[None, :]
    q, k, v = _parts(q, k, v, head, channels, HEAD_DIM, PACKED)
    out += head * HEAD_DIM
    for _ in range(count):
        top_row, left_col = (window_row * WH + shift_h).to(tl.int64), (window_col * WW + shift_w).to(tl.int64)
        first = (image.to(tl.int64) * stride_b + top_row * stride_h + left_col * stride_w) * UNIT
        origin = (image.to(tl.int64) * height + top_row) * width + left_col
        if PACK > 1:
            there = exists & (slot < end - window_col)
            mask = there[:, None] & (channel < HEAD_DIM)[None, :]
        else:
            there = exists
        queries = tl.load(q + first + at, mask, other=0.0)
        keys = tl.load(k + first + at, mask, other=0.0)
        values = tl.load(v + first + at, mask, other=0.0)
        logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        if not KEEP_BIAS:
            added = _window_bias(
                bias, heads, head, down, right, row, col, exists, label, WH, WW, BLOCK, HAS_BIAS, SHIFTED or PACK > 1
            )
        logits += added
        most = tl.max(logits, 1)
        weights = tl.exp2(logits - most[:, None])
        total = tl.sum(weights, 1)
        result = tl.dot(weights.to(values.dtype), values, input_precision=PRECISION) * (1.0 / total)[:, None]
        tl.store(out + origin * channels + to, result.to(out.dtype.element_ty), mask)
        tl.store(lse + origin * heads + head + pixel * heads, most + tl.log2(total), there)
        image, window_row, window_col = _next(image, window_row, window_col, top, bottom, left, end, PACK)


@triton.jit(do_not_specialize=SIZES)
def _tile_backward_kernel(
    grad, q, k, v, bias, lse, grad_q, grad_k, grad_v, partial, scale, images, rows, cols, heads, shift_h, shift_w,
    each, right_from, bottom_from, corner_from, stride_b, stride_h, stride_w,
    WH: tl.constexpr, WW: tl.constexpr, HAS_BIAS: tl.constexpr, KEEP_BIAS: tl.constexpr, LEARNS: tl.constexpr,
    SHIFTED: tl.constexpr, PACKED: tl.constexpr, PACKED_GRADS: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of q, k and v, and that of the bias, summed over the program's windows.

    Channels are taken CHUNK at a time, for the sake of the registers.
    """
    PACK: tl.constexpr = BLOCK // (WH * WW)
    program = tl.program_id(0)
    head = program % heads
    down, right, top, bottom, left, end, image, window_row, window_col, count = _share_of(
        program // heads, images, rows, cols, shift_h, shift_w, each, right_from, bottom_from, corner_from,
        PACK, SHIFTED,
    )  # fmt: skip
    row, col, exists, label = _places(tl.arange(0, BLOCK), down, right, shift_h, shift_w, WH, WW, PACK, SHIFTED)
    if KEEP_BIAS:
        added = _window_bias(
            bias, heads, head, down, right, row, col, exists, label, WH, WW, BLOCK, HAS_BIAS, SHIFTED or PACK > 1
        )
    height, width = rows * WH, cols * WW
    slot = label >> 2
    y, x = _pixels(row, col + slot * WW, label, height, width, WIDE)
    channel = tl.arange(0, CHUNK)
    at = (y * stride_h + x * stride_w)[:, None] * UNIT + channel[None, :]
    pixel = y * width + x
    channels = heads * HEAD_DIM
    from_grad = (pixel * channels)[:, None] + channel[None, :]
    stride_grad = channels * 3 if PACKED_GRADS else channels
    to = (pixel * stride_grad)[:, None] + channel[None, :]
    q, k, v = _parts(q, k, v, head, channels, HEAD_DIM, PACKED)
    grad_q, grad_k, grad_v = _parts(grad_q, grad_k, grad_v, head, channels, HEAD_DIM, PACKED_GRADS)
    grad += head * HEAD_DIM
    there = exists
    # The logits are in base 2, the gradients are not.
    factor = scale * 0.6931471805599453
    sums = tl.zeros((BLOCK, BLOCK), tl.float32)
    for _ in range(count):
        top_row, left_col = (window_row * WH + shift_h).to(tl.int64), (window_col * WW + shift_w).to(tl.int64)
        first = (image.to(tl.int64) * stride_b + top_row * stride_h + left_col * stride_w) * UNIT
        origin = (image.to(tl.int64) * height + top_row) * width + left_col
        if PACK > 1:
            there = exists & (slot < end - window_col)
        # Places without a pixel weigh nothing.
        offset = tl.load(lse + origin * heads + head + pixel * heads, there, other=float("inf"))
        at_grad, to_grad = grad + origin * channels + from_grad, origin * stride_grad + to
        logits = tl.zeros((BLOCK, BLOCK), tl.float32)
        slopes = tl.zeros((BLOCK, BLOCK), tl.float32)
        for start in tl.static_range(0, BLOCK_D, CHUNK):
            mask = there[:, None] & (start + channel < HEAD_DIM)[None, :]
            queries = tl.load(q + first + at + start, mask, other=0.0)
            keys = tl.load(k + first + at + start, mask, other=0.0)
            values = tl.load(v + first + at + start, mask, other=0.0)
            grads = tl.load(at_grad + start, mask, other=0.0)
            logits += tl.dot(queries, tl.trans(keys), input_precision=PRECISION)
            slopes += tl.dot(grads, tl.trans(values), input_precision=PRECISION)
        if not KEEP_BIAS:
            added = _window_bias(
                bias, heads, head, down, right, row, col, exists, label, WH, WW, BLOCK, HAS_BIAS, SHIFTED or PACK > 1
            )
        weights = tl.exp2(logits * scale + added - offset[:, None])
        slopes = weights * slopes
        # The rounding of large logits leaves the weights' sum off 1, which would show where gradients all but vanish.
        mean = tl.sum(slopes, 1) / tl.where(there, tl.sum(weights, 1), 1.0)
        slopes -= weights * mean[:, None]
        if LEARNS:
            sums += slopes
        weights, slopes = weights.to(grads.dtype), slopes.to(grads.dtype)
        for start in tl.static_range(0, BLOCK_D, CHUNK):
            mask = there[:, None] & (start + channel < HEAD_DIM)[None, :]
            if CHUNK < BLOCK_D:
                queries = tl.load(q + first + at + start, mask, other=0.0)
                keys = tl.load(k + first + at + start, mask, other=0.0)
                grads = tl.load(at_grad + start, mask, other=0.0)
            some = tl.dot(tl.trans(weights), grads, input_precision=PRECISION)
            tl.store(grad_v + to_grad + start, some.to(grads.dtype), mask)
            some = tl.dot(slopes, keys, input_precision=PRECISION) * factor
            tl.store(grad_q + to_grad + start, some.to(grads.dtype), mask)
            some = tl.dot(tl.trans(slopes), queries, input_precision=PRECISION) * factor
            tl.store(grad_k + to_grad + start, some.to(grads.dtype), mask)
        image, window_row, window_col = _next(image, window_row, window_col, top, bottom, left, end, PACK)
    if LEARNS:
        place = tl.arange(0, BLOCK)
        tl.store(partial + program.to(tl.int64) * (BLOCK * BLOCK) + place[:, None] * BLOCK + place[None, :], sums)
