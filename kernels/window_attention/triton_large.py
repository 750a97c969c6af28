"""Window attention in Triton, of windows that no tile holds or that overlap: forward, backward and the bias's gradient.

A program walks a window in tiles of queries and keys, or the gradient of the bias in one such tile many windows. Each
key lies in its own window's cell and in the margins of those around it: the gradient of keys is computed cell by cell
over the windows that see it. Softmaxes are in base 2. What is added to the logits is read from a dense bias, or, where
that would be too large (ROWS is 0), computed from the bias table.
"""

import triton
import triton.language as tl

from .triton_bias import _bias
from .triton_windows import SIZES, _next, _parts, _pixels, _places, _share_of


@triton.jit
def _window_of(window, rows, cols, shift_h, shift_w):
    """Image, row and column of a window; whether the lower and the right border of the map cut it."""
    line = window // cols
    row, col = line % rows, window % cols
    return line // rows, row, col, (row == rows - 1) & (shift_h > 0), (col == cols - 1) & (shift_w > 0)


@triton.jit
def _in_map(
    k_row, k_col, row, col, rows, cols, WH: tl.constexpr, WW: tl.constexpr, MARGIN: tl.constexpr
):  # fmt: skip
    """Whether keys of the window at `row` and `col` lie inside the map; beyond it they are zero."""
    inside = (k_row >= MARGIN - row * WH) & (k_row < (rows - row) * WH + MARGIN)
    return inside & (k_col >= MARGIN - col * WW) & (k_col < (cols - col) * WW + MARGIN)


