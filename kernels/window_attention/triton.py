"""Window attention in Triton: forward, backward and the gradient of the bias table, without atomics.

Windows are addresses: a program computes where the pixels of its window lie in the map, which of them wrap round the
border, and what it may see there. It walks a window in tiles of queries and keys; windows far smaller than a tile share
one. Each key lies in its own window's cell and in the margins of those around it: the gradient of keys is computed cell
by cell over the windows that see it. Softmaxes are in base 2.
"""

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from .. import _dispatch

# One compiled kernel serves all sizes.
_SIZES = ("windows", "rows", "cols", "heads", "shift_h", "shift_w", "share")
_LOG2_E = 1.4426950408889634
# Programs of the bias table's gradient: fills a GPU several times over, and bounds the memory of their sums.
_BIAS_PROGRAMS = 1024


@triton.jit
def _pixels(
    place, first, windows, rows, cols, shift_h, shift_w,
    WH: tl.constexpr, WW: tl.constexpr, MARGIN: tl.constexpr, PACK: tl.constexpr, SHIFTED: tl.constexpr,
):  # fmt: skip
    """Where the pixels of the windows from `first` on lie; MARGIN is that of the keys.

    Returns:
        Image, row and column; place in the bias table; whether there is such a pixel, and inside of the map; a label
        that a query and a key must share to see each other.
    """
    SIDE_H: tl.constexpr = WH + 2 * MARGIN
    SIDE_W: tl.constexpr = WW + 2 * MARGIN
    exists = place < PACK * SIDE_H * SIDE_W
    if PACK == 1:
        window, local = first, place
    else:
        window, local = first + place // (SIDE_H * SIDE_W), place % (SIDE_H * SIDE_W)
        exists = exists & (window < windows)
    cell = window % (rows * cols)
    row, col = cell // cols * WH - MARGIN + local // SIDE_W, cell % cols * WW - MARGIN + local % SIDE_W
    inside, label = exists, place * 0
    if MARGIN > 0:
        inside = inside & (row >= 0) & (row < rows * WH) & (col >= 0) & (col < cols * WW)
    if PACK > 1:
        label = place // (SIDE_H * SIDE_W) * 4
    if SHIFTED:
        label += (row >= rows * WH - shift_h).to(tl.int32) * 2 + (col >= cols * WW - shift_w).to(tl.int32)
        row, col = row + shift_h, col + shift_w
        row, col = tl.where(row >= rows * WH, row - rows * WH, row), tl.where(col >= cols * WW, col - cols * WW, col)
    return (window // (rows * cols)).to(tl.int64), row, col, local, exists, inside, label


@triton.jit
def _load(
    at, image, row, col, inside, stride_b, stride_h, stride_w, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr
):  # fmt: skip
    """(pixels, BLOCK_D), zero where there is no pixel or channel; `at` points to the head's first channel."""
    channel = tl.arange(0, BLOCK_D)
    pixel = image * stride_b + row.to(tl.int64) * stride_h + col.to(tl.int64) * stride_w
    mask = inside[:, None] & (channel < HEAD_DIM)[None, :]
    return tl.load(at + pixel[:, None] + channel[None, :], mask, other=0.0)


@triton.jit
def _store(at, pixel, heads, inside, value, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Into a contiguous map."""
    channel = tl.arange(0, BLOCK_D)
    mask = inside[:, None] & (channel < HEAD_DIM)[None, :]
    to = at + (pixel * (heads * HEAD_DIM))[:, None] + channel[None, :]
    tl.store(to, value.to(at.dtype.element_ty), mask)


@triton.jit
def _logits(
    q, k, table, q_local, q_exists, q_label, k_row, k_col, k_exists, k_label, scale,
    WW: tl.constexpr, KEY_H: tl.constexpr, KEY_W: tl.constexpr, COLS: tl.constexpr,
    LABELED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Base-2 logits of queries and keys, (queries, keys); COLS is 0 without a table."""
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
    if COLS > 0:
        q_place = (q_local // WW + KEY_H - 1) * COLS + q_local % WW + KEY_W - 1
        at = q_place[:, None] - (k_row * COLS + k_col)[None, :]
        logits += tl.load(table + at, q_exists[:, None] & k_exists[None, :], other=0.0)
    seen = k_exists[None, :]
    if LABELED:
        seen = seen & (q_label[:, None] == k_label[None, :])
    return tl.where(seen, logits, float("-inf"))


@triton.jit(do_not_specialize=_SIZES)
def _forward_kernel(
    q, k, v, table, out, lse, scale, windows, rows, cols, heads, shift_h, shift_w, stride_b, stride_h, stride_w,
    WH: tl.constexpr, WW: tl.constexpr, MARGIN: tl.constexpr, PACK: tl.constexpr, COLS: tl.constexpr,
    SHIFTED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    KEY_H: tl.constexpr = WH + 2 * MARGIN
    KEY_W: tl.constexpr = WW + 2 * MARGIN
    TILES: tl.constexpr = (PACK * WH * WW + BLOCK_M - 1) // BLOCK_M
    program = tl.program_id(0)
    tile, head, first = program % TILES, program // TILES % heads, program // (TILES * heads) * PACK
    q_places = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    q_image, q_row, q_col, q_local, q_exists, q_inside, q_label = _pixels(
        q_places, first, windows, rows, cols, shift_h, shift_w, WH, WW, 0, PACK, SHIFTED
    )
    pixel = (q_image * (rows * WH) + q_row) * (cols * WW) + q_col
    q, k, v = q + head * HEAD_DIM, k + head * HEAD_DIM, v + head * HEAD_DIM
    if COLS > 0:
        table += head * (WH + KEY_H - 1) * COLS
    queries = _load(q, q_image, q_row, q_col, q_inside, stride_b, stride_h, stride_w, HEAD_DIM, BLOCK_D)
    most = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    values = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, PACK * KEY_H * KEY_W, BLOCK_N):
        k_places = start + tl.arange(0, BLOCK_N)
        image, row, col, k_local, k_exists, k_inside, k_label = _pixels(
            k_places, first, windows, rows, cols, shift_h, shift_w, WH, WW, MARGIN, PACK, SHIFTED
        )
        keys = _load(k, image, row, col, k_inside, stride_b, stride_h, stride_w, HEAD_DIM, BLOCK_D)
        logits = _logits(
            queries, keys, table, q_local, q_exists, q_label, k_local // KEY_W, k_local % KEY_W, k_exists, k_label,
            scale, WW, KEY_H, KEY_W, COLS, SHIFTED or PACK > 1, PRECISION,
        )  # fmt: skip
        above = tl.maximum(most, tl.max(logits, 1))
        # A row that has seen nothing yet.
        finite = tl.where(above == float("-inf"), 0.0, above)
        weights = tl.exp2(logits - finite[:, None])
        shrink = tl.exp2(most - finite)
        total = total * shrink + tl.sum(weights, 1)
        some = _load(v, image, row, col, k_inside, stride_b, stride_h, stride_w, HEAD_DIM, BLOCK_D)
        values = values * shrink[:, None] + tl.dot(weights.to(some.dtype), some, input_precision=PRECISION)
        most = above
    # Rows without a pixel have seen nothing at all.
    total = tl.where(q_inside, total, 1.0)
    _store(out + head * HEAD_DIM, pixel, heads, q_inside, values / total[:, None], HEAD_DIM, BLOCK_D)
    tl.store(lse + pixel * heads + head, most + tl.log2(total), q_inside)


@triton.jit(do_not_specialize=_SIZES)
def _grad_query_kernel(
    grad, q, k, v, table, out, lse, delta, grad_q, scale, windows, rows, cols, heads, shift_h, shift_w,
    stride_b, stride_h, stride_w,
    WH: tl.constexpr, WW: tl.constexpr, MARGIN: tl.constexpr, PACK: tl.constexpr, COLS: tl.constexpr,
    SHIFTED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Also `delta`, of each query the sum of the output times its gradient."""
    KEY_H: tl.constexpr = WH + 2 * MARGIN
    KEY_W: tl.constexpr = WW + 2 * MARGIN
    TILES: tl.constexpr = (PACK * WH * WW + BLOCK_M - 1) // BLOCK_M
    program = tl.program_id(0)
    tile, head, first = program % TILES, program // TILES % heads, program // (TILES * heads) * PACK
    q_places = tile * BLOCK_M + tl.arange(0, BLOCK_M)
    q_image, q_row, q_col, q_local, q_exists, q_inside, q_label = _pixels(
        q_places, first, windows, rows, cols, shift_h, shift_w, WH, WW, 0, PACK, SHIFTED
    )
    pixel = (q_image * (rows * WH) + q_row) * (cols * WW) + q_col
    q, k, v = q + head * HEAD_DIM, k + head * HEAD_DIM, v + head * HEAD_DIM
    if COLS > 0:
        table += head * (WH + KEY_H - 1) * COLS
    queries = _load(q, q_image, q_row, q_col, q_inside, stride_b, stride_h, stride_w, HEAD_DIM, BLOCK_D)
    zero = tl.zeros_like(pixel)
    channels = heads * HEAD_DIM
    grads = _load(grad + head * HEAD_DIM, zero, zero, pixel, q_inside, 0, 0, channels, HEAD_DIM, BLOCK_D)
    outs = _load(out + head * HEAD_DIM, zero, zero, pixel, q_inside, 0, 0, channels, HEAD_DIM, BLOCK_D)
    sums = tl.sum(grads.to(tl.float32) * outs.to(tl.float32), 1)
    tl.store(delta + pixel * heads + head, sums, q_inside)
    offset = tl.load(lse + pixel * heads + head, q_inside, other=0.0)
    result = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for start in range(0, PACK * KEY_H * KEY_W, BLOCK_N):
        k_places = start + tl.arange(0, BLOCK_N)
        image, row, col, k_local, k_exists, k_inside, k_label = _pixels(
            k_places, first, windows, rows, cols, shift_h, shift_w, WH, WW, MARGIN, PACK, SHIFTED
        )
        keys = _load(k, image, row, col, k_inside, stride_b, stride_h, stride_w, HEAD_DIM, BLOCK_D)
        some = _load(v, image, row, col, k_inside, stride_b, stride_h, stride_w, HEAD_DIM, BLOCK_D)
        logits = _logits(
            queries, keys, table, q_local, q_exists, q_label, k_local // KEY_W, k_local % KEY_W, k_exists, k_label,
            scale, WW, KEY_H, KEY_W, COLS, SHIFTED or PACK > 1, PRECISION,
        )  # fmt: skip
        weights = tl.exp2(logits - offset[:, None])
        slopes = tl.dot(grads, tl.trans(some), input_precision=PRECISION)
        slopes = weights * (slopes - sums[:, None])
        result += tl.dot(slopes.to(keys.dtype), keys, input_precision=PRECISION)
    # The logits are in base 2, the result is not.
    _store(grad_q + head * HEAD_DIM, pixel, heads, q_inside, result * (scale * 0.6931471805599453), HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=_SIZES)
def _grad_key_kernel(
    grad, q, k, v, table, lse, delta, grad_k, grad_v, scale, windows, rows, cols, heads, shift_h, shift_w,
    stride_b, stride_h, stride_w,
    WH: tl.constexpr, WW: tl.constexpr, MARGIN: tl.constexpr, PACK: tl.constexpr, COLS: tl.constexpr,
    SHIFTED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    KEY_H: tl.constexpr = WH + 2 * MARGIN
    KEY_W: tl.constexpr = WW + 2 * MARGIN
    TILES: tl.constexpr = (PACK * WH * WW + BLOCK_N - 1) // BLOCK_N
    QUERY_TILES: tl.constexpr = (PACK * WH * WW + BLOCK_M - 1) // BLOCK_M
    REACH_H: tl.constexpr = (MARGIN + WH - 1) // WH
    REACH_W: tl.constexpr = (MARGIN + WW - 1) // WW
    program = tl.program_id(0)
    tile, head, first = program % TILES, program // TILES % heads, program // (TILES * heads) * PACK
    k_places = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    k_image, k_y, k_x, k_local, k_inside, _, k_label = _pixels(
        k_places, first, windows, rows, cols, shift_h, shift_w, WH, WW, 0, PACK, SHIFTED
    )
    pixel = (k_image * (rows * WH) + k_y) * (cols * WW) + k_x
    q, k, v, grad = q + head * HEAD_DIM, k + head * HEAD_DIM, v + head * HEAD_DIM, grad + head * HEAD_DIM
    if COLS > 0:
        table += head * (WH + KEY_H - 1) * COLS
    keys = _load(k, k_image, k_y, k_x, k_inside, stride_b, stride_h, stride_w, HEAD_DIM, BLOCK_D)
    values = _load(v, k_image, k_y, k_x, k_inside, stride_b, stride_h, stride_w, HEAD_DIM, BLOCK_D)
    # The windows that see any key of this tile: of other rows only those near enough.
    cell = first % (rows * cols)
    cell_row, cell_col = cell // cols, cell % cols
    top, bottom = tile * BLOCK_N // WW, tl.minimum(tile * BLOCK_N + BLOCK_N, WH * WW) // WW
    low_row = tl.maximum(cell_row + (top - MARGIN + REACH_H * WH) // WH - REACH_H, 0)
    high_row = tl.minimum(cell_row + (bottom + MARGIN) // WH, rows - 1)
    low_col = tl.maximum(cell_col - REACH_W, 0)
    near_cols = tl.minimum(cell_col + REACH_W, cols - 1) - low_col + 1
    near = (high_row - low_row + 1) * near_cols if MARGIN > 0 else 1
    grads_k = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    grads_v = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
    zero = tl.zeros((BLOCK_M,), tl.int64)
    channels = heads * HEAD_DIM
    for step in range(near * QUERY_TILES):
        if MARGIN > 0:
            window_row = low_row + step // QUERY_TILES // near_cols
            window_col = low_col + step // QUERY_TILES % near_cols
            window = first - cell + window_row * cols + window_col
            k_row = k_local // WW + (cell_row - window_row) * WH + MARGIN
            k_col = k_local % WW + (cell_col - window_col) * WW + MARGIN
            k_exists = k_inside & (k_row >= 0) & (k_row < KEY_H) & (k_col >= 0) & (k_col < KEY_W)
        else:
            window, k_row, k_col, k_exists = first, k_local // WW, k_local % WW, k_inside
        q_places = step % QUERY_TILES * BLOCK_M + tl.arange(0, BLOCK_M)
        image, row, col, q_local, q_exists, q_inside, q_label = _pixels(
            q_places, window, windows, rows, cols, shift_h, shift_w, WH, WW, 0, PACK, SHIFTED
        )
        q_pixel = (image * (rows * WH) + row) * (cols * WW) + col
        queries = _load(q, image, row, col, q_inside, stride_b, stride_h, stride_w, HEAD_DIM, BLOCK_D)
        grads = _load(grad, zero, zero, q_pixel, q_inside, 0, 0, channels, HEAD_DIM, BLOCK_D)
        logits = _logits(
            queries, keys, table, q_local, q_exists, q_label, k_row, k_col, k_exists, k_label,
            scale, WW, KEY_H, KEY_W, COLS, SHIFTED or PACK > 1, PRECISION,
        )  # fmt: skip
        # Rows without a pixel weigh nothing.
        offset = tl.load(lse + q_pixel * heads + head, q_inside, other=float("inf"))
        weights = tl.exp2(logits - offset[:, None])
        grads_v += tl.dot(tl.trans(weights).to(grads.dtype), grads, input_precision=PRECISION)
        slopes = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
        slopes = weights * (slopes - tl.load(delta + q_pixel * heads + head, q_inside, other=0.0)[:, None])
        grads_k += tl.dot(tl.trans(slopes).to(queries.dtype), queries, input_precision=PRECISION)
    _store(grad_v + head * HEAD_DIM, pixel, heads, k_inside, grads_v, HEAD_DIM, BLOCK_D)
    _store(grad_k + head * HEAD_DIM, pixel, heads, k_inside, grads_k * (scale * 0.6931471805599453), HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=_SIZES)
def _grad_bias_kernel(
    grad, q, k, v, table, lse, delta, partial, scale, windows, rows, cols, heads, shift_h, shift_w, share,
    stride_b, stride_h, stride_w,
    WH: tl.constexpr, WW: tl.constexpr, MARGIN: tl.constexpr, PACK: tl.constexpr, COLS: tl.constexpr,
    SHIFTED: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of one tile of queries and keys, the gradient's sum over a share of the windows; PACK is 1."""
    KEY_H: tl.constexpr = WH + 2 * MARGIN
    KEY_W: tl.constexpr = WW + 2 * MARGIN
    QUERIES: tl.constexpr = WH * WW
    KEYS: tl.constexpr = KEY_H * KEY_W
    QUERY_TILES: tl.constexpr = (QUERIES + BLOCK_M - 1) // BLOCK_M
    KEY_TILES: tl.constexpr = (KEYS + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    key_tile, query_tile = program % KEY_TILES, program // KEY_TILES % QUERY_TILES
    program = program // (KEY_TILES * QUERY_TILES)
    head, part = program % heads, program // heads
    q, k, v, grad = q + head * HEAD_DIM, k + head * HEAD_DIM, v + head * HEAD_DIM, grad + head * HEAD_DIM
    table += head * (WH + KEY_H - 1) * COLS
    q_places = query_tile * BLOCK_M + tl.arange(0, BLOCK_M)
    k_places = key_tile * BLOCK_N + tl.arange(0, BLOCK_N)
    zero = tl.zeros((BLOCK_M,), tl.int64)
    channels = heads * HEAD_DIM
    result = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for window in range(part * share, tl.minimum((part + 1) * share, windows)):
        q_image, q_row, q_col, q_local, q_exists, q_inside, q_label = _pixels(
            q_places, window, windows, rows, cols, shift_h, shift_w, WH, WW, 0, PACK, SHIFTED
        )
        pixel = (q_image * (rows * WH) + q_row) * (cols * WW) + q_col
        queries = _load(q, q_image, q_row, q_col, q_inside, stride_b, stride_h, stride_w, HEAD_DIM, BLOCK_D)
        grads = _load(grad, zero, zero, pixel, q_inside, 0, 0, channels, HEAD_DIM, BLOCK_D)
        image, row, col, k_local, k_exists, k_inside, k_label = _pixels(
            k_places, window, windows, rows, cols, shift_h, shift_w, WH, WW, MARGIN, PACK, SHIFTED
        )
        keys = _load(k, image, row, col, k_inside, stride_b, stride_h, stride_w, HEAD_DIM, BLOCK_D)
        values = _load(v, image, row, col, k_inside, stride_b, stride_h, stride_w, HEAD_DIM, BLOCK_D)
        logits = _logits(
            queries, keys, table, q_local, q_exists, q_label, k_local // KEY_W, k_local % KEY_W, k_exists, k_label,
            scale, WW, KEY_H, KEY_W, COLS, SHIFTED or PACK > 1, PRECISION,
        )  # fmt: skip
        weights = tl.exp2(logits - tl.load(lse + pixel * heads + head, q_inside, other=float("inf"))[:, None])
        slopes = tl.dot(grads, tl.trans(values), input_precision=PRECISION)
        result += weights * (slopes - tl.load(delta + pixel * heads + head, q_inside, other=0.0)[:, None])
    to = partial + program.to(tl.int64) * (QUERIES * KEYS) + q_places[:, None] * KEYS + k_places[None, :]
    tl.store(to, result, (q_places < QUERIES)[:, None] & (k_places < KEYS)[None, :])


@triton.jit(do_not_specialize=("heads",))
def _grad_table_kernel(
    bias, table, heads,
    WH: tl.constexpr, WW: tl.constexpr, KEY_H: tl.constexpr, KEY_W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A row of a head's part of the table (R * S, heads): sums of (heads, queries, keys) at the same distance."""
    ROWS: tl.constexpr = WH + KEY_H - 1
    COLS: tl.constexpr = WW + KEY_W - 1
    program = tl.program_id(0)
    head, row = (program // ROWS).to(tl.int64), program % ROWS
    bias += head * (WH * WW * KEY_H * KEY_W)
    col = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    first, stop = tl.maximum(row - KEY_H + 1, 0), tl.minimum(row + 1, WH)
    for query in range(first * WW, stop * WW):
        k_row, k_col = query // WW + KEY_H - 1 - row, query % WW + KEY_W - 1 - col
        at = query * (KEY_H * KEY_W) + k_row * KEY_W + k_col
        total += tl.load(bias + at, (k_col >= 0) & (k_col < KEY_W), other=0.0)
    tl.store(table + (row * COLS + col) * heads + head, total.to(table.dtype.element_ty), col < COLS)


@dataclass(frozen=True)
class _Geometry:
    """What fixes the launch of every kernel but the sizes of the map."""

    dtype: torch.dtype
    head_dim: int
    window: tuple[int, int]
    shifted: bool
    overlap: int
    has_bias: bool

    @property
    def key(self) -> tuple[int, int]:
        """Sides of a window of keys."""
        return self.window[0] + self.overlap, self.window[1] + self.overlap

    def _tile(self, kernel: Any) -> tuple[int, int, int]:
        """The most queries and keys of a tile, and warps: larger tiles do not fit the registers."""
        if self.dtype != torch.float32:
            return (64, 64, 4) if self.head_dim <= 64 else (32, 32, 4)
        # Products in full precision are not for tensor cores: operands are spread over the registers.
        if kernel is _grad_key_kernel:
            return 16, 16, 8
        if kernel is _grad_query_kernel:
            return 16, 16, 4 if self.head_dim <= 32 else 8
        return (32, 32, 4) if kernel is _forward_kernel and self.head_dim <= 32 else (16, 16, 4)

    def options(self, kernel: Any) -> dict[str, Any]:
        """Constants and launch options of a kernel that computes attention."""
        block_m, block_n, num_warps = self._tile(kernel)
        area, keys = self.window[0] * self.window[1], self.key[0] * self.key[1]
        # Small windows that see but themselves share a tile, unless they have a bias.
        pack = 1 if self.has_bias or self.overlap > 0 else max(min(block_m, block_n) // area, 1)
        return {
            "WH": self.window[0],
            "WW": self.window[1],
            "MARGIN": self.overlap // 2,
            "PACK": pack,
            "COLS": self.window[1] + self.key[1] - 1 if self.has_bias else 0,
            "SHIFTED": self.shifted,
            "HEAD_DIM": self.head_dim,
            "BLOCK_D": max(16, triton.next_power_of_2(self.head_dim)),
            "BLOCK_M": min(block_m, max(16, triton.next_power_of_2(pack * area))),
            "BLOCK_N": min(block_n, max(16, triton.next_power_of_2(pack * keys))),
            "PRECISION": _dispatch.dot_precision(),
            "num_warps": num_warps,
            "num_stages": 2,
        }

    def programs(self, options: dict[str, Any], windows: int, num_heads: int, block: str) -> tuple[int]:
        """Grid of a kernel whose programs own one tile of a window, or of as many as share it."""
        tiles = triton.cdiv(options["PACK"] * self.window[0] * self.window[1], options[block])
        return (triton.cdiv(windows, options["PACK"]) * num_heads * tiles,)


def _alike(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """With the same strides, channels side by side: views of one tensor (B, H, W, 3 * C) are that already."""
    if q.stride(3) == 1 and q.stride() == k.stride() == v.stride():
        return q, k, v
    return q.contiguous(), k.contiguous(), v.contiguous()


def _base_2(table: torch.Tensor | None) -> torch.Tensor | None:
    """A bias table (R * S, heads) -> (heads, R * S) in float32, times log2(e)."""
    return None if table is None else table.t().float().mul(_LOG2_E).contiguous()


def window_attention_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor | None,
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    overlap: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Arguments as `window_attention`, heads of at most 128 channels.

    Returns:
        (B, H, W, C), dtype of `q`; base-2 logarithm of the softmaxes' denominators, (B, H, W, num_heads), float32.
    """
    b, height, width, channels = q.shape
    out = torch.empty((b, height, width, channels), dtype=q.dtype, device=q.device)
    lse = torch.empty((b, height, width, num_heads), dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse
    q, k, v = _alike(q, k, v)
    geometry = _Geometry(q.dtype, channels // num_heads, window, shift != (0, 0), overlap, table is not None)
    options = geometry.options(_forward_kernel)
    rows, cols = height // window[0], width // window[1]
    windows = b * rows * cols
    with _dispatch.device_of(q):
        _forward_kernel[geometry.programs(options, windows, num_heads, "BLOCK_M")](
            q, k, v, _base_2(table), out, lse, scale * _LOG2_E, windows, rows, cols, num_heads, *shift,
            *q.stride()[:3], **options,
        )  # fmt: skip
    return out, lse


def window_attention_backward(
    grad: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    table: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    num_heads: int,
    window: tuple[int, int],
    shift: tuple[int, int],
    overlap: int,
    scale: float,
    learns: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v, (B, H, W, C) each, and of the bias table where it `learns`: else (0,).

    `out` and `lse` are what the forward pass gave.
    """
    b, height, width, channels = q.shape
    grad_q, grad_k, grad_v = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    if q.numel() == 0:
        return grad_q, grad_k, grad_v, q.new_empty(0) if table is None or not learns else torch.zeros_like(table)
    q, k, v = _alike(q, k, v)
    grad, out, lse = grad.contiguous(), out.contiguous(), lse.contiguous()
    delta = torch.empty_like(lse)
    geometry = _Geometry(q.dtype, channels // num_heads, window, shift != (0, 0), overlap, table is not None)
    bias = _base_2(table)
    rows, cols, area = height // window[0], width // window[1], window[0] * window[1]
    windows = b * rows * cols
    sizes = (scale * _LOG2_E, windows, rows, cols, num_heads, *shift)
    strides = q.stride()[:3]
    with _dispatch.device_of(q):
        options = geometry.options(_grad_query_kernel)
        _grad_query_kernel[geometry.programs(options, windows, num_heads, "BLOCK_M")](
            grad, q, k, v, bias, out, lse, delta, grad_q, *sizes, *strides, **options
        )
        options = geometry.options(_grad_key_kernel)
        _grad_key_kernel[geometry.programs(options, windows, num_heads, "BLOCK_N")](
            grad, q, k, v, bias, lse, delta, grad_k, grad_v, *sizes, *strides, **options
        )
        if table is None or not learns:
            return grad_q, grad_k, grad_v, q.new_empty(0)
        options, keys = geometry.options(_grad_bias_kernel), geometry.key[0] * geometry.key[1]
        tiles = num_heads * triton.cdiv(area, options["BLOCK_M"]) * triton.cdiv(keys, options["BLOCK_N"])
        share = triton.cdiv(windows, max(_BIAS_PROGRAMS // tiles, 1))
        shares = triton.cdiv(windows, share)
        partial = torch.empty((shares, num_heads, area, keys), dtype=torch.float32, device=q.device)
        _grad_bias_kernel[(shares * tiles,)](
            grad, q, k, v, bias, lse, delta, partial, *sizes, share, *strides, **options
        )
        grad_table = torch.empty(table.shape, dtype=table.dtype, device=q.device)
        _grad_table_kernel[(num_heads * (window[0] + geometry.key[0] - 1),)](
            partial.sum(0), grad_table, num_heads, *window, *geometry.key, triton.next_power_of_2(options["COLS"]),
            num_warps=1, num_stages=2,
        )  # fmt: skip
    return grad_q, grad_k, grad_v, grad_table
