"""Neighborhood attention in Triton: forward, backward and the gradient of the bias table, without atomics.

The pixels of one residue class are a dense map of their own (see `cpu`), which programs walk in tiles: of queries
in the forward pass and for the gradient of q, of keys for those of k and v. What a tile attends to, or is attended by,
is a rectangle of the same class. Softmaxes are in base 2.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from .. import _dispatch

# One compiled kernel serves all sizes.
_SIZES = ("batch", "height", "width", "heads")
_LOG2_E = tl.constexpr(1.4426950408889634)
# Programs of the bias table's gradient: fills a GPU several times over, and bounds the memory of their sums.
_BIAS_PROGRAMS = 8192


@triton.jit
def _first(position, length, KERNEL: tl.constexpr):
    """Position of a query's first key, on an axis of a residue class of `length` pixels."""
    return tl.maximum(tl.minimum(position - KERNEL // 2, length - KERNEL), 0)


@triton.jit
def _sees(query_y, query_x, key_y, key_x, length_y, length_x, KERNEL: tl.constexpr):
    """Whether keys of the class lie in the windows of queries; shapes are broadcast."""
    top, left = _first(query_y, length_y, KERNEL), _first(query_x, length_x, KERNEL)
    return (key_y >= top) & (key_y < top + KERNEL) & (key_x >= left) & (key_x < left + KERNEL)


@triton.jit
def _locate(program, height, width, heads, dilation, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Image, head, residue class and first position of a program's tile; the tiles of a class are neighbours.

    Returns:
        image, head, class_y, class_x, length_y, length_x, top, left. Where classes differ in length, the tile may lie
        outside: top >= length_y or left >= length_x.
    """
    tiles_y, tiles_x = tl.cdiv(tl.cdiv(height, dilation), TILE_H), tl.cdiv(tl.cdiv(width, dilation), TILE_W)
    classes_y, classes_x = tl.minimum(dilation, height), tl.minimum(dilation, width)
    left, program = program % tiles_x * TILE_W, program // tiles_x
    top, program = program % tiles_y * TILE_H, program // tiles_y
    class_x, program = program % classes_x, program // classes_x
    class_y, program = program % classes_y, program // classes_y
    length_y, length_x = (height - 1 - class_y) // dilation + 1, (width - 1 - class_x) // dilation + 1
    return (program // heads).to(tl.int64), program % heads, class_y, class_x, length_y, length_x, top, left


@triton.jit
def _load(at, y, x, stride_y, stride_x, inside, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """(pixels, BLOCK_D), zero where there is no pixel or channel; `at` points to the head's first channel at (0, 0)."""
    channel = tl.arange(0, BLOCK_D)
    pixel = at + y.to(tl.int64) * stride_y + x.to(tl.int64) * stride_x
    return tl.load(pixel[:, None] + channel[None, :], inside[:, None] & (channel < HEAD_DIM)[None, :], other=0.0)


@triton.jit
def _store(at, y, x, width, channels, inside, value, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr):
    """Into a contiguous map."""
    channel = tl.arange(0, BLOCK_D)
    pixel = at + (y.to(tl.int64) * width + x) * channels
    tl.store(
        pixel[:, None] + channel[None, :],
        value.to(at.dtype.element_ty),
        inside[:, None] & (channel < HEAD_DIM)[None, :],
    )


@triton.jit
def _tile(top, left, length_y, length_x, class_y, class_x, dilation, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Pixels of a tile, each (TILE_H * TILE_W,): the last ones stand for those outside of the class.

    Returns:
        Positions in the class, y and x; rows and columns of the map; whether they are in the class.
    """
    place = tl.arange(0, TILE_H * TILE_W)
    y, x = top + place // TILE_W, left + place % TILE_W
    exists = (y < length_y) & (x < length_x)
    y, x = tl.minimum(y, length_y - 1), tl.minimum(x, length_x - 1)
    return y, x, y * dilation + class_y, x * dilation + class_x, exists


@triton.jit
def _keys_of(first, length, TILE: tl.constexpr, KERNEL: tl.constexpr):
    """First key and number of keys that a tile's queries see, on an axis."""
    last = tl.minimum(first + TILE, length) - 1
    begin = _first(first, length, KERNEL)
    return begin, tl.minimum(_first(last, length, KERNEL) + KERNEL, length) - begin


@triton.jit
def _queries_of(first, length, TILE: tl.constexpr, KERNEL: tl.constexpr):
    """First query and number of queries that see a tile's keys, on an axis: windows are moved inside at the borders."""
    last = tl.minimum(first + TILE, length) - 1
    begin = tl.where(first < KERNEL, 0, first - KERNEL // 2)
    return begin, tl.where(last >= length - KERNEL, length, last + KERNEL // 2 + 1) - begin


@triton.jit
def _block(start, top, left, rows, cols, class_y, class_x, dilation, BLOCK_N: tl.constexpr):
    """`_tile` of the next BLOCK_N pixels of a rectangle."""
    place = start + tl.arange(0, BLOCK_N)
    y, x = top + place // cols, left + place % cols
    return y, x, y * dilation + class_y, x * dilation + class_x, place < rows * cols


@triton.jit
def _logits(a, b, bias, head, key_y, key_x, query_y, query_x, scale,
            KERNEL: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Scaled products of the rows of `a` and `b` plus bias, times log2(e); positions are broadcast to their shape."""
    logits = tl.dot(a, tl.trans(b), input_precision=PRECISION) * (scale * _LOG2_E)
    if HAS_BIAS:
        SIDE: tl.constexpr = 2 * KERNEL - 1
        index = (key_y * SIDE + key_x) - (query_y * SIDE + query_x) + (KERNEL - 1) * (SIDE + 1)
        # In bounds for keys out of sight too: cheaper than a mask, and their logits are not used.
        index = tl.minimum(tl.maximum(index, 0), SIDE * SIDE - 1)
        logits += tl.load(bias + head * SIDE * SIDE + index).to(tl.float32) * _LOG2_E
    return logits


@triton.jit(do_not_specialize=_SIZES)
def _forward_kernel(
    q, k, v, bias, out, lse, scale, height, width, heads, dilation,
    q_b, q_y, q_x, k_b, k_y, k_x, v_b, v_y, v_x,
    KERNEL: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    BLOCK_N: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a tile of queries, with the logarithm of their softmax's denominators."""
    image, head, class_y, class_x, length_y, length_x, top, left = _locate(
        tl.program_id(0), height, width, heads, dilation, TILE_H, TILE_W
    )
    if (top >= length_y) | (left >= length_x):
        return
    query_y, query_x, row, col, exists = _tile(
        top, left, length_y, length_x, class_y, class_x, dilation, TILE_H, TILE_W
    )
    query = _load(q + image * q_b + head * HEAD_DIM, row, col, q_y, q_x, exists, HEAD_DIM, BLOCK_D)

    key_top, rows = _keys_of(top, length_y, TILE_H, KERNEL)
    key_left, cols = _keys_of(left, length_x, TILE_W, KERNEL)
    largest = tl.full([TILE_H * TILE_W], float("-inf"), tl.float32)
    total = tl.zeros([TILE_H * TILE_W], tl.float32)
    acc = tl.zeros([TILE_H * TILE_W, BLOCK_D], tl.float32)
    for start in range(0, rows * cols, BLOCK_N):
        key_y, key_x, y, x, inside = _block(start, key_top, key_left, rows, cols, class_y, class_x, dilation, BLOCK_N)
        key = _load(k + image * k_b + head * HEAD_DIM, y, x, k_y, k_x, inside, HEAD_DIM, BLOCK_D)
        value = _load(v + image * v_b + head * HEAD_DIM, y, x, v_y, v_x, inside, HEAD_DIM, BLOCK_D)
        seen = inside[None, :] & _sees(
            query_y[:, None], query_x[:, None], key_y[None, :], key_x[None, :], length_y, length_x, KERNEL
        )
        logits = _logits(
            query, key, bias, head, key_y[None, :], key_x[None, :], query_y[:, None], query_x[:, None], scale,
            KERNEL, HAS_BIAS, PRECISION,
        )  # fmt: skip
        logits = tl.where(seen, logits, float("-inf"))
        grown = tl.maximum(largest, tl.max(logits, 1))
        # Rows that have seen no key yet: zero instead of infinity minus infinity.
        finite = tl.where(grown == float("-inf"), 0.0, grown)
        weights = tl.exp2(logits - finite[:, None])
        shrink = tl.exp2(largest - finite)
        total = total * shrink + tl.sum(weights, 1)
        acc = tl.dot(weights.to(value.dtype), value, acc * shrink[:, None], input_precision=PRECISION)
        largest = grown
    channels = heads * HEAD_DIM
    at = out + image * height * width * channels + head * HEAD_DIM
    _store(at, row, col, width, channels, exists, acc / total[:, None], HEAD_DIM, BLOCK_D)
    at = lse + (image * heads + head) * height * width
    tl.store(at + row * width + col, largest + tl.log2(total), exists)


@triton.jit(do_not_specialize=_SIZES)
def _grad_query_kernel(
    grad_out, q, k, v, bias, out, lse, delta, grad_q, scale, height, width, heads, dilation,
    g_b, g_y, g_x, q_b, q_y, q_x, k_b, k_y, k_x, v_b, v_y, v_x,
    KERNEL: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    BLOCK_N: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a tile of queries; leaves `delta`, the product of each output with its gradient, for the other kernels."""
    image, head, class_y, class_x, length_y, length_x, top, left = _locate(
        tl.program_id(0), height, width, heads, dilation, TILE_H, TILE_W
    )
    if (top >= length_y) | (left >= length_x):
        return
    query_y, query_x, row, col, exists = _tile(
        top, left, length_y, length_x, class_y, class_x, dilation, TILE_H, TILE_W
    )
    query = _load(q + image * q_b + head * HEAD_DIM, row, col, q_y, q_x, exists, HEAD_DIM, BLOCK_D)
    grad = _load(grad_out + image * g_b + head * HEAD_DIM, row, col, g_y, g_x, exists, HEAD_DIM, BLOCK_D)
    channels = heads * HEAD_DIM
    map_at = image * height * width * channels + head * HEAD_DIM
    result = _load(out + map_at, row, col, width * channels, channels, exists, HEAD_DIM, BLOCK_D)
    product = tl.sum(grad.to(tl.float32) * result.to(tl.float32), 1)
    pixel = (image * heads + head) * height * width + row * width + col
    tl.store(delta + pixel, product, exists)
    norm = tl.load(lse + pixel)

    key_top, rows = _keys_of(top, length_y, TILE_H, KERNEL)
    key_left, cols = _keys_of(left, length_x, TILE_W, KERNEL)
    acc = tl.zeros([TILE_H * TILE_W, BLOCK_D], tl.float32)
    for start in range(0, rows * cols, BLOCK_N):
        key_y, key_x, y, x, inside = _block(start, key_top, key_left, rows, cols, class_y, class_x, dilation, BLOCK_N)
        key = _load(k + image * k_b + head * HEAD_DIM, y, x, k_y, k_x, inside, HEAD_DIM, BLOCK_D)
        value = _load(v + image * v_b + head * HEAD_DIM, y, x, v_y, v_x, inside, HEAD_DIM, BLOCK_D)
        seen = inside[None, :] & _sees(
            query_y[:, None], query_x[:, None], key_y[None, :], key_x[None, :], length_y, length_x, KERNEL
        )
        logits = _logits(
            query, key, bias, head, key_y[None, :], key_x[None, :], query_y[:, None], query_x[:, None], scale,
            KERNEL, HAS_BIAS, PRECISION,
        )  # fmt: skip
        weights = tl.where(seen, tl.exp2(logits - norm[:, None]), 0.0)
        grad_logits = weights * (tl.dot(grad, tl.trans(value), input_precision=PRECISION) - product[:, None])
        acc = tl.dot(grad_logits.to(key.dtype), key, acc, input_precision=PRECISION)
    _store(grad_q + map_at, row, col, width, channels, exists, acc * scale, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=_SIZES)
def _grad_key_value_kernel(
    grad_out, q, k, v, bias, lse, delta, grad_k, grad_v, scale, height, width, heads, dilation,
    g_b, g_y, g_x, q_b, q_y, q_x, k_b, k_y, k_x, v_b, v_y, v_x,
    KERNEL: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, TILE_H: tl.constexpr, TILE_W: tl.constexpr,
    BLOCK_N: tl.constexpr, HAS_BIAS: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Of a tile of keys, over the rectangle of queries whose windows reach it."""
    image, head, class_y, class_x, length_y, length_x, top, left = _locate(
        tl.program_id(0), height, width, heads, dilation, TILE_H, TILE_W
    )
    if (top >= length_y) | (left >= length_x):
        return
    key_y, key_x, row, col, exists = _tile(top, left, length_y, length_x, class_y, class_x, dilation, TILE_H, TILE_W)
    key = _load(k + image * k_b + head * HEAD_DIM, row, col, k_y, k_x, exists, HEAD_DIM, BLOCK_D)
    value = _load(v + image * v_b + head * HEAD_DIM, row, col, v_y, v_x, exists, HEAD_DIM, BLOCK_D)

    query_top, rows = _queries_of(top, length_y, TILE_H, KERNEL)
    query_left, cols = _queries_of(left, length_x, TILE_W, KERNEL)
    pixels = (image * heads + head) * height * width
    acc_k = tl.zeros([TILE_H * TILE_W, BLOCK_D], tl.float32)
    acc_v = tl.zeros([TILE_H * TILE_W, BLOCK_D], tl.float32)
    for start in range(0, rows * cols, BLOCK_N):
        query_y, query_x, y, x, inside = _block(
            start, query_top, query_left, rows, cols, class_y, class_x, dilation, BLOCK_N
        )
        query = _load(q + image * q_b + head * HEAD_DIM, y, x, q_y, q_x, inside, HEAD_DIM, BLOCK_D)
        grad = _load(grad_out + image * g_b + head * HEAD_DIM, y, x, g_y, g_x, inside, HEAD_DIM, BLOCK_D)
        norm = tl.load(lse + pixels + y * width + x, inside, other=0.0)
        product = tl.load(delta + pixels + y * width + x, inside, other=0.0)
        seen = inside[None, :] & _sees(
            query_y[None, :], query_x[None, :], key_y[:, None], key_x[:, None], length_y, length_x, KERNEL
        )
        logits = _logits(
            key, query, bias, head, key_y[:, None], key_x[:, None], query_y[None, :], query_x[None, :], scale,
            KERNEL, HAS_BIAS, PRECISION,
        )  # fmt: skip
        weights = tl.where(seen, tl.exp2(logits - norm[None, :]), 0.0)
        acc_v = tl.dot(weights.to(grad.dtype), grad, acc_v, input_precision=PRECISION)
        grad_logits = weights * (tl.dot(value, tl.trans(grad), input_precision=PRECISION) - product[None, :])
        acc_k = tl.dot(grad_logits.to(query.dtype), query, acc_k, input_precision=PRECISION)
    channels = heads * HEAD_DIM
    map_at = image * height * width * channels + head * HEAD_DIM
    _store(grad_k + map_at, row, col, width, channels, exists, acc_k * scale, HEAD_DIM, BLOCK_D)
    _store(grad_v + map_at, row, col, width, channels, exists, acc_v, HEAD_DIM, BLOCK_D)


@triton.jit(do_not_specialize=_SIZES)
def _grad_bias_kernel(
    grad_out, q, k, v, bias, lse, delta, partial, scale, batch, height, width, heads, dilation,
    g_b, g_y, g_x, q_b, q_y, q_x, k_b, k_y, k_x, v_b, v_y, v_x,
    KERNEL: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, TILE_W: tl.constexpr, BLOCK_N: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Of one row of a head's table, over a share of the queries.

    The row fixes how many rows of the class lie between query and key. So stretches of TILE_W queries of one row meet
    stretches of BLOCK_N keys of another, from KERNEL - 1 further left on, and the difference of their indices is the
    table's column: gradients of all stretches are added up in place, and along the diagonals at the end.
    """
    SIDE: tl.constexpr = 2 * KERNEL - 1
    program = tl.program_id(0)
    table_row, head, share = program % SIDE, program // SIDE % heads, program // SIDE // heads
    shares = tl.num_programs(0) // SIDE // heads
    step = table_row - (KERNEL - 1)
    query_place, key_place = tl.arange(0, TILE_W), tl.arange(0, BLOCK_N)
    table_col = key_place[None, :] - query_place[:, None]
    in_table = (table_col >= 0) & (table_col < SIDE)
    added = tl.load(bias + head * SIDE * SIDE + table_row * SIDE + table_col, in_table, other=0.0).to(tl.float32)

    classes_y, classes_x = tl.minimum(dilation, height), tl.minimum(dilation, width)
    stretches = tl.cdiv(tl.cdiv(width, dilation), TILE_W)
    acc = tl.zeros([TILE_W, BLOCK_N], tl.float32)
    for item in range(share, batch * classes_y * classes_x * stretches, shares):
        left, rest = item % stretches * TILE_W, item // stretches
        class_x, rest = rest % classes_x, rest // classes_x
        class_y, image = rest % classes_y, (rest // classes_y).to(tl.int64)
        length_y, length_x = (height - 1 - class_y) // dilation + 1, (width - 1 - class_x) // dilation + 1
        query_x, key_x = left + query_place, left + key_place - (KERNEL - 1)
        query_inside, key_inside = query_x < length_x, (key_x >= 0) & (key_x < length_x)
        window = _first(query_x, length_x, KERNEL)[:, None]
        seen = (key_x[None, :] >= window) & (key_x[None, :] < window + KERNEL)
        seen = seen & query_inside[:, None] & key_inside[None, :]
        query_col, key_col = query_x * dilation + class_x, key_x * dilation + class_x

        # Away from the border, windows reach KERNEL // 2 far; further only those that are moved inside.
        far = tl.abs(step)
        number = tl.maximum(tl.where(far <= KERNEL // 2, length_y, tl.minimum(length_y, KERNEL)) - far, 0)
        number = tl.where(left < length_x, number, 0)
        begin = tl.where(step < 0, length_y - number, 0)
        pixels = (image * heads + head) * height * width
        for query_y in range(begin, begin + number):
            row = query_y * dilation + class_y
            key_row = (query_y + step) * dilation + class_y
            query = _load(q + image * q_b + head * HEAD_DIM, row, query_col, q_y, q_x, query_inside, HEAD_DIM, BLOCK_D)
            grad = _load(
                grad_out + image * g_b + head * HEAD_DIM, row, query_col, g_y, g_x, query_inside, HEAD_DIM, BLOCK_D
            )
            key = _load(k + image * k_b + head * HEAD_DIM, key_row, key_col, k_y, k_x, key_inside, HEAD_DIM, BLOCK_D)
            value = _load(v + image * v_b + head * HEAD_DIM, key_row, key_col, v_y, v_x, key_inside, HEAD_DIM, BLOCK_D)
            norm = tl.load(lse + pixels + row * width + query_col, query_inside, other=0.0)
            product = tl.load(delta + pixels + row * width + query_col, query_inside, other=0.0)
            logits = tl.dot(query, tl.trans(key), input_precision=PRECISION) * (scale * _LOG2_E) + added * _LOG2_E
            weights = tl.where(seen, tl.exp2(logits - norm[:, None]), 0.0)
            acc += weights * (tl.dot(grad, tl.trans(value), input_precision=PRECISION) - product[:, None])
    at = partial + ((share * heads + head) * SIDE + table_row) * SIDE
    for col in range(SIDE):
        tl.store(at + col, tl.sum(tl.where(table_col == col, acc, 0.0)))


@dataclass(frozen=True)
class _Launch:
    """Shape and resources of a kernel's programs: the same for launches and for `static_cases`."""

    tile: tuple[int, int]
    block_n: int
    num_warps: int = 4
    num_stages: int = 2


def _tiles(dtype: torch.dtype, head_dim: int) -> _Launch:
    """Of all kernels but `_grad_bias_kernel`: the largest without spilled registers at reasonable occupancy."""
    if dtype == torch.float32:
        # Multiplied outside of the tensor cores, in registers.
        if head_dim == 32:
            # The assembler spills 8 bytes on sm_90 with 4 warps, though registers are left.
            return _Launch((4, 4), 32, num_warps=8)
        return _Launch((4, 4), 32) if head_dim <= 64 else _Launch((4, 4), 16, num_warps=8)
    if head_dim <= 32:
        return _Launch((8, 8), 32)
    return _Launch((4, 8), 32) if head_dim <= 64 else _Launch((8, 8), 32, num_warps=8)


def _stretches(dtype: torch.dtype, head_dim: int, kernel_size: int) -> _Launch:
    """Of `_grad_bias_kernel`: keys reach from a window's width before the queries to one behind."""
    full = dtype == torch.float32
    if kernel_size <= 9:
        return _Launch((1, 16), 32, num_warps=4 if full or head_dim > 32 else 2)
    if not full:
        return _Launch((1, 16), 64)
    return _Launch((1, 16), 64, num_warps=8, num_stages=1) if head_dim <= 32 else _Launch((1, 32), 64, num_warps=8)


def _constants(launch: _Launch, kernel_size: int, head_dim: int, has_bias: bool) -> dict[str, object]:
    return {
        "KERNEL": kernel_size,
        "HEAD_DIM": head_dim,
        "BLOCK_D": max(16, triton.next_power_of_2(head_dim)),
        "TILE_H": launch.tile[0],
        "TILE_W": launch.tile[1],
        "BLOCK_N": launch.block_n,
        "HAS_BIAS": has_bias,
        "PRECISION": _dispatch.dot_precision(),
    }


def _stretch_constants(launch: _Launch, kernel_size: int, head_dim: int) -> dict[str, object]:
    constants = _constants(launch, kernel_size, head_dim, True)
    return {name: value for name, value in constants.items() if name not in ("TILE_H", "HAS_BIAS")}


def _tile_count(size: int, dilation: int, tile: int) -> int:
    """Along an axis, of all its residue classes."""
    return min(dilation, size) * triton.cdiv(triton.cdiv(size, dilation), tile)


def _programs(q: torch.Tensor, num_heads: int, dilation: int, launch: _Launch) -> tuple[int]:
    b, height, width, _ = q.shape
    tiles = _tile_count(height, dilation, launch.tile[0]) * _tile_count(width, dilation, launch.tile[1])
    return (b * num_heads * tiles,)


def _dense_channels(x: torch.Tensor) -> torch.Tensor:
    """Kernels take the other strides as they are: q, k and v are usually parts of one tensor."""
    return x if x.stride(3) == 1 else x.contiguous()


def neighborhood_attention_forward(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias_table: torch.Tensor | None,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Arguments as `neighborhood_attention`, a head of at most 128 channels.

    Returns:
        (B, H, W, C), dtype of `q`; base-2 logarithm of the softmaxes' denominators, (B, num_heads, H, W), float32.
    """
    b, height, width, channels = q.shape
    head_dim = channels // num_heads
    out = torch.empty((b, height, width, channels), dtype=q.dtype, device=q.device)
    lse = torch.empty((b, num_heads, height, width), dtype=torch.float32, device=q.device)
    if b == 0:
        return out, lse
    q, k, v = (_dense_channels(x) for x in (q, k, v))
    launch = _tiles(q.dtype, head_dim)
    with _dispatch.device_of(q):
        _forward_kernel[_programs(q, num_heads, dilation, launch)](
            q, k, v, None if bias_table is None else bias_table.contiguous(), out, lse,
            scale, height, width, num_heads, dilation,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3],
            **_constants(launch, kernel_size, head_dim, bias_table is not None),
            num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip
    return out, lse


def neighborhood_attention_backward(
    grad_out: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    bias_table: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor,
    num_heads: int,
    kernel_size: int,
    dilation: int,
    scale: float,
    learns: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k, v, (B, H, W, C) each, and of the bias table where it `learns`: else (0,).

    `out` and `lse` are what the forward pass gave.
    """
    b, height, width, channels = q.shape
    head_dim = channels // num_heads
    grad_q, grad_k, grad_v = (torch.empty(q.shape, dtype=q.dtype, device=q.device) for _ in range(3))
    if b == 0:
        learnt = bias_table.new_zeros(bias_table.shape) if bias_table is not None and learns else q.new_empty(0)
        return grad_q, grad_k, grad_v, learnt
    grad_out, q, k, v = (_dense_channels(x) for x in (grad_out, q, k, v))
    bias = None if bias_table is None else bias_table.contiguous()
    out, lse = out.contiguous(), lse.contiguous()
    delta = torch.empty_like(lse)
    sizes = (height, width, num_heads, dilation)
    strides = [stride for x in (grad_out, q, k, v) for stride in x.stride()[:3]]
    launch = _tiles(q.dtype, head_dim)
    with _dispatch.device_of(q):
        _grad_query_kernel[_programs(q, num_heads, dilation, launch)](
            grad_out, q, k, v, bias, out, lse, delta, grad_q, scale, *sizes, *strides,
            **_constants(launch, kernel_size, head_dim, bias is not None),
            num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip
        _grad_key_value_kernel[_programs(q, num_heads, dilation, launch)](
            grad_out, q, k, v, bias, lse, delta, grad_k, grad_v, scale, *sizes, *strides,
            **_constants(launch, kernel_size, head_dim, bias is not None),
            num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip
        if bias is None or not learns:
            return grad_q, grad_k, grad_v, q.new_empty(0)
        launch, side = _stretches(q.dtype, head_dim, kernel_size), 2 * kernel_size - 1
        stretches = b * _tile_count(height, dilation, height) * _tile_count(width, dilation, launch.tile[1])
        shares = max(1, min(_BIAS_PROGRAMS // (num_heads * side), stretches))
        partial = torch.empty((shares, num_heads, side, side), dtype=torch.float32, device=q.device)
        _grad_bias_kernel[(shares * num_heads * side,)](
            grad_out, q, k, v, bias, lse, delta, partial, scale, b, *sizes, *strides,
            **_stretch_constants(launch, kernel_size, head_dim),
            num_warps=launch.num_warps, num_stages=launch.num_stages,
        )  # fmt: skip
        return grad_q, grad_k, grad_v, partial.sum(0).to(bias.dtype)