@triton.jit
def _load(
    at, y, x, mask, stride_h, stride_w, UNIT: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """(pixels, BLOCK_D), zero where there is no pixel or channel; `at` points to the head's first channel."""
    channel = tl.arange(0, BLOCK_D)
    at += (y * stride_h + x * stride_w)[:, None] * UNIT + channel[None, :]
    return tl.load(at, mask[:, None] & (channel < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def _store(at, pixel, stride, mask, value, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Into a map whose pixels are `stride` apart."""
    channel = tl.arange(0, BLOCK_D)
    at += (pixel * stride)[:, None] + channel[None, :]
    tl.store(at, value.to(at.dtype.element_ty), mask[:, None] & (channel < HEAD_DIM)[None, :])


@triton.jit
def _added(
    bias, heads, head, down, right, q_place, q_row, q_col, q_exists, q_label, k_place, k_row, k_col, k_exists, k_label,
    WH: tl.constexpr, WW: tl.constexpr, KEY_H: tl.constexpr, KEY_W: tl.constexpr, HAS_BIAS: tl.constexpr,
    SHIFTED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """What is added to base-2 logits, (queries, keys); MASKED where `k_place` may be none of a dense bias."""
    if ROWS > 0:
        at = bias + ((down.to(tl.int32) * 2 + right.to(tl.int32)) * heads + head) * (ROWS * COLUMNS)
        at += (q_place * COLUMNS)[:, None] + k_place[None, :]
        if MASKED:
            return tl.load(at, k_exists[None, :], other=float("-inf"))
        else:
            return tl.load(at)
    else:
        return _bias(
            bias, heads, head, q_row, q_col, q_exists, q_label, k_row, k_col, k_exists, k_label,
            WH, WW, KEY_H, KEY_W, HAS_BIAS, SHIFTED,
        )  # fmt: skip


@triton.jit(do_not_specialize=SIZES)
def _forward_kernel(
    q, k, v, bias, out, lse, scale, rows, cols, heads, shift_h, shift_w, stride_b, stride_h, stride_w,
    WH: tl.constexpr, WW: tl.constexpr, MARGIN: tl.constexpr, HAS_BIAS: tl.constexpr, SHIFTED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PACKED: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    KEY_H: tl.constexpr = WH + 2 * MARGIN
    KEY_W: tl.constexpr = WW + 2 * MARGIN
    TILES: tl.constexpr = (WH * WW + BLOCK_M - 1) // BLOCK_M
    program = tl.program_id(0)
    tile, head = program % TILES, program // TILES % heads
    image, row, col, down, right = _window_of(program // (TILES * heads), rows, cols, shift_h, shift_w)
    height, width = rows * WH, cols * WW
    top_row, left_col = (row * WH + shift_h).to(tl.int64), (col * WW + shift_w).to(tl.int64)
    first = (image.to(tl.int64) * stride_b + top_row * stride_h + left_col * stride_w) * UNIT
    origin = (image.to(tl.int64) * height + top_row) * width + left_col
    channels = heads * HEAD_DIM
    q, k, v = _parts(q, k, v, head, channels, HEAD_DIM, PACKED)
    q_place = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    q_row, q_col, q_exists, q_label = _places(q_place, down, right, shift_h, shift_w, WH, WW, 1, SHIFTED)
    y, x = _pixels(q_row, q_col, q_label, height, width, WIDE)
    pixel = origin + y * width + x
    queries = _load(q + first, y, x, q_exists, stride_h, stride_w, UNIT, HEAD_DIM, BLOCK_D)
    most = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    values = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, KEY_H * KEY_W, BLOCK_N):
        k_place = start + tl.arange(0, BLOCK_N)
        k_row, k_col, k_exists, k_label = _places(k_place, down, right, shift_h, shift_w, KEY_H, KEY_W, 1, SHIFTED)
        k_y, k_x = _pixels(k_row - MARGIN, k_col - MARGIN, k_label, height, width, WIDE)
        inside = k_exists
        if MARGIN > 0:
            inside = inside & _in_map(k_row, k_col, row, col, rows, cols, WH, WW, MARGIN)
        keys = _load(k + first, k_y, k_x, inside, stride_h, stride_w, UNIT, HEAD_DIM, BLOCK_D)
        some = _load(v + first, k_y, k_x, inside, stride_h, stride_w, UNIT, HEAD_DIM, BLOCK_D)
        logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        logits += _added(
            bias, heads, head, down, right, q_place, q_row, q_col, q_exists, q_label, k_place, k_row, k_col, k_exists,
            k_label, WH, WW, KEY_H, KEY_W, HAS_BIAS, SHIFTED, ROWS, COLUMNS, False,
        )  # fmt: skip
        above = tl.maximum(most, tl.max(logits, 1))
        # A row that has seen nothing yet.
        finite = tl.where(above == float("-inf"), 0.0, above)
        weights = tl.exp2(logits - finite[:, None])
        shrink = tl.exp2(most - finite)
        total = total * shrink + tl.sum(weights, 1)
        values = values * shrink[:, None] + tl.dot(weights.to(some.dtype), some, input_precision=PRECISION)
        most = above
    values *= (1.0 / total)[:, None]
    _store(out + head * HEAD_DIM, pixel, channels, q_exists, values, HEAD_DIM, BLOCK_D)
    tl.store(lse + pixel * heads + head, most + tl.log2(total), q_exists)


@triton.jit(do_not_specialize=SIZES)
def _grad_query_kernel(
    grad, q, k, v, bias, out, lse, delta, grad_q, scale, rows, cols, heads, shift_h, shift_w,
    stride_b, stride_h, stride_w,
    WH: tl.constexpr, WW: tl.constexpr, MARGIN: tl.constexpr, HAS_BIAS: tl.constexpr, SHIFTED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PACKED: tl.constexpr, PACKED_GRADS: tl.constexpr, UNIT: tl.constexpr,
    WIDE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Also `delta`, of each query the sum of the output times its gradient."""
    KEY_H: tl.constexpr = WH + 2 * MARGIN
    KEY_W: tl.constexpr = WW + 2 * MARGIN
    TILES: tl.constexpr = (WH * WW + BLOCK_M - 1) // BLOCK_M
    program = tl.program_id(0)
    tile, head = program % TILES, program // TILES % heads
    image, row, col, down, right = _window_of(program // (TILES * heads), rows, cols, shift_h, shift_w)
    height, width = rows * WH, cols * WW
    top_row, left_col = (row * WH + shift_h).to(tl.int64), (col * WW + shift_w).to(tl.int64)
    first = (image.to(tl.int64) * stride_b + top_row * stride_h + left_col * stride_w) * UNIT
    origin = (image.to(tl.int64) * height + top_row) * width + left_col
    channels = heads * HEAD_DIM
    q, k, v = _parts(q, k, v, head, channels, HEAD_DIM, PACKED)
    q_place = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    q_row, q_col, q_exists, q_label = _places(q_place, down, right, shift_h, shift_w, WH, WW, 1, SHIFTED)
    y, x = _pixels(q_row, q_col, q_label, height, width, WIDE)
    queries = _load(q + first, y, x, q_exists, stride_h, stride_w, UNIT, HEAD_DIM, BLOCK_D)
    start_grad = origin * channels + head * HEAD_DIM
    grads = _load(grad + start_grad, y * width, x, q_exists, channels, channels, 1, HEAD_DIM, BLOCK_D)
    outs = _load(out + start_grad, y * width, x, q_exists, channels, channels, 1, HEAD_DIM, BLOCK_D)
    pixel = origin + y * width + x
    sums = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1)
    tl.store(delta + pixel * heads + head, sums, q_exists)
    # Rows without a pixel weigh nothing.
    offset = tl.load(lse + pixel * heads + head, q_exists, other=float("inf"))
    result = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, KEY_H * KEY_W, BLOCK_N):
        k_place = start + tl.arange(0, BLOCK_N)
        k_row, k_col, k_exists, k_label = _places(k_place, down, right, shift_h, shift_w, KEY_H, KEY_W, 1, SHIFTED)
        k_y, k_x = _pixels(k_row - MARGIN, k_col - MARGIN, k_label, height, width, WIDE)
        inside = k_exists
        if MARGIN > 0:
            inside = inside & _in_map(k_row, k_col, row, col, rows, cols, WH, WW, MARGIN)
        keys = _load(k + first, k_y, k_x, inside, stride_h, stride_w, UNIT, HEAD_DIM, BLOCK_D)
        some = _load(v + first, k_y, k_x, inside, stride_h, stride_w, UNIT, HEAD_DIM, BLOCK_D)
        logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        logits += _added(
            bias, heads, head, down, right, q_place, q_row, q_col, q_exists, q_label, k_place, k_row, k_col, k_exists,
            k_label, WH, WW, KEY_H, KEY_W, HAS_BIAS, SHIFTED, ROWS, COLUMNS, False,
        )  # fmt: skip
        weights = tl.exp2(logits - offset[:, None])
        slopes = tl.dot(grads, tl.trans(some), input_precision=PRECISION)
        slopes = weights * (slopes - sums[:, None])
        result += tl.dot(slopes.to(keys.dtype), keys, input_precision=PRECISION)
    # The logits are in base 2, the result is not.
    result *= scale * 0.6931471805599453
    stride_grad = channels * 3 if PACKED_GRADS else channels
    _store(grad_q + head * HEAD_DIM, pixel, stride_grad, q_exists, result, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=SIZES)
def _grad_key_kernel(
    grad, q, k, v, bias, lse, delta, grad_q, grad_k, grad_v, scale, rows, cols, heads, shift_h, shift_w,
    stride_b, stride_h, stride_w,
    WH: tl.constexpr, WW: tl.constexpr, MARGIN: tl.constexpr, HAS_BIAS: tl.constexpr, SHIFTED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PACKED: tl.constexpr, PACKED_GRADS: tl.constexpr, UNIT: tl.constexpr,
    WIDE: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """A program owns a tile of the keys of a window's own pixels."""
    KEY_H: tl.constexpr = WH + 2 * MARGIN
    KEY_W: tl.constexpr = WW + 2 * MARGIN
    TILES: tl.constexpr = (WH * WW + BLOCK_N - 1) // BLOCK_N
    QUERY_TILES: tl.constexpr = (WH * WW + BLOCK_M - 1) // BLOCK_M
    program = tl.program_id(0)
    tile, head = program % TILES, program // TILES % heads
    image, row, col, down, right = _window_of(program // (TILES * heads), rows, cols, shift_h, shift_w)
    height, width = rows * WH, cols * WW
    top_row, left_col = (row * WH + shift_h).to(tl.int64), (col * WW + shift_w).to(tl.int64)
    first = (image.to(tl.int64) * stride_b + top_row * stride_h + left_col * stride_w) * UNIT
    origin = (image.to(tl.int64) * height + top_row) * width + left_col
    channels = heads * HEAD_DIM
    q, k, v = _parts(q, k, v, head, channels, HEAD_DIM, PACKED)
    k_place = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k_row, k_col, k_inside, k_label = _places(k_place, down, right, shift_h, shift_w, WH, WW, 1, SHIFTED)
    y, x = _pixels(k_row, k_col, k_label, height, width, WIDE)
    keys = _load(k + first, y, x, k_inside, stride_h, stride_w, UNIT, HEAD_DIM, BLOCK_D)
    values = _load(v + first, y, x, k_inside, stride_h, stride_w, UNIT, HEAD_DIM, BLOCK_D)
    pixel = origin + y * width + x
    # The windows that see any key of this tile, relative to its own: of other rows only those near enough.
    low_row, low_col, near_cols, near = 0, 0, 1, 1
    if MARGIN > 0:
        REACH_H: tl.constexpr = (MARGIN + WH - 1) // WH
        REACH_W: tl.constexpr = (MARGIN + WW - 1) // WW
        top, bottom = tile * BLOCK_N // WW, (tl.minimum(tile * BLOCK_N + BLOCK_N, WH * WW) - 1) // WW
        low_row = tl.maximum((top - MARGIN + REACH_H * WH) // WH - REACH_H, -row)
        high_row = tl.minimum((bottom + MARGIN) // WH, rows - 1 - row)
        low_col = tl.maximum(-REACH_W, -col)
        near_cols = tl.minimum(REACH_W, cols - 1 - col) - low_col + 1
        near = (high_row - low_row + 1) * near_cols
    grads_k = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    grads_v = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    for step in range(near * QUERY_TILES):
        q_place = step % QUERY_TILES * BLOCK_M + tl.arange(0, BLOCK_M)
        q_row, q_col, q_exists, q_label = _places(q_place, down, right, shift_h, shift_w, WH, WW, 1, SHIFTED)
        seen_row, seen_col, seen_place, k_exists = k_row, k_col, k_place, k_inside
        q_y, q_x = _pixels(q_row, q_col, q_label, height, width, WIDE)
        if MARGIN > 0:
            window_row = low_row + step // QUERY_TILES // near_cols
            window_col = low_col + step // QUERY_TILES % near_cols
            seen_row, seen_col = k_row - window_row * WH + MARGIN, k_col - window_col * WW + MARGIN
            seen_place = seen_row * KEY_W + seen_col
            k_exists = k_inside & (seen_row >= 0) & (seen_row < KEY_H) & (seen_col >= 0) & (seen_col < KEY_W)
            q_y, q_x = q_y + window_row * WH, q_x + window_col * WW
        queries = _load(q + first, q_y, q_x, q_exists, stride_h, stride_w, UNIT, HEAD_DIM, BLOCK_D)
        start_grad = origin * channels + head * HEAD_DIM
        grads = _load(grad + start_grad, q_y * width, q_x, q_exists, channels, channels, 1, HEAD_DIM, BLOCK_D)
        logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale
        logits += _added(
            bias, heads, head, down, right, q_place, q_row, q_col, q_exists, q_label, seen_place, seen_row, seen_col,
            k_exists, k_label, WH, WW, KEY_H, KEY_W, HAS_BIAS, SHIFTED, ROWS, COLUMNS, MARGIN > 0,
        )  # fmt: skip
        # Rows without a pixel weigh nothing.
        at = origin * heads + head + (q_y * width + q_x) * heads
        weights = tl.exp2(logits - tl.load(lse + at, q_exists, other=float("inf"))[:, None])
        grads_v += tl.dot(tl.trans(weights.to(grads.dtype)), grads, input_precision=PRECISION)
        slopes = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
        slopes = weights * (slopes - tl.load(delta + at, q_exists, other=0.0)[:, None])
        grads_k += tl.dot(tl.trans(slopes.to(queries.dtype)), queries, input_precision=PRECISION)
    stride_grad = channels * 3 if PACKED_GRADS else channels
    _, grad_k, grad_v = _parts(grad_q, grad_k, grad_v, head, channels, HEAD_DIM, PACKED_GRADS)
    _store(grad_v, pixel, stride_grad, k_inside, grads_v, HEAD_DIM, BLOCK_D)
    grads_k *= scale * 0.6931471805599453
    _store(grad_k, pixel, stride_grad, k_inside, grads_k, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=SIZES)
def _grad_bias_kernel(
    grad, q, k, v, bias, lse, delta, partial, scale, images, rows, cols, heads, shift_h, shift_w, each, right_from,
    bottom_from, corner_from, stride_b, stride_h, stride_w,
    WH: tl.constexpr, WW: tl.constexpr, MARGIN: tl.constexpr, HAS_BIAS: tl.constexpr, SHIFTED: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, PACKED: tl.constexpr, UNIT: tl.constexpr, WIDE: tl.constexpr,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Of one tile of queries and keys, the gradient's sum over a share of the windows."""
    KEY_H: tl.constexpr = WH + 2 * MARGIN
    KEY_W: tl.constexpr = WW + 2 * MARGIN
    QUERIES: tl.constexpr = WH * WW
    KEYS: tl.constexpr = KEY_H * KEY_W
    QUERY_TILES: tl.constexpr = (QUERIES + BLOCK_M - 1) // BLOCK_M
    KEY_TILES: tl.constexpr = (KEYS + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    key_tile, query_tile = program % KEY_TILES, program // KEY_TILES % QUERY_TILES
    program = program // (KEY_TILES * QUERY_TILES)
    head = program % heads
    down, right, top, bottom, left, end, image, row, col, count = _share_of(
        program // heads, images, rows, cols, shift_h, shift_w, each, right_from, bottom_from, corner_from, 1, SHIFTED
    )
    height, width = rows * WH, cols * WW
    q_place = query_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    k_place = key_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    q_row, q_col, q_exists, q_label = _places(q_place, down, right, shift_h, shift_w, WH, WW, 1, SHIFTED)
    k_row, k_col, k_exists, k_label = _places(k_place, down, right, shift_h, shift_w, KEY_H, KEY_W, 1, SHIFTED)
    added = _added(
        bias, heads, head, down, right, q_place, q_row, q_col, q_exists, q_label, k_place, k_row, k_col, k_exists,
        k_label, WH, WW, KEY_H, KEY_W, HAS_BIAS, SHIFTED, ROWS, COLUMNS, False,
    )  # fmt: skip
    y, x = _pixels(q_row, q_col, q_label, height, width, WIDE)
    k_y, k_x = _pixels(k_row - MARGIN, k_col - MARGIN, k_label, height, width, WIDE)
    at, inside, channels = (y * width + x) * heads, k_exists, heads * HEAD_DIM
    q, k, v = _parts(q, k, v, head, channels, HEAD_DIM, PACKED)
    grad += head * HEAD_DIM
    result = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for _ in range(count):
        top_row, left_col = (row * WH + shift_h).to(tl.int64), (col * WW + shift_w).to(tl.int64)
        first = (image.to(tl.int64) * stride_b + top_row * stride_h + left_col * stride_w) * UNIT
        origin = (image.to(tl.int64) * height + top_row) * width + left_col
        if MARGIN > 0:
            inside = k_exists & _in_map(k_row, k_col, row, col, rows, cols, WH, WW, MARGIN)
        queries = _load(q + first, y, x, q_exists, stride_h, stride_w, UNIT, HEAD_DIM, BLOCK_D)
        keys = _load(k + first, k_y, k_x, inside, stride_h, stride_w, UNIT, HEAD_DIM, BLOCK_D)
        grads = _load(grad + origin * channels, y * width, x, q_exists, channels, channels, 1, HEAD_DIM, BLOCK_D)
        values = _load(v + first, k_y, k_x, inside, stride_h, stride_w, UNIT, HEAD_DIM, BLOCK_D)
        logits = tl.dot(queries, tl.trans(keys), input_precision=PRECISION) * scale + added
        # Rows without a pixel weigh nothing.
        weights = tl.exp2(logits - tl.load(lse + origin * heads + head + at, q_exists, other=float("inf"))[:, None])
        slopes = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
        result += weights * (slopes - tl.load(delta + origin * heads + head + at, q_exists, other=0.0)[:, None])
        image, row, col = _next(image, row, col, top, bottom, left, end, 1)
    at = partial + program.to(tl.int64) * (QUERIES * KEYS) + q_place[:, None] * KEYS + k_place[None, :]
    tl.store(at, result, (q_place < QUERIES)[:, None] & (k_place < KEYS)[None, :])
